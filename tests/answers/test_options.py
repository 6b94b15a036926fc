"""Permuted options: whatever the order, an answer means what it meant."""

from __future__ import annotations

import itertools
from random import Random
from string import ascii_uppercase as LETTERS

import pytest

from spinerl.answers import Equivalence, count_vote
from spinerl.answers.options import (
    choice_lines,
    option_spans,
    original_letter,
    permute_options,
    permuted_places,
    shows_choices,
)

FOUR = ("a red ball", "10", "\\frac{1}{2}", "red (B)all")
FORMS = {
    "lines": lambda options: "Which one?" + "".join(f"\n{line}" for line in choice_lines(options)),
    "in brackets": lambda options: "Which? " + " ".join(f"({a}) {o}" for a, o in zip(LETTERS, options, strict=False)),
    "in a sentence": lambda options: (
        "Is it " + ", ".join(f"{a}) {o}" for a, o in zip(LETTERS, options, strict=False)) + "? Choose."
    ),
}
SAYINGS = (
    "The answer is {letter}.",
    "\\boxed{{{letter}}}",
    "({letter})",
    "So I choose option {letter}) {text}.",
    "\\boxed{{{letter}. {text}}}",
    "The answer is {text}.",
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num", [2, 3, 4])
def test_every_order_of_every_option_said_in_every_way(form, num):
    """Brute force: for each permutation and each option, a response that names it by its letter there, by letter and
    text, or by its text votes for the letter that it has in the question itself."""
    options = FOUR[:num] if form == "lines" else ("red ball", "ten", "blue", "no ball")[:num]
    text = FORMS[form](options)
    with Equivalence() as equivalence:
        for order in itertools.permutations(range(num)):
            shown, choices, letters = permute_options(text, options, order)
            assert shown == FORMS[form](choices)
            assert [choices[k] for k in range(num)] == [options[place] for place in order]
            said = [
                (place, saying.format(letter=LETTERS[k], text=options[place]))
                for k, place in enumerate(order)
                for saying in SAYINGS
            ]
            texts = [one for _, one in said]
            vote = count_vote(
                texts, [False] * len(texts), "choice", equivalence, choices=choices, letters=letters, explain=True
            )
            plain = count_vote(
                [saying.format(letter=LETTERS[place], text=options[place]) for place in order for saying in SAYINGS],
                [False] * len(texts),
                "choice",
                equivalence,
                choices=options,
            )
            assert vote.answers == plain.answers  # what is read of the question itself
            for (place, one), answer in zip(said, vote.answers, strict=True):
                assert answer in (LETTERS[place], None), one
            assert sum(answer is None for answer in vote.answers) <= len(texts) // 6


def test_ten_options_go_there_and_back():
    options = [f"thing {i}" for i in range(10)]
    text = FORMS["lines"](options)
    for seed in range(200):
        order = permuted_places(text, options, Random(seed))
        shown, choices, letters = permute_options(text, options, order)
        assert sorted(order) == list(range(10))
        assert order != list(range(10))
        for k, choice in enumerate(choices):
            assert f"\n{LETTERS[k]}. {choice}" in shown
            assert options[LETTERS.index(original_letter(LETTERS[k], letters))] == choice
    eleven = [f"thing {i}" for i in range(11)]
    assert permuted_places(FORMS["lines"](eleven), eleven, Random(0)) is None  # letters are read up to J


def test_all_orders_but_the_given_one_come():
    options = ("red", "green", "blue")
    text = FORMS["lines"](options)
    found = {tuple(permuted_places(text, options, Random(seed))) for seed in range(100)}
    assert found == set(itertools.permutations(range(3))) - {(0, 1, 2)}
    assert permuted_places(text, options, Random(3)) == permuted_places(text, options, Random(3))


@pytest.mark.parametrize(
    ("options", "movable"),
    [
        (("red", "blue", "none of the above"), 2),
        (("red", "blue", "Both of these", "All of the above."), 2),
        (("red", "all of the above", "blue"), 0),  # not last: the others' places would change
        (("red", "blue", "A and B"), 0),
        (("red", "blue", "both A and B"), 0),
        (("red", "blue", "Only (A)"), 0),
        (("red", "blue", "option B but not all"), 0),
        (("red", "B"), 0),  # the letter says that the option is in the picture
        (("A", "B", "C"), 0),
        (("<image>", "<image>"), 0),
        (("<image 1>", "<image 2>"), 0),
        (("red", "all of them"), 0),  # one option left to move
        (("a drug above 5 mg", "vitamin A", "an iron supplement"), 3),
    ],
)
def test_options_that_speak_of_others_keep_their_places(options, movable):
    text = FORMS["lines"](options)
    for seed in range(20):
        order = permuted_places(text, options, Random(seed))
        if not movable:
            assert order is None
        else:
            assert sorted(order[:movable]) == list(range(movable))
            assert order[movable:] == list(range(movable, len(options)))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Is A. red better than (A) red? (B) blue", ("red", "blue")),  # A stands there twice
        ("(B) blue (A) red", ("red", "blue")),  # not in order
        ("Red or blue?", ("red", "blue")),  # not shown
        ("Which of options A and B is it?\nA. red\nB. blue", ("red", "blue")),  # the question names letters
        ("(A) red (B) reddish", ("red", "red")),
    ],
)
def test_a_text_in_which_options_are_not_certain_is_left_as_it_is(text, options):
    assert permuted_places(text, options, Random(0)) is None


def test_same_texts_are_kept_apart_by_their_letters():
    """Two options of one text: the permutation knows which is which, where their texts cannot."""
    options = ("red", "red", "blue")
    text = FORMS["lines"](options)
    assert permute_options(text, options, [1, 2, 0]) == (
        "Which one?\nA. red\nB. blue\nC. red",
        ("red", "blue", "red"),
        "BCA",
    )


def test_what_is_permuted_is_found_again():
    options = ("1", "10", "A. 1", "2")
    text = FORMS["lines"](options)
    for order in itertools.permutations(range(4)):
        shown, choices, _ = permute_options(text, options, order)
        assert [shown[a:b] for a, b in option_spans(shown, choices)] == list(choices)
        assert shows_choices(shown, choices)
        back = [order.index(place) for place in range(4)]
        assert permute_options(shown, choices, back)[0] == text
