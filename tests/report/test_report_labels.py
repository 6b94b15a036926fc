"""Labels over time: counted right, drawn in order, absent where no question came twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

from spinerl.report import read_run
from spinerl.report.groups import group_runs
from spinerl.report.labels import label_views
from tests.report.synthetic import write_run
from tests.report.test_report_page import HOSTILE, report


def written(folder: Path, *rows: tuple) -> Path:
    """A run whose labels.jsonl has (step, id, label, correct, further keys) rows."""
    lines = [
        {"step": step, "id": id_, "label": label, "correct": correct, **dict(*more)}
        for step, id_, label, correct, *more in rows
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_shares_are_over_all_questions_met_so_far(tmp_path: Path):
    folder = written(
        write_run(tmp_path / "run", steps=4),
        (1, "a", "1", True),
        (1, "b", "2", False),
        (2, "c", None, False),
        (3, "a", "3", False),
        (4, "b", "2", True),  # as when an answer is read better later
        (4, "c", "5", True),
    )
    (view,) = label_views(group_runs([read_run(folder)]))
    right, kept, labelled = (dict(line.points) for line in view.course.lines)
    third = 100 / 3
    assert right == {1.0: 50.0, 2.0: third, 3.0: 0.0, 4.0: 2 * third}
    assert kept == {1.0: 100.0, 2.0: 2 * third, 3.0: third, 4.0: 2 * third}  # c's first label is that of step 4
    assert labelled == {1.0: 100.0, 2.0: 2 * third, 3.0: 2 * third, 4.0: 100.0}
    assert view.sentence == "3 questions had 6 visits; 33.3 % of the later ones changed the label.".replace(
        " %", "\u00a0%"
    )
    styles = [[(one.begin, one.end, one.style, one.changed) for one in row] for row in view.history.rows]
    assert styles == [
        [(1, 4, "s1", False), (4, 5, "s2", False)],
        [(2, 4, "neutral", False), (4, 5, "s2", False)],
        [(1, 3, "s2", False), (3, 5, "s1", True)],
    ]
    page = report(tmp_path, folder)
    assert "Labels in the end: 2 right, 1 wrong." in page.source


def test_a_run_says_itself_what_a_change_is(tmp_path: Path):
    """Another spelling of one answer is none."""
    folder = written(
        write_run(tmp_path / "run", steps=2, gold=False),
        (1, "a", "1/2", None, {"flipped": False}),
        (2, "a", "0.5", None, {"flipped": False}),
    )
    (view,) = label_views(group_runs([read_run(folder)]))
    assert [one.style for one in view.history.rows[0]] == ["s0", "s0"]
    assert view.sentence.startswith("1 question had 2 visits; 0")
    assert not re.search("right|wrong", report(tmp_path, folder).chart("chart-label-history-0"))


def test_many_questions_are_sampled_and_none_repeated_is_not_shown(tmp_path: Path):
    once = written(write_run(tmp_path / "once", steps=2), (1, "a", "1", True), (2, "b", "2", True))
    assert label_views(group_runs([read_run(once)])) == []
    assert "Labels over time" not in report(tmp_path, once).source
    rows = [(step, f"q{i}", "1", i % 2 == 0) for step in (1, 2) for i in range(300)]
    (view,) = label_views(group_runs([read_run(written(write_run(tmp_path / "many", steps=2), *rows))]))
    assert len(view.history.rows) == 128
    assert view.history.note.startswith("128 of 300 questions")


def test_hostile_labels_do_no_harm(tmp_path: Path):
    folder = written(write_run(tmp_path / "run", steps=2), (1, HOSTILE, HOSTILE, True), (2, HOSTILE, None, None))
    assert HOSTILE not in report(tmp_path, folder).source
