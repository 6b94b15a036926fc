from __future__ import annotations

import json

import pytest

from spinerl.answers import Equivalence
from spinerl.cli import main
from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.scoring import by_subject, compare, judge, read_predictions, score_row, summarise, why_no_accuracy

CONFIG = load_config()


@pytest.fixture(scope="module")
def equivalence():
    with Equivalence() as shared:
        yield shared


def judged(equivalence, **row):
    return judge({"id": "1", **row}, equivalence, CONFIG.answer, CONFIG.vote)


def test_a_row_by_hand(equivalence):
    row = judged(
        equivalence,
        responses=["so \\boxed{\\frac12}", "the answer is 0.5", "\\boxed{2}", "I am not sure about this one at all."],
        gold="1/2",
        kind="math",
    )
    assert row["classes"] == [0, 0, 1, None]
    assert row["majority_frac"] == 0.5
    assert row["responses_correct"] == [True, True, False, False]
    assert row["correct"] is True
    assert set(score_row(row)) == {
        "id", "answers", "classes", "pseudo_label", "majority_frac", "correct", "responses_correct"
    }  # fmt: skip


def test_without_gold_correctness_is_unknown(equivalence):
    row = judged(equivalence, responses=["\\boxed{3}"])
    assert row["correct"] is None
    assert row["responses_correct"] is None
    assert "eval/maj@1" not in summarise([row])


def test_truncated_responses_abstain(equivalence):
    row = judged(equivalence, responses=["\\boxed{3}", "\\boxed{4}"], truncated=[True, False], gold="3")
    assert row["classes"] == [None, 0]
    assert row["correct"] is False


def test_a_tie_has_no_label_and_is_wrong(equivalence):
    row = judged(equivalence, responses=["\\boxed{3}", "\\boxed{4}"], gold="3")
    assert row["pseudo_label"] is None
    assert row["correct"] is False


def test_unreadable_gold_equals_nothing(equivalence):
    row = judged(equivalence, responses=["\\boxed{3}"], gold="none", kind="math")
    assert row["correct"] is False


def test_figures_by_hand(equivalence):
    rows = [
        judged(equivalence, responses=["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "\\boxed{3}"], gold="1", subject="a"),
        judged(equivalence, responses=["\\boxed{1}", "\\boxed{2}", "\\boxed{2}", "\\boxed{2}"], gold="1", subject="b"),
    ]
    figures = summarise(rows)
    assert figures["eval/avg@4"] == pytest.approx((2 + 1) / 8)
    assert figures["eval/maj@4"] == 0.5
    # unbiased pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2
    assert figures["eval/pass@2"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert figures["eval/pass@4"] == 1.0
    assert figures["eval/majority_frac"] == pytest.approx((0.5 + 0.75) / 2)
    assert [(name, n, f["eval/maj@4"]) for name, n, f in by_subject(rows)] == [("a", 1, 1.0), ("b", 1, 0.0)]


def test_compare_pairs_by_id(equivalence):
    def rows(answers):
        return [
            judge(
                {"id": i, "gold": "1", "greedy": {"text": f"\\boxed{{{a}}}"}}, equivalence, CONFIG.answer, CONFIG.vote
            )
            for i, a in answers.items()
        ]

    found = compare(rows({"x": 1, "y": 2, "z": 2}), rows({"z": 1, "y": 2, "x": 1, "w": 1}))
    assert found["greedy Pass@1"].num == 3
    assert found["greedy Pass@1"].difference == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="0 ids in common"):
        compare(rows({"x": 1}), rows({"y": 1}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"),
        ("nonsense", "line 1 is not JSON"),
        ('{"id": 1}', "responses"),
        ('{"id": 1, "responses": "text"}', "list of texts"),
        ('{"id": 1, "responses": []}', "empty"),
        ('{"id": 1, "responses": ["a"], "kind": "maths"}', 'did you mean "math"'),
        ('{"id": 1, "responses": ["a"], "truncated": []}', "0 flags for 1"),
        ('{"id": 1, "responses": ["a"]}\n{"id": 1, "responses": ["a"]}', "twice"),
    ],
)
def test_refuses_rows_it_cannot_use(tmp_path, text, says):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_predictions(file)
    assert says in str(caught.value)


def test_numbers_as_gold_are_read(tmp_path, equivalence):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"id": 1, "responses": ["\\boxed{142}"], "gold": 142.0}))
    assert judge(read_predictions(file)[0], equivalence, CONFIG.answer, CONFIG.vote)["correct"] is True


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"id": ["a"], "responses": ["1"]}', "id must be a text or a whole number, found a list"),
        ('{"id": {"a": 1}, "responses": ["1"]}', "id must be a text or a whole number, found an object"),
        ('{"id": null, "responses": ["1"]}', "id must be a text or a whole number, found null"),
        ('{"id": 1, "responses": "1"}', "responses must be a list of texts, found a text"),
        ('{"id": 1, "responses": null}', "responses must be a list of texts, found null"),
        ('{"id": 1, "responses": ["1", 2]}', "responses must be a list of texts, found a list with a number (2)"),
        ('{"id": 1, "responses": [["1"]]}', "responses must be a list of texts, found a list with a list"),
        ('{"id": 1, "responses": ["1"], "truncated": true}', "truncated must be a list of true and false"),
        ('{"id": 1, "responses": ["1"], "truncated": "no"}', "truncated must be a list of true and false"),
        ('{"id": 1, "responses": ["1"], "truncated": [0]}', "truncated must be a list of true and false"),
        ('{"id": 1, "responses": ["1"], "truncated": [true, false]}', "truncated has 2 flags for 1 responses"),
        ('{"id": 1, "responses": ["1"], "kind": ["math"]}', "kind=['math'] is not known"),
        ('{"id": 1, "responses": ["1"], "kind": {"a": 1}}', "is not known"),
        ('{"id": 1, "responses": ["1"], "choices": "red"}', "choices must be a list of texts, found a text"),
        ('{"id": 1, "responses": ["1"], "choices": {"A": "red"}}', "choices must be a list of texts, found an object"),
        ('{"id": 1, "responses": ["1"], "choices": [1, 2]}', "choices must be a list of texts"),
        ('{"id": 1, "responses": ["1"], "gold": ["1"]}', "gold must be a text or a number, found a list"),
        ('{"id": 1, "responses": ["1"], "gold": {"value": 1}}', "gold must be a text or a number, found an object"),
        ('{"id": 1, "responses": ["1"], "gold": NaN}', "gold must be a text or a number"),
        ('{"id": 1, "responses": ["1"], "subject": ["a"]}', "subject must be a text or a number, found a list"),
        ('{"id": 1, "greedy": "1"}', "greedy must be"),
        ('{"id": 1, "greedy": {"text": 1}}', "greedy must be"),
        ('{"id": 1, "greedy": null}', "is no prediction row"),
        ("[1]", "is no prediction row"),
        ("3", "is no prediction row"),
        ("{", "is not JSON"),
    ],
)
def test_odd_types_get_one_line(tmp_path, row, says):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"id": 0, "responses": ["1"]}\n' + row + "\n")
    with pytest.raises(InputError) as refused:
        read_predictions(file)
    line = str(refused.value)
    assert f"{file} line 2" in line
    assert says in line
    assert "\n" not in line


def test_numbers_in_gold_and_subject_become_text(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"id": 0, "responses": ["1"], "gold": 142.0, "subject": 3}\n')
    (row,) = read_predictions(file)
    assert (row["gold"], row["subject"]) == ("142", "3")


def test_a_missing_accuracy_says_why(equivalence):
    def said(*rows):
        return why_no_accuracy([judged(equivalence, **row) for row in rows], CONFIG.answer)

    two = {"responses": ["\\boxed{3}", "\\boxed{3}"]}
    assert said({**two, "gold": "3"}) == []
    assert said(two, two) == ["accuracy unknown: no row has gold; add a field `gold` with the right answer"]
    assert said({**two, "gold": "3"}, two) == ["accuracy is over 1 of 2 rows: the others have no gold"]
    (line,) = said({**two, "gold": "3"}, {"responses": ["\\boxed{3}"], "gold": "3"})
    assert line.startswith("avg@k, maj@k and pass@k left out: rows have from 1 to 2 responses")
    (line,) = said({**two, "gold": "no number at all", "kind": "number"})
    assert line.startswith("1 gold answers cannot be read, so that no response equals them: the first is")


def test_the_command_says_why_accuracy_is_missing(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"id": 0, "responses": ["\\\\boxed{1}"]}\n')
    with pytest.raises(SystemExit) as ended:
        main(["score", str(file)])
    assert not ended.value.code
    assert "accuracy unknown: no row has gold" in capsys.readouterr().out
