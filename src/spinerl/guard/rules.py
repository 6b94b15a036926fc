"""The guard's rules: which look at a run was its best, and whether to go on.  Plain functions over guard.jsonl's rows.

Each rule has a name; docs/guard.md has the figures that justify it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.config import GuardConfig

__all__ = ["Verdict", "best_look", "judge", "look_score"]


@dataclass(frozen=True)
class Verdict:
    """Why a run should go no further: the rule's name (docs/guard.md lists them), and the figures in words."""

    rule: str
    reason: str


def look_score(look: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> float:
    """How good the model is, judged without labels: support * kept / the largest kept so far.

    `probe/initial_support` is the share of the initial votes that the greedy answers to the probe questions have;
    `label/kept_frac` the share of pseudo-labels, since the look before, that are what they were when the run first
    met the question.  It is compared with its own best, because even a model that stays as it is does not repeat
    every label.  While no question has been met twice there is no such figure, and nothing is taken off.
    """
    support, kept = look["probe/initial_support"], look.get("label/kept_frac")
    if not kept:
        return support if kept is None else 0.0
    return support * kept / max(kept, *(row.get("label/kept_frac") or 0.0 for row in before), 0.0)


def best_look(looks: Sequence[Mapping[str, Any]], tolerance: float = 0.0) -> Mapping[str, Any]:
    """The latest look whose score is within this share of the highest: with 0 the best one, the latest of equals.

    >>> [best_look([{"score": 0.4}, {"score": 0.5}, {"score": 0.46}], share)["score"] for share in (0.0, 0.1)]
    [0.5, 0.46]
    """
    best = max(look["score"] for look in looks)
    return next(look for look in reversed(looks) if look["score"] >= (1 - tolerance) * best)


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
    words = _of_words(looks, keys)
    if words is not None:
        return words
    best = best_look(looks)
    since = looks[-keys.patience :]
    enough = len(looks) > keys.patience and "label/kept_frac" in last
    if enough and all(look["score"] < (1 - keys.drop) * best["score"] for look in since):
        return Verdict(
            "past-peak",
            f"the label-free score is {last['score']:.2f}, it was {best['score']:.2f} after step {best['step']}",
        )
    return None


def _of_words(looks: Sequence[Mapping[str, Any]], keys: GuardConfig) -> Verdict | None:
    """The rules about what is said: one answer to all, answers that cannot be read, refusals."""
    first, last = looks[0], looks[-1]
    shared = last.get("probe/shared_frac", 0.0)
    if shared > keys.max_shared:
        return Verdict(
            "shared", f"{100 * shared:.0f} % of different questions have the answer {last['shared_answer']!r}"
        )
    recent = [look.get("probe/readable_frac", 1.0) for look in looks[1:][-2:]]
    readable = first.get("probe/readable_frac", 1.0)
    if len(recent) == 2 and all(share < keys.readable * readable for share in recent):
        return Verdict(
            "unreadable",
            f"{100 * recent[-1]:.0f} % of the greedy responses hold an answer that can be read, {100 * readable:.0f} % "
            "before step 1",
        )
    refused, before = (look.get("probe/refused_frac", 0.0) for look in (last, first))
    if refused - before > keys.max_refusals:
        return Verdict(
            "refusals",
            f"{100 * refused:.0f} % of the greedy responses refuse to answer, {100 * before:.0f} % before step 1",
        )
    return None
