"""demo.py and app.py: help, and command lines that do not fit."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


def test_help_has_three_examples_that_parse(demo, capsys):
    with pytest.raises(SystemExit) as status:
        demo.parse_args(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(r"python demo/demo\.py ([^|\n]*)", text.partition("examples:")[2])
    assert len(examples) == 3
    for example in examples:
        assert demo.parse_args(shlex.split(example)).expression or "questions.txt" in example


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-e", "a", "--expressions-file", "q.txt"], "not allowed with"),
        ([], "one of the arguments --expression/-e --expressions-file is required"),
        (["-e", "a", "--save", "overlay,film"], "some of overlay,panels,json,masks,coco"),
        (["-e", "a", "--batch-size", "0"], "must be 1 or more"),
        (["-e", "a", "--model", "x", "--config-file", "y"], "not allowed with"),
    ],
)
def test_command_lines_that_do_not_fit(demo, capsys, arguments, message):
    with pytest.raises(SystemExit) as status:
        demo.parse_args(arguments)
    assert status.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "x", "--config-file", "y"], "not allowed with"),
        (["--concurrency", "0"], "--queue must be 1 or more"),
        (["--queue", "0"], "--queue must be 1 or more"),
        (["--upload-limit", "-1"], "--queue must be 1 or more"),
    ],
)
def test_command_lines_that_do_not_fit_the_page(capsys, arguments, message):
    with pytest.raises(SystemExit) as status:
        load_script("demo/app.py").parse_args(arguments)
    assert status.value.code == 2 and message in capsys.readouterr().err


def test_examples_of_the_page_are_images(demo, tmp_path, monkeypatch):
    app, shown = load_script("demo/app.py"), []

    def page(predictor, name, examples, concurrency):
        shown.extend(examples)
        raise ValueError("not drawn here")

    monkeypatch.setitem(sys.modules, "page", SimpleNamespace(GroundingPage=page, gr=None))
    arguments = ["--device", "cpu", "--examples"]
    for folder, message in ((tmp_path, "there is no image in"), ("none", "there is no folder")):
        with pytest.raises(ValueError, match=message):
            app.serve(app.parse_args([*arguments, str(folder)]))
    for name in ("b.png", "a.jpg", "notes.txt", ".c.png", "d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="not drawn here"):
        app.serve(app.parse_args([*arguments, str(tmp_path)]))
    assert shown == [[str(tmp_path / "a.jpg"), ""], [str(tmp_path / "b.png"), ""]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "a.png", "--model", "shapes-tinny"], "shapes-tinny"),
        (["--input", "a.png", "--config-file", "absent.yaml"], "absent.yaml"),
        (["--input", "a.png", "--config-file", "own.yaml"], "no weights for 'own.yaml'"),
        (
            ["--input", "a.png", "--config-file", "own.yaml", "--opts", "MODEL.WEIGHTS", "w.pth"],
            "no file 'w.pth'",
        ),
        ([], "--input is missing"),
    ],
)
def test_what_the_user_mistyped_is_told_in_one_line(
    demo, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("VERSION: 2\n")
    with pytest.raises(SystemExit, match=message) as error:
        demo.main(["-e", "x", *arguments])
    assert str(error.value).startswith("demo.py: ") and "\n" not in str(error.value)


def test_a_model_without_ranked_masks_is_named(demo):
    """One of an outside project may answer with plain dicts."""

    def predictor(images, expressions, **_):
        return [{"instances": None} for _ in images]

    predictor.cfg = SimpleNamespace(MODEL=SimpleNamespace(META_ARCHITECTURE="Other"))
    args = demo.parse_args(["-e", "x"])
    with pytest.raises(ValueError, match="Other returns no ranked masks"):
        list(demo.answers(args, predictor, {"a.png": ["x"]}, print))
