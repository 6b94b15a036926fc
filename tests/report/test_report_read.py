"""Reading run folders: what is there is read, what is damaged leaves a note, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spinerl.errors import InputError
from spinerl.report import read_run
from tests.report.synthetic import write_run


def test_a_whole_run(tmp_path: Path):
    run = read_run(write_run(tmp_path / "run", steps=20, every=10))
    assert (run.name, run.steps_done, run.planned_steps, run.finished, run.notes) == ("run", 20, 20, True, ())
    assert [row["step"] for row in run.evals] == [0, 10, 20]
    assert [step for step, _ in run.series("reward/mean")] == [float(step) for step in range(1, 21)]
    assert [step for step, _ in run.series("eval/pass@1")] == [0.0, 10.0, 20.0]
    assert run.series("no/such") == ()
    assert run.setting("optim.lr") == 3e-5
    assert run.setting("optim.no.such", "x") == "x"
    assert run.step_seconds == pytest.approx(sum(value or 0 for _, value in run.series("time/step_s")))
    sample = run.samples[0]
    assert sample.votes[0] == ("19", 9.0)
    assert len(sample.responses) == 4
    assert len(sample.responses[0].tokens) == len(sample.responses[0].entropies) == len(sample.responses[0].forks) > 0


def test_an_unfinished_run_with_a_last_line_cut_short(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=20, done=7)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text + '{"step": 8, "reward/me')
    run = read_run(folder)
    assert (run.steps_done, run.finished) == (7, False)
    assert run.notes == ("metrics.jsonl: the last line is cut short and left out.",)


def test_a_last_line_cut_inside_a_character(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=2)
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + '{"step": 3, "note": "é'.encode()[:-1])
    assert read_run(folder).steps_done == 2


def test_lines_are_cut_at_line_feeds_only(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=5)
    row = {"step": 5, "question_id": "a\u2028b\x85c", "responses": [], "votes": {}}
    (folder / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [sample.question_id for sample in read_run(folder).samples] == ["a\u2028b\x85c"]


def test_bad_lines_in_the_middle_are_left_out_and_counted(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{oops", "[1]", '{"no": "step"}', *lines[1:]]) + "\n")
    run = read_run(folder)
    assert run.steps_done == 3
    assert run.notes == ("metrics.jsonl: 3 lines, the first of them line 2, cannot be read and are left out.",)


def test_a_step_written_twice_after_a_resume_counts_once_and_the_later_row_wins(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/mean": 0.125}\n')
    run = read_run(folder)
    assert run.steps_done == 3
    assert dict(run.series("reward/mean"))[2.0] == 0.125


def test_values_that_are_no_finite_numbers_are_none_and_noted(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=1)
    rows = (
        '{"step": 1, "loss/total": NaN}\n{"step": 2, "loss/total": Infinity}\n{"step": 3, "loss/total": 1'
        + "0" * 400
        + "}\n"
    )
    (folder / "metrics.jsonl").write_text(rows + '{"step": 4, "loss/total": 0.5}\n{"step": 5, "loss/total": "0.5"}\n')
    run = read_run(folder)
    assert [value for _, value in run.series("loss/total")] == [None, None, None, 0.5, None]
    assert run.notes == (
        "metrics.jsonl: 3 values are not finite (first: loss/total at step 1); curves have gaps there.",
        "metrics.jsonl: 1 value is no number (first: loss/total at step 5); curves have gaps there.",
    )
    assert run.damage == run.notes[1:]


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl", "samples.jsonl", "manifest.json"])
def test_any_one_file_may_be_missing(tmp_path: Path, name: str):
    folder = write_run(tmp_path / "run", steps=3)
    (folder / name).unlink()
    run = read_run(folder)
    assert bool(run.notes) == (name == "manifest.json")


def test_odd_samples_are_read_as_far_as_they_go(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    rows = [
        {"step": 1, "votes": [1], "responses": "none"},
        {
            "step": 2,
            "question_id": 7,
            "votes": {"a": 2, "b": None, "c": 3},
            "pseudo_label": 5,
            "responses": [
                {"tokens": ["a", "b"], "entropies": [0.1], "forks": [True]},
                3,
                {"text": "t", "tokens": ["a"], "entropies": [None], "forks": [1], "reward": "high"},
            ],
        },
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_run(folder).samples
    assert (first.votes, first.responses, first.question) == ((), (), "")
    assert (second.question_id, second.pseudo_label, second.votes) == ("7", "5", (("c", 3.0), ("a", 2.0)))
    assert [r.tokens for r in second.responses] == [(), ("a",)]
    assert (second.responses[1].entropies, second.responses[1].forks, second.responses[1].reward) == (
        (None,),
        (False,),
        None,
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no such folder"),
        ({}, "no config.yaml"),
        ({"metrics.jsonl": ""}, "no config.yaml"),
        ({"config.yaml": "seed: 0"}, "has none of"),
        ({"config.yaml": "- 1", "metrics.jsonl": ""}, "holds list"),
        ({"config.yaml": "", "metrics.jsonl": ""}, "holds NoneType"),
        ({"config.yaml": "a: [", "metrics.jsonl": ""}, "cannot read"),
    ],
)
def test_what_is_no_run_folder_is_refused_by_name(tmp_path: Path, files: dict[str, str] | None, words: str):
    folder = tmp_path / "somewhere"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_run(folder)
    assert "somewhere" in str(caught.value)
    assert "\n" not in str(caught.value)
