"""Registers the benchmarks under ``$DETECTRON2_DATASETS`` (default ``./datasets``).

The folders are described in datasets/README.md. This is the only place that reads the environment
variable. Nothing is opened at import: files are read when ``DatasetCatalog.get(name)`` is called.
"""

import fnmatch
import os
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence

from detectron2.utils.file_io import PathManager

from .grefcoco import load_grefcoco
from .refcoco import load_refcoco
from .refzom import load_refzom
from .registration import register_grounding
from .rrefcoco import load_rrefcoco
from .seqtr import load_seqtr

# Name of the data set -> (folders it may be in, names the annotation file may have, splits); the
# registered names end in "_<split>". Upper and lower case do not matter; "*" stands for anything.
_UNC_SPLITS = ("train", "val", "testA", "testB")
_GREFCOCO = ("grefcoco", "grefs")
_PREDEFINED_SPLITS_GREFCOCO = {
    "grefcoco_unc": (_GREFCOCO, ("grefs(unc).json", "grefs(unc).p"), _UNC_SPLITS),
}
# "refcocop" is the name without the plus sign, for shells and other tools that stumble over it.
_PLUS = ("refcoco+", "refcocop", "refcocoplus", "refcoco_plus")
_UNC, _UMD, _GOOGLE = (
    tuple(f"refs({by}).{suffix}" for suffix in ("p", "pkl", "json"))
    for by in ("unc", "umd", "google")
)
_PREDEFINED_SPLITS_REFCOCO = {
    "refcoco_unc": (("refcoco",), _UNC, _UNC_SPLITS),
    "refcoco_google": (("refcoco",), _GOOGLE, ("train", "val", "test")),
    "refcoco+_unc": (_PLUS, _UNC, _UNC_SPLITS),
    "refcocop_unc": (_PLUS, _UNC, _UNC_SPLITS),
    "refcocog_umd": (("refcocog",), _UMD, ("train", "val", "test")),
    "refcocog_google": (("refcocog",), _GOOGLE, ("train", "val")),
}
_REFZOM = ("ref-zom", "refzom", "ref_zom")
_REFZOM_FILES = ("refs(final).p", "Ref-ZOM(final).p", "Ref_ZOM.p", "ref*zom*.p")
_PREDEFINED_SPLITS_REFZOM = {"refzom_final": (_REFZOM, _REFZOM_FILES, ("train", "test"))}
# Which partition of RefCOCOg a copy of R-RefCOCOg was made from differs.
_RREFCOCO_PLUS = ("rrefcoco+", "rrefcocop", "rrefcocoplus", "r-refcoco+", "r-refcocoplus")
_RREFCOCO_FILES = ("refs(unc).p", "refs(umd).p", "refs(*).p", "refs(*).json")
_PREDEFINED_SPLITS_RREFCOCO = {
    "rrefcoco_unc": (("rrefcoco", "r-refcoco"), _RREFCOCO_FILES, ("train", "val")),
    "rrefcoco+_unc": (_RREFCOCO_PLUS, _RREFCOCO_FILES, ("train", "val")),
    "rrefcocop_unc": (_RREFCOCO_PLUS, _RREFCOCO_FILES, ("train", "val")),
    "rrefcocog_umd": (
        ("rrefcocog", "r-refcocog"),
        ("refs(umd).p", *_RREFCOCO_FILES),
        ("train", "val"),
    ),
}
# The released project's JSON: name -> (evaluator, files below seqtr_type/annotations, splits as
# (end of the registered name, key in the file)). README and configs there disagree on file names.
_SEQTR_MIXED = ("train", *(f"{s}_refcoco_unc" for s in _UNC_SPLITS[1:])) + (
    *(f"{s}_refcocoplus_unc" for s in _UNC_SPLITS[1:]),
    *("val_refcocog_umd", "test_refcocog_umd", "val_refcocog_google"),
)
_MIXED_FILES = ("instances_nogoogle_withid.json", "instances_nogoogle.json", "instances.json")
_PREDEFINED_SPLITS_SEQTR = {
    "seqtr_grefcoco": ("grefcoco", "grefs", ("instances.json", "instance.json"), _UNC_SPLITS),
    "seqtr_refzom": ("refzom", "ref-zom", ("instance.json", "instances.json"), ("train", "test")),
    "seqtr_rrefcoco": (
        *("rrefcoco", "rrefcoco", ("instance.json", "instances.json")),
        ("train", "val_rrefcoco", "val_rrefcoco+", "val_rrefcocoplus", "val_rrefcocog"),
    ),
    "seqtr_mixed": ("refcoco", "mixed-seg", _MIXED_FILES, _SEQTR_MIXED),
    "seqtr_refcoco_unc": ("refcoco", "refcoco-unc", ("instances.json",), _UNC_SPLITS),
    "seqtr_refcocoplus_unc": ("refcoco", "refcocoplus-unc", ("instances.json",), _UNC_SPLITS),
    "seqtr_refcocog_umd": (
        "refcoco",
        "refcocog-umd",
        ("instances.json",),
        ("train", "val", "test"),
    ),
    "seqtr_refcocog_google": ("refcoco", "refcocog-google", ("instances.json",), ("train", "val")),
}
# Keys of the files that the released configs spell otherwise.
_SEQTR_KEYS = {"val_rrefcocoplus": "val_rrefcoco+"}
_SHAPES_SPLITS = ("train", "val", "testA", "testB")

# Where users of D2, ReLA and the refer API keep the COCO train2014 images.
_COCO_IMAGE_FOLDERS = (
    "images/train2014",
    "coco/train2014",
    "images/mscoco/train2014",
    "images/mscoco/images/train2014",
)
# Ref-ZOM has pictures of train2014 and val2014, in one folder.
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


def register_all_shapes(root: str) -> None:
    """Registers ``shapes_{train,val,testA,testB}``, the generated data set in gRefCOCO's format.

    Args:
        root: folder that contains ``shapes/``.
    """
    folder = os.path.join(root, "shapes")
    for split in _SHAPES_SPLITS:
        files = {
            "annotation_file": os.path.join(folder, "grefcoco", "grefs(unc).json"),
            "instances_file": os.path.join(folder, "grefcoco", "instances.json"),
            "image_root": os.path.join(folder, "images", "train2014"),
            "split": split,
        }
        # Only training reads the other objects of a picture.
        loader = partial(load_grefcoco, with_scene=split == "train")
        hint = f"run 'python datasets/prepare_synthetic.py --output {folder}'"
        _register(f"shapes_{split}", loader, files, "grefcoco", hint)


def register_all_grefcoco(root: str) -> None:
    """Registers ``grefcoco_unc_{train,val,testA,testB}``.

    Args:
        root: folder that contains ``grefcoco/`` and the COCO images.
    """
    _register_table(_PREDEFINED_SPLITS_GREFCOCO, root, load_grefcoco, "grefcoco")


def register_all_refcoco(root: str) -> None:
    """Registers ``refcoco_unc_*``, ``refcoco+_unc_*`` (= ``refcocop_unc_*``), ``refcocog_umd_*``.

    Args:
        root: folder that contains ``refcoco/``, ``refcoco+/``, ``refcocog/`` and the COCO images.
    """
    _register_table(_PREDEFINED_SPLITS_REFCOCO, root, load_refcoco, "refcoco")


def register_all_refzom(root: str) -> None:
    """Registers ``refzom_final_{train,test}``.

    Args:
        root: folder that contains ``ref-zom/`` and the COCO images.
    """
    _register_table(_PREDEFINED_SPLITS_REFZOM, root, load_refzom, "refzom", _REFZOM_IMAGE_FOLDERS)


def register_all_rrefcoco(root: str) -> None:
    """Registers ``rrefcoco_unc_*``, ``rrefcoco+_unc_*`` (or ``rrefcocop``), ``rrefcocog_umd_*``.

    Args:
        root: folder that contains ``rrefcoco/``, ``rrefcoco+/``, ``rrefcocog/`` and COCO's images.
    """
    _register_table(_PREDEFINED_SPLITS_RREFCOCO, root, load_rrefcoco, "rrefcoco")


def register_all_seqtr(root: str) -> None:
    """Registers ``seqtr_{grefcoco,refzom,rrefcoco,mixed,refcoco_unc,...}_*``.

    These are the same benchmarks as the released project converted them.

    Args:
        root: folder that contains ``seqtr_type/`` and, if not in it, the COCO images.
    """
    here = _find(root, ("seqtr_type", "data/seqtr_type"))
    for name, (evaluator_type, folder, file_names, splits) in _PREDEFINED_SPLITS_SEQTR.items():
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


def _register_table(
    table: Dict[str, Any],
    root: str,
    loader: Callable,
    evaluator_type: str,
    image_folders: Sequence[str] = _COCO_IMAGE_FOLDERS,
) -> None:
    """Registers every split of every row of a table above."""
    image_root = _find(root, image_folders)
    for name, (folders, file_names, splits) in table.items():
        pairs = [os.path.join(folder, file) for folder in folders for file in file_names]
        annotation_file = _find(root, pairs)
        if not os.path.isfile(annotation_file):
            annotation_file = os.path.join(_find(root, folders), file_names[0])
        folder = os.path.dirname(annotation_file)
        files = {
            "annotation_file": annotation_file,
            "instances_file": _find(folder, ("instances.json",)),
            "image_root": image_root,
        }
        for split in splits:
            hint = _DOWNLOAD_HINT.format(folder=folder)
            _register(f"{name}_{split}", loader, {**files, "split": split}, evaluator_type, hint)


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
register_all_shapes(_root)
register_all_grefcoco(_root)
register_all_refcoco(_root)
register_all_refzom(_root)
register_all_rrefcoco(_root)
register_all_seqtr(_root)
