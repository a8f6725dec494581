"""demo.py: every answer has a file of its own, nothing is lost, and a bad image is not the end."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode

from igvg_d2.data.datasets import load_expressions
from igvg_d2.io.image import read_image

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "demo" / "images" / "scene.jpg"
CROSS, NOTHING = "the orange cross", "the green circle"


@pytest.fixture(scope="module")
def predictor(demo):
    return demo.load_predictor(demo.parse_args(["--expression", "x"]))


@pytest.fixture
def run(demo, predictor, monkeypatch, tmp_path):
    """``main`` of arguments with the model loaded once; the message of its exit, or ""."""
    monkeypatch.setattr(demo, "load_predictor", lambda args, add_config: predictor)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        try:
            demo.main(list(map(str, arguments)))
        except SystemExit as error:
            return error.code
        return ""

    return call


def copy(*paths):
    """The scene under other names."""
    image = Image.open(SCENE)
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def hashes(*paths):
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_every_answer_has_its_own_name(run, tmp_path):
    copy("a/x.png", "b/x.png", "b/X.bmp")
    assert run("--input", "a", "b", "-e", CROSS, "-e", NOTHING, CROSS, "--output", "out") == ""
    cross, nothing = "the_orange_cross", "the_green_circle"
    first = [f"x_{cross}.png", f"x_{nothing}.png", f"x_{cross}_2.png"]
    # On some systems X.png is x.png.
    second = [f"X_{cross}_3.png", f"X_{nothing}_2.png", f"X_{cross}_4.png"]
    third = [f"x_{cross}_5.png", f"x_{nothing}_3.png", f"x_{cross}_6.png"]
    assert names("out") == sorted(first + second + third)


def test_no_input_is_overwritten(run, tmp_path):
    copy("q.png", "r.png", "r_2.png")
    os.link("r.png", "q_2.png")
    os.symlink("q.png", "r_3.png")
    Path("coco.json").write_text('["the orange cross"]')
    inputs = ["q.png", "r.png", "r_2.png", "coco.json"]
    before = hashes(*inputs)
    arguments = ("--input", *inputs[:3], "--expressions-file", "coco.json", "--output", ".")
    assert run(*arguments, "--save", "overlay,coco") == ""
    assert hashes(*inputs) == before == hashes("r_3.png", "q_2.png", "r_2.png", "coco.json")
    assert {"q_3.png", "r_4.png", "r_2_2.png", "coco_2.json"} < set(names("."))
    message = run("--input", "q.png", "-e", CROSS, "--output", "./q.png")
    assert "./q.png' is an input" in message and hashes(*inputs) == before


def test_a_bad_image_is_reported_and_the_rest_goes_on(run, capsys):
    copy("a.png", "c.png")
    Path("b.png").write_bytes(b"<html>")
    inputs = ["a.png", "b.png", "absent.png", "c.png"]
    message = run("--input", *inputs, "-e", CROSS, NOTHING, "--output", "out")
    assert message == "demo.py: 2 of 4 images could not be read: b.png, absent.png"
    assert len(names("out")) == 4
    told = capsys.readouterr().err
    assert "cannot decode the image 'b.png'" in told and "'absent.png' does not exist" in told
    assert "a.png: 'the orange cross': 1 target; box (" in told and "no target (score " in told


def test_an_address_that_does_not_answer_is_a_bad_image(run, capsys):
    copy("a.png")
    address = "http://127.0.0.1:9/x.png"
    message = run("--input", address, "a.png", "-e", CROSS, "--output", "out")
    assert message == f"demo.py: 1 of 2 images could not be read: {address}"
    assert f"image '{address}' was not downloaded" in capsys.readouterr().err
    assert names("out") == ["a.png"]


def test_what_the_model_refuses_is_not_said_of_the_image(run, predictor, monkeypatch):
    def refuse(*_):
        raise ValueError("the size does not fit")

    copy("a.png", "b.png")
    monkeypatch.setattr(predictor.model, "preprocess_image", refuse)
    message = run("--input", "a.png", "b.png", "-e", CROSS, "--output", "out")
    assert message == "demo.py: the size does not fit"


def test_lines_of_json_through_pipes():
    """The whole script in a process of its own: names in, lines out, nothing else among them."""
    command = [sys.executable, str(ROOT / "demo/demo.py"), "--input", "-", "--output", "-"]
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    run = subprocess.run(
        [*command, "--expression", CROSS, NOTHING],
        **dict(env=env, capture_output=True, text=True, input=f"{SCENE}\nabsent.png\n"),
    )
    assert run.returncode == 1, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(answer["path"], answer["expression"]) for answer in answers] == [
        (str(SCENE), CROSS),
        (str(SCENE), NOTHING),
    ]
    assert [answer["no_target"] for answer in answers] == [False, True]
    assert run.stderr.endswith("demo.py: 1 of 2 images could not be read: absent.png\n")


def test_an_image_through_a_pipe(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=open(SCENE, "rb")))
    assert run("--input", "-", "-e", CROSS, "--output", "-") == ""
    assert json.loads(capsys.readouterr().out)["path"] == "-"
    assert names(".") == []


def test_one_file_for_one_answer(run, predictor):
    for name, save in (("new/answer.PNG", "overlay"), ("panels.jpg", "panels")):
        assert run("--input", SCENE, "-e", CROSS, "--output", name, "--save", save) == ""
    drawn = predictor(str(SCENE), CROSS).plot()
    assert (read_image("new/answer.PNG", "RGB") == drawn).all()
    assert read_image("panels.jpg", "RGB").shape[1] > 1000
    for arguments in (["-e", CROSS, "b"], ["-e", CROSS, "--save", "json"]):
        assert "is one file, for one answer" in run(
            "--input", SCENE, *arguments, "--output", "a.png"
        )


def test_what_is_saved(run, predictor):
    kinds = "overlay,panels,json,masks,coco,label-studio"
    copy("photos/a.png", "photos/in/b.png")
    asked = ["-e", CROSS, NOTHING, "--save", kinds]
    assert run("--input", "photos/**/*.png", *asked, "--output", "out") == ""
    result = predictor("photos/a.png", CROSS)
    stem = "out/a_the_orange_cross"
    assert (read_image(f"{stem}.png", "RGB") == result.plot()).all()
    assert read_image(f"{stem}_panels.png", "RGB").shape[1] > 1000
    answer = json.loads(Path(f"{stem}.json").read_text())
    assert answer["boxes"] == pytest.approx(result.boxes, abs=0.01)
    assert (answer["path"], answer["no_target"]) == ("photos/a.png", False)
    assert answer["masks"] == json.loads(result.to_json())["masks"]
    for name, mask in ((f"{stem}_mask", result.mask), (f"{stem}_mask_1", result.masks[0])):
        assert (np.asarray(Image.open(f"{name}.png")) == np.where(mask, 255, 0)).all()
    nothing = "out/a_the_green_circle_mask"
    assert not np.asarray(Image.open(f"{nothing}.png")).any()
    assert not os.path.exists(f"{nothing}_1.png")
    assert len(names("out")) == 4 * 4 + 2 + 2


def test_coco_names_files_of_addresses_as_paths(run, tmp_path, capsys):
    copy("in/a.png", "in/b/c.png")
    inputs = [(tmp_path / "in/a.png").as_uri(), "in/b/c.png"]
    assert run("--input", *inputs, "-e", CROSS, "--output", "out", "--save", "coco") == ""
    assert f"; its images are in '{tmp_path / 'in'}'" in capsys.readouterr().err
    images = json.loads(Path("out/coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "b/c.png"]


def test_coco_is_a_data_set_of_ones_own(run, predictor, capsys):
    copy("photos/a.png", "photos/in/b.png")
    asked = ["-e", CROSS, NOTHING, "--save", "coco"]
    assert run("--input", "photos", "photos/in", *asked, "--output", "out") == ""
    assert names("out") == ["coco.json"]
    assert "its images are in '" in capsys.readouterr().err
    samples = load_expressions("out/coco.json", "photos")
    assert [sample["expression"] for sample in samples] == [CROSS, NOTHING] * 2
    assert [len(sample["annotations"]) for sample in samples] == [1, 0, 1, 0]
    assert samples[2]["file_name"] == "photos/in/b.png"
    (mask,) = predictor("photos/a.png", CROSS).masks
    segmentation = samples[0]["annotations"][0]["segmentation"]
    assert (decode(segmentation) == mask).all()
    coco = COCO("out/coco.json")
    assert len(coco.getImgIds()) == 2 and (coco.annToMask(coco.anns[1]) == mask).all()


def test_label_studio_tasks(run):
    assert run("--input", SCENE, "-e", CROSS, NOTHING, "--save", "label-studio") == ""
    tasks = json.loads(Path("output/demo/label_studio.json").read_text())
    assert [len(task["predictions"][0]["result"]) for task in tasks] == [1, 0]
    assert {task["data"]["image"] for task in tasks} == {str(SCENE)}


def test_questions_of_single_images(run):
    copy("photos/a.png", "photos/b.png", "photos/c.png")
    table = (
        "image,expression\na.png,the orange cross\nb.png,the green circle\na.png,the purple cross\n"
    )
    Path("photos/q.csv").write_text(table)
    assert run("--expressions-file", "photos/q.csv", "--output", "out") == ""
    expected = ["a_the_orange_cross.png", "a_the_purple_cross.png", "b.png"]
    assert names("out") == expected
    assert run("--input", "photos", "--expressions-file", "photos/q.csv", "--output", "out2") == ""
    assert names("out2") == expected


def test_images_without_a_question_are_said(run, capsys):
    copy("a.png", "b.png")
    Path("q.json").write_text(json.dumps([{"image": "a.png", "expression": CROSS}]))
    assert run("--input", "a.png", "b.png", "--expressions-file", "q.json", "--output", "o") == ""
    assert "1 images have no expression: b.png" in capsys.readouterr().err


def test_thresholds(run, capsys):
    def lines(*options):
        assert run("--input", SCENE, "-e", CROSS, "--output", "-", *options) == ""
        return json.loads(capsys.readouterr().out)

    assert not lines("--confidence-threshold", 0.3)["no_target"]
    assert lines("--threshold", 0.9999)["no_target"]
    assert lines("--no-target-threshold", 1e-9)["no_target"]
    assert lines("--mask-threshold", 0.1)["mask"] != lines("--mask-threshold", 0.9)["mask"]
    message = run("--input", SCENE, "-e", CROSS, "--threshold", 2)
    assert message.startswith("demo.py: threshold")


def test_expressions_are_looked_at_first(run, capsys):
    assert "'...' has no token" in run("--input", SCENE, "-e", CROSS, "...", "--output", "out")
    assert not os.path.exists("out")
    text = f"the purple zebra {'and the red star ' * 20}"
    assert run("--input", SCENE, "-e", text, "--output", "-") == ""
    told = capsys.readouterr().err
    assert re.search("'zebra' in 'the purple .*': unknown to the tokenizer", told)
    assert "83 tokens and is cut after 38" in told and "the red' is read, 'star and" in told


def test_largest_image(run, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("1", (300, 200)).save("large.png")
    arguments = ("--input", "large.png", "-e", CROSS, "--output", "out", "--max-pixels")
    assert run(*arguments, 59_998) == "demo.py: 1 of 1 images could not be read: large.png"
    assert run(*arguments, 60_000) == ""


def test_answers_come_in_batches_and_an_image_is_read_for_each_once(
    demo, predictor, run, monkeypatch
):
    copy(*(f"in/{i}.png" for i in range(4)))
    batches, bars, read, drawn = [], [], [], []
    tqdm, answer_files = demo.tqdm, sys.modules["answers"]
    read_image, to_rgb = predictor._mapper.read_image, answer_files.to_rgb

    def count(images, expressions, **options):
        batches.append([f"{path[3]}{text}" for path, text in zip(images, expressions)])
        return predictor(images, expressions, **options)

    def bar(**options):
        bars.append(tqdm(**options))
        return bars[-1]

    count.cfg = predictor.cfg
    monkeypatch.setattr(predictor._mapper, "read_image", lambda p: read.append(p) or read_image(p))
    monkeypatch.setattr(answer_files, "to_rgb", lambda p: drawn.append(p) or to_rgb(p))
    monkeypatch.setattr(demo, "load_predictor", lambda args, add_config: count)
    monkeypatch.setattr(demo, "tqdm", bar)
    Path("in/1.png").write_bytes(b"")
    asked = ["-e", *"abc", "--output", "out", "--batch-size", 4, "--save"]
    assert "1 of 4 images could not be read: in/1.png" in run("--input", "in", *asked, "overlay")
    assert [" ".join(batch) for batch in batches] == [
        *("0a 0b 0c 1a", "0a 0b 0c", "1a"),  # the first has an image that cannot be read
        *("2a 2b 2c 3a", "3b 3c"),
    ]
    assert [path[3] for path in drawn] == ["0", "2", "3"]
    assert len(bars) == 1 and bars[0].total == 9
    assert [path[3] for path in read] == ["0", "1", "0", "1", "2", "3", "3"]
    assert "1 of 4" in run("--input", "in", *asked, "json") and len(drawn) == 3


def test_an_interrupt_keeps_what_was_answered(demo, predictor, run, monkeypatch):
    copy("a.png", "b.png")

    def interrupted(images, expressions, **options):
        if expressions == [NOTHING]:
            raise KeyboardInterrupt
        return predictor(images, expressions, **options)

    interrupted.cfg = predictor.cfg
    monkeypatch.setattr(demo, "load_predictor", lambda args, add_config: interrupted)
    arguments = ("--batch-size", 1, "--save", "coco", "--output", "out")
    with pytest.raises(KeyboardInterrupt):
        run("--input", "a.png", "b.png", "-e", CROSS, NOTHING, *arguments)
    assert len(load_expressions("out/coco.json", ".")) == 1


def test_answers_in_words(demo):
    def result(boxes=(), scores=(), no_target=False, score=0.1):
        answer = SimpleNamespace(no_target=no_target, no_target_score=score, mask=np.eye(3))
        answer.boxes, answer.scores = np.array(boxes), np.array(scores)
        return type("Result", (), {**vars(answer), "__len__": lambda self: len(boxes)})()

    one = [[1.0, 2, 3, 4]]
    assert demo.describe(result(one, [0.914])) == "1 target; box (1, 2, 3, 4) score 0.91"
    assert demo.describe(result(2 * one, [0.9, 0.8])).startswith("2 targets; box (1, 2, 3, 4)")
    assert demo.describe(result(no_target=True, score=0.876)) == "no target (score 0.88)"
    assert demo.describe(result()) == "a mask of 3 pixels"
