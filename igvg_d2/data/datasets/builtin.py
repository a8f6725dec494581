"""Registers the benchmarks under ``$DETECTRON2_DATASETS`` (default ``./datasets``).

The folders are described in datasets/README.md. This is the only place that reads the environment
variable. Nothing is opened at import: files are read when ``DatasetCatalog.get(name)`` is called.
"""

import fnmatch
import os
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

from detectron2.utils.file_io import PathManager

from .benchmarks import load_reviewed, load_rows
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
# Files of the refer API: name of the data set -> (evaluator and rule of targets, folders it may be
# in, names the annotation file may have, splits). Upper and lower case do not matter; "*" stands
# for anything. "refcocop" is the name without the plus sign, for shells and other tools that
# stumble over it.
_REFERRING = {
    "shapes": ("grefcoco", ("shapes/grefcoco",), ("grefs(unc).json",), _UNC_SPLITS),
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
# Those of which the authors of Ref-L4 have published reviewed labels, and how their files begin.
_REVIEWED = {"refcoco_unc": "refcoco", "refcoco+_unc": "refcoco+", "refcocop_unc": "refcoco+"}
_REVIEWED["refcocog_umd"] = "refcocog"
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

# Where users of D2, ReLA and the refer API keep the COCO images; those of Ref-ZOM are of train2014
# and val2014, in one folder.
_PLACES = ("images", "coco", "images/mscoco", "images/mscoco/images")
_IMAGE_FOLDERS = tuple(f"{place}/train2014" for place in _PLACES)
_REFZOM_IMAGE_FOLDERS = tuple(f"{place}/trainval2014" for place in _PLACES)
# Files of records that hold everything: name -> (row rule, evaluator, file, image folders).
_M = "refcoco-m/data/validation-00000-of-00002.parquet"
_ROWS = {
    "refcoco_m_val": ("refcoco_m", "refcoco", _M, _IMAGE_FOLDERS),
    "ref_l4_val": ("ref_l4", "ref_l4", "ref-l4/ref-l4-val.parquet", ("ref-l4/images",)),
    "ref_l4_test": ("ref_l4", "ref_l4", "ref-l4/ref-l4-test.parquet", ("ref-l4/images",)),
    "ref_l4_all": ("ref_l4", "ref_l4", "ref-l4/ref-l4-val.parquet", ("ref-l4/images",)),
    "openref_train": ("openref", "openref", "openref/train.json", ("openref/images",)),
    "openref_val": ("openref", "openref", "openref/val.json", ("openref/images",)),
    # The layout that the scripts of its authors read.
    "openref_none_test": ("openref", "openref", "openref/none_test_labels.json", ("openref/none",)),
}
_DOWNLOAD_HINT = (
    "download '{folder}' as datasets/README.md describes, or point the environment variable "
    "DETECTRON2_DATASETS to the folder that has it"
)


def register_builtin(root: str) -> None:
    """Registers all data sets of the tables as ``<name>_<split>``, for instance ``shapes_val``.

    Args:
        root: folder that contains ``grefcoco/``, ``shapes/``, ``seqtr_type/``, ... and the images.
    """
    reviewed = os.path.join(_find(root, ("ref-l4",)), "refcocos_annotation_reviewed")
    for name, (benchmark, folders, file_names, splits) in _REFERRING.items():
        pairs = [os.path.join(folder, file) for folder in folders for file in file_names]
        annotation_file = _find(root, pairs)
        if not os.path.isfile(annotation_file):
            annotation_file = os.path.join(_find(root, folders), file_names[0])
        folder = os.path.dirname(annotation_file)
        images = _REFZOM_IMAGE_FOLDERS if benchmark == "refzom" else _IMAGE_FOLDERS
        hint = _DOWNLOAD_HINT.format(folder=folder)
        if name == "shapes":
            images = (os.path.join("shapes", "images", "train2014"),)
            output = os.path.join(root, "shapes")
            hint = f"run 'python datasets/prepare_synthetic.py --output {output}'"
        files = {
            "annotation_file": annotation_file,
            "instances_file": _find(folder, ("instances.json",)),
            "image_root": _find(root, images),
        }
        loader = partial(load_referring, target_rule=benchmark)
        for split in splits:
            _register(f"{name}_{split}", loader, {**files, "split": split}, benchmark, hint)
            if name in _REVIEWED and split != "train":
                path = os.path.join(reviewed, f"{_REVIEWED[name]}_{split}_reviewed.json")
                more = {**files, "split": split, "reviewed_file": path}
                what = _DOWNLOAD_HINT.format(folder=reviewed)
                _register(f"{name}_{split}_reviewed", load_reviewed, more, benchmark, what)
    here = _find(root, ("seqtr_type", "data/seqtr_type"))
    for name, (benchmark, folder, file_names, splits) in _SEQTR.items():
        images = _REFZOM_IMAGE_FOLDERS if benchmark == "refzom" else _IMAGE_FOLDERS
        inside = [os.path.join("seqtr_type", image_folder) for image_folder in images]
        folder = os.path.join(here, "annotations", folder)
        files = {
            "annotation_file": _find(folder, file_names),
            "image_root": _find(root, (*inside, *images)),
        }
        hint = _DOWNLOAD_HINT.format(folder=folder)
        for split in splits:
            key = _SEQTR_KEYS.get(split, split)
            _register(f"{name}_{split}", load_seqtr, {**files, "split": key}, benchmark, hint)
    for name, (rule, evaluator_type, path, images) in _ROWS.items():
        path = _find(root, (path,))
        split = name.rpartition("_")[2]
        files = {"annotation_file": path, "image_root": _find(root, images), "split": split}
        if name == "ref_l4_all":
            files["more_files"] = (path.replace("-val.parquet", "-test.parquet"),)
        hint = _DOWNLOAD_HINT.format(folder=os.path.dirname(path))
        _register(name, partial(load_rows, row_rule=rule), files, evaluator_type, hint)


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
    keys = ("annotation_file", "instances_file", "reviewed_file")
    for path in (*(files[key] for key in keys if key in files), *files.get("more_files", ())):
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"data set '{name}' needs '{path}': {hint}")
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


register_builtin(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
