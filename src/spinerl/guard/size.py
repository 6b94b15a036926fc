"""How many questions are adapted to: what is known of too many.  No torch."""

from __future__ import annotations

__all__ = ["COLLAPSED", "HELD", "size_note"]

HELD, COLLAPSED = 128, 512
"""Questions up to which runs on a vote's rewards held, and from which on they collapsed.  Source: URLVR (arXiv
2603.08660)."""


def size_note(num_questions: int) -> str | None:
    """What is to be said of a number of questions; None for those on which runs held.

    >>> size_note(128) is None, size_note(129).split(":")[0], "data.max_questions=128" in size_note(512)
    (True, '129 questions', True)
    """
    if num_questions <= HELD:
        return None
    known = f"rewards without labels held in a study on {HELD} questions and fewer"
    if num_questions < COLLAPSED:
        where = f"and collapsed from {COLLAPSED} on (arXiv 2603.08660); between them nothing is known"
    else:
        where = (
            f"and collapsed on {COLLAPSED} and more (arXiv 2603.08660): keep the guard on, or take fewer, as with "
            f"data.max_questions={HELD}"
        )
    return f"{num_questions:,} questions: {known} {where}"
