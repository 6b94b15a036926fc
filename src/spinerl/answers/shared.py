"""One answer to many different questions: a phrase that ends every response, a model that has lost the question.

Agreement cannot tell such an answer from a right one, for all responses agree on it.  Different questions can: they
have different answers as a rule, unless the answers are a closed set (choice, yes or no).  Plain functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from spinerl.answers.equivalence import Equivalence
from spinerl.types import Question, Vote

__all__ = ["is_closed", "shared_share", "void_shared"]

CLOSED = frozenset({"yes", "no", "maybe", "true", "false"})
LEAST_OTHERS = 3  # fewer questions with the same answer may be chance


def is_closed(question: Question, answer: str, kind: str) -> bool:
    """Whether an answer is one of a few that many questions share: a choice, yes or no, true or false, a letter.

    >>> is_closed(Question("1", "Is it?"), "Yes", "auto"), is_closed(Question("1", "How many?"), "12", "number")
    (True, False)
    """
    bare = answer.strip().lower()
    return (
        bool(question.choices) or kind in ("choice", "yesno") or bare in CLOSED or (len(bare) == 1 and bare.isalpha())
    )


def shared_share(
    questions: Sequence[Question], answers: Sequence[str | None], kinds: Sequence[str], equivalence: Equivalence
) -> tuple[float, str | None]:
    """(share, answer): of the questions whose answers are no closed set, the share of the commonest answer, and it.

    A question without an answer counts as one whose answer differs from all.  (0.0, None) where no answer is shared
    by more than three questions.
    """
    counts, open_places, spelled = _counted(questions, answers, kinds, equivalence)
    top, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    if top is None or count <= LEAST_OTHERS:
        return 0.0, None
    return count / len(open_places), spelled[top]


def void_shared(
    votes: Sequence[Vote],
    questions: Sequence[Question],
    kinds: Sequence[str],
    most: float,
    equivalence: Equivalence,
) -> tuple[tuple[Vote, ...], float]:
    """The votes, those void that an answer won which also won most of the other questions; and the share of void ones.

    A vote is void if the answer that won it won more than the share `most` of the step's other questions, and at least
    three of them; closed sets are left out on both sides.  A void vote has no votes: every response abstains,
    so that no reward made of votes pays for that answer.  With `most` 1 nothing is void.

    A view of a question (`Question.view`), which follows it, is void where it is.

    Args:
        kinds: how each question's answers are read.
    """
    if any(question.view for question in questions):
        own = [place for place, question in enumerate(questions) if not question.view]
        parts = [votes[i] for i in own], [questions[i] for i in own], [kinds[i] for i in own]
        found, frac = void_shared(*parts, most, equivalence)
        owner = list(accumulate(not question.view for question in questions))
        void = {i for i, one in enumerate(found, 1) if one is not votes[own[i - 1]]}
        return tuple(_void(one) if number in void else one for one, number in zip(votes, owner, strict=True)), frac
    labels = [one.pseudo_label for one in votes]
    counts, open_places, _ = _counted(questions, labels, kinds, equivalence)
    others = len(open_places) - 1
    void = {
        place
        for place, number in open_places.items()
        if number is not None and counts[number] - 1 >= LEAST_OTHERS and counts[number] - 1 > most * others
    }
    if not void:
        return tuple(votes), 0.0
    kept = tuple(_void(one) if place in void else one for place, one in enumerate(votes))
    return kept, len(void) / len(votes)


def _counted(
    questions: Sequence[Question], answers: Sequence[str | None], kinds: Sequence[str], equivalence: Equivalence
) -> tuple[Counter[int], dict[int, int | None], dict[int, str]]:
    """(questions by answer class, the class of each question whose answers are no closed set, a spelling of each)."""
    places = [
        place
        for place, (question, answer, kind) in enumerate(zip(questions, answers, kinds, strict=True))
        if not is_closed(question, answer or "", kind)
    ]
    own = [answers[place] for place in places]
    classes = equivalence.classes(own)
    spelled: dict[int, str] = {}
    for number, answer in zip(classes, own, strict=True):
        if number is not None and answer is not None:
            spelled.setdefault(number, answer)
    return Counter(c for c in classes if c is not None), dict(zip(places, classes, strict=True)), spelled


def _void(one: Vote) -> Vote:
    """The vote with its answers, and no votes."""
    return Vote(one.answers, (None,) * len(one.classes), (), None, None, 0.0)
