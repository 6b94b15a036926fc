"""What may be given for a key, for who types it: by dotted key, the names in a table, a type's values.  No torch.

Completion (`spinerl.completion`), the schema (`spinerl.schema`) and `spinerl init` read this.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from pydantic.fields import FieldInfo

from spinerl.methods import ALIASES, LOSSES, METHODS
from spinerl.tiny import MODELS, SUITES, VQA_SUITES

__all__ = [
    "BENCHMARKS",
    "DATA_KEYS",
    "FUNCTIONS",
    "PATH_KEYS",
    "literals",
    "model_names",
    "suite_names",
    "values_of",
]

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "reward": (
        "majority", "leave-one-out", "frequency", "empo", "ttrv", "evol", "entropy", "self-certainty", "similarity",
        "scrl", "dare", "compass", "scope", "exploration", "pairs", "constant", "reference", "none", "gold",
    ),
    "vote.weights": ("equal", "probability", "certainty", "margin", "stepwise"),
    "vote.views": ("permuted-options", "rephrase", "similar", "reread", "blank", "again", "augmented-images"),
    "forks.selector": ("top-entropy", "otsu", "all", "first", "low-entropy", "random"),
    "guard.perturbation": ("none", "blank", "reread"),
    "advantage.question_weight": ("equal", "certain"),
}  # fmt: skip
"""Of keys that also take `module:function`: the names of the built-in functions.  Some are in modules of torch."""

_NAMES: dict[str, tuple[str, ...]] = {
    "method": (*METHODS, *ALIASES),
    "loss": tuple(LOSSES),
    "model.device": ("auto", "cpu", "cuda", "mps"),
    "lora.targets": ("all-linear",),
}

BENCHMARKS = (
    "math-500", "amc", "aime-2025", "aime-2024", "gsm8k", "gpqa", "mmlu", "medqa", "pubmedqa", "mathvision", "slake",
    "medxpertqa-mm",
)  # fmt: skip
"""The names in `spinerl.data.BENCHMARKS`, whose package takes longer to import than a shell waits for."""

DATA_KEYS = ("data", "data.name", "data.target")
"""Keys that name a data set."""

PATH_KEYS = ("run", "data.path", "data.gold", "data.image_folder", "vllm.folder")
"""Keys whose value is a path and nothing else."""


def literals(kind: Any) -> tuple[str, ...]:
    """The values of a type that has few, as texts; those of its items for a list; () for a type that has many.

    >>> literals(Literal["a", "b"] | None), literals(list[Literal["c"]]), literals(bool), literals(int)
    (('a', 'b', 'null'), ('c',), ('true', 'false'), ())
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return tuple(map(str, inner))
    if kind is bool:
        return "true", "false"
    if origin in (list, tuple):
        return literals(inner[0]) if inner else ()
    if origin is typing.Annotated:
        return literals(inner[0])
    if origin in (typing.Union, types.UnionType):
        named = tuple(value for one in inner for value in literals(one))
        return (*named, "null") if named and type(None) in inner else named
    return ()


def values_of(key: str, field: FieldInfo | None = None) -> tuple[str, ...]:
    """The values that a key of the configuration may have, where they can be listed; () for any other."""
    return FUNCTIONS.get(key) or _NAMES.get(key) or (literals(field.annotation) if field is not None else ())


def model_names() -> tuple[str, ...]:
    """Models that are known by a name."""
    return (*MODELS, "smollm2-135m")


def suite_names() -> tuple[str, ...]:
    """Bundled suites of questions."""
    return (*(f"tiny/{name}" for name in SUITES), *(f"tiny-vqa/{name}" for name in VQA_SUITES))
