"""Which images demo.py is to look at, and what it is to look for in each."""

import csv
import glob
import json
import os
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from PIL import Image

from igvg_d2.io.image import FORMATS

# Name of an image whose bytes came through standard input.
STDIN = "stdin"


def find_images(inputs: Sequence[str], folder: str) -> List[str]:
    """Paths of images, each once and in order.

    Args:
        inputs: files, folders (their images, without those of folders within), patterns ("**" is
            any depth), addresses, or "-" for names through standard input, one a line or divided
            by NUL, or for the one image that its bytes are. A file need not exist.
        folder: for that image, which is called ``STDIN`` there.

    Raises:
        ValueError: a folder has no image, or nothing matches a pattern.
    """
    endings = {e for e, name in Image.registered_extensions().items() if name in FORMATS}
    endings |= {".heic", ".heif"}  # known to Pillow once such a file is opened
    found: List[str] = []
    for item in inputs:
        matches = [item]
        if item == "-":
            matches = _read_stdin(folder)
        elif os.path.isdir(item):
            names = [n for n in sorted(os.listdir(item)) if not n.startswith(".")]
            matches = [n for n in names if os.path.splitext(n)[1].lower() in endings]
            matches = [os.path.join(item, name) for name in matches]
        elif "://" not in item and not os.path.exists(item) and glob.has_magic(item):
            matches = sorted(p for p in glob.glob(item, recursive=True) if os.path.isfile(p))
        if not matches:
            hint = f"; for folders within write '{item}/**/*.jpg'" if os.path.isdir(item) else ""
            raise ValueError(f"--input: there is no image in '{item}'{hint}")
        found += matches
    return list(dict.fromkeys(found))


def _read_stdin(folder: str) -> List[str]:
    """What "-" stands for: text is names, and no image is valid UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        path = os.path.join(folder, STDIN)
        with open(path, "wb") as file:
            file.write(data)
        return [path]
    return [name for name in (text.split("\0") if "\0" in text else text.splitlines()) if name]


class Row(NamedTuple):
    """An expression of a file, and the image it is about if it names one."""

    expression: str
    image: Optional[str]


def read_expressions(path: str) -> List[Row]:
    """Expressions of a file, in order.

    Args:
        path: .txt, one expression a line; .csv with a header, a column ``expression`` and, if
            expressions belong to single images, ``image``; .json, a list of texts or of objects
            with these names. UTF-8.

    Raises:
        FileNotFoundError, ValueError: names the file and, where it can, the entry.
    """
    ending = os.path.splitext(path)[1].lower()
    # Spreadsheets write a mark before UTF-8.
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            if ending == ".json":
                entries = json.load(file)
            elif ending == ".csv":
                entries = list(csv.DictReader(file, strict=True))
            elif ending == ".txt":
                entries = [line.strip() for line in file.read().splitlines() if line.strip()]
            else:
                raise ValueError("its name must end in .txt, .json or .csv")
        except (ValueError, RecursionError, csv.Error) as error:
            raise ValueError(f"--expressions-file '{path}': {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"--expressions-file '{path}': expected a list of expressions")
    return [_to_row(entry, f"'{path}', entry {i}") for i, entry in enumerate(entries, start=1)]


def _to_row(entry, where: str) -> Row:
    """A checked row; ``where`` names it in errors."""
    if isinstance(entry, str):
        entry = {"expression": entry}
    fields = entry if isinstance(entry, dict) else {}
    expression, image = fields.get("expression"), fields.get("image") or None
    if not isinstance(expression, str) or not isinstance(image, (str, type(None))):
        names = f" with {', '.join(map(str, fields))}" if fields else ""
        raise ValueError(
            f"--expressions-file {where}: expected a text, or a text 'expression' and, if it is "
            f"about a single image, its name 'image'; found {type(entry).__name__}{names}"
        )
    return Row(expression, image)


def assign(rows: Sequence[Row], images: Sequence[str], folder: str) -> Dict[str, List[str]]:
    """What is asked about each image.

    Args:
        rows: those without an image are asked about all of ``images``.
        images: paths. If there are any, rows name images among them, by the end of the path.
        folder: to which paths of rows are relative, if there are no ``images``.

    Returns:
        expressions by path, images in order; of an image that no row is about there are none.

    Raises:
        ValueError: a row names none or several of the images, or there is no image at all.
    """
    asked: Dict[str, List[str]] = {path: [] for path in images}
    by_name: Dict[str, List[str]] = {}
    for path in images:
        by_name.setdefault(os.path.basename(path), []).append(path)
    for expression, image in rows:
        if image is None:
            for path in images:
                asked[path].append(expression)
        elif images:
            same = by_name.get(os.path.basename(image), [])
            found = [p for p in same if f"/{p}".endswith(f"/{os.path.normpath(image)}")]
            if len(found) != 1:
                few = "is none of" if not found else f"is the name of {len(found)} of"
                raise ValueError(f"--expressions-file: '{image}' {few} the images of --input")
            asked[found[0]].append(expression)
        else:
            path = image if "://" in image else os.path.join(folder, image)
            asked.setdefault(path, []).append(expression)
    if not asked or (not images and any(image is None for _, image in rows)):
        raise ValueError("--input is missing: there are expressions that name no image")
    return asked
