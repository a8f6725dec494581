"""Damaged annotation files end in a clear error, or load what stands in them."""

from tests.scripts import load_script

fuzz_annotations = load_script("dev/fuzz_annotations.py")


def test_random_damage():
    verdicts, failures = fuzz_annotations.fuzz(count=400, seed=1)
    assert not failures
    # Damage must reach all the ways a load can end.
    assert sum(verdicts.values()) == 400 and min(verdicts[k] for k in ("error", "changed")) > 10
