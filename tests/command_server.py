"""Runs commands of the documents for test_commands.py: each in a fork, so one import serves all.

Reads lines of JSON: {"kind": "run" | "check" | "code", "argv": [...], "env": {...}, "log": file}.
Answers each by a line: {"status": int, "facts": {...}}. Nothing of a test session is in these
processes: no captured output, no data sets that other tests have registered.
"""

import argparse
import json
import os
import runpy
import signal
import sys
import traceback

import igvg_d2  # noqa: F401

# isort: split
import torch

import igvg_d2.checkpoint  # noqa: F401
import igvg_d2.visualization  # noqa: F401
from igvg_d2.engine import setup_config
from igvg_d2.engine.train_net import GroundingTrainer  # noqa: F401

LIMIT_SECONDS = 300
# What stands for the config of the reader.
PLACEHOLDERS = ("X", "CONFIG", "...", "FILE")
ANY_CONFIG = "configs/Shapes/igvg_tiny.yaml"


class Parsed(Exception):
    """Carries what a script's parser has made of its arguments, before anything is done."""


def run(argv):
    """A script, or a module after "-m", as the interpreter runs it."""
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], os.getcwd()
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    sys.argv, sys.orig_argv = argv, [sys.executable, *argv]
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")


def stop_after(name):
    """Let a method of parsers raise what it has parsed."""
    parse = getattr(argparse.ArgumentParser, name)

    def stop(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace))

    setattr(argparse.ArgumentParser, name, stop)


def check(argv):
    """Let the script's parser read its arguments and merge its config; facts about both."""
    for name in ("parse_args", "parse_intermixed_args"):
        stop_after(name)
    try:
        run(argv)
        raise RuntimeError(f"{argv[0]} did not parse its arguments")
    except Parsed as parsed:
        args, add_config = parsed.args[0], ()
        for frame, _ in traceback.walk_tb(parsed.__traceback__):
            add_config = frame.f_locals.get("add_config", add_config)
    facts = {"options": {key: str(value) for key, value in vars(args).items()}}
    if getattr(args, "config_file", None):
        file = ANY_CONFIG if args.config_file in PLACEHOLDERS else args.config_file
        cfg = setup_config(file, getattr(args, "opts", ()), add_config)
        facts["weights"], facts["tokenizer"] = cfg.MODEL.WEIGHTS, cfg.INPUT.TOKENIZER.FILE
    return facts


def code(argv):
    """Python code of a document, with the folder of the document in the path."""
    sys.path[0] = argv[1]
    namespace = {"__name__": "__main__"}
    exec(compile(argv[0], "document", "exec"), namespace)
    return {"names": sorted(name for name in namespace if not name.startswith("__"))}


def in_fork(request, output):
    """Body of the child; returns its exit status."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    signal.alarm(LIMIT_SECONDS)
    torch.set_num_threads(1)
    status = 0
    try:
        facts = {"run": run, "check": check, "code": code}[request["kind"]](request["argv"])
        os.write(output, json.dumps(facts or {}).encode())
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main():
    """Serve until standard input ends."""
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(in_fork(json.loads(line), writer))
        os.close(writer)
        with os.fdopen(reader) as file:
            facts = file.read()
        _, status = os.waitpid(child, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "facts": json.loads(facts or "{}")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
