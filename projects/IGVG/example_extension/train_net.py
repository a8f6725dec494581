#!/usr/bin/env python3
"""Train IGVG with a query generator that lives outside the library; options as in train_net.py."""

import torch
from center_queries import add_center_queries_config
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from igvg_d2 import add_igvg_config
from igvg_d2.engine import GroundingTrainer


def setup(args):
    """The library's options, then ours, then the file and the command line."""
    cfg = get_cfg()
    add_igvg_config(cfg)
    add_center_queries_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="igvg_d2")
    return cfg


def main(args):
    """Train, or evaluate with --eval-only."""
    cfg = setup(args)
    trainer = GroundingTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return trainer.test(cfg, trainer.model)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
