"""The scripts of demo/, loaded once per file."""

import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def demo():
    return load_script("demo/demo.py")


@pytest.fixture(scope="module")
def questions():
    return load_script("demo/questions.py")
