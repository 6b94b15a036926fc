"""`tiny-reasoner`, a small language model that comes with the package, and its question suites.

Everything here works without a network and without torch; see docs/tiny.md.
"""

from __future__ import annotations

from pathlib import Path

from spinerl.errors import InputError

__all__ = ["MODEL", "SUITES", "gold_path", "model_path", "suite_path"]

MODEL = "tiny-reasoner"
SUITES: tuple[str, ...] = (
    "in-domain",
    "shift-dev",
    "shift-a",
    "shift-b",
    "shift-hard",
    "shift-dev-unseen",
    "shift-a-unseen",
    "shift-b-unseen",
)

_ASSETS = Path(__file__).parent / "assets"


def model_path() -> Path:
    """The folder of the bundled Hugging Face checkpoint."""
    return _ASSETS / MODEL


def suite_path(name: str) -> Path:
    """The JSON-lines file of a suite's questions: rows with `id` and `question`, no answers.

    Raises InputError for a name that is not in SUITES.
    """
    return _ASSETS / "suites" / f"{_known(name)}.jsonl"


def gold_path(name: str) -> Path:
    """The JSON-lines file of a suite's right answers, for evaluation only: rows with `id` and `answer`.

    Raises InputError for a name that is not in SUITES.
    """
    return _ASSETS / "suites" / f"{_known(name)}.gold.jsonl"


def _known(name: str) -> str:
    if name not in SUITES:
        raise InputError(f"unknown suite {name!r}: choose one of {', '.join(SUITES)}")
    return name
