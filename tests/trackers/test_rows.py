"""What trackers are given of a run's streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spinerl.trackers.rows import Entry, Tail, sizes_of


def write(run: Path, stream: str, *rows: dict) -> None:
    with (run / stream).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_entries_come_as_the_run_wrote_them_however_often_one_looks(tmp_path):
    """A reader that looks after each event and one that looks once, at the end, see the same in the same order."""
    often, found = Tail(tmp_path), []

    def look() -> None:
        found.extend(often.read(sizes_of(tmp_path)))

    write(tmp_path, "eval.jsonl", {"step": 0, "eval/pass@1": 0.5, "num_questions": 4})
    look()
    write(tmp_path, "guard.jsonl", {"step": 0, "score": 0.4, "verdict": "go", "reason": "well", "label/kept_frac": 1.0})
    for step in (1, 2):
        write(tmp_path, "metrics.jsonl", {"step": step, "reward/mean": 0.25 * step, "loss/total": None})
        look()
    write(tmp_path, "guard.jsonl", {"step": 2, "score": 0.3, "rule": "lost", "why": "the answers are gone"})
    look()
    write(tmp_path, "eval.jsonl", {"step": 2, "eval/pass@1": 0.75})
    look()
    assert found == [
        Entry(0, {"eval/pass@1": 0.5}),
        Entry(0, {"guard/score": 0.4}, {"guard/verdict": "go: well"}),
        Entry(1, {"reward/mean": 0.25}),
        Entry(2, {"reward/mean": 0.5}),
        Entry(2, {"guard/score": 0.3}, {"guard/verdict": "lost: the answers are gone"}),
        Entry(2, {"eval/pass@1": 0.75}),
    ]
    assert Tail(tmp_path).read(sizes_of(tmp_path)) == found
    look()
    assert len(found) == 6


def test_only_what_is_within_the_sizes_is_read(tmp_path):
    write(tmp_path, "metrics.jsonl", {"step": 1, "reward/mean": 0.5})
    sizes = sizes_of(tmp_path)
    write(tmp_path, "metrics.jsonl", {"step": 2, "reward/mean": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew\n')  # damaged
    write(tmp_path, "metrics.jsonl", {"step": 4, "reward/mean": 0.0})
    tail = Tail(tmp_path)
    assert [entry.step for entry in tail.read(sizes)] == [1]
    assert [entry.step for entry in tail.read(sizes_of(tmp_path))] == [2, 4]


def test_a_streams_accuracy_is_of_the_steps_questions_that_have_gold(tmp_path):
    rows = [
        {"step": 1, "greedy_correct": True, "majority_correct": True},
        {"step": 1, "greedy_correct": False, "majority_correct": True},
        {"step": 1, "greedy_correct": None, "majority_correct": None},
        {"step": 1, "greedy_correct": True, "majority_correct": None, "when": "after"},
        {"step": 2, "greedy_correct": None, "majority_correct": None},
    ]
    write(tmp_path, "stream.jsonl", *rows)
    (entry,) = Tail(tmp_path).read(sizes_of(tmp_path))
    assert entry == Entry(
        1, {"stream/greedy_accuracy": 0.5, "stream/majority_accuracy": 1.0, "stream/adapted_accuracy": 1.0}
    )


def test_histograms_have_an_edge_more_than_counts(tmp_path):
    write(tmp_path, "tokens.jsonl", {"step": 1, "edges": [0.0, 0.5, 1.0], "tokens": [5, 2, 1], "forks": [0, 1, 1]})
    (entry,) = Tail(tmp_path).read(sizes_of(tmp_path))
    histogram = entry.histograms["entropy/tokens"]
    assert histogram.edges == pytest.approx((0.0, 0.5, 1.0, 1.5))
    assert histogram.counts == (5, 2, 1)
