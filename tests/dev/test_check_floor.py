"""The gate of .ci/run: it must fail on every doubt."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "dev" / "check_floor.py"
LINES = (
    '{"iteration": 9, "total_loss": 3.5, "shapes_val/gres/gIoU": 10.0}\n'
    '{"iteration": 19, "total_loss": NaN, "shapes_val/gres/gIoU": 61.25, '
    '"shapes_val/grec/F1score": 44.0}\n'
)


def run(tmp_path, text, *floors):
    """Exit status and output of the script on a metrics file with this text."""
    path = tmp_path / "metrics.json"
    path.write_text(text, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), *floors],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_last_value_of_a_key_counts(tmp_path):
    assert run(tmp_path, LINES, "shapes_val/gres/gIoU>=61") == (
        0,
        "ok    shapes_val/gres/gIoU = 61.25, floor 61\n",
    )


def test_one_metric_below_its_floor_fails_and_all_are_shown(tmp_path):
    status, output = run(tmp_path, LINES, "grec/F1score>=45", "gres/gIoU>=60")
    assert status == 1
    assert "FAIL  grec/F1score = 44.00, floor 45" in output
    assert "ok    gres/gIoU = 61.25, floor 60" in output


def test_nan_fails(tmp_path):
    assert run(tmp_path, LINES, "total_loss>=0")[0] == 1


def test_unknown_key_fails_and_names_what_there_is(tmp_path):
    status, output = run(tmp_path, LINES, "gres/N_acc>=60")
    assert (
        status == 1 and "gres/N_acc was not measured" in output and "shapes_val/gres/gIoU" in output
    )


def test_nested_json_and_ambiguous_key(tmp_path):
    text = '{"a": {"gres": {"gIoU": 70.0}},\n "b": {"gres": {"gIoU": 50.0}}}'
    assert run(tmp_path, text, "a/gres/gIoU>=70")[0] == 0
    status, output = run(tmp_path, text, "gres/gIoU>=40")
    assert status == 1 and "ambiguous: a/gres/gIoU, b/gres/gIoU" in output


@pytest.mark.parametrize("text", ["", "not json\n"])
def test_unreadable_metrics_fail(tmp_path, text):
    assert run(tmp_path, text, "gres/gIoU>=1")[0] == 1


def test_malformed_floor_is_refused(tmp_path):
    status, output = run(tmp_path, LINES, "gres/gIoU=60")
    assert status == 2 and "expected KEY>=NUMBER" in output
