"""The made-up world: deterministic, right where it says so, and split cleanly from the suites."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from spinerl.tiny.corpus import (
    COMMON,
    CORPUS_KINDS,
    Problem,
    Term,
    corpus,
    draw_problem,
    is_held_out,
    place_by_place,
    solve,
    tell,
)
from spinerl.tiny.suite import SHIFTS, suite_problems

DOCUMENTS = list(itertools.islice(corpus(7), 3000))


def calculate(expression: str) -> int:
    """The value of a sum such as "3+2*4-1", found without the package's code."""
    total = 0
    for sign, product in re.findall(r"([+-]?)(\d+(?:\*\d+)?)", expression):
        value = 1
        for factor in product.split("*"):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


def boxed(text: str) -> int:
    match = re.fullmatch(r".*\\boxed\{(-?\d+)\}", text)
    assert match, text
    return int(match[1])


def test_corpus_is_fixed_by_its_seed() -> None:
    again = list(itertools.islice(corpus(7), 200))
    other = list(itertools.islice(corpus(8), 200))
    assert again == DOCUMENTS[:200]
    assert not {d.question for d in other} & {d.question for d in again}


def test_answer_follows_from_the_story() -> None:
    # The numbers of a told problem, read back from its text, give the answer.
    rng = Random(1)
    for _ in range(300):
        problem = draw_problem(rng, COMMON, held_out=True)
        sentences = re.findall(r"[^.?]+[.?]", tell(rng, problem))
        assert len(sentences) == len(problem.terms) + 1
        total = 0
        for index, sentence in enumerate(sentences[:-1]):
            size = 1
            for number in re.findall(r"\d+", sentence):
                size *= int(number)
            total += -size if index and is_loss(sentence) else size
        assert total == problem.answer


def is_loss(sentence: str) -> bool:
    """Whether the owner (a pronoun after the first sentence) ends up with less."""
    if re.search(r"\b(loses|sells|takes|uses)\b", sentence):
        return True
    # "She gives 3 pens to Tom." is a loss, "Tom gives her 3 pens." a gain.
    return bool(re.search(r"\b(He|She) gives\b", sentence))


def test_solutions_end_in_their_box() -> None:
    for document in DOCUMENTS:
        assert boxed(document.solution.text) == document.solution.answer


def test_careful_chains_are_right_line_by_line() -> None:
    lines = 0
    for document in DOCUMENTS:
        solution = document.solution
        if solution.style != "careful" or solution.answer != document.problem.answer:
            continue
        for left, right in re.findall(r"(\d+[+*-]\d+)(=\d+|: [\d, ]+)\.", solution.text):
            assert calculate(left) == int(re.findall(r"\d+", right)[-1]), solution.text
            if right.startswith(":"):
                amount, change = map(int, re.split(r"[+-]", left))
                signed = -change if "-" in left else change
                assert place_by_place(amount, signed) == [int(n) for n in re.findall(r"\d+", right)]
            lines += 1
    assert lines > 2000


def test_a_wrong_careful_chain_has_one_wrong_line() -> None:
    for document in DOCUMENTS:
        solution = document.solution
        if solution.style == "careful":
            results = re.findall(r"(\d+[+*-]\d+)(?:=|: (?:\d+, )*)(\d+)\.", solution.text)
            wrong = [left for left, right in results if calculate(left) != int(right)]
            assert len(wrong) == (solution.answer != document.problem.answer), solution.text


def test_careless_totals_are_those_of_the_story_unless_the_box_is_wrong() -> None:
    right = 0
    for document in DOCUMENTS:
        solution = document.solution
        totals = [int(number) for number in re.findall(r"(\d+)[,.]", solution.text)]
        if solution.style == "careless" and totals and solution.answer == document.problem.answer:
            if not any(term.count > 1 for term in document.problem.terms):
                assert totals == list(itertools.accumulate(term.value for term in document.problem.terms))
            right += 1
    assert right > 500


def test_styles_and_errors_have_their_shares() -> None:
    wrong: dict[str, list[bool]] = {"careful": [], "careless": []}
    for document in DOCUMENTS:
        wrong[document.solution.style].append(document.solution.answer != document.problem.answer)
    assert 0.45 < len(wrong["careless"]) / len(DOCUMENTS) < 0.65
    assert sum(wrong["careful"]) / len(wrong["careful"]) < 0.08
    assert sum(wrong["careless"]) / len(wrong["careless"]) > 0.2


def test_corpus_and_suites_share_no_problem() -> None:
    assert not any(is_held_out(document.problem.key) for document in DOCUMENTS)
    corpus_keys = {document.problem.key for document in DOCUMENTS}
    for shift in SHIFTS:
        problems = [problem for _, problem in suite_problems(shift, 3, 200)]
        assert all(is_held_out(problem.key) for problem in problems)
        assert not corpus_keys & {problem.key for problem in problems}


def test_key_ignores_the_order() -> None:
    first = Problem((Term(1, 1, 20), Term(-1, 3, 4), Term(1, 1, 5)))
    second = Problem((Term(1, 1, 5), Term(1, 1, 20), Term(-1, 3, 4)))
    assert first.key == second.key
    assert is_held_out(first.key) == is_held_out(second.key)


@pytest.mark.parametrize("kind", [kind for kind, _ in CORPUS_KINDS] + list(SHIFTS.values()))
def test_amounts_never_drop_below_zero(kind) -> None:
    rng = Random(2)
    for _ in range(200):
        problem = draw_problem(rng, kind, held_out=True)
        assert len(problem.terms) - 1 in kind.changes
        assert all(a >= 0 for a in itertools.accumulate(term.value for term in problem.terms))


def test_every_order_of_work_occurs() -> None:
    # 20 - 5 + 30 - 7: as told 20-5 comes first, gains first 20+30, losses summed up 5+7.
    problem = Problem((Term(1, 1, 20), Term(-1, 1, 5), Term(1, 1, 30), Term(-1, 1, 7)))
    rng = Random(3)
    first_lines = set()
    for _ in range(200):
        match = re.search(r"\d+[+-]\d+", solve(rng, problem, "careful").text)
        assert match
        first_lines.add(match[0])
    assert first_lines == {"20-5", "20+30", "5+7"}
