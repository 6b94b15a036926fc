"""From the texts of one question's responses to its vote."""

from __future__ import annotations

from collections.abc import Sequence

from spinerl.answers.equivalence import Equivalence
from spinerl.answers.extract import extract_answer
from spinerl.answers.votes import vote
from spinerl.types import Vote

__all__ = ["count_vote"]


def count_vote(
    texts: Sequence[str],
    truncated: Sequence[bool],
    kind: str,
    equivalence: Equivalence,
    *,
    choices: Sequence[str] = (),
    tie: str = "abstain",
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Vote:
    """Read each text's answer, sort the answers into classes, count; a truncated text abstains.

    The options are those of `vote`.  Raises InputError for an unknown kind or tie rule.

    >>> with Equivalence() as equivalence:
    ...     count_vote(["\\\\boxed{1/2}", "\\\\boxed{0.5}", "no idea"], [False] * 3, "math", equivalence).classes
    (0, 0, None)
    """
    answers = [
        extract_answer(text, kind, choices=choices, truncated=cut) for text, cut in zip(texts, truncated, strict=True)
    ]
    classes = equivalence.classes(answers, kind)
    return vote(
        answers,
        classes,
        tie=tie,
        min_majority_frac=min_majority_frac,
        min_margin=min_margin,
        weights=weights,
        seed=seed,
    )
