"""The closing table of `make demo`."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "dev" / "show_results.py"


def run(output_dir):
    """Finished process of the script on a run's folder."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(output_dir)], capture_output=True, text=True, check=False
    )


def test_one_row_per_data_set_and_the_files_that_exist(tmp_path):
    rows = [
        {"iteration": 9, "shapes_val/gres/gIoU": 1.0},
        {"shapes_val/gres/gIoU": 61.25, "shapes_val/grec/F1score": 45.0, "total_loss": 2.0},
        {"shapes_testA/gres/gIoU": 50.0},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "report.html").touch()

    result = run(tmp_path)

    assert result.returncode == 0
    lines = result.stdout.splitlines()
    (val,) = [line.split() for line in lines if line.startswith("shapes_val ")]
    (test,) = [line.split() for line in lines if line.startswith("shapes_testA ")]
    # gIoU, cIoU, N_acc, T_acc, Pr@0.7, F1score, ...
    assert val[:7] == ["shapes_val", "61.2", "-", "-", "-", "-", "45.0"]
    assert test[:3] == ["shapes_testA", "50.0", "-"]
    assert any(line.startswith("report ") and str(tmp_path) in line for line in lines)
    assert not any(line.startswith("weights") for line in lines)


def test_a_run_without_results_says_what_to_do(tmp_path):
    assert run(tmp_path).returncode == 1
    (tmp_path / "metrics.json").write_text('{"total_loss": 1.0}', encoding="utf-8")
    result = run(tmp_path)
    assert result.returncode == 1
    assert "Run: make train OUTPUT=" in result.stderr


def test_a_single_data_set_comes_without_its_name(tmp_path):
    (tmp_path / "metrics.json").write_text('{"gres/gIoU": 33.3}', encoding="utf-8")
    result = run(tmp_path)
    assert result.returncode == 0
    assert any(line.split()[:2] == ["test", "33.3"] for line in result.stdout.splitlines())
