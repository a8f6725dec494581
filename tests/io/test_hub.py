"""hf:// addresses against a small server that speaks the hub's protocol; no network."""

import errno
import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from huggingface_hub import constants
from safetensors.torch import load_file

from igvg_d2 import model_zoo
from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.io import hub as hub_files
from igvg_d2.io.hub import KNOWN_SHA256, HubFile, download, find_cached, parse_address
from tests.io.hub_server import COMMIT

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "demo" / "igvg_tiny_shapes.safetensors"
HF = Path(sys.executable).with_name("hf")
ADDRESS = "hf://owner/repo/folder/weights.pth"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def one_file(hub):
    """Every test finds a file on the hub."""
    hub.files = {"models/owner/repo": {"folder/weights.pth": CONTENT}}


def known(monkeypatch, address, content):
    monkeypatch.setitem(KNOWN_SHA256, address, hashlib.sha256(content).hexdigest())


def test_addresses():
    wanted = HubFile("o-1/r.x", "a/b.pth", None, "model")
    assert parse_address("hf://o-1/r.x/a/b.pth") == wanted
    assert parse_address("hf://o-1/r.x/a/b.pth@v1.0") == wanted._replace(revision="v1.0")
    assert parse_address("hf://o-1/r.x/a/b.pth@refs/pr/1").revision == "refs/pr/1"
    data = parse_address("hf://datasets/o/r/grefs(unc).json")
    assert data == HubFile("o/r", "grefs(unc).json", None, "dataset")
    for wrong in ("hf://o/r", "hf://datasets/o/r", "hf://o/r/", "hf://o/r/../x", "hf://o//x/y"):
        with pytest.raises(ValueError, match="expected an address hf://.*found 'hf://"):
            parse_address(wrong)


def test_a_file_is_downloaded_once_through_a_redirect(hub, caplog):
    assert find_cached(ADDRESS) is None and hub.requests == []
    path = PathManager.get_local_path(ADDRESS)
    assert Path(path).read_bytes() == CONTENT
    assert len(hub.asked("GET", "storage/")) == 1
    # No hash of it is known, which is said, with the one that was found.
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert caplog.messages == [
        f"'{ADDRESS}' has SHA-256 {digest}; none is known to compare it with"
    ]
    with PathManager.open(ADDRESS, "rb") as file:
        assert file.read() == CONTENT
    assert find_cached(ADDRESS) == path and PathManager.isfile(ADDRESS)
    assert len(hub.asked("GET", "storage/")) == 1 and len(caplog.messages) == 1
    # A process asks once.
    assert len(hub.asked("HEAD", "resolve/")) == 1
    with pytest.raises(OSError, match="can be read only"):
        PathManager.open(ADDRESS, "w")


def test_data_sets_and_revisions(hub):
    hub.files["datasets/o/d"] = {"grefs(unc).json": b"[]"}
    assert Path(download("hf://datasets/o/d/grefs(unc).json@v1")).read_bytes() == b"[]"
    assert Path(download(f"{ADDRESS}@{COMMIT}")).read_bytes() == CONTENT
    with pytest.raises(FileNotFoundError, match="owner/repo has no revision 'v9'"):
        download(f"{ADDRESS}@v9")


def test_a_broken_transfer_goes_on_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.break_after = 320_000
    assert Path(download(ADDRESS)).read_bytes() == CONTENT
    first, second = hub.asked("GET", "storage/")
    assert (first[3], second[3]) == (None, "bytes=300000-")


def test_a_transfer_that_never_ends_well_is_one_message(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise huggingface_hub.errors.HfHubHTTPError("502 bad gateway", response=None)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConnectionError, match="weights.pth' was not downloaded: .*run the command"):
        download(ADDRESS)


def test_a_full_disk_is_named(hub, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fail)
    with pytest.raises(
        OSError, match="no space left in .*cache; free some, or set HF_HOME"
    ) as error:
        download(ADDRESS)
    assert error.value.errno == errno.ENOSPC and find_cached(ADDRESS) is None


def test_hashes_are_checked(hub, monkeypatch, caplog):
    known(monkeypatch, ADDRESS, CONTENT)
    path = download(ADDRESS)
    assert caplog.messages == []
    known(monkeypatch, ADDRESS, b"another one")
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {digest}, expected .*Delete") as error:
        download(ADDRESS)
    assert os.path.realpath(path) in str(error.value)


def test_a_file_that_moved_is_found_and_named(hub, caplog, monkeypatch):
    hub.files["models/owner/repo"] = {"README.md": b"", "new/place/weights.pth": CONTENT}
    known(monkeypatch, ADDRESS, CONTENT)
    path = download(ADDRESS)
    assert Path(path).read_bytes() == CONTENT
    moved = f"'{ADDRESS}' has moved: taking 'new/place/weights.pth' of its repository"
    assert caplog.messages == [moved]
    # Also from the cache, without a network.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_cached(ADDRESS) == path and download(ADDRESS) == path


def test_a_missing_file_lists_what_is_there(hub):
    hub.files["models/owner/repo"] = {"README.md": b"", "a/weights.pth": b"", "b/weights.pth": b""}
    message = "no such file.*it holds a/weights.pth, b/weights.pth, README.md. Name one"
    with pytest.raises(FileNotFoundError, match=message):
        download(ADDRESS)
    hub.files["models/owner/repo"] = {f"{i:02}.bin": b"" for i in range(30)}
    with pytest.raises(FileNotFoundError, match="it holds 00.bin, .*19.bin and 10 more"):
        download(ADDRESS)


def test_repositories_that_are_not_there_or_closed(hub, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no repository .*/other/repo, or it is private"):
        download("hf://other/repo/x.pth")
    hub.gated.add("models/owner/repo")
    with pytest.raises(FileNotFoundError, match="accept its conditions at .*/owner/repo, then run"):
        download(ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.requests.clear()
    assert Path(download(ADDRESS)).read_bytes() == CONTENT
    # The token goes to the hub, not to the host where the file lies.
    assert hub.asked("HEAD", "resolve")[0][2] == "Bearer right"
    assert [request[2] for request in hub.asked("GET", "storage/")] == [None]


def test_offline_mode_takes_what_is_cached(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not in the cache .*HF_HUB_OFFLINE is set"):
        download(ADDRESS)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = download(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert download(ADDRESS) == path and hub.requests == []


def test_without_a_network_the_cache_is_taken(hub, monkeypatch):
    path = download(ADDRESS)
    # huggingface_hub tries five times.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert download(ADDRESS) == path
    with pytest.raises(FileNotFoundError, match="http://127.0.0.1:9 cannot be reached"):
        download("hf://owner/repo/other.pth")


def test_names_are_downloaded_from_their_addresses(hub, monkeypatch, caplog):
    """Sub-folders of the released repository could not be seen: the file is found by its name."""
    hub.files["models/Dmmm997/InstanceVG"] = {"weights/InstanceVG-refzom.pth": CONTENT}
    with caplog.at_level(logging.WARNING):
        path = model_zoo.resolve_weights("instancevg-refzom")
    assert Path(path).read_bytes() == CONTENT
    assert "taking 'weights/InstanceVG-refzom.pth'" in caplog.text
    assert "has SHA-256" in caplog.text and "none is known" in caplog.text
    assert model_zoo.get("instancevg-refzom").find() == path
    hub.files["models/linhuixiao/OneRef"] = {
        "beit3_checkpoints/beit3_base_indomain_patch16_224.pth": b"another file"
    }
    with pytest.raises(
        ValueError, match="expected 6bd34b5c94c5eb8f887756db0ac6c65e0a8ecc8d55fb08e3"
    ):
        model_zoo.resolve_weights("beit3-base-indomain")
    with pytest.raises(FileNotFoundError, match="it holds .*beit3_base_indomain_patch16_224.pth"):
        model_zoo.resolve_weights("beit3-base")


def test_documented_downloads_bring_the_files_to_their_places(hub, tmp_path):
    """The lines of datasets/README.md as they stand, with small files and their hashes."""
    if not HF.exists():
        pytest.skip("the command hf is not installed beside this Python")
    blocks = re.findall(
        r"```bash\n(hf download .*?)```", (ROOT / "datasets/README.md").read_text(), re.S
    )
    commands = "".join(blocks)
    for address, digest in KNOWN_SHA256.items():
        if address.startswith("hf://datasets/"):
            file = parse_address(address)
            assert re.search(rf"hf download {file.repo} [^\n]*{re.escape(file.path)}", commands)
            assert f"--revision {file.revision}" in commands
            assert f'echo "{digest}  {file.path}" | sha256sum --check\n' in commands
            hub.files.setdefault(f"datasets/{file.repo}", {})[file.path] = address.encode()
            commands = commands.replace(digest, hashlib.sha256(address.encode()).hexdigest())
    hub.files["datasets/Dmmm997/InstanceVG_Data"] = {"annotations/grefs/instance.json": b"{}"}
    parts = {f"data/validation-0000{i}-of-00002.parquet": b"rows" for i in range(2)}
    hub.files["datasets/moondream/refcoco-m"] = parts
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("coco_1.jpg"))
    hub.files["datasets/JierunChen/Ref-L4"] = {"images.tar.gz": archive.getvalue()}
    hub.files["datasets/Wuzj/OpenRef"] = {"val.json": b"[]"}
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "DETECTRON2_DATASETS": str(tmp_path),
        "PATH": f"{HF.parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", "-euc", commands]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.count(": OK") == 2, run.stdout + run.stderr
    assert (tmp_path / "seqtr_type/annotations/grefs/instance.json").read_bytes() == b"{}"
    for name in (*(f"refcoco-m/{part}" for part in parts), "ref-l4/images/coco_1.jpg"):
        assert (tmp_path / name).is_file(), name
    assert (tmp_path / "openref/val.json").read_bytes() == b"[]"


def test_known_hashes_are_those_of_the_facts():
    assert len(KNOWN_SHA256) == 4 and all(len(value) == 64 for value in KNOWN_SHA256.values())
    assert KNOWN_SHA256[hub_files.BEIT3_TOKENIZER].startswith("6f5e2fefcf793761")
    grefs = (
        "hf://datasets/FudanCVL/gRefCOCO/grefs(unc).json@81eede59b3ac070049f597d023c0ff08d1fb80e9"
    )
    assert KNOWN_SHA256[grefs].startswith("cc37c5ff95373c78")


_SCRIPT = """
import socket
connections, connect = [], socket.socket.connect
socket.socket.connect = lambda self, to: connections.append(to) or connect(self, to)
import igvg_d2.engine
from igvg_d2 import model_zoo
model_zoo.describe()
assert connections == [], connections
cfg = model_zoo.load("hf://o/r/shapes.safetensors@v1", device="cpu")
assert connections != []
print(cfg.MODEL.WEIGHTS, cfg.INPUT.IMAGE_SIZE)
"""


def test_nothing_is_asked_at_import_and_a_config_comes_from_the_hub(hub, tmp_path):
    """HF_ENDPOINT as a user sets it, and weights by address that carry their config."""
    hub.files["models/o/r"] = {"shapes.safetensors": SHIPPED.read_bytes()}
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.endpoint}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    path, size = run.stdout.strip().split(" ", 1)
    assert Path(path).read_bytes() == SHIPPED.read_bytes() and size == "(96, 96)"
    assert path.startswith(str(tmp_path))


def test_the_checkpointer_loads_by_address(hub):
    hub.files["models/o/r"] = {"shapes.safetensors": SHIPPED.read_bytes()}
    model = build_model(model_zoo.load("shapes-tiny", device="cpu"))
    key = "backbone.text_embed.tokens.weight"
    before = model.state_dict()[key].clone()
    GroundingCheckpointer(model).load("hf://o/r/shapes.safetensors")
    assert not torch.equal(before, model.state_dict()[key])
    assert torch.equal(load_file(SHIPPED)[key], model.state_dict()[key])
