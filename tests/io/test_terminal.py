"""Nothing in a file acts on the terminal through a message."""

import ast
import logging
import sys
from pathlib import Path

import pytest

import igvg_d2  # noqa: F401  its messages are escaped from now on
from igvg_d2.io.terminal import is_printable, printable

ROOT = Path(__file__).resolve().parents[2]
# Clear the screen, set the title, go up a line, turn the text around, half of a surrogate pair.
HOSTILE = "\x1b[2J\x1b]0;x\x07\x1b[1A\r\x9b1A\u202e\u2028\ud800"
ESCAPED = r"\x1b[2J\x1b]0;x\x07\x1b[1A\r\x9b1A\u202e\u2028\ud800"


def test_only_what_acts_is_escaped():
    assert printable(HOSTILE) == ESCAPED
    text = "two\tcolumns\nthe café, 中文, 👍🏽 and a\u200djoiner"
    assert printable(text) == text and printable(ValueError("x")) == "x"
    assert is_printable("1_0 é") and not any(map(is_printable, ("a\nb", "a\tb", *HOSTILE[:1])))


@pytest.mark.parametrize("name", ["igvg_d2.data", "detectron2.engine", "fvcore.common"])
def test_log_records(name, caplog):
    with caplog.at_level("INFO", logger=name):
        logging.getLogger(name).info("sample %s of %d", HOSTILE, 3)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger(name).exception("stopped")
    assert f"sample {ESCAPED} of 3" in caplog.text
    assert f"ValueError: {ESCAPED}" in caplog.text and "\x1b" not in caplog.text


def test_colors_of_detectron2_stay_and_ours_cannot_be_colored(caplog):
    with caplog.at_level("INFO"):
        logging.getLogger("detectron2.x").info("\x1b[32mgreen\x1b[0m \x1b[2J")
        logging.getLogger("igvg_d2.x").info("\x1b[32mgreen\x1b[0m")
        logging.getLogger("another").info("%s", "\x1b[2J")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "\x1b[32mgreen\x1b[0m " + r"\x1b[2J"
    assert messages[1:] == [r"\x1b[32mgreen\x1b[0m", "\x1b[2J"]


def test_uncaught_errors(capsys):
    sys.excepthook(ValueError, ValueError(f"the file '{HOSTILE}'"), None)
    assert f"ValueError: the file '{ESCAPED}'" in capsys.readouterr().err


def shown(path):
    """(line, argument) of the calls of a script that show something and end it."""
    for node in ast.walk(ast.parse(path.read_text())):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called in ("sys.exit", "SystemExit", "tqdm.write", "parser.error") and node.args:
            yield node.lineno, node.args[0]


def test_scripts_escape_the_errors_they_show():
    scripts = [
        p
        for f in ("tools", "demo", "datasets", "igvg_d2", "projects", "dev")
        for p in (ROOT / f).rglob("*.py")
    ]
    bare = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in scripts
        for line, argument in shown(path)
        if "error" in {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
        and not ast.unparse(argument).startswith(("printable(", "_message("))
    ]
    assert bare == []
