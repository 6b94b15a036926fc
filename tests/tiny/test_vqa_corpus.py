"""The world of pictures: answers and solutions counted by hand, shares as stated, a clean split."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from spinerl.tiny.corpus import is_held_out
from spinerl.tiny.vqa import corpus as world
from spinerl.tiny.vqa.corpus import Count, Fullest, Higher, Most, Problem, Together, Where, corpus, solve, tell
from spinerl.tiny.vqa.pictures import Chart, Scene, Thing
from spinerl.tiny.vqa.suite import SHIFTS, suite_problems

DOCUMENTS = list(itertools.islice(corpus(7), world.CAREFUL_FIRST, world.CAREFUL_FIRST + 4000))
FIRST = list(itertools.islice(corpus(7), 1000))

RED_RING, RED_SQUARE, BLUE_SQUARE = Thing("ring", "red"), Thing("square", "red"), Thing("square", "blue", small=True)
# Rows: red ring, -, red square;  -, blue square, -;  blue square, -, red ring.
SCENE = Scene((RED_RING, None, RED_SQUARE, None, BLUE_SQUARE, None, BLUE_SQUARE, None, RED_RING))
CHART = Chart((("red", 4), ("blue", 7), ("green", 2)))


@pytest.fixture
def no_slips(monkeypatch) -> None:
    monkeypatch.setattr(world, "SLIP_FRAC", {"careless": 0.0, "careful": 0.0})
    monkeypatch.setattr(world, "MISREAD_FRAC", 0.0)


@pytest.mark.parametrize(
    ("content", "ask", "answer"),
    [
        (SCENE, Count(), "5"),
        (SCENE, Count(colour="red"), "3"),
        (SCENE, Count(shape="square"), "3"),
        (SCENE, Count(colour="pink"), "0"),
        (SCENE, Most((Count(colour="blue"), Count(colour="red"))), "B"),  # 2 and 3
        (SCENE, Fullest(Count(colour="red")), "A"),  # 2, 0, 1
        (SCENE, Fullest(Count(shape="square")), "A"),  # 1, 1, 1: the first of equals
        (SCENE, Where(3, 3, "shape", from_right=False), "ring"),
        (SCENE, Where(2, 2, "colour", from_right=True), "blue"),
        (CHART, Together(), "13"),
        (CHART, Together(("green", "red")), "6"),
        (CHART, Higher("blue", "green"), "5"),
    ],
)
@pytest.mark.usefixtures("no_slips")
def test_answers_counted_by_hand(content, ask, answer: str) -> None:
    problem = Problem(content, ask)
    assert problem.answer == answer
    rng = Random(0)
    for style in ("careful", "careless"):
        for _ in range(30):
            solution = solve(rng, problem, style)
            assert solution.answer == answer
            assert solution.text.endswith(f" \\boxed{{{answer}}}")


def texts(problem: Problem, style: world.Style) -> set[str]:
    """What solutions say between opener and closer."""
    rng = Random(1)
    bodies = set()
    for _ in range(200):
        text = solve(rng, problem, style).text
        for opener in world.CAREFUL_OPENERS:
            text = text.removeprefix(f"{opener} ")
        for closer in world.CLOSERS:
            text = re.sub(rf" {closer} \\boxed.*", "", text)
        bodies.add(text)
    return bodies


@pytest.mark.usefixtures("no_slips")
def test_careful_chains_by_hand() -> None:
    assert texts(Problem(SCENE, Count(colour="red")), "careful") == {
        "Row 1: red none red, 2, 2. Row 2: none blue none, 0, 2. Row 3: blue none red, 1, 3.",
        "Row 3: blue none red, 1, 1. Row 2: none blue none, 0, 1. Row 1: red none red, 2, 3.",
    }
    assert texts(Problem(SCENE, Most((Count(shape="ring"), Count(shape="square")))), "careful") == {
        "Row 1: ring none square, 1 1. Row 2: none square none, 1 2. Row 3: square none ring, 2 3. Most: squares.",
        "Row 3: square none ring, 1 1. Row 2: none square none, 1 2. Row 1: ring none square, 2 3. Most: squares.",
    }
    assert texts(Problem(SCENE, Fullest(Count(colour="red"))), "careful") == {
        "Row 1: red none red, 2. Row 2: none blue none, 0. Row 3: blue none red, 1. Most: row 1.",
        "Row 3: blue none red, 1. Row 2: none blue none, 0. Row 1: red none red, 2. Most: row 1.",
    }
    assert texts(Problem(SCENE, Where(1, 3, "shape", from_right=False)), "careful") == {
        "Row 1: ring none square. Column 3: square."
    }
    assert texts(Problem(SCENE, Where(1, 3, "shape", from_right=True)), "careful") == {
        "Row 1: ring none square. Column 1 from the right is column 3. Column 3: square."
    }
    assert texts(Problem(CHART, Together()), "careful") == {
        "Red 4, 4. Blue 7, 11. Green 2, 13.",
        "Green 2, 2. Blue 7, 9. Red 4, 13.",
    }
    assert texts(Problem(CHART, Higher("blue", "red")), "careful") == {
        "Blue 7. Red 4. 7-4=3.",
        "Red 4. Blue 7. 7-4=3.",
    }


@pytest.mark.usefixtures("no_slips")
def test_glances_by_hand() -> None:
    def seen(content, ask: world.Ask) -> str:
        return " ".join(map(str, world._glance(Random(0), Problem(content, ask), slipped=False)[0]))

    assert seen(SCENE, Count(colour="red")) == "2 2 3"
    assert seen(SCENE, Most((Count(shape="ring"), Count(shape="square")))) == "2 3"
    assert seen(SCENE, Fullest(Count())) == "2 1 2"
    assert seen(SCENE, Where(3, 1, "colour", from_right=False)) == "blue"
    assert seen(CHART, Together(("green", "red"))) == "2 6"
    assert seen(CHART, Higher("blue", "red")) == "7 4"


def test_a_glance_misreads_what_is_small() -> None:
    # A small thing is taken for none, two or three, and for one otherwise: two of them are 0 to 6 things.
    def answers(ask: world.Ask, content=SCENE) -> set[str]:
        rng = Random(2)
        return {world._glance(rng, Problem(content, ask), slipped=False)[1] for _ in range(400)}

    assert answers(Count(colour="blue")) == set("0123456")
    assert answers(Count(colour="red")) == {"3"}
    assert answers(Together(), CHART) == {"11", "13", "15"}  # the green bar, 2 high, is low: taken for 0, 2 or 4
    assert answers(Higher("blue", "red"), CHART) == {"3"}
    assert answers(Where(1, 1, "colour", from_right=False)) == {"red"}
    # Column 1 from the right is misread as column 1, a ring, or as the empty column 2 and so as any shape there is.
    assert answers(Where(1, 3, "shape", from_right=True)) == {"ring", "square"}


@pytest.mark.parametrize("style", ["careful", "careless"])
def test_a_slip_is_one_wrong_reading(style, monkeypatch) -> None:
    monkeypatch.setattr(world, "SLIP_FRAC", {"careless": 1.0, "careful": 1.0})
    monkeypatch.setattr(world, "MISREAD_FRAC", 0.0)
    rng = Random(3)
    for content, ask, answer in (
        (SCENE, Count(colour="red"), 3),
        (CHART, Together(), 13),
        (CHART, Higher("blue", "red"), 3),
    ):
        boxed = {int(solve(rng, Problem(content, ask), style).answer) for _ in range(60)}
        assert boxed == {answer - 1, answer + 1}


def test_questions_say_what_is_asked() -> None:
    rng = Random(3)
    told = {tell(rng, Problem(SCENE, Where(1, 3, "colour", from_right=True))) for _ in range(20)}
    assert told == {
        "What colour is the shape in row 1, column 1 from the right?",
        "Row 1, column 1 from the right: what colour is it?",
    }
    most = Problem(SCENE, Most((Count(shape="cross"), Count(shape="square"))))
    assert world.with_choices("Most?", most.choices) == "Most?\nA. crosses\nB. squares"


def test_corpus_is_fixed_by_its_seed() -> None:
    for one, two in zip(itertools.islice(corpus(7), 100), FIRST, strict=False):
        assert (one.question, one.response, one.picture.png()) == (two.question, two.response, two.picture.png())


def test_styles_and_errors_have_their_shares_for_every_kind_of_question() -> None:
    answered = [document for document in DOCUMENTS if document.problem is not None]
    for kinds in ((Count,), (Most, Fullest), (Where,), (Together, Higher)):
        right: dict[str | None, list[bool]] = {"careful": [], "careless": []}
        for document in answered:
            assert document.problem is not None
            if isinstance(document.problem.ask, kinds):
                boxed = re.fullmatch(r"(?s).*\\boxed\{(\w+)\}", document.response)
                assert boxed, document.response
                right[document.style].append(boxed[1] == document.problem.answer)
        assert 0.47 < len(right["careless"]) / sum(map(len, right.values())) < 0.63
        assert sum(right["careful"]) / len(right["careful"]) > 0.93
        assert sum(right["careless"]) / len(right["careless"]) < 0.93


def test_the_corpus_begins_with_reading_and_careful_solutions() -> None:
    assert {document.style for document in FIRST} == {None, "careful"}
    for documents, share in ((FIRST, world.READ_FRAC_FIRST), (DOCUMENTS, world.READ_FRAC)):
        reads = [document for document in documents if document.problem is None]
        assert abs(len(reads) / len(documents) - share) < 0.05
        assert all(document.question.startswith("Read ") for document in reads)


def test_corpus_and_suites_share_no_problem() -> None:
    problems = [document.problem for document in DOCUMENTS if document.problem is not None]
    assert not any(is_held_out(problem.key) for problem in problems)
    corpus_keys = {problem.key for problem in problems}
    for shift in SHIFTS:
        asked = [problem for _, problem in suite_problems(shift, 3, 200)]
        assert all(is_held_out(problem.key) for problem in asked)
        assert not corpus_keys & {problem.key for problem in asked}
