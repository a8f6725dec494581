#!/usr/bin/env python
"""Several users ask the web page at once: how long an answer takes, and that none is lost.

    python dev/benchmark_app.py --users 4 --requests 200

It starts demo/app.py on a free port, uploads the image anew with each question, and fetches the
overlay, as a browser does. Prints one line of JSON; ends with 1 if an answer is lost or the median
is not below --median seconds. The users run on the same cores as the server.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = (
    ("shapes.jpg", "all of the circles", "3 targets"),
    ("shapes.jpg", "the red cross left of the circle", "Nothing in the image matches"),
    ("scene.jpg", "the orange cross", "1 target"),
)
VIEW = (["masks", "boxes"], 0.7, 0.5, 1)  # layers and thresholds


@contextmanager
def running_app(*options, env=None, timeout=300):
    """Address of a server of demo/app.py on a free port, and a function for what it has written.

    Args:
        options: of demo/app.py.
        env: its environment variables beside those of this process; None removes one.
        timeout: seconds until it must listen.

    Raises:
        RuntimeError: it ended or did not listen in time; with what it wrote.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--port", str(port), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server:
            try:
                end = time.monotonic() + timeout
                while not (address := re.search(r"Listening on (\S+)", _written(log))):
                    if server.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"demo/app.py does not listen:\n{_written(log)}")
                    time.sleep(0.2)
                yield address[1], lambda: _written(log)
            finally:
                server.terminate()


def _written(log) -> str:
    log.seek(0)
    return log.read()


def ask(url: str, count: int) -> list:
    """One user asks ``count`` times; (seconds, "" or what was wrong) of each."""
    from gradio_client import Client  # not needed to read the command line

    with tempfile.TemporaryDirectory() as folder:
        options = {"verbose": False, "analytics_enabled": False, "httpx_kwargs": {"timeout": 300}}
        client = Client(url, download_files=folder, **options)
        return [answer(client, *QUESTIONS[i % len(QUESTIONS)]) for i in range(count)]


def answer(client, name: str, expression: str, expected: str) -> tuple:
    """(seconds, "" or what was wrong) of one question."""
    from gradio_client import handle_file

    start = time.perf_counter()
    try:
        image = handle_file(str(ROOT / "demo" / "images" / name))
        _, text, overlay = client.predict(image, expression, *VIEW, api_name="/ask")
        problem = "" if expected in text and os.path.getsize(overlay) else text
    except Exception as error:  # whatever it was, the answer is lost, and that is the result
        problem = repr(error)
    return time.perf_counter() - start, problem


def measure(url: str, users: int, requests: int) -> dict:
    """Figures of ``requests`` questions that ``users`` ask at the same time; see :func:`main`."""
    load = os.getloadavg()[0]
    counts = [requests // users + (i < requests % users) for i in range(users)]
    start = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        answers = [x for seen in pool.map(lambda count: ask(url, count), counts) for x in seen]
    wall = time.perf_counter() - start
    seconds = sorted(x for x, _ in answers)
    problems = [problem for _, problem in answers if problem]
    return {
        "users": users,
        "requests": len(answers),
        "lost": len(problems),
        "median_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
        "max_s": round(seconds[-1], 3),
        "requests_per_s": round(len(answers) / wall, 2),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "problems": sorted(set(problems))[:5],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the web page under several users.")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200, help="of all users together")
    parser.add_argument("--median", type=float, default=1.0, help="seconds it must stay below")
    parser.add_argument("--url", help="a server that runs already; default: start one")
    args = parser.parse_args()
    if args.url:
        figures = measure(args.url, args.users, args.requests)
    else:
        with running_app() as (url, _):
            measure(url, 1, 3)  # the first forward passes allocate
            figures = measure(url, args.users, args.requests)
    print(json.dumps(figures))
    sys.exit(figures["lost"] > 0 or figures["median_s"] >= args.median)


if __name__ == "__main__":
    main()
