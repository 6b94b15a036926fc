"""The small models that come with the package, and their question suites: `tiny-reasoner` reads, `tiny-vlm` sees.

Everything here works without a network and without torch; see docs/tiny.md.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from spinerl.errors import InputError

__all__ = [
    "MODEL",
    "MODELS",
    "SUITES",
    "VISION_MODEL",
    "VQA_SUITES",
    "fresh_suite",
    "gold_path",
    "model_path",
    "suite_path",
]

MODEL, VISION_MODEL = "tiny-reasoner", "tiny-vlm"
MODELS: tuple[str, ...] = (MODEL, VISION_MODEL)
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
"""The suites of `tiny-reasoner`, known outside as tiny/NAME."""
VQA_SUITES: tuple[str, ...] = tuple(name for name in SUITES if name != "shift-hard")
"""The suites of `tiny-vlm`, known outside as tiny-vqa/NAME."""

_ASSETS = Path(__file__).parent / "assets"
_FAMILIES = {"tiny": (SUITES, "suites"), "tiny-vqa": (VQA_SUITES, "vqa-suites")}


def model_path(name: str = MODEL) -> Path:
    """The folder of a bundled Hugging Face checkpoint.

    Raises InputError for a name that is not in MODELS.
    """
    if name not in MODELS:
        raise InputError(f"unknown bundled model {name!r}: choose one of {', '.join(MODELS)}")
    return _ASSETS / name


def suite_path(name: str, family: str = "tiny") -> Path:
    """The JSON-lines file of a suite's questions, no answers: rows with `id` and `question`.

    Family "tiny-vqa" (VQA_SUITES) has `images` too, a list of one data: address, and `choices` where options are
    offered. Raises InputError for an unknown name or family.
    """
    return _folder(name, family) / f"{name}.jsonl"


def gold_path(name: str, family: str = "tiny") -> Path:
    """The JSON-lines file of a suite's right answers, for evaluation only: rows with `id` and `answer`.

    Raises InputError for an unknown name or family.
    """
    return _folder(name, family) / f"{name}.gold.jsonl"


@lru_cache(maxsize=8)  # drawing pictures takes seconds
def fresh_suite(name: str, family: str = "tiny") -> tuple[list[dict[str, Any]], dict[str, str]] | None:
    """(questions, answers by id) of fresh questions of a suite's kind: "shift-a@11" are 256 drawn with seed 11.

    None for a name without a seed.  Raises InputError for an unknown suite, or a seed that is none.

    >>> questions, answers = fresh_suite("shift-a@11")
    >>> len(questions), questions[0]["id"], fresh_suite("shift-a")
    (256, 'a-11-00000', None)
    """
    suite, at, seed = name.partition("@")
    if not at:
        return None
    _folder(suite, family)
    if family == "tiny":
        from spinerl.tiny.suite import BUNDLED, suite_rows
    else:
        from spinerl.tiny.vqa.suite import BUNDLED, suite_rows
    if not seed.isdecimal():
        raise InputError(f"{family}/{name}: what follows @ is a seed, a whole number; example: {family}/{suite}@11")
    shift, _, num = BUNDLED[suite]
    rows = suite_rows(shift, int(seed), num)
    return [row.asked() for row in rows], {row.id: row.answer for row in rows}


def _folder(name: str, family: str) -> Path:
    if family not in _FAMILIES:
        raise InputError(f"unknown family of suites {family!r}: choose one of {', '.join(_FAMILIES)}")
    names, folder = _FAMILIES[family]
    if name not in names:
        raise InputError(f"unknown suite {name!r}: choose one of {', '.join(names)}")
    return _ASSETS / folder
