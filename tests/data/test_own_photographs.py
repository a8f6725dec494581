"""The recipe of datasets/README.md, copied and pasted: from ten photographs to a prediction."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from igvg_d2.engine import setup_config
from igvg_d2.io.hub import BEIT3_TOKENIZER, parse_address
from igvg_d2.io.image import read_image
from tests.scripts import load_script

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
    return tmp_path


def run(command):
    """``main`` of the script of a command line, in this process."""
    script, *args = shlex.split(command)[1:]
    module = load_script(script)
    more = {
        "train_net.py": SHORTER,
        "tools/finetune.py": ["--opts"][: "--opts" not in args] + SHORTER,
    }
    return module.main(args + more.get(script, []))


def commands_of(heading):
    """Commands of each block below a heading of datasets/README.md, and what else is there."""
    text = (ROOT / "datasets/README.md").read_text().partition(f"## {heading}\n")[2]
    text = re.split("^#+ ", text, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [block.replace("\\\n", " ").strip().splitlines() for block in blocks], text


def assert_answered(folder):
    answer = read_image(str(folder / "output/answer.png"), "RGB")
    assert len(np.unique(answer.reshape(-1, 3), axis=0)) > 1000


def test_one_command_as_it_stands(folder, capsys):
    (_, commands), _ = commands_of("In one command")
    assert [shlex.split(command)[1] for command in commands] == [
        "tools/finetune.py",
        "demo/demo.py",
    ]
    for command in commands:
        run(command)
    out = capsys.readouterr().out
    assert (
        "my/train.json: 23 expressions on 8 images" in out and "output/tiny/model_best.pth" in out
    )
    assert_answered(folder)
    # The small model of Shapes begins with another vocabulary here.
    run(
        "python tools/finetune.py --model shapes-tiny --train my/train.json --images my/images "
        "--output output/words --reset backbone.text_embed.tokens --opts MODEL.BEIT3.VOCAB_SIZE "
        f"64010 INPUT.TOKENIZER.NAME BEiT3Tokenizer INPUT.TOKENIZER.FILE {BEIT3_TOKENIZER}"
    )
    assert "new: backbone.text_embed.tokens.weight\n" in capsys.readouterr().out
    assert (folder / "output/words/model_final.pth").is_file()


def test_the_recipe_as_it_stands(folder, caplog):
    (commands,), text = commands_of("With a config of your own")
    config = re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)
    (folder / "my.yaml").write_text(re.sub(r"^   ", "", config, flags=re.MULTILINE))
    assert [shlex.split(command)[1] for command in commands] == [
        "datasets/check.py", "tools/visualize_data.py", "train_net.py", "demo/demo.py"
    ]  # fmt: skip
    with caplog.at_level("WARNING", logger="igvg_d2"):
        assert run(commands[0]) == 0
        for command in commands[1:]:
            run(command)
    assert "looked at have words" not in caplog.text and "contradicts" not in caplog.text
    assert len(list((folder / "output/look").iterdir())) == 20
    assert_answered(folder)
