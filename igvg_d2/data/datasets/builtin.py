"""Registers the benchmarks under ``$DETECTRON2_DATASETS`` (default ``./datasets``).

The folders are described in datasets/README.md. This is the only place that reads the environment
variable. Nothing is opened at import: files are read when ``DatasetCatalog.get(name)`` is called.
"""

import fnmatch
import os
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

from detectron2.utils.file_io import PathManager

from .referring import load_referring
from .registration import register_grounding
from .seqtr import load_seqtr

_UNC_SPLITS = ("train", "val", "testA", "testB")
_GREFCOCO = ("grefcoco", "grefs")
_PLUS = ("refcoco+", "refcocop", "refcocoplus", "refcoco_plus")
_REFZOM = ("ref-zom", "refzom", "ref_zom")
_REFZOM_FILES = ("refs(final).p", "Ref-ZOM(final).p", "Ref_ZOM.p", "ref*zom*.p")
_UNC, _UMD, _GOOGLE = (
    tuple(f"refs({by}).{suffix}" for suffix in ("p", "pkl", "json"))
    for by in ("unc", "umd", "google")
)
# Which partition of RefCOCOg a copy of R-RefCOCOg was made from differs.
_R = ("rrefcoco", "r-refcoco")
_R_PLUS = ("rrefcoco+", "rrefcocop", "rrefcocoplus", "r-refcoco+", "r-refcocoplus")
_R_G = ("rrefcocog", "r-refcocog")
_R_FILES = ("refs(unc).p", "refs(umd).p", "refs(*).p", "refs(*).json")
_R_G_FILES = ("refs(umd).p", *_R_FILES)
# Name of the data set -> (evaluator and rule of targets, folders it may be in, names the annotation
# file may have, splits); the registered names end in "_<split>". Upper and lower case do not
# matter; "*" stands for anything. "refcocop" is the name without the plus sign, for shells and
# other tools that stumble over it.
_REFERRING = {
    "grefcoco_unc": ("grefcoco", _GREFCOCO, ("grefs(unc).json", "grefs(unc).p"), _UNC_SPLITS),
    "refcoco_unc": ("refcoco", ("refcoco",), _UNC, _UNC_SPLITS),
    "refcoco_google": ("refcoco", ("refcoco",), _GOOGLE, ("train", "val", "test")),
    "refcoco+_unc": ("refcoco", _PLUS, _UNC, _UNC_SPLITS),
    "refcocop_unc": ("refcoco", _PLUS, _UNC, _UNC_SPLITS),
    "refcocog_umd": ("refcoco", ("refcocog",), _UMD, ("train", "val", "test")),
    "refcocog_google": ("refcoco", ("refcocog",), _GOOGLE, ("train", "val")),
    "refzom_final": ("refzom", _REFZOM, _REFZOM_FILES, ("train", "test")),
    "rrefcoco_unc": ("rrefcoco", _R, _R_FILES, ("train", "val")),
    "rrefcoco+_unc": ("rrefcoco", _R_PLUS, _R_FILES, ("train", "val")),
    "rrefcocop_unc": ("rrefcoco", _R_PLUS, _R_FILES, ("train", "val")),
    "rrefcocog_umd": ("rrefcoco", _R_G, _R_G_FILES, ("train", "val")),
}
# The released project's JSON: name -> (evaluator, folder below seqtr_type/annotations, names of the
# file, splits). README and configs there disagree on file names.
_MIXED_SPLITS = ("train", *(f"{s}_refcoco_unc" for s in _UNC_SPLITS[1:])) + (
    *(f"{s}_refcocoplus_unc" for s in _UNC_SPLITS[1:]),
    *("val_refcocog_umd", "test_refcocog_umd", "val_refcocog_google"),
)
_MIXED_FILES = ("instances_nogoogle_withid.json", "instances_nogoogle.json", "instances.json")
_ONE, _SINGULAR = ("instances.json",), ("instance.json", "instances.json")
_R_SPLITS = ("train", "val_rrefcoco", "val_rrefcoco+", "val_rrefcocoplus", "val_rrefcocog")
_SEQTR = {
    "seqtr_grefcoco": ("grefcoco", "grefs", ("instances.json", "instance.json"), _UNC_SPLITS),
    "seqtr_refzom": ("refzom", "ref-zom", _SINGULAR, ("train", "test")),
    "seqtr_rrefcoco": ("rrefcoco", "rrefcoco", _SINGULAR, _R_SPLITS),
    "seqtr_mixed": ("refcoco", "mixed-seg", _MIXED_FILES, _MIXED_SPLITS),
    "seqtr_refcoco_unc": ("refcoco", "refcoco-unc", _ONE, _UNC_SPLITS),
    "seqtr_refcocoplus_unc": ("refcoco", "refcocoplus-unc", _ONE, _UNC_SPLITS),
    "seqtr_refcocog_umd": ("refcoco", "refcocog-umd", _ONE, ("train", "val", "test")),
    "seqtr_refcocog_google": ("refcoco", "refcocog-google", _ONE, ("train", "val")),
}
# Keys of the files that the released configs spell otherwise.
_SEQTR_KEYS = {"val_rrefcocoplus": "val_rrefcoco+"}

# Where users of D2, ReLA and the refer API keep the COCO train2014 images.
_COCO_IMAGE_FOLDERS = (
    "images/train2014",
    "coco/train2014",
    "images/mscoco/train2014",
    "images/mscoco/images/train2014",
)
# Ref-ZOM has images of train2014 and val2014, in one folder.
_REFZOM_IMAGE_FOLDERS = (
    "images/trainval2014",
    "coco/trainval2014",
    "images/mscoco/trainval2014",
    "images/mscoco/images/trainval2014",
)
_DOWNLOAD_HINT = (
    "download '{folder}' as datasets/README.md describes, or point the environment variable "
    "DETECTRON2_DATASETS to the folder that has it"
)


def register_shapes(root: str) -> None:
    """Registers ``shapes_{train,val,testA,testB}``, the generated data set in gRefCOCO's format.

    Args:
        root: folder that contains ``shapes/``.
    """
    folder = os.path.join(root, "shapes")
    for split in _UNC_SPLITS:
        files = {
            "annotation_file": os.path.join(folder, "grefcoco", "grefs(unc).json"),
            "instances_file": os.path.join(folder, "grefcoco", "instances.json"),
            "image_root": os.path.join(folder, "images", "train2014"),
            "split": split,
        }
        hint = f"run 'python datasets/prepare_synthetic.py --output {folder}'"
        _register(f"shapes_{split}", load_referring, files, "grefcoco", hint)


def register_referring(root: str) -> None:
    """Registers gRefCOCO, RefCOCO, RefCOCO+, RefCOCOg, R-RefCOCO(+, g) and Ref-ZOM.

    Names are ``<name>_<split>`` with the names and splits of the table above, for instance
    ``grefcoco_unc_testA`` or ``refcocop_unc_val``.

    Args:
        root: folder that contains ``grefcoco/``, ``refcoco/``, ... and the COCO images.
    """
    for name, (benchmark, folders, file_names, splits) in _REFERRING.items():
        pairs = [os.path.join(folder, file) for folder in folders for file in file_names]
        annotation_file = _find(root, pairs)
        if not os.path.isfile(annotation_file):
            annotation_file = os.path.join(_find(root, folders), file_names[0])
        folder = os.path.dirname(annotation_file)
        images = _REFZOM_IMAGE_FOLDERS if benchmark == "refzom" else _COCO_IMAGE_FOLDERS
        files = {
            "annotation_file": annotation_file,
            "instances_file": _find(folder, ("instances.json",)),
            "image_root": _find(root, images),
        }
        loader = partial(load_referring, target_rule=benchmark)
        hint = _DOWNLOAD_HINT.format(folder=folder)
        for split in splits:
            _register(f"{name}_{split}", loader, {**files, "split": split}, benchmark, hint)


def register_seqtr(root: str) -> None:
    """Registers ``seqtr_{grefcoco,refzom,rrefcoco,mixed,refcoco_unc,...}_*``.

    These are the same benchmarks as the released project converted them.

    Args:
        root: folder that contains ``seqtr_type/`` and, if not in it, the COCO images.
    """
    here = _find(root, ("seqtr_type", "data/seqtr_type"))
    for name, (evaluator_type, folder, file_names, splits) in _SEQTR.items():
        images = _REFZOM_IMAGE_FOLDERS if evaluator_type == "refzom" else _COCO_IMAGE_FOLDERS
        inside = [os.path.join("seqtr_type", image_folder) for image_folder in images]
        folder = os.path.join(here, "annotations", folder)
        files = {
            "annotation_file": _find(folder, file_names),
            "image_root": _find(root, (*inside, *images)),
        }
        for split in splits:
            files["split"] = _SEQTR_KEYS.get(split, split)
            hint = _DOWNLOAD_HINT.format(folder=folder)
            _register(f"{name}_{split}", load_seqtr, dict(files), evaluator_type, hint)


def _register(
    name: str, loader: Callable, files: Dict[str, str], evaluator_type: str, hint: str
) -> None:
    """Registers one split, with its files in the metadata."""
    metadata = {**files, "evaluator_type": evaluator_type, "hint": hint}
    register_grounding(name, metadata, partial(_load, name, loader, files, hint))


def _load(
    name: str,
    loader: Callable,
    files: Dict[str, str],
    hint: str,
    skipped: Optional[List[str]] = None,
) -> List[Dict[str, Any]]:
    """Runs a reader after saying clearly which file is missing."""
    for key in ("annotation_file", "instances_file"):
        if key in files and not PathManager.isfile(files[key]):
            raise FileNotFoundError(f"data set '{name}' needs '{files[key]}': {hint}")
    return loader(**files, skipped=skipped)


def _find(root: str, patterns: Sequence[str]) -> str:
    """Path of the first pattern below root that exists, else of the first pattern.

    Whatever is spelled as in the pattern goes before what differs by upper and lower case.
    """
    for pattern in patterns:
        if os.path.exists(os.path.join(root, pattern)):
            return os.path.join(root, pattern)
        paths = [root]
        for part in os.path.normpath(pattern).split(os.sep):
            paths = [os.path.join(path, name) for path in paths for name in _matches(path, part)]
        if paths:
            return paths[0]
    return os.path.join(root, patterns[0])


def _matches(folder: str, pattern: str) -> List[str]:
    """Names in a folder that match a pattern, whatever their case."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_shapes(_root)
register_referring(_root)
register_seqtr(_root)
