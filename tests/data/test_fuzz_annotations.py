"""Damaged annotation files end in a clear error, or load what stands in them."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "dev" / "fuzz_annotations.py"
SPEC = importlib.util.spec_from_file_location("fuzz_annotations", PATH)
fuzz_annotations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz_annotations)


def test_random_damage():
    verdicts, failures = fuzz_annotations.fuzz(count=400, seed=1)
    assert not failures
    # Damage must reach all the ways a load can end.
    assert sum(verdicts.values()) == 400 and min(verdicts[k] for k in ("error", "changed")) > 10
