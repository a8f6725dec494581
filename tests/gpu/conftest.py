"""Tests that need a GPU; `make test-gpu` runs them, elsewhere they are skipped."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Skip what asks for more GPUs than there are."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item in items:
        if "/tests/gpu/" not in item.path.as_posix():
            continue
        wanted = 2 if "two_gpus" in item.fixturenames else 1
        if found < wanted:
            item.add_marker(pytest.mark.skip(reason=f"needs {wanted} GPU(s), found {found}"))


@pytest.fixture
def two_gpus():
    """Asked for by tests that need two GPUs."""


@pytest.fixture(autouse=True)
def full_precision():
    """Comparisons with the CPU are in float32, not TF32, and every test counts its own memory."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
