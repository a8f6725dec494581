#!/usr/bin/env python
"""Over-fit a handful of real photographs and score them: do gradients, masks and boxes line up?

    python dev/overfit_real.py                     # ../shared/data, about 7 minutes on one core
    python dev/overfit_real.py --data FOLDER --images FOLDER --spm beit3.spm

Reads gRefCOCO's and RefCOCO's own files, trains the tiny model of the Shapes set on a few of their
samples with the real tokenizer and no augmentation, and evaluates on the same samples by the GRES
and GREC evaluators. Fails if gIoU stays below the floor. It says nothing about unseen images.
"""

import argparse
import os
import sys
from functools import partial

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.engine import default_setup
from detectron2.utils.logger import setup_logger

import igvg_d2.modeling  # noqa: F401  registers the models
from igvg_d2.data.datasets import load_referring, register_grounding
from igvg_d2.engine import GroundingTrainer, setup_config

load_refcoco = partial(load_referring, target_rule="refcoco")

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_SHARED = os.path.join(os.path.dirname(_ROOT), "shared", "data")
_DATA = os.path.join(_SHARED, "coco_ref_overlap", "official_schema_rebuilt")
_IMAGES = os.path.join(_SHARED, "coco_ref_overlap", "train2014")
_NAME = "overfit_real"


def parse_args():
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=_DATA, help="folder of grefcoco/ and refcoco/")
    parser.add_argument("--images", default=_IMAGES, help="folder of the COCO images")
    parser.add_argument("--spm", default=os.path.join(_SHARED, "beit3_spm", "beit3.spm"))
    parser.add_argument("--floor", type=float, default=90.0, help="gIoU in percent")
    parser.add_argument("--output", default="output/overfit_real")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args()


def read_samples(data, images):
    """One image with every number of targets (gRefCOCO), and images with one (RefCOCO)."""
    read = (
        load_referring(
            os.path.join(data, "grefcoco", "grefs(unc).json"),
            os.path.join(data, "grefcoco", "instances.json"),
            images,
            "testB",
        ),
        load_refcoco(
            os.path.join(data, "refcoco", "refs(unc).p"),
            os.path.join(data, "refcoco", "instances.json"),
            images,
            "val",
        ),
    )
    grefcoco, refcoco = ({r["ref_id"]: r for r in reversed(records)} for records in read)
    # The first expression of every target set of gRefCOCO, and of one target per RefCOCO image.
    per_image = {record["image_id"]: record for record in reversed(refcoco.values())}
    chosen = [*grefcoco.values(), *per_image.values()]
    # The two data sets number their samples independently.
    return [{**record, "sample_id": str(i)} for i, record in enumerate(chosen)]


def main():
    """Train on the chosen samples, evaluate on them, compare with the floor."""
    args = parse_args()
    records = read_samples(args.data, args.images)
    register_grounding(_NAME, {"evaluator_type": "grefcoco"}, lambda: records)
    config = os.path.join(_ROOT, "configs", "Shapes", "igvg_tiny.yaml")
    settings = [
        *("INPUT.TOKENIZER.NAME", "BEiT3Tokenizer", "INPUT.TOKENIZER.FILE", args.spm),
        *("MODEL.BEIT3.VOCAB_SIZE", 64010, "INPUT.IMAGE_SIZE", (256, 256)),
        *("INPUT.FLIP.HORIZONTAL_PROB", 0.0, "INPUT.FLIP.VERTICAL_PROB", 0.0),
        *("INPUT.COLOR_JITTER", 0.0, "MODEL.WEIGHTS", ""),
        *("DATASETS.TRAIN", (_NAME,), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.IMS_PER_BATCH", len(records), "SOLVER.MAX_ITER", 400, "TEST.VIS_SAMPLES", 0),
        *("OUTPUT_DIR", args.output),
    ]
    cfg = setup_config(config, [*settings, *args.opts])
    cfg.freeze()
    default_setup(cfg, argparse.Namespace(config_file=config, eval_only=False))
    setup_logger(output=cfg.OUTPUT_DIR, name="igvg_d2")
    for record in records:
        print(f"{len(record['annotations'])} targets: {record['expression']}")
    trainer = GroundingTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.defrost()
    cfg.DATASETS.TEST = (_NAME,)
    results = GroundingTrainer.test(cfg, trainer.model)
    g_iou, f1_score = results["gres"]["gIoU"], results["grec"]["F1score"]
    print(
        f"gIoU {g_iou:.1f} (floor {args.floor:g}), F1score {f1_score:.1f} on {len(records)} samples"
    )
    return 0 if g_iou >= args.floor else 1


if __name__ == "__main__":
    sys.exit(main())
