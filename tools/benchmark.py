#!/usr/bin/env python
"""Time and memory of a training step, of a config and of variants of it, as ratios.

    python tools/benchmark.py --config-file configs/gRefCOCO/igvg_beit3_base_320_10ep.yaml \\
        --compare "MODEL.BEIT3.CHECKPOINTING True" \\
        --compare "SOLVER.AMP.ENABLED True SOLVER.AMP.PRECISION bf16" SOLVER.IMS_PER_BATCH 2

Each variant runs in processes of its own, so that their peaks of memory are apart; with --rounds
they take turns, so that a machine that slows down slows all of them. A step is forward, backward
and the optimizer's. Its batch is SOLVER.IMS_PER_BATCH, of random images, texts and targets, which
needs no data set and no tokenizer file; --real takes DATASETS.TRAIN, waiting for data not counted.

Printed: median seconds per step, samples per second, and peak memory, of the GPU's allocator or of
the whole process on the CPU ("before" is what it had before the first step, libraries included).
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.engine import setup_config
from igvg_d2.engine.setup import set_num_threads
from igvg_d2.engine.train_step import build_step_trainer
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import random_batch

# Targets of random samples: like gRefCOCO, some expressions have none or several.
_TARGETS = (1, 0, 2, 1, 1, 3, 1, 0)
_WORDS = (7, 12, 5, 9)


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="config to measure, or a name"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar='"KEY VALUE ..."',
        help="a variant: options on top of the config; may be repeated",
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps per process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=1, help="processes per variant")
    parser.add_argument("--real", action="store_true", help="batches of DATASETS.TRAIN")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options of all variants")
    args = parser.parse_intermixed_args(argv)
    if min(args.steps, args.rounds) < 1 or args.warmup < 0:
        parser.error("--steps and --rounds must be at least 1, --warmup at least 0")
    if any(len(shlex.split(text)) % 2 for text in [*args.compare, shlex.join(args.opts)]):
        parser.error("options are pairs of KEY VALUE; quote values with spaces")
    return args


def make_batches(cfg, real):
    """An endless iterator of training batches."""
    if real:
        yield from build_grounding_train_loader(cfg)
        return
    size = cfg.SOLVER.IMS_PER_BATCH
    counts = [_TARGETS[i % len(_TARGETS)] for i in range(size)]
    longest = cfg.INPUT.TOKENIZER.MAX_TOKENS
    lengths = [min(_WORDS[i % len(_WORDS)], longest) for i in range(size)]
    batch = random_batch(counts, tuple(cfg.INPUT.IMAGE_SIZE), lengths)
    while True:
        yield [dict(sample) for sample in batch]


def measure(cfg, steps, warmup, real):
    """Seconds of each step, and memory in MiB, of this process.

    Returns:
        dict with "seconds", a list, "before_mib" and "peak_mib".
    """
    set_num_threads(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    batches = make_batches(cfg, real)
    trainer = build_step_trainer(cfg, model, batches, optimizer)
    before, seconds = memory_mib(cfg.MODEL.DEVICE, peak=False), []
    with EventStorage():
        for trainer.iter in range(warmup + steps):
            trainer._data_loader_iter_obj = iter([next(batches)])
            _wait(cfg.MODEL.DEVICE)
            start = time.perf_counter()
            trainer.run_step()
            _wait(cfg.MODEL.DEVICE)
            seconds.append(time.perf_counter() - start)
    peak = memory_mib(cfg.MODEL.DEVICE, peak=True)
    return {"seconds": seconds[warmup:], "before_mib": before, "peak_mib": peak}


def memory_mib(device, peak):
    """Memory of the GPU's allocator, or of this process alone (Linux), in MiB."""
    if torch.device(device).type == "cuda":
        number = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return number / 2**20
    # Not getrusage, whose peak begins with that of the process that started this one.
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) / 2**10


def _wait(device):
    """For a GPU to finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def run_variant(args, opts):
    """:func:`measure` in a new process; its errors end the benchmark."""
    command = [*args.command, "--worker"]
    command += ["--config-file", args.config_file, f"--steps={args.steps}"]
    command += [f"--warmup={args.warmup}", *(["--real"] if args.real else []), *args.opts, *opts]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"the variant '{shlex.join(opts)}' failed, see above")
    return json.loads(result.stdout.splitlines()[-1])


def summarize(name, runs, batch_size):
    """One row: medians over all steps, the largest peak."""
    seconds = statistics.median(s for run in runs for s in run["seconds"])
    return {
        "variant": name,
        "seconds_per_step": seconds,
        "samples_per_second": batch_size / seconds,
        "before_mib": max(run["before_mib"] for run in runs),
        "peak_mib": max(run["peak_mib"] for run in runs),
    }


def format_table(rows):
    """Rows as text; ratios are to the first one."""
    first = rows[0]
    lines = [
        (
            row["variant"],
            f"{row['seconds_per_step']:.3f}",
            f"{row['seconds_per_step'] / first['seconds_per_step']:.2f}",
            f"{row['samples_per_second']:.2f}",
            f"{row['before_mib']:.0f}",
            f"{row['peak_mib']:.0f}",
            f"{row['peak_mib'] / first['peak_mib']:.2f}",
        )
        for row in rows
    ]
    headers = ["variant", "s/step", "ratio", "samples/s", "before MiB", "peak MiB", "ratio"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def main(argv=None, add_config=()):
    """Measure all variants, or be one of their processes."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    # What started this script, perhaps that of an outside project, without the arguments.
    args.command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]]
    cfg = setup_config(args.config_file, args.opts, add_config)
    if args.worker:
        cfg.freeze()
        print(json.dumps(measure(cfg, args.steps, args.warmup, args.real)))
        return
    variants = {"as configured": [], **{text: shlex.split(text) for text in args.compare}}
    runs = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, opts in variants.items():
            runs[name].append(run_variant(args, opts))
    rows = []
    for name, opts in variants.items():
        batch = setup_config(args.config_file, [*args.opts, *opts], add_config).SOLVER.IMS_PER_BATCH
        rows.append(summarize(name, runs[name], batch))
    where = cfg.MODEL.DEVICE
    if where == "cuda":
        where = torch.cuda.get_device_name()
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(format_table(rows))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "runs": runs}, file, indent=2)


if __name__ == "__main__":
    main()
