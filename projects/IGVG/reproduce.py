#!/usr/bin/env python3
"""Train the rows of the paper's Tables 5 to 8 and Fig. 4, and write down what holds.

    python projects/IGVG/reproduce.py
    python projects/IGVG/reproduce.py --table 8 fig4 --seeds 1
    python projects/IGVG/reproduce.py --table findings
    python projects/IGVG/reproduce.py --dataset grefcoco --dry-run

Runs that are complete are kept, interrupted ones are resumed: Ctrl-C (or SIGTERM) lets each run
save a checkpoint and exits with 75, and the same command goes on. On the CPU as many runs as there
are cores go on at a time, each in one process with one thread; on GPUs one at a time uses all. The
page, projects/IGVG/RESULTS.md (RESULTS-grefcoco.md), is written from the runs that are complete and
names those that are missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
from ablation_page import write_page
from ablation_plan import PAPER_TABLES, ROOT, SETTINGS, TABLES, Run, code_hash, make_plan, max_iter

from igvg_d2.engine.output_lock import output_lock
from igvg_d2.engine.stop_signals import STOPPED_EXIT_CODE
from igvg_d2.io.json_stream import read_metrics, to_json_text
from igvg_d2.io.terminal import printable

# One line per start of train_net.py, in the folder of the run.
ATTEMPTS = "attempts.jsonl"
# Of a run's time; evaluation has the rest.
_TRAINING_SHARE = 0.9


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--table",
        nargs="+",
        choices=list(TABLES),
        help="tables of the paper, fig4, or findings; default: those of the paper on the page",
    )
    parser.add_argument("--dataset", default="shapes", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3, help="runs per row, of seeds 0, 1, ...")
    parser.add_argument(
        "--output",
        default="",
        metavar="FOLDER",
        help="gets a folder per run; default: output/reproduce/DATASET",
    )
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time; default: the cores, on GPUs 1"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=None, help="GPUs of a run; default: those there are"
    )
    parser.add_argument("--dry-run", action="store_true", help="check configs, print commands")
    parser.add_argument("--page-only", action="store_true", help="train nothing, write the page")
    parser.add_argument(
        "--page", default="", metavar="FILE", help="default: projects/IGVG/RESULTS.md"
    )
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.jobs < 0 or (args.num_gpus or 0) < 0:
        parser.error("--seeds must be 1 or more, --jobs and --num-gpus not negative")
    known = SETTINGS[args.dataset].tables
    args.table = args.table or [name for name in PAPER_TABLES if name in known]
    if not set(args.table) <= set(known):
        parser.error(f"--table of {args.dataset}: expected some of {' '.join(known)}")
    return args


def read_attempts(run: Run) -> List[Dict[str, Any]]:
    """What was noted about each start of a run, oldest first."""
    path = run.folder / ATTEMPTS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_complete(run: Run) -> bool:
    """Whether a run ended well; an interrupted or failed one is resumed.

    Raises:
        ValueError: the folder is of another config. Configs of two states of the code, of which
            one may have more options, are not compared.
    """
    attempts = read_attempts(run)
    is_other = bool(attempts) and attempts[-1]["config_hash"] != run.config_hash
    if is_other and attempts[-1]["code"] == code_hash():
        raise ValueError(
            f"'{run.folder}' was trained with another config than {run.configs[0]} has now; "
            "remove the folder, or choose another --output"
        )
    return bool(attempts) and attempts[-1]["returncode"] == 0


def check_code(runs: Sequence[Run], code: str) -> None:
    """Refuse to mix numbers of two states of the library.

    Raises:
        ValueError: a run was started by another one.
    """
    for run in runs:
        if any(attempt["code"] != code for attempt in read_attempts(run)):
            raise ValueError(
                f"'{run.folder}' was trained by another state of igvg_d2 than this one; go on from "
                f"commit {read_attempts(run)[-1]['commit']}, or choose another --output"
            )


def commit() -> str:
    """Commit of the checkout, "+" when what trains differs from it; "" outside git."""
    tracked = ("igvg_d2", "configs", "projects/IGVG", "train_net.py", "demo/*.safetensors")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", *tracked, ":!projects/IGVG/RESULTS*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return head.stdout.strip() + "+" * bool(changed.stdout.strip()) if not head.returncode else ""


class Queue:
    """Runs train_net.py, a number of runs at a time, until all ended or a signal came.

    Attributes:
        failed: runs that ended with an error.
        stopped: a signal came.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, facts: Dict[str, str]):
        """
        Args:
            runs: in the order in which they are started; those that are complete are passed over.
            jobs: runs at a time.
            facts: noted with every attempt: commit and code.
        """
        self.waiting = [run for run in runs if not is_complete(run)]
        self.num_runs, self.num_done = len(runs), len(runs) - len(self.waiting)
        self.jobs, self.facts = jobs, facts
        self.running: Dict[int, Dict[str, Any]] = {}
        self.failed: List[Run] = []
        self.signals: List[int] = []
        self._passed_on = 0
        self._begin, self._gained = time.monotonic(), 0.0

    @property
    def stopped(self) -> bool:
        """A signal came."""
        return bool(self.signals)

    def work(self, report_seconds: float = 60.0) -> None:
        """Start, wait, and print; runs that fail do not keep the others from running."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # One that is ignored, as nohup wants, stays so.
        previous = {number: signal.getsignal(number) for number in numbers}
        for number, handler in previous.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, lambda n, _: self.signals.append(n))
        try:
            reported = 0.0
            while self.running or (self.waiting and not self.stopped):
                while self.waiting and len(self.running) < self.jobs and not self.stopped:
                    self._start(self.waiting.pop(0))
                self._collect()
                self._pass_on()
                if time.monotonic() - reported > report_seconds:
                    reported = time.monotonic()
                    print(self.progress(), flush=True)
                time.sleep(0.1)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def progress(self) -> str:
        """One line: how many runs are done, what runs, how long it took and will take."""
        shares = {pid: fraction_done(item["run"]) for pid, item in self.running.items()}
        names = [f"{item['run']} {shares[pid]:.0%}" for pid, item in self.running.items()]
        elapsed = time.monotonic() - self._begin
        started = sum(item["fraction"] for item in self.running.values())
        gained = self._gained + sum(shares.values()) - started
        left = len(self.waiting) + len(shares) - sum(shares.values())
        rest = f", about {_clock(elapsed * left / gained)} left" if gained > 0.01 else ""
        return (
            f"[{self.num_done}/{self.num_runs} runs] {', '.join(names) or 'nothing runs'}; "
            f"{_clock(elapsed)} gone{rest}"
        )

    def _start(self, run: Run) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        fraction = fraction_done(run)
        command = list(run.command)
        if (run.folder / "last_checkpoint").is_file():
            command.insert(1, "--resume")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if "--num-gpus" not in command:
            environment["OMP_NUM_THREADS"] = "1"
        with open(run.folder / "console.txt", "a") as console:
            # A session of its own: Ctrl-C comes here, and is passed on once.
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *command],
                cwd=ROOT,
                env=environment,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[process.pid] = {
            "run": run,
            "process": process,
            "begin": time.time(),
            "fraction": fraction,
            "command": " ".join(command),
        }

    def _collect(self) -> None:
        """Note what ended, with the CPU time of the process and of all it waited for."""
        for pid, item in list(self.running.items()):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if not found:
                continue
            code = os.waitstatus_to_exitcode(status)
            item["process"].returncode = code
            del self.running[pid]
            run = item["run"]
            attempt = {
                **self.facts,
                "config_hash": run.config_hash,
                "command": item["command"],
                "returncode": code,
                "wall_seconds": round(time.time() - item["begin"], 1),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            }
            with open(run.folder / ATTEMPTS, "a", encoding="utf-8") as file:
                file.write(to_json_text(attempt) + "\n")
            self._gained += (1.0 if code == 0 else fraction_done(run)) - item["fraction"]
            self.num_done += code == 0
            if code not in (0, STOPPED_EXIT_CODE) and not self.stopped:
                self.failed.append(run)
            outcome = {0: "done", STOPPED_EXIT_CODE: "interrupted"}.get(code, f"failed ({code})")
            print(f"{run}: {outcome} after {attempt['wall_seconds']:.0f} s", flush=True)

    def _pass_on(self) -> None:
        """Signals that came since, to every run; a second one ends them at once."""
        for number in self.signals[self._passed_on :]:
            print(f"{signal.Signals(number).name}: the runs save and end", flush=True)
            for item in self.running.values():
                item["process"].send_signal(signal.SIGTERM)
            self._passed_on += 1


def fraction_done(run: Run) -> float:
    """Share of a run that is done, from the metrics that it has logged."""
    total, iterations = max_iter(run), read_metrics(str(run.folder / "metrics.json"))
    if not iterations or not total:
        return 0.0
    return _TRAINING_SHARE * min(1.0, (max(iterations) + 1) / total)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"


def main(argv=None) -> int:
    """Exit code: 0, 1 when runs failed, 75 when interrupted."""
    args = parse_args(argv)
    num_gpus = torch.cuda.device_count() if args.num_gpus is None else args.num_gpus
    jobs = args.jobs or (1 if num_gpus else len(os.sched_getaffinity(0)))
    output = Path(args.output or ROOT / "output" / "reproduce" / args.dataset).resolve()
    runs = make_plan(args.table, args.dataset, range(args.seeds), output, num_gpus)
    if args.dry_run:
        for run in runs:
            print(f"# {', '.join(run.configs)}; seed {run.seed}\n{run.shell()}")
        print(f"# {len(runs)} runs, {jobs} at a time; their configs fit")
        return 0
    queue = None
    if not args.page_only:
        if SETTINGS[args.dataset].needs_gpu and not torch.cuda.is_available():
            raise SystemExit(
                f"--dataset {args.dataset} trains at full size and needs a GPU; --dry-run prints "
                "the commands for a machine that has some"
            )
        output.mkdir(parents=True, exist_ok=True)
        with output_lock(str(output)):
            check_code(runs, code_hash())
            queue = Queue(runs, jobs, {"commit": commit(), "code": code_hash()})
            print(f"{len(runs)} runs, {queue.num_done} complete; {jobs} at a time", flush=True)
            queue.work()
    # Whatever there is, also of tables that were asked for earlier.
    tables = SETTINGS[args.dataset].tables
    everything = make_plan(tables, args.dataset, range(args.seeds), output, num_gpus)
    name = "RESULTS.md" if args.dataset == "shapes" else f"RESULTS-{args.dataset}.md"
    page = Path(args.page or Path(__file__).parent / name)
    done = {run: read_attempts(run) for run in everything if is_complete(run)}
    write_page(page, args.dataset, everything, done)
    print(f"Wrote {page}")
    if queue is None:
        return 0
    for run in queue.failed:
        print(f"{run} failed; see {run.folder / 'console.txt'}")
    return STOPPED_EXIT_CODE if queue.stopped else int(bool(queue.failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(printable(f"reproduce.py: {error}"))
