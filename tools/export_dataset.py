#!/usr/bin/env python
"""Write a registered data set in another format.

    python tools/export_dataset.py refcoco_unc_val out/refcoco_val.json
    python tools/export_dataset.py shapes_val out/shapes --format grefcoco
    python tools/export_dataset.py my_val out/my --format grefcoco --config-file my.yaml

"expressions" is one COCO file with the expressions in it, see datasets/README.md; "grefcoco" is a
folder with the two official files, grefs(unc).json and instances.json. Read again, both are the
same data set: ids, texts, boxes, polygons, masks and crowds, hence the same fingerprint.
"""

import argparse
import itertools
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import to_json_text
from igvg_d2.io.rle import to_json
from igvg_d2.io.terminal import printable


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="registered data set")
    parser.add_argument("output", help="file (expressions) or folder (grefcoco)")
    add_config_file(parser)
    parser.add_argument("--format", choices=("expressions", "grefcoco"), default="expressions")
    return parser.parse_args(argv)


def convert(samples, image_root=""):
    """COCO images and annotations of the samples, and each sample's annotation ids."""
    images, annotations, target_ids = {}, {}, []
    taken = {item["id"] for s in samples for item in s["annotations"] if item.get("id", -1) >= 0}
    free = itertools.count(max(taken, default=0) + 1)
    for sample in samples:
        entry = {
            "id": sample["image_id"],
            "file_name": image_name(sample, image_root),
            "height": sample["height"],
            "width": sample["width"],
        }
        if images.setdefault(sample["image_id"], entry) != entry:
            sys.exit(printable(f"image_id {sample['image_id']} stands for two images: {entry}"))
        ids = []
        for item in sample["annotations"]:
            # Expressions about one object share its annotation.
            if id(item) not in annotations:
                # Negative ids are of objects that have none in their file.
                ann_id = item["id"] if item.get("id", -1) >= 0 else next(free)
                annotations[id(item)] = to_annotation(item, ann_id, sample["image_id"])
            ids.append(annotations[id(item)]["id"])
        target_ids.append(ids)
    return list(images.values()), list(annotations.values()), target_ids


def image_name(sample, image_root):
    """Path of the image below the folder of the images."""
    name = os.path.relpath(sample["file_name"], image_root) if image_root else ""
    outside = not name or name.startswith(os.pardir)
    return os.path.basename(sample["file_name"]) if outside else name


def to_annotation(item, ann_id, image_id):
    """A target as a COCO annotation; polygons stay polygons."""
    box = [float(value) for value in item["bbox"]]
    if item["bbox_mode"] != BoxMode.XYWH_ABS:
        box = BoxMode.convert(box, item["bbox_mode"], BoxMode.XYWH_ABS)
    annotation = {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": item.get("iscrowd", 0),
    }
    if "segmentation" in item:
        polygons = [polygon.tolist() for polygon in item.get("polygons", ())]
        annotation["segmentation"] = polygons or to_json(item["segmentation"])
        annotation["area"] = float(mask_util.area(item["segmentation"]))
    return annotation


def to_expressions(samples, target_ids):
    """One entry per sample, with the ids of the benchmark."""
    return [
        {
            **{"id": i, "image_id": s["image_id"], "ref_id": s["ref_id"], "sent_id": s["sent_id"]},
            **{"text": s["expression"], "annotation_ids": ids},
            **{key: s[key] for key in ("kind", "group_id", "absent_kind") if key in s},
        }
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
        sentence.update({key: sample[key] for key in ("kind", "absent_kind") if key in sample})
        ref["sentences"].append({**sentence, "tokens": text.lower().split()})
    return list(refs.values())


def main(argv=None, add_config=()):
    """Read the data set, write the files."""
    args = parse_args(argv)
    try:
        setup_data(args.config_file, [args.name], add_config=add_config)
        samples = DatasetCatalog.get(args.name)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(printable(error))
    image_root = MetadataCatalog.get(args.name).get("image_root", "")
    images, annotations, target_ids = convert(samples, image_root)
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
        write_atomically(path, to_json_text(content))
        print(f"wrote {path}")
    print(f"{len(samples)} expressions on {len(images)} images, {len(annotations)} objects")


if __name__ == "__main__":
    main()
