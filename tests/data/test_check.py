"""`check` goes through every row and lists what is wrong."""

import pytest

from spinerl.data import check
from spinerl.errors import InputError


def test_a_sound_file(configure, shared):
    report = check(configure(f"data={shared / 'amc.jsonl'}", "data.max_questions=3"))
    assert report.ok
    assert (report.num_rows, report.num_questions, report.num_gold) == (83, 83, 83)
    assert report.lines() == [f"{report.source}: 83 rows, 83 questions (83 auto), 83 with gold"]


def test_every_real_gold_answer_reads(configure, shared):
    for name in ("math500", "aime2024"):
        assert check(configure(f"data={shared / name}.jsonl", "answer.kind=math")).lines()[1:] == []


def test_everything_wrong_is_listed_in_order(configure, jsonl):
    rows = [
        {"id": "a", "question": "one", "answer": "1"},
        "{oops}",
        "[]",
        {"id": "b", "question": ""},
        {"id": "a", "question": "two", "answer": "2"},
        {"id": "c", "question": ["three"], "answer": "3"},
        {"id": "d", "question": "four", "answer": ["4"]},
        {"id": "e", "question": "one", "answer": "one and a half"},
        {"question": "five"},
    ]
    report = check(configure(f"data={jsonl(rows)}", "answer.kind=number"))
    assert not report.ok
    assert (report.num_rows, report.num_questions, report.num_gold) == (9, 2, 2)
    found = [(f.severity, f.where, f.what[:24]) for f in report.findings]
    assert found == [
        ("error", "line 2", "not valid JSON (Expectin"),
        ("error", "line 3", "a row must be an object "),
        ("warning", "line 4", "empty question: left out"),
        ("error", "line 5", "id 'a' was already given"),
        ("error", "line 6", "column 'question' must b"),
        ("error", "line 7", "column 'answer' must be "),
        ("warning", "line 8", "the same question as lin"),
        ("warning", "line 8", "gold cannot be read, no "),
        ("error", "line 9", "column 'id' is empty; ev"),
    ]
    assert report.lines()[0].endswith("9 rows, 2 questions (2 number), 2 with gold")
    assert report.lines()[1].startswith("error: line 2: not valid JSON")


def test_bad_choices_and_bad_gold_choices(configure, jsonl):
    rows = [
        {"question": "a", "options": ["x", "y"], "answer": "z"},
        {"question": "b", "options": ["x"], "answer": "x"},
        {"question": "c", "options": ["x", "y"], "answer": "y"},
    ]
    report = check(configure(f"data={jsonl(rows)}", "data.columns.choices=options"))
    assert [(f.severity, f.where) for f in report.findings] == [("error", "line 1"), ("error", "line 2")]
    assert report.kinds == {"choice": 1}


def test_a_gold_file_of_other_ids(configure, jsonl):
    path, gold = jsonl([{"id": 1, "question": "a"}]), jsonl([{"id": 2, "answer": "b"}], "g.jsonl")
    report = check(configure(f"data={path}", f"data.gold={gold}"))
    assert not report.ok
    assert "none of its ids is a question's id" in report.lines()[1]


def test_long_prompts_need_a_tokenizer(configure, jsonl, make_tokenizer):
    config = configure(f"data={jsonl([{'question': 'x' * 99}, {'question': 'y'}])}", "prompt.max_tokens=120")
    assert check(config).findings == ()
    (finding,) = check(config, make_tokenizer("bos")).findings
    assert (finding.severity, finding.where) == ("warning", "line 1")
    assert "over prompt.max_tokens=120: left out" in finding.what


def test_only_empty_questions_would_not_start_a_run(configure, jsonl):
    assert not check(configure(f"data={jsonl([{'question': ''}])}")).ok


def test_what_cannot_be_opened_is_still_refused(configure, jsonl):
    with pytest.raises(InputError, match="no column 'question'"):
        check(configure(f"data={jsonl([{'a': 1}])}"))
