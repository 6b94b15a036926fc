"""From equivalence classes to a vote and to the label metrics.  Plain functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from spinerl.errors import InputError, did_you_mean
from spinerl.types import Vote

__all__ = [
    "TIES",
    "break_tie",
    "by_appearance",
    "by_question",
    "check_options",
    "choose_class",
    "spelling_of",
    "vote",
    "vote_metrics",
]

TIES = ("abstain", "first", "random")
"""What a tie for the most votes yields: no winner; the class that appeared first; a seeded draw."""

_ROUNDING = 1e-12


def vote(
    answers: Sequence[str | None],
    classes: Sequence[int | None],
    *,
    tie: str = "abstain",
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    held: int | None = None,
    flip_margin: float = 0.0,
) -> Vote:
    """The majority over equivalence classes; a response without a class abstains and never wins.

    winner = argmax_c sum_i w_i [class_i = c], if unique and at least `min_majority_frac` of all N responses'
    weight, `min_margin` of it ahead of the next class.  A class that is `held` wins unless another is more than
    `flip_margin` of that weight ahead of it.  The pseudo-label is the winner's most frequent
    surface form, then the shortest, then the first in code-point order, so it does not depend on the order of the
    responses.

    Args: `answers` and `classes`, one per response (class labels may be any integers: they are renumbered by
    first appearance); `tie`, one of `TIES`; `min_majority_frac`, `min_margin`, `flip_margin` in [0, 1]; `weights`,
    non-negative, one per response (default 1 each); `seed`, for `tie="random"`, whose draw depends on it and on the
    tied classes' pseudo-labels only; `held`, one of `classes`.
    Returns: a `Vote`; `winner` and `pseudo_label` are None without votes, the votes weigh nothing, a tie
    abstained or the majority was too small.  No responses at all give `majority_frac` 0.
    Raises: `InputError` for lengths that differ, an unknown tie rule, a weight that is negative or not
    finite.
    Source: the TTRL vote (2504.16084), on classes; abstention and tie rules are ours.

    >>> vote(["12", "7", "12.0", None], [0, 1, 0, None]).pseudo_label
    '12'
    """
    check_options(tie, min_majority_frac, min_margin, flip_margin)
    if len(answers) != len(classes):
        raise InputError(f"{len(answers)} answers but {len(classes)} classes; give one class per answer")
    weight = _check_weights(weights, len(answers))
    if any(answer is None and c is not None for answer, c in zip(answers, classes, strict=True)):
        raise InputError("a response without an answer has a class; its class must be None")
    numbers, renumbered, members = by_appearance(classes)
    counts = tuple(math.fsum(weight[i] for i in group) for group in members)
    total = math.fsum(weight)
    winner = choose_class(
        counts,
        total,
        lambda tied: break_tie(tied, lambda number: spelling_of(members[number], answers, weight), tie, seed),
        min_majority_frac=min_majority_frac,
        min_margin=min_margin,
        held=None if held is None else numbers.get(held),
        flip_margin=flip_margin,
    )
    label = None if winner is None else spelling_of(members[winner], answers, weight)
    shown = max(counts, default=0.0) if winner is None else counts[winner]
    frac = shown / total if total > 0 else 0.0
    return Vote(tuple(answers), renumbered, counts, winner, label, frac)


def by_appearance(
    classes: Sequence[int | None],
) -> tuple[dict[int, int], tuple[int | None, ...], list[list[int]]]:
    """Classes renumbered by first appearance: (new number by old one, the responses' new numbers, responses by class).

    >>> by_appearance([7, None, 3, 7])
    ({7: 0, 3: 1}, (0, None, 1, 0), [[0, 3], [2]])
    """
    numbers: dict[int, int] = {}
    renumbered = tuple(None if c is None else numbers.setdefault(c, len(numbers)) for c in classes)
    members: list[list[int]] = [[] for _ in numbers]
    for index, number in enumerate(renumbered):
        if number is not None:
            members[number].append(index)
    return numbers, renumbered, members


def choose_class(
    counts: Sequence[float],
    total: float,
    break_tied: Callable[[list[int]], int | None],
    *,
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    held: int | None = None,
    flip_margin: float = 0.0,
) -> int | None:
    """The winning class of a vote with these weights by class, or None; the rules are those of `vote`.

    Args:
        total: the weight of all responses, those that abstained included.
        break_tied: which of several classes with the same weight wins.

    >>> choose_class([5.0, 6.0], 11.0, min, held=0), choose_class([5.0, 6.0], 11.0, min, held=0, flip_margin=0.1)
    (1, 0)
    """
    best = max(counts, default=0.0)
    if best <= 0:
        return None
    if held is not None and counts[held] > 0 and (best - counts[held]) / total <= flip_margin + _ROUNDING:
        winner = held
    else:
        winner = break_tied([number for number, count in enumerate(counts) if _equal(count, best)])
    if winner is None:
        return None
    runner_up = max((count for number, count in enumerate(counts) if number != winner), default=0.0)
    share, lead = counts[winner] / total, (counts[winner] - runner_up) / total
    enough = share >= min_majority_frac - _ROUNDING and (not min_margin or lead >= min_margin - _ROUNDING)
    return winner if enough else None


def vote_metrics(votes: Sequence[Vote]) -> dict[str, float]:
    """Label-free health figures over the questions of a step, each a mean over questions.

    `label/majority_frac`: weight of the winning (or largest) class over all responses';
    `label/abstained_frac`: responses without a vote; `label/labelled_frac`: questions with a pseudo-label;
    `label/num_classes`; `label/answer_entropy`: -sum_c p_c log p_c in nats over the classes' shares of the
    votes cast, 0 without votes; `label/unanimous_frac`: questions on which every response voted for one
    class.
    Returns: all six keys, 0.0 each for no votes.  Source: ours.

    >>> vote_metrics([Vote(("4", None), (0, None), (1.0,), 0, "4", 0.5)])["label/abstained_frac"]
    0.5
    """
    rows = [
        {
            "label/majority_frac": v.majority_frac,
            "label/abstained_frac": sum(c is None for c in v.classes) / max(1, len(v.classes)),
            "label/labelled_frac": float(v.pseudo_label is not None),
            "label/num_classes": float(len(v.counts)),
            "label/answer_entropy": _entropy(v.counts),
            "label/unanimous_frac": float(len(v.counts) == 1 and None not in v.classes),
        }
        for v in votes
    ]
    keys = (
        "label/majority_frac",
        "label/abstained_frac",
        "label/labelled_frac",
        "label/num_classes",
        "label/answer_entropy",
        "label/unanimous_frac",
    )
    return {key: math.fsum(row[key] for row in rows) / max(1, len(rows)) for key in keys}


def _entropy(counts: Sequence[float]) -> float:
    total = math.fsum(counts)
    if total <= 0:
        return 0.0
    return max(0.0, -math.fsum(c / total * math.log(c / total) for c in counts if c > 0))


def check_options(tie: str, min_majority_frac: float, min_margin: float = 0.0, flip_margin: float = 0.0) -> None:
    """Raises InputError for an unknown tie rule or a share outside [0, 1]."""
    if tie not in TIES:
        raise InputError(f"tie rule {tie!r} is unknown{did_you_mean(str(tie), TIES)}; allowed: {', '.join(TIES)}")
    shares = {"min_majority_frac": min_majority_frac, "min_margin": min_margin, "flip_margin": flip_margin}
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise InputError(f"{name} is {share}; it must lie between 0 and 1")


def _check_weights(weights: Sequence[float] | None, size: int) -> list[float]:
    if weights is None:
        return [1.0] * size
    if len(weights) != size:
        raise InputError(f"{size} answers but {len(weights)} weights; give one weight per answer")
    values = [float(w) for w in weights]
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise InputError(f"vote weight {value} is refused; weights must be finite and not negative")
    return values


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12)


def break_tie(tied: Sequence[int], label_of: Callable[[int], str], tie: str, seed: int) -> int | None:
    """One of the tied classes (given in order of first appearance), or None when a tie abstains.

    >>> break_tie([0, 1], ["a", "b"].__getitem__, "first", 0)
    0
    """
    if len(tied) == 1 or tie == "first":
        return tied[0]
    if tie == "abstain":
        return None
    labels = {label_of(number): number for number in tied}
    ordered = sorted(labels)
    digest = hashlib.sha256("\x1f".join([str(seed), *ordered]).encode("utf-8", "surrogatepass")).digest()
    return labels[ordered[int.from_bytes(digest[:8], "big") % len(ordered)]]


def spelling_of(members: Sequence[int], answers: Sequence[str | None], weights: Sequence[float]) -> str:
    """The answer that stands for a class with these members: the one with most weight, the shortest, the first."""
    forms: dict[str, list[float]] = {}
    for index in members:
        forms.setdefault(str(answers[index]), []).append(weights[index])
    return min(forms, key=lambda form: (-math.fsum(forms[form]), len(form), form))


def by_question(weights: Sequence[float], votes: Sequence[Vote]) -> list[Sequence[float]]:
    """The weights of each vote's responses, of which all votes have as many.

    >>> by_question([1.0, 2.0, 3.0, 4.0], [Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5)] * 2)
    [[1.0, 2.0], [3.0, 4.0]]
    """
    n = len(votes[0].answers)
    return [weights[i * n : (i + 1) * n] for i in range(len(votes))]
