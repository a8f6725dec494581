"""Registers the benchmarks under ``$DETECTRON2_DATASETS`` (default ``./datasets``).

The folders are described in datasets/README.md. This is the only place that reads the environment
variable. Nothing is opened at import: files are read when ``DatasetCatalog.get(name)`` is called.
"""

import os
from functools import partial
from typing import Any, Callable, Dict, List, Sequence

from detectron2.utils.file_io import PathManager

from .common import register_grounding
from .grefcoco import load_grefcoco
from .refcoco import load_refcoco
from .refzom import load_refzom
from .rrefcoco import load_rrefcoco

# Name of the data set -> (folders it may be in, names the annotation file may have, splits); the
# registered names end in "_<split>".
_UNC_SPLITS = ("train", "val", "testA", "testB")
_PREDEFINED_SPLITS_GREFCOCO = {
    "grefcoco_unc": (("grefcoco",), ("grefs(unc).json", "grefs(unc).p"), _UNC_SPLITS),
}
# "refcocop" is the name without the plus sign, for shells and other tools that stumble over it.
_PREDEFINED_SPLITS_REFCOCO = {
    "refcoco_unc": (("refcoco",), ("refs(unc).p",), _UNC_SPLITS),
    "refcoco_google": (("refcoco",), ("refs(google).p",), ("train", "val", "test")),
    "refcoco+_unc": (("refcoco+", "refcocop"), ("refs(unc).p",), _UNC_SPLITS),
    "refcocop_unc": (("refcoco+", "refcocop"), ("refs(unc).p",), _UNC_SPLITS),
    "refcocog_umd": (("refcocog",), ("refs(umd).p",), ("train", "val", "test")),
    "refcocog_google": (("refcocog",), ("refs(google).p",), ("train", "val")),
}
_REFZOM_FILES = ("refs(final).p", "Ref-ZOM(final).p", "Ref_ZOM.p")
_PREDEFINED_SPLITS_REFZOM = {
    "refzom_final": (("ref-zom", "refzom"), _REFZOM_FILES, ("train", "test")),
}
# Which partition of RefCOCOg a copy of R-RefCOCOg was made from differs.
_RREFCOCO_FILES = ("refs(unc).p", "refs(umd).p")
_PREDEFINED_SPLITS_RREFCOCO = {
    "rrefcoco_unc": (("rrefcoco",), _RREFCOCO_FILES, ("train", "val")),
    "rrefcoco+_unc": (("rrefcoco+", "rrefcocop"), _RREFCOCO_FILES, ("train", "val")),
    "rrefcocop_unc": (("rrefcoco+", "rrefcocop"), _RREFCOCO_FILES, ("train", "val")),
    "rrefcocog_umd": (("rrefcocog",), _RREFCOCO_FILES[::-1], ("train", "val")),
}
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
        _register(
            f"shapes_{split}",
            # Only training reads the other objects of a picture.
            loader=partial(load_grefcoco, with_scene=split == "train"),
            annotation_file=os.path.join(folder, "grefcoco", "grefs(unc).json"),
            image_root=os.path.join(folder, "images", "train2014"),
            split=split,
            evaluator_type="grefcoco",
            hint=f"run 'python datasets/prepare_synthetic.py --output {folder}'",
        )


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


def _register_table(
    table: Dict[str, Any],
    root: str,
    loader: Callable,
    evaluator_type: str,
    image_folders: Sequence[str] = _COCO_IMAGE_FOLDERS,
) -> None:
    """Registers every split of every row of a table above."""
    image_root = _first_existing(root, image_folders, os.path.isdir)
    for name, (folders, file_names, splits) in table.items():
        folder = _first_existing(root, folders, os.path.isdir)
        annotation_file = _first_existing(folder, file_names, os.path.isfile)
        for split in splits:
            _register(
                f"{name}_{split}",
                loader=loader,
                annotation_file=annotation_file,
                image_root=image_root,
                split=split,
                evaluator_type=evaluator_type,
                hint=_DOWNLOAD_HINT.format(folder=folder),
            )


def _register(
    name: str,
    *,
    loader: Callable,
    annotation_file: str,
    image_root: str,
    split: str,
    evaluator_type: str,
    hint: str,
) -> None:
    """Registers one split, with its files in the metadata."""
    files = {
        "annotation_file": annotation_file,
        "instances_file": os.path.join(os.path.dirname(annotation_file), "instances.json"),
        "image_root": image_root,
        "split": split,
    }
    metadata = {**files, "evaluator_type": evaluator_type}
    register_grounding(name, metadata, partial(_load, name, loader, files, hint))


def _load(name: str, loader: Callable, files: Dict[str, str], hint: str) -> List[Dict[str, Any]]:
    """Runs a reader after saying clearly which file is missing."""
    for key in ("annotation_file", "instances_file"):
        if not PathManager.isfile(files[key]):
            raise FileNotFoundError(f"data set '{name}' needs '{files[key]}': {hint}")
    return loader(**files)


def _first_existing(root: str, names: Sequence[str], exists: Callable[[str], bool]) -> str:
    """The first of the names that exists below root, else the first one."""
    paths = [os.path.join(root, name) for name in names]
    return next((path for path in paths if exists(path)), paths[0])


_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_all_shapes(_root)
register_all_grefcoco(_root)
register_all_refcoco(_root)
register_all_refzom(_root)
register_all_rrefcoco(_root)
