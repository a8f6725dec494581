#!/usr/bin/env python
"""Print how far this project is from the released model, quantity by quantity.

    python dev/parity_table.py

runs the tests that compare with the numerical fixtures of the release, with torchscale's BEiT-3 and
with a plain re-derivation in float64, and prints the largest absolute difference of each quantity
beside the bound that the test asserts. It needs ../shared/reference/fixtures; about two minutes on
two cores. The full-size encoders join in with IGVG_FULL_SIZE_TESTS=1.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/checkpoint/test_released_parity.py",
    "tests/checkpoint/test_torchscale_parity.py",
    "tests/modeling/test_gradients.py",
)


class DifferenceCollector:
    """A plugin of pytest that gathers what the fixture ``assert_within`` records."""

    def __init__(self):
        self.rows: Dict[str, Tuple[float, float]] = {}
        self.skipped: List[str] = []

    def pytest_runtest_logreport(self, report):
        """Called by pytest after each phase of each test."""
        if report.skipped:
            self.skipped.append(report.nodeid)
        if report.when == "call":
            self.rows.update(dict(report.user_properties))


def main() -> int:
    """Run the tests and print the table; the status of pytest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    collector = DifferenceCollector()
    files = [str(ROOT / test) for test in TESTS]
    status = pytest.main(["-q", "--no-header", f"--rootdir={ROOT}", *files], plugins=[collector])
    rows = [(name, f"{found:.1e}", f"{bound:g}") for name, (found, bound) in collector.rows.items()]
    headers = ("quantity", "largest difference", "bound")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for test in collector.skipped:
        print(f"skipped: {test}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
