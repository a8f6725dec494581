"""demo/walkthrough.ipynb runs from top to bottom, and its outputs are those of its cells."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "demo/walkthrough.ipynb"


def outputs_of(path):
    """Kinds of output of each code cell; a cell that was not run has None."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        [output["output_type"] for output in cell["outputs"]] if cell["execution_count"] else None
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_the_walkthrough_runs_from_top_to_bottom(tmp_path):
    copy = Path(shutil.copy(NOTEBOOK, tmp_path))
    (tmp_path / "images").symlink_to(ROOT / "demo/images")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "dev/run_notebook.py"), str(copy), "--write"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    # Stored outputs are those of these cells; numbers may round differently elsewhere.
    assert outputs_of(copy) == outputs_of(NOTEBOOK)


def test_the_outputs_are_small_and_name_no_folder_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 500_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    texts = [
        *(cell["source"] for cell in cells),
        *(x.get("text", "") for c in cells for x in c["outputs"]),
    ]
    # An absolute path; a division or "{folder}/" has something before it.
    assert not re.search(r"(?<![\w./:}])/\w", "".join("".join(lines) for lines in texts))
    assert sum(outputs.count("display_data") for outputs in outputs_of(NOTEBOOK)) >= 6
