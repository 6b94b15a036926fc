from __future__ import annotations

import json

import pytest

from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.scoring import by_subject, compare, judge, read_predictions, score_row, summarise

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
