#!/usr/bin/env python
"""Train a model on images and expressions of your own.

    python tools/finetune.py --model instancevg-grefcoco --train train.json --images DIR
    python tools/finetune.py --model shapes-tiny --train train.json --images DIR --val val.json \\
        --dry-run --opts SOLVER.EPOCHS 5

In Python, from the root of a checkout: ``finetune("shapes-tiny", "train.json", "DIR")`` of
``tools.finetune``. The format of the data is in datasets/README.md, "Your own data". They are
checked, and OUTPUT/finetune.yaml is written, in which schedule, learning rates, augmentation, what
is frozen, and micro-batches follow from data, weights and memory; each choice is printed with its
reason. Then train_net.py trains with this config. The same command continues an interrupted run.
"""

import argparse
import os
import shlex
import sys
from functools import partial
from typing import NamedTuple, Tuple

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from tqdm import tqdm

from igvg_d2 import add_igvg_config, model_zoo
from igvg_d2.checkpoint import (
    ENCODER_ONLY,
    NUM_QUERIES,
    GroundingCheckpointer,
    export_safetensors,
    list_checkpoints,
)
from igvg_d2.data import build_tokenizer
from igvg_d2.data.datasets.checks import check_dataset
from igvg_d2.engine import train_net
from igvg_d2.engine.config_checks import flatten
from igvg_d2.engine.stop_signals import STOPPED_EXIT_CODE
from igvg_d2.io.atomic import check_writable, write_atomically
from igvg_d2.io.terminal import printable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from finetuning.choices import Facts, choose_options, device_facts  # noqa: E402

CONFIG = "finetune.yaml"
_HEAD = """# Options with a comment follow from data, weights and machine, others from the model.
# Change what you like: the same command uses this file as it stands.
# Command: """
_QUERIES = "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES"
_BY_ARGUMENTS = ("OUTPUT_DIR", *(f"DATASETS.{k}" for k in ("TRAIN", "TEST", "EXPRESSION_FILES")))
# What the config of a model says for the data that it was trained on.
_OF_OTHER_DATA = (
    *("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.STEPS", "SOLVER.STEP_EPOCHS"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_EPOCHS", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("TEST.EVAL_PERIOD", "TEST.EVAL_EPOCHS", "TEST.EXPECTED_RESULTS", "TEST.BEST_METRIC"),
    *("TEST.CALIBRATION", "DATALOADER.SAMPLE_UNIT"),
)


class Request(NamedTuple):
    """What decides what is learned; see `parse_args`."""

    model: str
    train: str
    images: str
    val: str
    output: str
    resize: Tuple[str, ...]
    reset: Tuple[str, ...]
    opts: Tuple[str, ...]

    def command(self):
        """As a command line."""
        parts = ["python", "tools/finetune.py"]
        for name, value in self._asdict().items():
            values = [value] if isinstance(value, str) else list(value)
            parts += [f"--{name}", *values] if any(values) else []
        return shlex.join(parts)


def say(line):
    """Print what others may have named, safely for a terminal."""
    print(printable(line), flush=True)


def finetune(
    model,
    train,
    images,
    val="",
    output="",
    *,
    resize=(),
    reset=(),
    opts=(),
    memory=0.0,
    num_gpus=1,
    dry_run=False,
    add_config=(),
):
    """Check, choose, write and train; the arguments are those of `parse_args`.

    Returns:
        path of the config. A ValueError or OSError is one message; SystemExit is train_net.py's.
    """
    if num_gpus < 1 or not memory >= 0:
        raise ValueError(f"expected 1 process or more and no memory below 0: {num_gpus}, {memory}")
    model, train, images, val, output = map(os.fspath, (model, train, images, val, output))
    stems = (os.path.splitext(os.path.basename(path))[0] for path in (model, train))
    output = output or os.path.join("output", "_".join(("finetune", *stems)))
    lists = (tuple(map(str, values)) for values in (resize, reset, opts))
    request = Request(model, train, images, val, output, *lists)
    taken = [key for key in request.opts[::2] if key in _BY_ARGUMENTS]
    if taken:
        raise ValueError(f"--train, --val, --images and --output decide {', '.join(taken)}")
    path = os.path.join(output, CONFIG)
    if is_known(path, request):
        say(f"{path} is there and of this command: it is used as it stands")
    else:
        check_writable(output)
        write_config(path, request, memory, num_gpus, add_config)
    say(f"config: {path}; the same training run: python train_net.py --config-file {path}")
    if not dry_run:
        arguments = ["--config-file", path, "--num-gpus", str(num_gpus), "--resume"]
        try:
            train_net.main(arguments, add_config)
        except SystemExit as end:
            if end.code == STOPPED_EXIT_CODE:
                say("the same command of tools/finetune.py continues")
            raise
        best = "model_best.pth" if val else "model_final.pth"
        say(
            f"the weights: {output}/{best}; ask them by python demo/demo.py --model {output}/{best}"
        )
    return path


def is_known(path, request):
    """Whether this command has written the config before; refuses the folder of another run."""
    found = "not by this tool"
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            found = file.read().partition("# Command: ")[2].partition("\n")[0] or found
    if found != request.command() and list_checkpoints(request.output):
        raise ValueError(
            f"'{request.output}' has the checkpoints of another training run ({found}); choose "
            "another --output, or give the command of that run to continue it"
        )
    return found == request.command()


def write_config(path, request, memory, num_gpus, add_config):
    """Check the data, fit the weights, choose, and write."""
    stem = os.path.basename(os.path.abspath(request.output))
    files = {f"{stem}_train": request.train, f"{stem}_val": request.val}
    files = {name: file for name, file in files.items() if file}
    entries = [[name, *map(os.path.abspath, (f, request.images))] for name, f in files.items()]
    data = ["DATASETS.EXPRESSION_FILES", entries, "DATASETS.TRAIN", list(files)[:1]]
    data += ["DATASETS.TEST", list(files)[1:]]
    pairs = zip(request.opts[::2], request.opts[1::2])
    # What trained the model, with the files that the user has named.
    own = [pair for pair in pairs if not pair[0].startswith(("SOLVER.", _QUERIES))]
    recipe = model_zoo.load(request.model, opts=sum(own, ()), add_config=add_config)
    cfg = model_zoo.load(request.model, opts=[*data, *request.opts], add_config=add_config)
    options = dict(flatten(cfg))
    # Keys of earlier versions are ignored with a warning.
    asked = {key: options[key] for key in request.opts[::2] if key in options}
    reports = [check_data(cfg, name, file) for name, file in files.items()]
    advise(cfg, list(files))
    model, start, encoder_is_new = fit_weights(cfg, recipe, request)
    encoder = sum(p.numel() for p in model.backbone.parameters())
    facts = Facts(
        samples=reports[0].expressions,
        validation=sum(report.expressions for report in reports[1:]),
        has_masks=reports[-1].masks[0] > 0 or not reports[-1].masks[1],
        start=start,
        encoder_is_new=encoder_is_new,
        parameters=(encoder, sum(p.numel() for p in model.parameters()) - encoder),
        processes=num_gpus,
        cores=os.cpu_count() or 1,
        **device_facts(cfg.MODEL.DEVICE, memory, num_gpus),
    )
    chosen = choose_options(facts, recipe, asked)
    for key, (value, reason) in chosen.items():
        say(f"{key} {value}: {reason}")
    defaults = get_cfg()
    for add in (add_igvg_config, *add_config):
        add(defaults)
    defaults = dict(flatten(defaults))
    values = {key: defaults[key] for key in _OF_OTHER_DATA}
    values |= {key: value for key, (value, _) in chosen.items()}
    cfg.merge_from_list([part for item in values.items() for part in item])
    cfg.OUTPUT_DIR = os.path.abspath(request.output)
    for node, key in ((cfg.MODEL, "WEIGHTS"), (cfg.INPUT.TOKENIZER, "FILE")):
        node[key] = os.path.abspath(node[key]) if node[key] else ""
    if request.resize or request.reset:
        cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "initial_weights.safetensors")
        header = {"author": "igvg_d2", "num_queries": str(dict(flatten(cfg))[_QUERIES])}
        export_safetensors(model, cfg.MODEL.WEIGHTS, header)
    if "MODEL.DEVICE" not in asked:
        cfg.MODEL.DEVICE = defaults["MODEL.DEVICE"]
    text = config_text(cfg, defaults, {key: reason for key, (_, reason) in chosen.items()})
    write_atomically(path, f"{_HEAD}{request.command()}\n{text}")


def check_data(cfg, name, file):
    """What was found; refuses what would end or spoil the training run."""
    report = check_dataset(
        name,
        num_workers=os.cpu_count() or 1,
        progress=partial(tqdm, desc=name, unit=" images", leave=False, disable=None),
        skip_invalid=cfg.DATASETS.SKIP_INVALID,
        tokenizer=build_tokenizer(cfg),
    )
    problems, total = dict(report.problems), report.expressions
    unknown = problems.pop("unknown words", [])
    if 2 * len(unknown) > total:
        problems["unknown words, take a model whose tokenizer knows the language"] = unknown
        unknown = []
    skipped = problems.pop("invalid records", [])
    for what, found in (("unknown words", unknown), ("left out", skipped)):
        if found:
            say(f"note: {file}: {what}, {len(found)}, such as {found[0]}")
    if problems:
        lines = [f"{file} cannot be used; mend it:"]
        for kind, found in problems.items():
            lines += [f"  {kind}: {len(found)}", *(f"    {text}" for text in found[:5])]
        raise ValueError("\n".join(lines))
    say(f"{file}: {total} expressions on {report.images} images, {report.counts[0]} of no target")
    return report


def advise(cfg, names):
    """Say what nobody would notice until the model is used."""
    samples = [DatasetCatalog.get(name) for name in names]
    counts = [len(sample["annotations"]) for sample in samples[0]]
    if min(counts) > 0:
        say("note: every expression has a target: the model forgets how to say 'nothing'")
    queries, most = cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES, max(counts)
    if cfg.MODEL.QUERY_GENERATOR.NAME and most > queries:
        remedy = f"--resize {NUM_QUERIES} --opts {_QUERIES} {most}"
        say(f"note: an expression has {most} targets, the model finds {queries} at most: {remedy}")
    shared = set.intersection(*({s["file_name"] for s in part} for part in samples))
    if len(names) == 1:
        say("note: without --val nothing shows whether it learns by heart; the last weights count")
    elif shared:
        say(f"note: {len(shared)} images are in both --val and --train, such as {min(shared)}")


def fit_weights(cfg, recipe, request):
    """The model on the CPU with its first weights, `Facts.start` and `Facts.encoder_is_new`."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(max(0, cfg.SEED))
        model = build_model(cfg)
    if not cfg.MODEL.WEIGHTS:
        if request.resize or request.reset:
            raise ValueError("--resize and --reset are about weights, and MODEL.WEIGHTS is empty")
        say("note: the model begins from nothing, so it learns these images by heart at best")
        return model, "nothing", False
    old, new = (c.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES for c in (recipe, cfg))
    if new != old and NUM_QUERIES not in request.resize:
        raise ValueError(
            f"{request.model} has {old} object queries, {_QUERIES} {new} asks for others; to start "
            f"from its weights all the same: --resize {NUM_QUERIES}"
        )
    checkpointer = GroundingCheckpointer(model)
    lines, author = checkpointer.load_changed(cfg.MODEL.WEIGHTS, request.resize, request.reset)
    for line in [*lines, *[f"resized: {NUM_QUERIES}, {old} in the file, {new} now"] * (new != old)]:
        say(line)
    is_new = any(line.startswith(("resized: backbone.", "new: backbone.")) for line in lines)
    return model, "encoder" if author == ENCODER_ONLY else "model", is_new


def config_text(cfg, defaults, reasons):
    """What a config says beyond the defaults, as YAML, with the reasons of options above them."""

    def to_yaml(value):
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        return text.removesuffix("\n").removesuffix("\n...")

    above, lines = [], []
    for key, value in flatten(cfg):
        # Tuples and lists say the same.
        is_default = key in defaults and to_yaml(value) == to_yaml(defaults[key])
        if is_default and key not in (*reasons, "VERSION"):
            continue
        *nodes, name = key.split(".")
        for depth, node in enumerate(nodes):
            if above[: depth + 1] != nodes[: depth + 1]:
                lines.append(f"{'  ' * depth}{node}:")
        above, indent = nodes, "  " * len(nodes)
        if key in reasons:
            lines.append(f"{indent}# {reasons[key]}")
        lines.append(f"{indent}{name}: {to_yaml(value)}")
    return "\n".join(lines) + "\n"


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    listed = "python -m igvg_d2.model_zoo --list"
    add(
        "--model",
        required=True,
        help=f"name ({listed}), exported .safetensors, checkpoint of a run, config",
    )
    add("--train", required=True, metavar="JSON", help="expressions to train on")
    add("--images", required=True, metavar="DIR", help="folder of the images")
    add("--val", default="", metavar="JSON", help="expressions to evaluate on")
    add("--output", default="", metavar="DIR", help="default: output/finetune_<model>_<train>")
    several = {"nargs": "+", "default": [], "metavar": "NAME"}
    add("--resize", **several, help="tables of which the rows are loaded that file and model share")
    add("--reset", **several, help="beginnings of names of tensors that the file does not give")
    add("--memory", type=float, default=0.0, metavar="GIB", help="of a process, if not all of it")
    add("--num-gpus", type=int, default=1, metavar="N", help="processes, as of train_net.py")
    add("--dry-run", action="store_true", help="write the config, do not train")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, last; they hold")
    return parser.parse_args(argv)


def main(argv=None, add_config=()):
    """Fine-tune; an error is one message."""
    try:
        finetune(**vars(parse_args(argv)), add_config=add_config)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot fine-tune: {error}"))


if __name__ == "__main__":
    main()
