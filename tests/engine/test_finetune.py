"""tools/finetune.py: own data in one command."""

import json
import re
import shlex
import signal

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from igvg_d2.checkpoint import GroundingCheckpointer, read_checkpoint
from igvg_d2.engine import GroundingTrainer, setup_config, train_net
from tools import finetune as tool

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
SHORT = ["DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
SHORT += ["TEST.VIS_SAMPLES", "0"]
TOKENS = "backbone.text_embed.tokens.weight"
QUERIES = "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folder with six images, each with a square, and two files of expressions; runs from there."""
    (tmp_path / "images").mkdir()
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        content = {"images": [], "annotations": [], "categories": [], "expressions": []}
        for i in numbers:
            colour = list(COLOURS)[i % 3]
            image = np.full((40, 48, 3), 230, np.uint8)
            image[8:28, 10:30] = COLOURS[colour]
            Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
            square = [[10, 8, 30, 8, 30, 28, 10, 28]]
            entry = {"id": i, "image_id": i, "bbox": [10, 8, 20, 20], "segmentation": square}
            content["images"].append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 48})
            content["annotations"].append(entry)
            for text, ids in ((f"the {colour} square", [i]), ("the purple star", [])):
                new = {"image_id": i, "text": text, "annotation_ids": ids}
                content["expressions"].append({"id": len(content["expressions"]), **new})
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in DatasetCatalog.list() if name.endswith(("_train", "_val"))]:
        if str(tmp_path) in str(MetadataCatalog.get(name).get("annotation_file", "")):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def command(*more, model="shapes-tiny", output="run", val=True):
    """Arguments of the tool."""
    base = ["--model", model, "--train", "train.json", "--images", "images", "--output", output]
    return [*base, *(["--val", "val.json"] if val else []), *more]


def weights(path):
    return read_checkpoint(str(path))["model"]


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in {**first, **second})


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_it_trains_as_train_net_does_and_continues(own, monkeypatch, capsys):
    tool.main(command("--opts", *SHORT))
    assert "have no effect" not in (own / "run/log.txt").read_text()
    out = capsys.readouterr().out
    assert "python train_net.py --config-file run/finetune.yaml" in out
    assert (own / "run/model_best.pth").is_file()
    final = weights("run/model_final.pth")
    train_net.main(["--config-file", "run/finetune.yaml", "OUTPUT_DIR", "other"])
    assert same(weights("other/model_final.pth"), final)
    shipped = setup_config("run/finetune.yaml").MODEL.WEIGHTS
    assert not same(read_checkpoint(shipped), final)

    step = GroundingTrainer.run_step

    def interrupted(trainer):
        step(trainer)
        if trainer.iter == 2:
            signal.raise_signal(signal.SIGTERM)

    again = command("--opts", *SHORT, output="again")
    monkeypatch.setattr(GroundingTrainer, "run_step", interrupted)
    with pytest.raises(SystemExit) as end:
        tool.main(again)
    out = capsys.readouterr().out
    assert end.value.code == 75 and "the same command of tools/finetune.py continues" in out
    assert not (own / "again/model_final.pth").exists()
    monkeypatch.setattr(GroundingTrainer, "run_step", step)
    tool.main(again)
    assert "again/finetune.yaml is there and of this command" in capsys.readouterr().out
    assert same(weights("again/model_final.pth"), final)
    with pytest.raises(SystemExit, match="(?s)'again' has the checkpoints of another.*--output"):
        tool.main(command("--opts", *SHORT, "SEED", "1", output="again"))
    with pytest.raises(SystemExit, match=r"another training run \(not by this tool\)"):
        tool.main(command(output="other"))


def test_a_dry_run_writes_a_config_that_says_why(own, capsys):
    tool.main(command("--dry-run", "--opts", "SOLVER.BASE_LR", "0.003"))
    assert [path.name for path in (own / "run").iterdir()] == ["finetune.yaml"]
    out, text = capsys.readouterr().out, (own / "run/finetune.yaml").read_text()
    assert "train.json: 8 expressions on 4 images, 4 of no target" in out
    choices = re.findall(r"^([A-Z][\w.]+) (.+?): (.+)$", out, re.M)
    assert len(choices) > 15 and ("SOLVER.BASE_LR", "0.003", "as you asked") in choices
    cfg, parsed = setup_config("run/finetune.yaml"), yaml.safe_load(text)
    for key, value, reason in choices:
        node, found = parsed, cfg
        for part in key.split("."):
            node, found = node[part], getattr(found, part)
        assert str(node) == value and f"# {reason}\n" in text
        assert (list(found) if isinstance(found, tuple) else found) == node
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER) == (2, 60, 40000)
    assert cfg.MODEL.FREEZE == ["backbone."] and cfg.DATASETS.TEST == ("run_val",)
    assert cfg.DATASETS.EXPRESSION_FILES[0][1:] == [str(own / "train.json"), str(own / "images")]
    assert "DEVICE" not in text and "ROI_" not in text
    # What the user changes stays; another command writes another config.
    (own / "run/finetune.yaml").write_text(text.replace("EPOCHS: 60", "EPOCHS: 7"))
    again = shlex.split(re.search("# Command: (.*)", text)[1])
    tool.main(["--dry-run", *again[2:]])
    assert setup_config("run/finetune.yaml").SOLVER.EPOCHS == 7
    tool.main(command("--dry-run"))
    assert setup_config("run/finetune.yaml").SOLVER.EPOCHS == 60


def test_three_lines_of_python(own, monkeypatch):
    asked = []
    monkeypatch.setattr(train_net, "main", lambda *args: asked.append(args))
    path = tool.finetune("shapes-tiny", "train.json", "images")
    assert path == "output/finetune_shapes-tiny_train/finetune.yaml"
    assert asked == [(["--config-file", path, "--num-gpus", "1", "--resume"], ())]
    with pytest.raises(ValueError, match="--output decide OUTPUT_DIR"):
        tool.finetune("shapes-tiny", "train.json", "images", opts=["OUTPUT_DIR", "x"])
    with pytest.raises(ValueError, match="KEY VALUE.*does not fit"):
        tool.finetune("shapes-tiny", "train.json", "images", opts=["SEED"])
    # What the model names and the user replaces is not downloaded.
    config = str(tool.__file__).replace("tools/finetune.py", "configs/Photos/igvg_tiny_custom.yaml")
    with pytest.raises((ValueError, OSError), match="my.spm"):
        tool.finetune(config, "train.json", "images", opts=["INPUT.TOKENIZER.FILE", "my.spm"])
    with pytest.raises(ValueError, match="no.json"):
        tool.finetune("shapes-tiny", "no.json", "images", output="x")


def test_a_second_try_in_one_process_has_its_own_images(own):
    (own / "wrong").mkdir()
    with pytest.raises(ValueError, match="missing images"):
        tool.finetune("shapes-tiny", own / "train.json", own / "wrong", dry_run=True)
    with pytest.raises(ValueError, match="is taken by .*train.json' with the images in .*wrong'"):
        tool.finetune("shapes-tiny", own / "train.json", own / "images", dry_run=True)
    tool.finetune("shapes-tiny", own / "train.json", own / "images", output="b", dry_run=True)


def test_an_encoder_that_begins_anew_is_not_frozen(own):
    for name, frozen in (("backbone", []), ("", []), ("neck.", ["backbone."])):
        output = f"out{len(name)}"
        tool.main(command("--dry-run", "--reset", name, output=output, val=False))
        assert setup_config(f"{output}/finetune.yaml").MODEL.FREEZE == frozen


@pytest.mark.parametrize("more", [("--num-gpus", "0"), ("--memory", "nan"), ("--memory", "-1")])
def test_numbers_that_make_no_sense_are_refused(own, more):
    with pytest.raises(SystemExit, match="cannot fine-tune: expected 1 process or more and no mem"):
        tool.main(command("--dry-run", *more))


def test_own_weights_with_other_queries_and_words(own, capsys):
    tool.main(command("--opts", *SHORT, val=False))
    changed = [QUERIES, "12", "MODEL.BEIT3.VOCAB_SIZE", "300", *SHORT]
    model = "run/model_final.pth"
    with pytest.raises(SystemExit, match="has 10 object queries.* --resize num_queries"):
        tool.main(command("--opts", *changed, model=model, output="more"))
    some = ["--resize", "num_queries"]
    with pytest.raises(SystemExit, match=f"--resize {TOKENS}"):
        tool.main(command(*some, "--opts", *changed, model=model, output="more"))
    assert not (own / "more/finetune.yaml").exists()
    capsys.readouterr()
    tool.main(command(*some, TOKENS, "--dry-run", "--opts", *changed, model=model, output="more"))
    out = capsys.readouterr().out
    assert f"resized: {TOKENS}, 256 rows of the file's 256, 44 new" in out
    assert "resized: num_queries, 10 in the file, 12 now" in out
    start = own / "more/initial_weights.safetensors"
    assert setup_config("more/finetune.yaml").MODEL.WEIGHTS == str(start)
    old, new = weights(model), read_checkpoint(str(start))
    assert torch.equal(new[TOKENS][:256], old[TOKENS]) and len(new[TOKENS]) == 300
    assert same({**new, TOKENS: 0 * old[TOKENS]}, {**old, TOKENS: 0 * old[TOKENS]})
    # Strict from here on.
    GroundingCheckpointer(build_model(setup_config("more/finetune.yaml"))).load(str(start))
    with pytest.raises(SystemExit, match="--resize and --reset are about weights"):
        tool.main(command("--reset", "neck.", "--opts", "MODEL.WEIGHTS", "", output="none"))


def drop_image(content):
    content["images"][1]["file_name"] = "gone.png"


def wrong_size(content):
    content["images"][-1 if len(content["images"]) == 2 else 0]["height"] = 41


def wrong_record(content):
    content["expressions"][3]["annotation_ids"] = [99]


def far_box(content):
    content["annotations"][0]["bbox"] = [100, 100, 20, 20]


def no_expressions(content):
    content["expressions"] = []


def other_language(content):
    for item in content["expressions"]:
        item["text"] = "der rote Kreis"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (drop_image, "missing images: 1\n.*gone.png"),
        (wrong_size, "sizes: 1\n.*[05].png"),
        (wrong_record, "annotations: 1\n.*expression 3, field 'annotation_ids'.*annotation 99"),
        (far_box, "boxes: 1\n.*image [04], sample 0_0"),
        (no_expressions, "annotations: 1\n.*no valid expression"),
        (other_language, "unknown words, take a model .*: [48]\n.*sample 0_0.*ShapesTokenizer"),
    ],
)
def test_bad_data_end_in_one_message(own, split, spoil, message):
    rewrite(own / f"{split}.json", spoil)
    with pytest.raises(
        SystemExit, match=f"cannot fine-tune: {split}.json cannot be used.*\n.*{message}"
    ):
        tool.main(command())
    assert not (own / "run/finetune.yaml").exists()


def test_what_nobody_would_notice_is_told(own, capsys):
    def twelve(content):
        content["expressions"] = [e for e in content["expressions"] if e["annotation_ids"]]
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": i} for i in range(100, 112)]
        content["expressions"][0]["annotation_ids"] = list(range(100, 112))

    rewrite(own / "train.json", twelve)
    tool.main([*command("--dry-run", val=False)])
    out = capsys.readouterr().out
    assert "note: every expression has a target" in out and "note: without --val" in out
    assert "12 targets, the model finds 10 at most: --resize num_queries" in out
    assert f"--opts {QUERIES} 12" in out
    tool.main([*command("--dry-run", val=False, output="b"), "--val", "train.json"])
    assert "note: 4 images are in both --val and --train" in capsys.readouterr().out
