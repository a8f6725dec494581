#!/usr/bin/env python
"""Write a registered data set in another format.

    python tools/export_dataset.py refcoco_unc_val out/refcoco_val.json
    python tools/export_dataset.py shapes_val out/shapes --format grefcoco

"expressions" is one COCO file with the expressions in it, see datasets/README.md; "grefcoco" is a
folder with the two official files, grefs(unc).json and instances.json.
"""

import argparse
import json
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

import igvg_d2.data  # noqa: F401  registers the data sets


def parse_args(args=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="registered data set")
    parser.add_argument("output", help="file (expressions) or folder (grefcoco)")
    parser.add_argument("--format", choices=("expressions", "grefcoco"), default="expressions")
    return parser.parse_args(args)


def convert(samples):
    """COCO images and annotations of the samples, and each sample's annotation ids."""
    images, annotations, target_ids = {}, {}, []
    for sample in samples:
        images.setdefault(
            sample["image_id"],
            {
                "id": sample["image_id"],
                "file_name": os.path.basename(sample["file_name"]),
                "height": sample["height"],
                "width": sample["width"],
            },
        )
        ids = []
        for item in sample["annotations"]:
            # Expressions about one object share its annotation.
            entry = annotations.setdefault(
                id(item), to_annotation(item, len(annotations) + 1, sample["image_id"])
            )
            ids.append(entry["id"])
        target_ids.append(ids)
    return list(images.values()), list(annotations.values()), target_ids


def to_annotation(item, ann_id, image_id):
    """A target as a COCO annotation."""
    rle = dict(item["segmentation"])
    if isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    box = BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYWH_ABS)
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [float(value) for value in box],
        "area": float(mask_util.area(item["segmentation"])),
        "iscrowd": 0,
        "segmentation": rle,
    }


def to_expressions(samples, target_ids):
    """One entry per sample; ids are positions, because official ids are pairs."""
    return [
        {"id": i, "image_id": s["image_id"], "text": s["expression"], "annotation_ids": ids}
        for i, (s, ids) in enumerate(zip(samples, target_ids))
    ]


def to_refs(samples, target_ids, split):
    """Records of gRefCOCO, sentences with equal ref_id together."""
    refs = {}
    for sample, ids in zip(samples, target_ids):
        # R-RefCOCO has true and false sentences in one record, gRefCOCO one target set.
        key = (sample["ref_id"], tuple(ids))
        ref = refs.setdefault(
            key,
            {
                "ref_id": sample["ref_id"],
                "ann_id": ids or [-1],
                "category_id": [1] * len(ids) or [-1],
                "image_id": sample["image_id"],
                "file_name": os.path.basename(sample["file_name"]),
                "split": split,
                "no_target": not ids,
                "sentences": [],
            },
        )
        text = sample["expression"]
        sentence = {"sent_id": sample["sent_id"], "raw": text, "sent": text.lower()}
        ref["sentences"].append({**sentence, "tokens": text.lower().split()})
    return list(refs.values())


def main(args=None):
    """Read the data set, write the files."""
    args = parse_args(args)
    if args.name not in DatasetCatalog.list():
        sys.exit(f"no data set '{args.name}'; registered: {', '.join(DatasetCatalog.list())}")
    try:
        samples = DatasetCatalog.get(args.name)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    images, annotations, target_ids = convert(samples)
    coco = {"images": images, "annotations": annotations}
    coco["categories"] = [{"id": 1, "name": "target", "supercategory": ""}]
    if args.format == "expressions":
        files = {args.output: {**coco, "expressions": to_expressions(samples, target_ids)}}
    else:
        split = MetadataCatalog.get(args.name).get("split", "val")
        files = {
            os.path.join(args.output, "grefs(unc).json"): to_refs(samples, target_ids, split),
            os.path.join(args.output, "instances.json"): coco,
        }
    for path, content in files.items():
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
        print(f"wrote {path}")
    print(f"{len(samples)} expressions on {len(images)} pictures, {len(annotations)} objects")


if __name__ == "__main__":
    main()
