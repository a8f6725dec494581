"""The recipe of datasets/README.md, copied and pasted: from ten photographs to a prediction."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2.engine import setup_config
from igvg_d2.io.hub import BEIT3_TOKENIZER, parse_address
from igvg_d2.io.image import read_image

ROOT = Path(__file__).resolve().parents[2]
CUSTOM = sorted((ROOT / "configs/Photos").glob("*_custom.yaml"))
# One epoch instead of many, in this process; evaluation and report as in the recipe.
SHORTER = ["SOLVER.EPOCHS", "1", "TEST.EVAL_EPOCHS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.mark.parametrize("path", CUSTOM, ids=lambda path: path.stem)
def test_photographs_are_not_flipped_and_english_is_known(path):
    cfg = setup_config(str(path))
    assert (cfg.INPUT.FLIP.HORIZONTAL_PROB, cfg.INPUT.FLIP.VERTICAL_PROB) == (0.0, 0.0)
    assert cfg.INPUT.TOKENIZER.NAME == "BEiT3Tokenizer" and cfg.MODEL.BEIT3.VOCAB_SIZE >= 64002
    assert min(cfg.INPUT.IMAGE_SIZE) >= 224 and cfg.DATASETS.TRAIN == ()


@pytest.fixture
def folder(shared_dir, tmp_path, monkeypatch, hub):
    """A folder with the photographs, annotated, and what the recipe says to put there."""
    source = shared_dir / "data/coco_ref_overlap"
    coco = json.loads((source / "instances_train2014_subset.json").read_text())
    lines = (source / "refs_train2014.jsonl").read_text().splitlines()
    refs = [ref for ref in map(json.loads, lines) if ref["dataset"] != "google_refexp"]
    images = tmp_path / "my" / "images"
    images.mkdir(parents=True)
    chosen = sorted({ref["image_id"] for ref in refs})[:10]
    entries = {entry["id"]: entry for entry in coco["images"]}
    # The recipe asks about 17.jpg.
    entries[chosen[-1]]["file_name"] = "17.jpg"
    for entry in (entries[number] for number in chosen):
        shutil.copy(source / f"train2014/COCO_train2014_{entry['id']:012d}.jpg", images)
        (images / f"COCO_train2014_{entry['id']:012d}.jpg").rename(images / entry["file_name"])
    for name, numbers in (("train", chosen[:8]), ("val", chosen[8:])):
        own = [ref for n in numbers for ref in [r for r in refs if r["image_id"] == n][:3]]
        content = {key: coco[key] for key in ("annotations", "categories")}
        content["images"] = [entries[number] for number in numbers]
        content["expressions"] = [
            {"id": i, "image_id": ref["image_id"], "text": ref["sent"]}
            | {"annotation_ids": ref["ann_ids"]}
            for i, ref in enumerate(own)
        ]
        (tmp_path / "my" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    file = parse_address(BEIT3_TOKENIZER)
    content = (shared_dir / "data/beit3_spm/beit3.spm").read_bytes()
    hub.files = {f"models/{file.repo}": {file.path: content}}
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_train", "my_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def run(command):
    """``main`` of the script of a command line, in this process."""
    script, *args = shlex.split(command)[1:]
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(args + SHORTER * (script == "train_net.py"))


def test_the_recipe_as_it_stands(folder, caplog):
    recipe = (ROOT / "datasets/README.md").read_text().partition("## Your own data")[2]
    config = re.search(r"```yaml\n(.*?)```", recipe, re.DOTALL).group(1)
    (folder / "my.yaml").write_text(re.sub(r"^   ", "", config, flags=re.MULTILINE))
    block = re.search(r"```bash\n(.*?)```", recipe, re.DOTALL).group(1)
    commands = block.replace("\\\n", " ").strip().splitlines()
    assert [shlex.split(command)[1] for command in commands] == [
        "datasets/check.py", "tools/visualize_data.py", "train_net.py", "demo/demo.py"
    ]  # fmt: skip
    with caplog.at_level("WARNING", logger="igvg_d2"):
        assert run(commands[0]) == 0
        for command in commands[1:]:
            run(command)
    assert "looked at have words" not in caplog.text and "contradicts" not in caplog.text
    assert len(list((folder / "output/look").iterdir())) == 20
    answer = read_image(str(folder / "output/answer.png"), "RGB")
    assert len(np.unique(answer.reshape(-1, 3), axis=0)) > 1000
