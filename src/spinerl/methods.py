"""The table of methods.  A method is what it changes of the configuration's defaults, nothing more.

All methods run the same loop (`spinerl.step`): the reward, the advantage, the token selector, and the weights
of the anchor and band terms are configuration keys, and a row here sets them.  Keys a user gives win over the
row.  Formulas and sources: docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One row: what it is, where it comes from, what it sets."""

    summary: str
    source: str
    sets: Mapping[str, Any]


METHODS: dict[str, Method] = {
    "spine": Method(
        summary="majority vote, updates on high-entropy forks only, entropy band on the forks",
        source="arXiv 2511.17938",
        sets={
            "reward": "majority",
            "forks": {"selector": "top-entropy", "fraction": 0.2, "scope": "response"},
            "band": {"weight": 0.01},  # open in the paper; chosen on tiny/shift-dev (docs/experiments.md)
        },
    ),
    "ttrl": Method(
        summary="majority vote, all tokens, no band",
        source="arXiv 2504.16084",
        sets={
            "reward": "majority",
            "forks": {"selector": "all"},
            "band": {"weight": 0.0},
        },
    ),
    "none": Method(
        summary="no adaptation: only evaluates",
        source="ours",
        sets={"steps": 0},
    ),
}
