"""Fixtures every test folder may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir():
    """Folder of reference data beside the repository; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found beside the repository: {SHARED}")
    return SHARED


@pytest.fixture
def assert_within(record_property):
    """Callable (quantity, difference, bound): asserts; dev/parity_table.py prints what it saw."""

    def check(quantity, difference, bound):
        record_property(quantity, (float(difference), float(bound)))
        assert difference <= bound, f"{quantity}: difference {difference:.1e} > {bound:.0e}"

    return check
