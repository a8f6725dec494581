#!/usr/bin/env python3
"""Train IGVG with a query generator that lives outside the library; options as in train_net.py."""

import os

import torch
from center_queries import add_center_queries_config
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from igvg_d2 import add_igvg_config
from igvg_d2.engine import GroundingTrainer, launch
from igvg_d2.engine.trainer import set_num_threads


def read_config(args):
    """The library's options, then ours, then the file and the command line."""
    cfg = get_cfg()
    add_igvg_config(cfg)
    add_center_queries_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def main(args):
    """Train, or evaluate with --eval-only."""
    cfg = read_config(args)
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="igvg_d2")
    set_num_threads(cfg)
    trainer = GroundingTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return trainer.test(cfg, trainer.model)
    return trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        device=read_config(args).MODEL.DEVICE,
        environ=os.environ,
    )
