"""One answer to many questions: which votes are void, and which are not."""

import pytest

from spinerl.answers import Equivalence, vote
from spinerl.answers.shared import is_closed, shared_share, void_shared
from spinerl.types import Question


@pytest.fixture(scope="module")
def equivalence():
    with Equivalence() as one:
        yield one


def asked(labels, kind="number", choices=()):
    """Questions, and votes that these answers win three to one; None: no answers."""
    questions = [Question(str(i), f"question {i}", choices=choices, answer_kind=kind) for i in range(len(labels))]
    votes = [vote([x, x, x, "-7"], [0, 0, 0, 1]) if x is not None else vote([None] * 4, [None] * 4) for x in labels]
    return questions, votes, [kind] * len(labels)


def void_places(labels, equivalence, most=0.5, **how):
    questions, votes, kinds = asked(labels, **how)
    kept, share = void_shared(votes, questions, kinds, most, equivalence)
    void = [i for i, (old, new) in enumerate(zip(votes, kept, strict=True)) if old is not new]
    assert share == len(void) / len(labels)
    for i in void:
        assert kept[i].answers == votes[i].answers
        assert (kept[i].classes, kept[i].counts, kept[i].winner, kept[i].pseudo_label) == ((None,) * 4, (), None, None)
    return void


@pytest.mark.parametrize(
    ("labels", "void"),
    [
        (["5", "5", "5", "5", "1", "2", "3"], []),  # 3 of the 6 others: not more than half
        (["5", "5", "5", "5", "5", "1", "2", "3"], [0, 1, 2, 3, 4]),  # 4 of 7
        (["5", "5", "5", "5", "1", "2", "3", "4"], []),  # 3 of 7
        (["5", "5", "5"], []),  # 2 others may be chance
        (["5", "5", "5", "5"], [0, 1, 2, 3]),
        (["5"], []),
        (["5", "5.0", "10/2", "5", "5", "1"], [0, 1, 2, 3, 4]),  # equal answers, however they are written
        (["5", "5", "5", "5", None, None, None, None], []),  # questions without an answer count as others
        (["1", "2", "3", "4", "5", "6"], []),
        ([None, None, None, None], []),
    ],
)
def test_void_votes_by_hand(labels, void, equivalence):
    assert void_places(labels, equivalence) == void


def test_the_share_that_makes_a_vote_void(equivalence):
    labels = ["5", "5", "5", "5", "1", "2", "3", "4"]  # each 5 was won by 3 of 7 others
    assert void_places(labels, equivalence, most=3 / 7) == []
    assert void_places(labels, equivalence, most=0.4) == [0, 1, 2, 3]
    assert void_places(["5"] * 8, equivalence, most=1.0) == []


@pytest.mark.parametrize(
    ("kind", "label", "choices"),
    [
        ("choice", "B", ("x", "y")),
        ("choice", "B", ()),
        ("auto", "B", ()),
        ("yesno", "yes", ()),
        ("auto", "Yes", ()),
        ("text", "no", ()),
        ("text", "True", ()),
        ("text", "maybe", ()),
    ],
)
def test_closed_sets_are_not_touched(kind, label, choices, equivalence):
    assert is_closed(Question("1", "q", choices=choices), label, kind)
    assert void_places([label] * 8, equivalence, kind=kind, choices=choices) == []
    questions, _, kinds = asked([label] * 8, kind=kind, choices=choices)
    assert shared_share(questions, [label] * 8, kinds, equivalence) == (0.0, None)


def test_closed_answers_among_open_ones_do_not_count(equivalence):
    labels = ["helpful"] * 4 + ["yes"] * 8
    assert void_places(labels, equivalence, kind="text") == [0, 1, 2, 3]


def test_the_commonest_answer(equivalence):
    def share(labels, kind="text"):
        questions, _, kinds = asked(labels, kind)
        return shared_share(questions, labels, kinds, equivalence)

    assert share(["helpful"] * 6 + ["spleen", None]) == (0.75, "helpful")
    assert share(["helpful"] * 4 + ["yes"] * 4) == (1.0, "helpful")
    assert share(["a cat"] * 3 + ["a dog"]) == (0.0, None)
    assert share([]) == (0.0, None)
