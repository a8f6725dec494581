"""The body of train_net.py, also of those of outside projects."""

import argparse
import contextlib
import logging
import os
import signal
import traceback
from typing import Any, Dict, Optional, Sequence, Type

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import igvg_d2
from igvg_d2.checkpoint import GroundingCheckpointer, find_weights
from igvg_d2.io.atomic import check_writable
from igvg_d2.io.terminal import printable
from igvg_d2.visualization.result_images import write_report

from .config_checks import warn_of_random_encoder
from .config_files import find_config_file
from .launch import RankFailedError, launch, place_in_job
from .output_lock import output_lock
from .setup import AddConfig, set_num_threads, setup_config
from .trainer import GroundingTrainer, verify_results

_PACKAGE = os.path.dirname(igvg_d2.__file__) + os.sep


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
    num_local, is_first = place_in_job(args.num_gpus, args.machine_rank)
    try:
        cfg = setup_config(args.config_file, args.opts, add_config, num_local)
        if not args.resume:
            find_weights(cfg.MODEL.WEIGHTS)
        check_writable(cfg.OUTPUT_DIR)
        with output_lock(cfg.OUTPUT_DIR) if is_first else contextlib.nullcontext():
            launch(
                _run_and_explain,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args, tuple(add_config), trainer),
                device=cfg.MODEL.DEVICE,
            )
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if not is_explained(error):
            raise
        raise SystemExit(_message(error)) from error


def is_explained(error: BaseException) -> bool:
    """Whether this package raised an error on purpose, so that its message says it all."""
    frames = traceback.extract_tb(error.__traceback__)
    is_ours = bool(frames) and frames[-1].filename.startswith(_PACKAGE)
    return is_ours and str(frames[-1].line).startswith("raise ")


def _run_and_explain(*args: Any) -> None:
    """:func:`run`; an error that needs no traceback ends the process with its message alone."""
    # Detectron2 logs the traceback of any error before this function sees it.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_needed)
    try:
        run(*args)
    except Exception as error:
        if not is_explained(error):
            raise
        if comm.is_main_process():
            logging.getLogger(__name__).error("%s", _message(error))
            raise SystemExit(1) from None
        raise RankFailedError(_message(error)) from None


def _message(error: BaseException) -> str:
    """For a terminal; of an OSError without its number."""
    return printable(getattr(error, "strerror", None) or error)


def _is_needed(record: logging.LogRecord) -> bool:
    return not (record.exc_info and is_explained(record.exc_info[1]))


def setup(args: argparse.Namespace, add_config: AddConfig = ()) -> CfgNode:
    """The frozen config of a command line, after Detectron2's set-up (logs, seed, threads)."""
    opts = ["TEST.SAVE_PREDICTIONS", args.eval_only, *args.opts]
    cfg = setup_config(args.config_file, opts, add_config)
    cfg.freeze()
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="igvg_d2")
    if not (args.eval_only or args.resume):
        # Before the pages that Detectron2 logs.
        warn_of_random_encoder(cfg)
    # Logs the config file as text.
    shown = {**vars(args), "config_file": find_config_file(args.config_file)}
    default_setup(cfg, argparse.Namespace(**shown))
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
