"""Files of the Hugging Face hub by address, for everything that opens files by ``PathManager``.

``hf://owner/repo/path/file[@revision]``, and ``hf://datasets/owner/repo/...`` for data sets, go
through huggingface_hub: its cache, its progress bar, its offline mode (HF_HUB_OFFLINE), its tokens.
"""

import errno
import glob
import hashlib
import logging
import os
import re
from typing import IO, Any, Dict, List, NamedTuple, Optional

from detectron2.utils.file_io import PathHandler, PathManager

logger = logging.getLogger(__name__)

# The tokenizer of BEiT-3, as another model of the same authors has it.
BEIT3_TOKENIZER = "hf://microsoft/trocr-small-printed/sentencepiece.bpe.model"
BEIT3_INDOMAIN = "hf://linhuixiao/OneRef/beit3_checkpoints/beit3_base_indomain_patch16_224.pth"
_AT = "@81eede59b3ac070049f597d023c0ff08d1fb80e9"
_GREFS = f"hf://datasets/FudanCVL/gRefCOCO/grefs(unc).json{_AT}"
_INSTANCES = f"hf://datasets/FudanCVL/gRefCOCO/instances.json{_AT}"
KNOWN_SHA256 = {
    BEIT3_TOKENIZER: "6f5e2fefcf793761a76a6bfb8ad35489f9c203b25557673284b6d032f41043f4",
    BEIT3_INDOMAIN: "6bd34b5c94c5eb8f887756db0ac6c65e0a8ecc8d55fb08e3099e8f55838c1818",
    _GREFS: "cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366",
    _INSTANCES: "7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd",
}

_ADDRESS = re.compile(r"hf://(datasets/)?((?!datasets/)[\w.-]+/[\w.-]+)/([^@]+)(?:@([^@]+))?")
_LISTED_FILES = 20


class HubFile(NamedTuple):
    """Parts of an address: "owner/repo", path in it, revision or None, "model" or "dataset"."""

    repo: str
    path: str
    revision: Optional[str]
    kind: str


def parse_address(address: str) -> HubFile:
    """Take an address apart.

    Raises:
        ValueError: it has another form than ``hf://[datasets/]owner/repo/path/file[@revision]``.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or {"", ".", ".."}.intersection(match.group(3).split("/")):
        raise ValueError(
            "expected an address hf://[datasets/]owner/repo/path/file[@revision], found "
            f"'{address}'"
        )
    datasets, repo, path, revision = match.groups()
    return HubFile(repo, path, revision, "dataset" if datasets else "model")


def download(address: str) -> str:
    """Local path of a file of the hub, which is downloaded unless the newest is in the cache.

    A file that has moved to another folder of its repository is found by its name. A known SHA-256
    (`KNOWN_SHA256`) is checked; where none is known, that is logged after a download.

    Raises:
        ValueError: the address has another form, or the file another SHA-256.
        FileNotFoundError: there is no such repository, revision or file, it needs a licence or a
            token, or the hub cannot be reached; says what the repository holds, or what to do.
        OSError: the transfer broke off, or the disk is full.
    """
    file = parse_address(address)
    cached = find_cached(address)
    try:
        path = _fetch(address, file, cached)
    except Exception as error:
        # An error without advice, of many classes of the hub's and the HTTP library's own.
        raise _explain(address, error) from error
    if path is None:
        raise FileNotFoundError(_describe_missing(address, file))
    known = KNOWN_SHA256.get(address)
    if known is not None or path != cached:
        _check_sha256(address, path, known)
    return path


def find_cached(address: str) -> Optional[str]:
    """Local path of a file of the hub if it is in the cache already; asks nobody."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    file = parse_address(address)
    found = try_to_load_from_cache(
        file.repo, file.path, revision=file.revision, repo_type=file.kind
    )
    if isinstance(found, str):
        return found
    # Under another folder, if it has moved.
    cache = os.path.join(
        constants.HF_HUB_CACHE, repo_folder_name(repo_id=file.repo, repo_type=file.kind)
    )
    commit = os.path.join(cache, "refs", file.revision or "main")
    if not os.path.isfile(commit):
        return None
    with open(commit, encoding="utf-8") as reference:
        snapshot = os.path.join(cache, "snapshots", reference.read().strip())
    pattern = os.path.join(glob.escape(snapshot), "**", glob.escape(os.path.basename(file.path)))
    return next(iter(glob.glob(pattern, recursive=True)), None)


def file_sha256(path: str) -> str:
    """SHA-256 of a file as 64 hexadecimal digits; the path is as ``PathManager`` takes it."""
    digest = hashlib.sha256()
    with PathManager.open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _fetch(address: str, file: HubFile, cached: Optional[str]) -> Optional[str]:
    """Path of the file, also where it has moved; None if the repository has no file of its name."""
    # Late: it takes a second, and most commands download nothing.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    where = {"revision": file.revision, "repo_type": file.kind}
    try:
        return hf_hub_download(file.repo, file.path, **where)
    except LocalEntryNotFoundError:
        if cached is None:
            raise
        return cached
    except EntryNotFoundError:
        name = os.path.basename(file.path)
        moved = [path for path in _list_files(file) if os.path.basename(path) == name]
        if len(moved) != 1:
            return None
        logger.warning("'%s' has moved: taking '%s' of its repository", address, moved[0])
        return hf_hub_download(file.repo, moved[0], **where)


def _list_files(file: HubFile) -> List[str]:
    """Paths of all files in the repository."""
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(file.repo, revision=file.revision, repo_type=file.kind)


def _describe_missing(address: str, file: HubFile) -> str:
    """What the repository holds instead, of the same kind first."""
    ending = os.path.splitext(file.path)[1]
    found = sorted(_list_files(file), key=lambda path: (not path.endswith(ending), path))
    shown = ", ".join(found[:_LISTED_FILES]) or "no file"
    more = f" and {len(found) - _LISTED_FILES} more" if len(found) > _LISTED_FILES else ""
    return (
        f"'{address}': its repository has no such file, and not exactly one of its name in another "
        f"folder; it holds {shown}{more}. Name one of these by hf://."
    )


def _explain(address: str, error: Exception) -> OSError:
    """The error to raise for one of huggingface_hub's, with what to do."""
    from huggingface_hub import constants, utils

    file = parse_address(address)
    page = f"{constants.ENDPOINT}/{'datasets/' if file.kind == 'dataset' else ''}{file.repo}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, utils.GatedRepoError):
        advice = f"accept its conditions at {page}, then run 'hf auth login'"
    elif isinstance(error, utils.RepositoryNotFoundError):
        advice = f"there is no repository {page}, or it is private: then run 'hf auth login'"
    elif isinstance(error, utils.RevisionNotFoundError):
        advice = f"{page} has no revision '{file.revision}'"
    elif isinstance(error, utils.LocalEntryNotFoundError):
        advice = (
            f"it is not in the cache ({constants.HF_HUB_CACHE}), and {constants.ENDPOINT} cannot "
            "be reached or HF_HUB_OFFLINE is set; download it where there is a network and copy "
            "the cache, or name a local file"
        )
    elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        advice = f"no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HOME elsewhere"
        return OSError(errno.ENOSPC, f"'{address}' was not downloaded: {advice}")
    else:
        advice = f"{reason}; run the command again"
        return ConnectionError(f"'{address}' was not downloaded: {advice}")
    return FileNotFoundError(f"'{address}' was not downloaded: {advice}")


def _check_sha256(address: str, path: str, known: Optional[str]) -> None:
    """Compare the content with the known hash, or say that none is known."""
    found = file_sha256(path)
    if known is None:
        logger.warning("'%s' has SHA-256 %s; none is known to compare it with", address, found)
    elif found != known:
        raise ValueError(
            f"'{address}' has SHA-256 {found}, expected {known}: the download is damaged, or the "
            f"file on the hub is another one now. Delete {os.path.realpath(path)} to download it "
            "again, or name a file of your own"
        )


class HubPathHandler(PathHandler):
    """``PathManager`` for ``hf://``: files are downloaded when they are opened or asked for.

    The hub is asked once in a process for each address.
    """

    def __init__(self) -> None:
        super().__init__()
        self._paths: Dict[str, str] = {}

    def _get_supported_prefixes(self) -> List[str]:
        return ["hf://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        if force or not os.path.isfile(self._paths.get(path, "")):
            self._paths[path] = download(path)
        return self._paths[path]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        if mode not in ("r", "rb"):
            raise OSError(f"'{path}': files of the hub can be read only, not opened as '{mode}'")
        return open(self._get_local_path(path), mode, buffering, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        """True, or the error that says why not and what is there instead."""
        return os.path.isfile(self._get_local_path(path))

    _exists = _isfile


HANDLER = HubPathHandler()
PathManager.register_handler(HANDLER)
