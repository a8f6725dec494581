#!/usr/bin/env python
"""Time and memory of a model, part by part, and how near they are to what the machine can do.

Each case runs in a process of its own, so that peaks of memory are apart. In the same turns as a
pass or a step, matrix products at the encoder's shapes are timed ("gemm"): "of peak" is the time in
which the machine would do the products and convolutions alone, at that rate, through the time that
was taken (over 100 % where an algorithm does less than is counted). It compares machines, and runs
of a machine that others use; there, --clock cpu with --threads 1 counts the CPU time of a process
alone. On GPUs, CUDA events are timed. Weights, images, texts and targets are random: no data,
weights or tokenizer file are needed.

examples:
  python tools/benchmark.py --config-file configs/Shapes/igvg_tiny.yaml
      Inference, one image: encoder, neck and pixel decoder, query generation, decoder, heads,
      post-processing; and torchscale's encoder, if it is installed.
  python tools/benchmark.py --config-file X --batch 1,8 --threads 1,2 --precision fp32,bf16
      Every combination. So with --size 320,480x640 (height x width) and --backend eager,optimized:
      "optimized" (the default) is optimize_for_inference, which the predictor and evaluations take;
      "compile" is torch.compile; a file of tools/export.py is run by onnxruntime.
  python tools/benchmark.py --config-file X --what training --batch 2 --rounds 3 \\
      --variant "MODEL.BEIT3.CHECKPOINTING True" --variant "SOLVER.AMP.ENABLED True"
      The training step: forward, matching, losses, backward, optimizer. Variants of the config take
      turns with it. --processes 1,2 shares the batch among processes.
  python tools/benchmark.py --config-file X --what loader,evaluator --workers 0,2,4
      Photos of 640 x 480 with masks, made up; --real takes DATASETS.TRAIN and DATASETS.TEST.
      "of peak" is Pillow's decoding alone, and the smallest comparison of two masks.
  python tools/benchmark.py --config-file X --json before.json
  python tools/benchmark.py --config-file X --compare before.json
      What has changed: the ratio of each part, also "at equal gemm", without that of the machines.

malloc: glibc takes each block of more than 32 MiB from the system anew, page by page, and gives it
back. The base model has such blocks in large batches and in training, none in a pass of one image,
which takes the same time either way. --malloc glibc (the default on Linux) keeps them, by two
variables that are printed, and that you can set for your own runs; system leaves all as it is;
jemalloc and tcmalloc are preloaded if they are installed. --malloc system,glibc measures it.
"""

import argparse
import ctypes.util
import glob
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from igvg_d2.engine import setup_config
from igvg_d2.engine.setup import set_num_threads
from igvg_d2.io.terminal import printable

# Not there when a test or another project runs this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from benchmarking import data_parts, model_parts, report  # noqa: E402
from benchmarking.clock import use_clock  # noqa: E402

PARTS = {
    "inference": model_parts.inference,
    "training": model_parts.training,
    "loader": data_parts.loader,
    "evaluator": data_parts.evaluator,
}
# What each can be asked to vary, besides variants of the config and malloc.
AXES = {
    "inference": ("batch", "size", "threads", "precision", "backend"),
    "training": ("batch", "size", "threads", "precision", "processes"),
    "loader": ("batch", "size", "workers"),
    "evaluator": ("size",),
}
PRECISIONS = ("fp32", "bf16", "fp16", "tf32")
# The first is what the predictor and evaluations take.
BACKENDS = ("optimized", "eager", "compile")
# Larger than any block of a pass: nothing is mapped on its own, nothing is given back.
_NEVER = str(2**36)
_GLIBC = {"MALLOC_TRIM_THRESHOLD_": _NEVER, "MALLOC_MMAP_THRESHOLD_": _NEVER}
_PACKAGES = {"jemalloc": "libjemalloc2", "tcmalloc": "libgoogle-perftools4"}
MALLOCS = ("system", "glibc", "jemalloc", "tcmalloc")


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="config to measure, or a name")
    add("--what", type=_words(PARTS), default=["inference"], metavar="A,B", help=", ".join(PARTS))
    add("--batch", type=_numbers(1), metavar="N,M", help="default: 1, else SOLVER.IMS_PER_BATCH")
    add("--size", type=_sizes, metavar="N,HxW", help="pixels (default: INPUT.IMAGE_SIZE)")
    add("--threads", type=_numbers(1), metavar="N,M", help="of the CPU (default: PyTorch's)")
    add("--precision", type=_words(PRECISIONS), metavar="A,B", help=", ".join(PRECISIONS))
    add("--backend", type=_backends, metavar="A,B", help=f"{', '.join(BACKENDS)}, FILE.onnx")
    add("--workers", type=_numbers(0), metavar="N,M", help="of the loader (default: the config's)")
    add(
        "--processes",
        type=_numbers(1),
        metavar="N,M",
        help="that share a training step (default: 1)",
    )
    add("--malloc", type=_words(MALLOCS), metavar="A,B", help=", ".join(MALLOCS))
    add(
        "--variant",
        action="append",
        default=[],
        metavar='"KEY VALUE ..."',
        help="options on top of the config, measured beside it; may be repeated",
    )
    add("--steps", type=int, default=5, help="timed passes or steps per process (default: 5)")
    add("--warmup", type=int, default=1, help="passes before them (default: 1)")
    add("--rounds", type=int, default=1, help="processes per case, in turns (default: 1)")
    add(
        "--tokens", type=_numbers(3), default=[8, 12, 5, 9], help="of the texts (default: 8,12,5,9)"
    )
    add("--photo", type=_size, default=(480, 640), metavar="HxW", help="original (480x640)")
    add("--samples", type=int, default=128, help="of loader and evaluator (default: 128)")
    add("--real", action="store_true", help="data of the config instead of random ones")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others compute, too")
    add("--no-torchscale", action="store_true", help="without torchscale's encoder beside ours")
    add("--json", metavar="FILE", help="write all numbers there, too")
    add("--compare", metavar="FILE", help="the --json of an earlier run")
    add("--worker", metavar="JSON", help=argparse.SUPPRESS)
    add("opts", nargs="*", metavar="KEY VALUE", help="options of all variants")
    args = parser.parse_intermixed_args(argv)
    if min(args.steps, args.rounds, args.samples) < 1 or args.warmup < 0:
        parser.error("--steps, --rounds, --samples must be at least 1, --warmup at least 0")
    if any(len(shlex.split(text)) % 2 for text in [*args.variant, shlex.join(args.opts)]):
        parser.error("options are pairs of KEY VALUE; quote values with spaces")
    if {*(args.precision or ())} - {"fp32"} and any(
        x.endswith(".onnx") for x in args.backend or ()
    ):
        parser.error("--precision: the numbers of an ONNX file were chosen at its export")
    if args.compare and " " in args.compare and not os.path.isfile(args.compare):
        parser.error(
            "--compare takes the JSON file of an earlier run; a variant of the config is "
            f'--variant "{args.compare}"'
        )
    folder = os.path.dirname(os.path.abspath(args.json or ""))
    if not os.path.isdir(folder):
        parser.error(f"--json: there is no folder '{folder}'")
    return args


def _words(known):
    def parse(text):
        words = list(known) if text == "all" else text.split(",")
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return words

    return parse


def _backends(text):
    files = [word for word in text.split(",") if word.endswith(".onnx")]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise argparse.ArgumentTypeError(f"there is no file '{missing[0]}'")
    return _words([*BACKENDS, *files])(text)


def _numbers(least):
    def parse(text):
        words = text.split(",")
        if not all(word.isdecimal() and int(word) >= least for word in words):
            raise argparse.ArgumentTypeError(f"'{text}': expected numbers of {least} or more")
        return [int(word) for word in words]

    return parse


def _size(text):
    """ "320" or "480x640", height x width."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}': expected 320 or 480x640")
    return int(sides[0]), int(sides[-1])


def _sizes(text):
    return [_size(word) for word in text.split(",")]


def list_cases(args):
    """What is to be measured: dicts with the keys of ``report.LABELS``."""
    defaults = {"batch": [None], "size": [None], "threads": [None], "precision": [None]}
    defaults.update(backend=["optimized"], workers=[None], processes=[1])
    malloc = args.malloc or ["glibc" if platform.libc_ver()[0] == "glibc" else "system"]
    variants = ["", *args.variant]
    cases = []
    for what in args.what:
        values = [getattr(args, axis) or defaults[axis] for axis in AXES[what]]
        for variant, name, *chosen in itertools.product(variants, malloc, *values):
            case = {"what": what, "variant": variant, "malloc": name, "clock": args.clock}
            case.update(zip(AXES[what], chosen))
            if what == "inference":
                case["batch"] = case["batch"] or 1
            cases.append({label: case.get(label) for label in report.LABELS})
    return cases


def options_of(case, args):
    """KEY VALUE options of a case, the strongest last."""
    opts = [*args.opts, *shlex.split(case["variant"])]
    if case["size"]:
        opts += ["INPUT.IMAGE_SIZE", str(tuple(case["size"]))]
    if case["threads"]:
        opts += ["SOLVER.NUM_THREADS", str(case["threads"])]
    if case["batch"] and case["what"] != "inference":
        opts += ["SOLVER.IMS_PER_BATCH", str(case["batch"])]
    if case["what"] == "training" and case["precision"]:
        opts += ["SOLVER.AMP.ENABLED", str(case["precision"] != "fp32")]
        if case["precision"] != "fp32":
            opts += ["SOLVER.AMP.PRECISION", case["precision"]]
    return opts


def malloc_environment(name):
    """Variables of a process that let it use an allocator; leaves if it is not there."""
    if name == "system":
        return {}
    if name == "glibc":
        return dict(_GLIBC)
    found = ctypes.util.find_library(name)
    here = sorted(glob.glob(os.path.join(sys.prefix, "lib", f"lib{name}.so*")))
    if not found and not here:
        sys.exit(f"--malloc {name}: lib{name} is not installed (Debian: {_PACKAGES[name]})")
    return {"LD_PRELOAD": here[0] if here else found}


def run_case(args, case, argv, folder):
    """What a new process measures, a dict of ``Result``; its errors end the benchmark."""
    command = [*args.command, *argv, "--worker", json.dumps({**case, "photos": folder})]
    env = {**os.environ, **malloc_environment(case["malloc"])}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=env)
    if run.returncode:
        named = ", ".join(f"{key} {value}" for key, value in case.items() if value)
        sys.exit(f"the case '{named}' failed, see above")
    return json.loads(run.stdout.splitlines()[-1])


def measure(args, case, add_config=()):
    """A ``Result`` as a dict, of this process."""
    cfg = setup_config(args.config_file, options_of(case, args), add_config)
    args.photos = case.get("photos")
    use_clock(args.clock)
    if case["what"] == "loader" and case["workers"] is None:
        case["workers"] = cfg.DATALOADER.NUM_WORKERS
    set_num_threads(cfg)
    return vars(PARTS[case["what"]](cfg, case, args))


def run(argv, add_config):
    """Measure all cases, or be one of their processes.

    Raises:
        ValueError, OSError: what the user asked for does not fit, or a file is missing.
    """
    args = parse_args(argv)
    # What started this script, perhaps that of an outside project, without the arguments.
    args.command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]]
    if args.worker:
        print(json.dumps(measure(args, json.loads(args.worker), add_config)))
        return
    earlier = args.compare and report.read_run(args.compare)
    cases = list_cases(args)
    configs = [setup_config(args.config_file, options_of(c, args), add_config) for c in cases]
    device = configs[0].MODEL.DEVICE
    malloc = {name: malloc_environment(name) for name in {case["malloc"] for case in cases}}
    found = {
        "format": report.FORMAT,
        "config": args.config_file,
        "options": args.opts,
        "machine": report.machine(device),
        "malloc": {n: " ".join(f"{k}={v}" for k, v in env.items()) for n, env in malloc.items()},
    }
    runs = [[] for _ in cases]
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        for _ in range(args.rounds):
            for case, results in zip(cases, runs):
                named = [
                    f"{k} {v}"
                    for k, v in case.items()
                    if v and k not in ("what", "malloc", "clock")
                ]
                name = ", ".join(named) or "as configured"
                print(f"{case['what']}: {name}", file=sys.stderr, flush=True)
                results.append(run_case(args, case, argv, folder))
    found["machine_after"] = report.machine(device)
    found["rows"] = [report.summarize(case, results) for case, results in zip(cases, runs)]
    found["runs"] = runs
    print(report.format_report(found))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
    if earlier:
        print(f"\n{report.compare(found, earlier, args.compare)}")


def main(argv=None, add_config=()):
    """Print what was measured; exit status 1 with one line of reason if there is none."""
    try:
        run(sys.argv[1:] if argv is None else argv, add_config)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot measure: {error}"))


if __name__ == "__main__":
    main()
