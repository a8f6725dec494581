#!/usr/bin/env python3
"""Train and evaluate IGVG.

    python train_net.py --config-file configs/Shapes/igvg_tiny.yaml
    python train_net.py --config-file X --eval-only MODEL.WEIGHTS Y
    python train_net.py --config-file X --resume --num-gpus 8 SOLVER.IMS_PER_BATCH 128

The arguments are those of every Detectron2 project; KEY VALUE pairs at the end override the config.
On a machine without a GPU the same commands run on the CPU, and --num-gpus 2 means two processes.
Under torchrun and SLURM (srun) the same commands run in the processes that are there.
"""

import logging
import os
from datetime import timedelta

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.engine import GroundingTrainer, check_output_dir, launch, setup_config
from igvg_d2.engine.report import write_report
from igvg_d2.engine.trainer import set_num_threads


def setup(args):
    """Create the config and perform Detectron2's basic set-up."""
    cfg = setup_config(args.config_file, ["TEST.SAVE_PREDICTIONS", args.eval_only, *args.opts])
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="igvg_d2")
    set_num_threads(cfg)
    return cfg


def main(args):
    """Train, or evaluate with --eval-only; returns the metrics of an evaluation."""
    cfg = setup(args)
    if args.eval_only:
        model = GroundingTrainer.build_model(cfg)
        GroundingCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = GroundingTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = GroundingTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if comm.is_main_process() and cfg.TEST.VIS_SAMPLES > 0 and cfg.DATASETS.TEST:
        report = write_report(cfg, trainer.evaluated_model)
        logging.getLogger("igvg_d2").info("Report: %s", os.path.abspath(report))
    return results


def invoke_main():
    """Parse the command line and run `main` in every process of the job."""
    parser = default_argument_parser(epilog=__doc__)
    # A free port, so that two trainings fit on one machine; several machines need --dist-url.
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    cfg = setup_config(args.config_file, args.opts)
    check_output_dir(cfg)
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        timeout=timedelta(minutes=cfg.DISTRIBUTED.TIMEOUT_MINUTES),
        device=cfg.MODEL.DEVICE,
        environ=os.environ,
    )


if __name__ == "__main__":
    invoke_main()
