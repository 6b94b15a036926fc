"""The guard's rules: which look at a run was its best, and whether to go on.  Plain functions over guard.jsonl's rows.

Each rule has a name; docs/guard.md has the figures that justify it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.config import GuardConfig

__all__ = ["RULES", "Verdict", "best_look", "judge", "look_score"]

RULES = {
    "no-go": "before step 1: too few of the pseudo-labels would be right",
    "lost": "hardly an answer is one that the initial model gave",
    "alike": "different questions suddenly have the same answer",
    "past-peak": "the score has fallen far below its best and stays there",
}


@dataclass(frozen=True)
class Verdict:
    """Why a run should go no further: the rule's name, and the figures in words."""

    rule: str
    reason: str


def look_score(support: float, kept: float | None) -> float:
    """How good the model is, judged without labels: support * kept.

    Args:
        support: the share of the initial votes that the greedy answers to the probe questions have, mean.
        kept: the share of pseudo-labels that are what they were when the run first met the question; None: no
            question was met twice yet, which takes nothing off.
    """
    return support * (1.0 if kept is None else kept)


def best_look(looks: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The look with the highest score, the latest of equals."""
    return max(reversed(looks), key=lambda look: look["score"])


def judge(looks: Sequence[Mapping[str, Any]], keys: GuardConfig) -> Verdict | None:
    """The first rule that a run's looks so far (that before step 1 first) break; None while there is none."""
    first, last = looks[0], looks[-1]
    if first.get("verdict") == "no-go":
        return Verdict("no-go", first["reason"])
    recent = looks[1:][-2:]
    support = first["probe/initial_support"]
    if len(recent) == 2 and all(look["probe/initial_support"] < keys.lost * support for look in recent):
        return Verdict(
            "lost",
            f"the answers to the probe questions have {100 * last['probe/initial_support']:.0f} % of the initial "
            f"votes, {100 * support:.0f} % before step 1",
        )
    risen = last["probe/concentration"] - first["probe/concentration"]
    if risen > keys.max_concentration:
        return Verdict(
            "alike", f"{100 * last['probe/concentration']:.0f} % of the pairs of different questions have one answer"
        )
    best = best_look(looks)
    since = looks[-keys.patience :]
    enough = len(looks) > keys.patience and "label/kept_frac" in last
    if enough and all(look["score"] < (1 - keys.drop) * best["score"] for look in since):
        return Verdict(
            "past-peak",
            f"the label-free score is {last['score']:.2f}, it was {best['score']:.2f} after step {best['step']}",
        )
    return None
