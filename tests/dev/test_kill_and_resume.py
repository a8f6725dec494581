"""dev/kill_and_resume.py ends as many lives as it says, and sees a difference."""

import argparse
import json
import os
import random

from dev.kill_and_resume import compare_metrics, list_group, plan_lives


def test_every_kill_is_planned():
    args = argparse.Namespace(kills=20, saving=0.3, early=0.1)
    lives = plan_lives(args, random.Random(0))
    assert len(lives) == 20 and lives != sorted(lives)
    counts = {how: lives.count(how) for how in lives}
    assert counts == {"saving": 6, "early": 2, "any moment": 11, "SIGTERM": 1}


def write(folder, *lines):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.json").write_text(text)
    return folder


def test_metrics_are_compared_without_times(tmp_path):
    lines = [{"iteration": 19, "total_loss": 2.0, "time": 1.0}, {"iteration": 39, "lr": 0.1}]
    whole = write(tmp_path / "whole", *lines)
    same = write(tmp_path / "same", {**lines[0], "time": 3.0}, lines[1])
    assert compare_metrics(whole, same) == []
    other = write(tmp_path / "other", {**lines[0], "total_loss": 2.5}, lines[1])
    assert compare_metrics(whole, other) == ["metrics.json: total_loss at 19: 2.0 and 2.5"]
    repeated = write(tmp_path / "repeated", lines[0], *lines)
    assert compare_metrics(whole, repeated) == [
        "metrics.json: iterations [19, 39] and [19, 19, 39]"
    ]


def test_processes_of_a_group_are_found():
    assert os.getpid() in list_group(os.getpgrp())
