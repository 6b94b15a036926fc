"""Multiple choice: every way options and the right one are written, read as the same letters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinerl.answers.options import choice_lines
from spinerl.data import load_data
from spinerl.data.rows import BadCellError, gold_letter, parse_choices
from spinerl.errors import InputError

COLOURS = ("red", "blue", "green")


@pytest.mark.parametrize(
    ("cell", "labels", "options"),
    [
        (["red", "blue", "green"], "ABC", COLOURS),
        (("red", "blue", "green"), "ABC", COLOURS),
        ({"A": "red", "B": "blue", "C": "green"}, "ABC", COLOURS),
        ({"A": "red", "B": "blue", "C": "green", "D": None}, "ABC", COLOURS),  # Parquet fills missing fields
        ({"B": "blue", "A": "red"}, "AB", COLOURS[:2]),
        ({"text": ["red", "blue", "green"], "label": ["1", "2", "3"]}, "123", COLOURS),
        ([{"letter": "A", "content": "red"}, {"letter": "B", "content": "blue"}], "AB", COLOURS[:2]),
        ([{"key": "A", "value": "red"}, {"key": "B", "value": "blue"}], "AB", COLOURS[:2]),
        ([{"text": "red"}, {"text": "blue"}], "AB", COLOURS[:2]),
        ('["red", "blue", "green"]', "ABC", COLOURS),
        ('{"A": "red", "B": "blue", "C": "green"}', "ABC", COLOURS),
        ("['red', 'blue', 'green']", "ABC", COLOURS),  # a list that was printed by Python
        (["A. red", "B. blue", "C. green"], "ABC", COLOURS),
        (["(A) red", "(b) blue", "C: green"], "ABC", COLOURS),
        (["A. red", "blue"], "AB", ("A. red", "blue")),  # not all marked: marks are text
        ([3, 4.0, 0.5], "ABC", ("3", "4", "0.5")),
        (["A", "B"], "AB", ("A", "B")),  # the options are in the picture
        (None, "", ()),
        ("", "", ()),
        ([], "", ()),
        ("[]", "", ()),
    ],
)
def test_choice_cells(cell, labels, options):
    assert parse_choices(cell) == (tuple(labels), options)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("red, blue", "text that is no list"),
        (["red"], "1 option"),
        ([str(i) for i in range(27)], "27 option"),
        (7, "must be a list, found int"),
        ([["red"], ["blue"]], "must be text or a number, found list"),
        ({"text": ["red", "blue"], "label": ["A"]}, "2 option"),
        ({"words": ["red", "blue"]}, "must hold one of the fields"),
        ([{"letter": "A", "words": "red"}, {"letter": "B", "words": "blue"}], "must hold one of the fields"),
    ],
)
def test_bad_choice_cells(cell, message):
    with pytest.raises(BadCellError, match=message):
        parse_choices(cell)


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        (0, "A"),
        (2, "C"),
        (1.0, "B"),
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B)", "B"),
        ("blue", "B"),
        (" Blue ", "B"),
        ("B. blue", "B"),
        ("(B) blue", "B"),
        ("1", "B"),  # an index in digits, since it is neither a label nor an option
    ],
)
def test_gold_becomes_the_letter(gold, letter):
    assert gold_letter(gold, "ABC", COLOURS) == letter


@pytest.mark.parametrize(
    ("gold", "labels", "options", "form", "letter"),
    [
        ("2", "ABCD", ("1", "2", "3", "4"), "auto", "B"),  # text of an option before an index in digits
        ("2", "ABCD", ("1", "2", "3", "4"), "index", "C"),
        (2, "ABCD", ("1", "2", "3", "4"), "auto", "C"),  # a number is an index
        (2, "ABCD", ("1", "2", "3", "4"), "text", "B"),
        (9, "AB", ("8", "9"), "auto", "B"),  # no index: an option's text
        ("2", "123", COLOURS, "auto", "B"),  # the data set's own label
        (3, "123", COLOURS, "auto", "C"),
        ("B", "ABC", ("B", "C", "A"), "letter", "B"),
        ("B", "ABC", ("B", "C", "A"), "text", "A"),
        (1, "ABC", ("B", "C", "A"), "letter", "B"),  # a class label's number, in a file without its names
        (1, "123", COLOURS, "letter", "A"),
        ("A", "AB", ("A", "B"), "auto", "A"),  # label and text agree
        ("x", "AB", ("x", "x"), "text", "A"),  # equal options: the first
    ],
)
def test_gold_where_readings_differ(gold, labels, options, form, letter):
    assert gold_letter(gold, labels, options, form) == letter


@pytest.mark.parametrize(
    ("gold", "options", "form", "message"),
    [
        ("B", ("B", "C", "A"), "auto", "option B by its letter and option A by its text; set gold_form"),
        ("purple", COLOURS, "auto", "an index from 0 to 2, a letter from A to C, or an option's text"),
        ("D", COLOURS, "auto", "none of the options"),
        (3, COLOURS, "auto", "none of the options"),
        (-1, COLOURS, "auto", "none of the options"),
        ("blue", COLOURS, "letter", "none of the options"),
        ("B", COLOURS, "text", "none of the options"),
        ("B", COLOURS, "index", "none of the options"),
        (True, COLOURS, "auto", "none of the options"),
        (["B"], COLOURS, "auto", "must be text or a number, found list"),
    ],
)
def test_gold_that_is_none_of_the_options(gold, options, form, message):
    with pytest.raises(BadCellError, match=message):
        gold_letter(gold, "ABC", options, form)


def test_a_long_text_is_no_label():
    assert gold_letter("a blue one", "AB", ("a blue one", "b")) == "A"


def test_options_in_the_picture_are_only_letters():
    assert choice_lines(["A", "B"]) == ["A", "B"]
    assert choice_lines(["red", "B"]) == ["A. red", "B"]


def test_rendered_question(configure, jsonl):
    path = jsonl([{"question": "Which colour?", "options": list(COLOURS), "answer": 1}, {"question": "Why?"}])
    config = configure(f"data={path}", "data.columns.choices=options")
    questions, gold = load_data(config.data)
    first, second = questions.questions
    assert first.text == "Which colour?\nA. red\nB. blue\nC. green"
    assert (first.choices, first.answer_kind) == (COLOURS, "choice")
    assert (second.choices, second.answer_kind) == ((), "auto")
    assert dict(gold) == {"0": "B"}


def test_options_from_several_columns(configure, jsonl):
    path = jsonl([{"question": "q", "good": "red", "bad": "blue", "answer": "red"}])
    questions, gold = load_data(configure(f"data={path}", "data.columns.choices=[bad,good]").data)
    assert questions.questions[0].text == "q\nA. blue\nB. red"
    assert gold["0"] == "B"


def test_another_answer_kind_leaves_the_gold_as_it_is(configure, jsonl):
    path = jsonl([{"question": "q", "options": ["red", "blue"], "answer": "blue"}])
    questions, gold = load_data(configure(f"data={path}", "data.columns.choices=options").data, answer_kind="text")
    assert questions.questions[0].answer_kind == "text"
    assert gold["0"] == "blue"


def test_bad_gold_names_the_row_and_the_key(configure, jsonl):
    path = jsonl([{"question": "q", "options": ["red", "blue"], "answer": "green"}])
    with pytest.raises(InputError, match=r"line 1: gold 'green' is none of the options.*data\.columns\.gold"):
        load_data(configure(f"data={path}", "data.columns.choices=options").data)


# One letter would be a label, too.
TEXTS = st.text("qwertyuiop ", min_size=3).filter(lambda text: len(text.strip()) > 1)
OPTIONS = st.lists(TEXTS, min_size=2, max_size=10).filter(
    lambda texts: len({" ".join(text.split()) for text in texts}) == len(texts)
)


@given(cell=OPTIONS, data=st.data())
def test_index_letter_and_text_agree(cell, data):
    right = data.draw(st.integers(0, len(cell) - 1))
    labels, options = parse_choices(cell)
    letter = "ABCDEFGHIJ"[right]
    readings = (
        right,
        letter,
        f"({letter.lower()})",
        cell[right],
        f"{letter}. {cell[right]}",
        cell[right].upper(),
    )
    assert {gold_letter(gold, labels, options) for gold in readings} == {letter}
