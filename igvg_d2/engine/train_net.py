"""The body of train_net.py, also of those of outside projects."""

import argparse
import logging
import os
from typing import Any, Dict, Optional, Sequence, Type

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.io.atomic import check_writable
from igvg_d2.io.terminal import printable
from igvg_d2.visualization.result_images import write_report

from .launch import launch
from .setup import AddConfig, set_num_threads, setup_config
from .trainer import GroundingTrainer, verify_results


def main(
    argv: Optional[Sequence[str]] = None,
    add_config: AddConfig = (),
    trainer: Type[GroundingTrainer] = GroundingTrainer,
) -> None:
    """Parse Detectron2's command line and :func:`run` in every process of the job.

    Args:
        argv: arguments; default: those of the process.
        add_config: importable functions, see :func:`igvg_d2.engine.setup_config`.
        trainer: importable class; of an outside project, if it has one.
    """
    parser = default_argument_parser(
        epilog="KEY VALUE pairs at the end override the config. Without a GPU, --num-gpus 2 means "
        "two processes on the CPU; under torchrun the processes are those it started."
    )
    # A free port, so that two training runs fit on one machine; several machines need --dist-url.
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    try:
        cfg = setup_config(args.config_file, args.opts, add_config)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(printable(error)) from error
    try:
        check_writable(cfg.OUTPUT_DIR)
    except OSError as error:
        raise SystemExit(error.strerror) from error
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args, tuple(add_config), trainer),
        device=cfg.MODEL.DEVICE,
    )


def setup(args: argparse.Namespace, add_config: AddConfig = ()) -> CfgNode:
    """The frozen config of a command line, after Detectron2's set-up (logs, seed, threads)."""
    opts = ["TEST.SAVE_PREDICTIONS", args.eval_only, *args.opts]
    cfg = setup_config(args.config_file, opts, add_config)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="igvg_d2")
    set_num_threads(cfg)
    return cfg


def run(
    args: argparse.Namespace,
    add_config: AddConfig = (),
    trainer: Type[GroundingTrainer] = GroundingTrainer,
) -> Dict[str, Any]:
    """Train, or evaluate with --eval-only, in one process of the job.

    Returns:
        metrics of the last evaluation, nested; {} in other processes than the first.
    """
    cfg = setup(args, add_config)
    if args.eval_only:
        model = trainer.build_model(cfg)
        GroundingCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = trainer.test(cfg, model)
        verify_results(cfg, results)
        return results
    training = trainer(cfg)
    training.resume_or_load(resume=args.resume)
    results = training.train()
    if comm.is_main_process() and cfg.TEST.VIS_SAMPLES > 0 and cfg.DATASETS.TEST:
        report = write_report(cfg, training.evaluated_model)
        logging.getLogger(__name__).info("Report: %s", os.path.abspath(report))
    return results
