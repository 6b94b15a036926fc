"""From the texts of one question's responses to its vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spinerl.answers.equivalence import Equivalence
from spinerl.answers.extract import read_answer
from spinerl.answers.options import original_letter
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
    explain: bool = False,
    in_thought: bool = False,
    letters: str = "",
) -> Vote:
    """Read each text's answer, sort the answers into classes, count; a truncated text abstains.

    The options are those of `vote`; with `explain` the vote's `readings` say how each text was read; `in_thought`: the
    prompt ended inside a thought (`extract_answer`); `letters`, of permuted options, are those that they had, and the
    answers are given by these.  Raises InputError for an unknown kind or tie rule.

    >>> with Equivalence() as equivalence:
    ...     count_vote(["\\\\boxed{1/2}", "\\\\boxed{0.5}", "no idea"], [False] * 3, "math", equivalence).classes
    (0, 0, None)
    """
    readings = [
        read_answer(text, kind, choices=choices, truncated=cut, in_thought=in_thought)
        for text, cut in zip(texts, truncated, strict=True)
    ]
    if letters and kind in ("choice", "auto"):
        readings = [one._replace(answer=original_letter(one.answer, letters)) for one in readings]
    answers = [reading.answer for reading in readings]
    classes = equivalence.classes(answers, kind)
    one = vote(
        answers,
        classes,
        tie=tie,
        min_majority_frac=min_majority_frac,
        min_margin=min_margin,
        weights=weights,
        seed=seed,
    )
    return replace(one, readings=tuple(readings)) if explain else one
