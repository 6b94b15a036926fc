"""Every example in a docstring runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from spinerl.errors import MissingExtraError

SOURCE = Path(__file__).parent.parent / "src" / "spinerl"
MODULES = [
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts)
    for file in sorted(SOURCE.rglob("*.py"))
    if file.name not in ("__init__.py", "_worker.py") and ">>>" in file.read_text()
]


def test_there_are_examples():
    assert len(MODULES) > 15


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
