#!/usr/bin/env python
"""Make one small file to share out of a finished run: weights, and how they came about.

    python tools/export.py output/shapes_tiny output/igvg_tiny.safetensors

Reads config.yaml, model_final.pth, run_summary.json and inference/*/*_metrics.json of the run. The
file holds no optimizer. Its header carries the config, so that the file alone is a model: scripts
take it in place of a config file. It also says the command, the seed and the metrics of the last
evaluation (--show prints the header). Of a run with
SOLVER.EMA it holds the averaged weights, which are those that were evaluated.
"""

import argparse
import glob
import json
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401  registers the models
from igvg_d2.checkpoint import GroundingCheckpointer, export_safetensors, read_metadata
from igvg_d2.engine import setup_config
from igvg_d2.engine.config_files import config_for_header
from igvg_d2.io.json_stream import to_json_text

_RUN_FILES = ("config.yaml", "model_final.pth", "run_summary.json")
# What of the metrics tells how good the model is.
_METRICS = ("gIoU", "N_acc", "T_acc", "F1score", "mask_AP", "mask_AP50", "box_AP50")
_METRICS += ("CoverAcc", "CoverAcc_all")


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a finished run; with --show, an exported file")
    parser.add_argument("output", nargs="?", help="file to write, ending in .safetensors")
    parser.add_argument("--show", action="store_true", help="print the header of a file")
    args = parser.parse_args(argv)
    if not args.show and args.output is None:
        parser.error("the file to write is missing")
    return args


def read_facts(run):
    """Command, seed and metrics of a run, all as text."""
    with open(os.path.join(run, "run_summary.json"), encoding="utf-8") as file:
        facts = {key: str(value) for key, value in json.load(file).items()}
    for path in sorted(
        glob.glob(os.path.join(glob.escape(run), "inference", "*", "*_metrics.json"))
    ):
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        for task, metrics in report["results"].items():
            for key in _METRICS:
                if metrics.get(key) is not None:
                    facts[f"{report['dataset']}/{task}/{key}"] = f"{metrics[key]:.2f}"
    return facts


def main(argv=None, add_config=()):
    """Export a run, or show the header of an exported file."""
    args = parse_args(argv)
    if args.show:
        print(to_json_text(read_metadata(args.run), indent=2))
        return
    missing = [name for name in _RUN_FILES if not os.path.isfile(os.path.join(args.run, name))]
    if missing:
        sys.exit(f"'{args.run}' is not the folder of a finished run: it has no {missing}")
    weights = os.path.join(args.run, "model_final.pth")
    config_file = os.path.join(args.run, "config.yaml")
    cfg = setup_config(config_file, ["MODEL.DEVICE", "cpu"], add_config)
    model = build_model(cfg)
    GroundingCheckpointer(model).load(weights)
    facts = read_facts(args.run)
    if cfg.SOLVER.EMA.ENABLED:
        facts["weights"] = f"moving average, SOLVER.EMA.DECAY {cfg.SOLVER.EMA.DECAY}"
    facts["config"] = config_for_header(cfg)
    export_safetensors(model, args.output, facts)
    size = os.path.getsize(args.output) / 1e6
    print(
        f"{args.output}: {size:.1f} MB, {sum(p.numel() for p in model.parameters()):,} parameters"
    )


if __name__ == "__main__":
    main()
