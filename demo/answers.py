"""Files of demo.py's answers: drawings, masks, JSON, COCO and Label Studio."""

import functools
import logging
import os
import re
from typing import Any, Dict, List, Sequence, Set, Tuple

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
from PIL import Image

from igvg_d2.inference import GroundingResult
from igvg_d2.inference.images import local_path, to_rgb
from igvg_d2.inference.masks import decode_mask
from igvg_d2.io.json_stream import to_json_text
from igvg_d2.visualization import GroundingVisualizer

logger = logging.getLogger("igvg_d2.demo")

# What --save takes; the last two are one file for all answers.
KINDS = ("overlay", "panels", "json", "masks", "coco", "label-studio")
_ENDINGS = {"overlay": ".png", "panels": "_panels.png", "json": ".json", "masks": "_mask.png"}
_DRAWN = KINDS[:2]
_OF_PANELS = "candidates instances mask no_target no_target_score attention_map".split()
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class OutputNames:
    """Paths in a folder: none is given twice, and none is an input, also not through a link."""

    def __init__(self, folder: str, inputs: Sequence[str]):
        os.makedirs(folder, exist_ok=True)
        self._folder = folder
        paths = map(local_path, inputs)
        self._inputs = {_identity(path) for path in paths if os.path.exists(path)}
        self._taken: Set[str] = set()

    def choose(self, stem: str, endings: Sequence[str]) -> str:
        """Path without ending, with a number unless it is free with all of the endings."""
        # A name has 255 bytes at most, ending and number included.
        stem, number = os.fsencode(stem)[:200].decode("utf-8", "ignore"), 1
        path = os.path.join(self._folder, stem)
        while any(self.is_used(path + ending) for ending in endings):
            number += 1
            path = os.path.join(self._folder, f"{stem}_{number}")
        # Some file systems take a.png and A.png for one.
        self._taken.update((path + ending).casefold() for ending in endings)
        return path

    def is_used(self, path: str) -> bool:
        """Whether an answer or an input has this path."""
        is_input = os.path.exists(path) and _identity(path) in self._inputs
        return is_input or path.casefold() in self._taken


def _identity(path: str) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class AnswerFiles:
    """Writes answers as --save says; :meth:`close` those that are one file for all."""

    def __init__(
        self, output: str, kinds: Sequence[str], asked: Dict[str, List[str]], inputs: Sequence[str]
    ):
        """
        Args:
            output: folder, or the file name of one drawing.
            kinds: of ``KINDS``.
            asked: expressions by path of the image.
            inputs: files that must stay as they are, beside the images.
        """
        is_file = output.lower().endswith(_IMAGE_ENDINGS)
        folder = (os.path.dirname(output) or ".") if is_file else output
        self._names = OutputNames(folder, [*asked, *inputs])
        self._single = output if is_file else ""
        count = sum(map(len, asked.values()))
        if is_file and (count > 1 or len(kinds) > 1 or kinds[0] not in _DRAWN):
            raise ValueError(
                f"--output '{output}' is one file, for one answer and --save {' or '.join(_DRAWN)};"
                f" there are {count} answers and --save {','.join(kinds)}: name a folder"
            )
        if is_file and self._names.is_used(output):
            raise ValueError(f"--output '{output}' is an input; name another file")
        self._kinds, self._asked = kinds, asked
        # COCO's file names begin in the folder that all images have in common.
        paths = [os.path.abspath(x) for x in map(local_path, asked) if "://" not in x]
        folders = {os.path.dirname(path) for path in paths}
        self._root = os.path.commonpath(folders) if folders else ""
        self._image_ids: Dict[str, int] = {}
        self._coco: Dict[str, List[Dict[str, Any]]] = {
            **{"images": [], "annotations": [], "expressions": []},
            "categories": [{"id": 1, "name": "target"}],
        }
        self._tasks: List[Dict[str, Any]] = []
        # Several questions about one image follow each other.
        self._read = functools.lru_cache(maxsize=1)(to_rgb)

    def write(self, result: GroundingResult, path: str) -> List[str]:
        """Write one answer about the image of a path; returns the paths of its files."""
        stem = os.path.splitext(os.path.basename(path))[0] or "image"
        if len(self._asked[path]) > 1:
            stem += "_" + re.sub(r"\W+", "_", result.expression.lower()).strip("_")[:60]
        endings = {kind: end for kind, end in _ENDINGS.items() if kind in self._kinds}
        base = self._names.choose(stem, list(endings.values())) if endings else ""
        files = {kind: self._single or base + end for kind, end in endings.items()}
        if "overlay" in files:
            _save_drawing(files["overlay"], result.plot(self._read(path)))
        if "panels" in files:
            # Each of them makes its masks anew whenever it is asked for.
            output = {key: result[key] for key in _OF_PANELS if key in result}
            drawing = GroundingVisualizer().draw_prediction(
                self._read(path), result.expression, output
            )
            _save_drawing(files["panels"], drawing)
        if "json" in files:
            _write_text(files["json"], result.to_json(indent=1))
        parts = []
        if "masks" in files:
            _save_mask(files["masks"], result.mask)
            for number, rle in enumerate(result.rles, start=1):
                parts.append(self._names.choose(f"{stem}_mask_{number}", [".png"]) + ".png")
                _save_mask(parts[-1], decode_mask(rle))
        if "coco" in self._kinds:
            self._add_to_coco(result, path)
        if "label-studio" in self._kinds:
            self._tasks.append(result.to_label_studio())
        return [*files.values(), *parts]

    def _add_to_coco(self, result: GroundingResult, path: str) -> None:
        """In the format of own data sets (datasets/README.md): COCO with expressions."""
        coco, known = self._coco, len(self._image_ids)
        image_id = self._image_ids.setdefault(path, known + 1)
        if image_id > known:
            height, width = result.orig_shape
            name = local_path(path)
            name = name if "://" in name else os.path.relpath(name, self._root)
            entry = {"id": image_id, "file_name": name, "height": height, "width": width}
            coco["images"].append(entry)
        ids = []
        for entry in result.to_coco(image_id):
            ids.append(len(coco["annotations"]) + 1)
            coco["annotations"].append({"id": ids[-1], "iscrowd": 0, **entry})
        number = len(coco["expressions"]) + 1
        entry = {"id": number, "image_id": image_id, "text": result.expression}
        coco["expressions"].append({**entry, "annotation_ids": ids})

    def close(self) -> None:
        """Write the files of all answers."""
        for kind, content in (("coco", self._coco), ("label-studio", self._tasks)):
            if kind in self._kinds:
                path = self._names.choose(kind.replace("-", "_"), [".json"]) + ".json"
                _write_text(path, to_json_text(content))
                where = (
                    f"; its images are in '{self._root}'" if kind == "coco" and self._root else ""
                )
                logger.info("Wrote %s%s", path, where)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _save_drawing(path: str, drawing: np.ndarray) -> None:
    """PNG at a fifth of the time and 1.2 times the size of PIL's default, for a photo."""
    Image.fromarray(drawing).save(path, compress_level=1, quality=95)


def _save_mask(path: str, mask: np.ndarray) -> None:
    """A mask as a grey image, 255 where it is."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
