#!/usr/bin/env python3
"""Run a notebook from top to bottom without Jupyter, in the notebook's folder.

    python dev/run_notebook.py demo/walkthrough.ipynb            # an error in a cell ends it
    python dev/run_notebook.py demo/walkthrough.ipynb --write    # and keep the new outputs

What cells print and the figures that they show are the outputs.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from igvg_d2.io.image import read_image  # noqa: E402


def run_cell(source: str, namespace: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Outputs of a code cell in nbformat 4: its text, then its figures as small PNGs."""
    printed, figures = io.StringIO(), []

    def keep() -> None:
        for number in plt.get_fignums():
            small = io.BytesIO()
            with tempfile.NamedTemporaryFile(suffix=".png") as drawn:
                plt.figure(number).savefig(drawn.name, dpi=72, bbox_inches="tight")
                image = Image.fromarray(read_image(drawn.name, "RGB"))
            image.quantize(128).save(small, "PNG", optimize=True)
            figures.append(base64.b64encode(small.getvalue()).decode())
        plt.close("all")

    plt.show = keep
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "cell", "exec"), namespace)
    text = printed.getvalue().splitlines(keepends=True)
    outputs = [{"output_type": "stream", "name": "stdout", "text": text}] if text else []
    for image in figures:
        outputs.append(
            {"output_type": "display_data", "metadata": {}, "data": {"image/png": image}}
        )
    return outputs


@contextlib.contextmanager
def inside(folder: Path):
    """A context with another current folder; contextlib.chdir needs Python 3.11."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(path: Path) -> Dict[str, Any]:
    """The notebook with the outputs of this run."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    namespace: Dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with inside(path.parent):
        for number, cell in enumerate(cells, start=1):
            source = "".join(cell["source"])
            try:
                cell["outputs"] = run_cell(source, namespace)
            except Exception as error:
                raise RuntimeError(f"cell {number} of {path} failed:\n{source}") from error
            cell["execution_count"] = number
    return notebook


def main(argv=None) -> None:
    """Run, and write if asked."""
    parser = argparse.ArgumentParser(description="Run a notebook without Jupyter.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="store the outputs in the file")
    args = parser.parse_args(argv)
    notebook = run(args.notebook)
    if args.write:
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        args.notebook.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
