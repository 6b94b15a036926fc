"""Replaying the guard on runs whose course is known, written by hand."""

import json

import pytest

from spinerl.comparison.guard_study import judge_signals, main, replay, summarise_replays
from spinerl.config import dump_yaml, load_config
from spinerl.runs import RunFolder, write_rows

KEYS = load_config().guard


@pytest.fixture
def make_run(tmp_path):
    def make(name, accuracy, support, kept, finished=True, data="tiny/shift-a"):
        """Looks and evaluations every 5 steps; `kept` of the steps between, None for the first epoch."""
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_yaml(load_config(overrides=[f"data={data}", f"run={folder}"])))
        (folder / "manifest.json").write_text(json.dumps({"finished": "now"} if finished else {}))
        steps = range(0, 5 * len(accuracy), 5)
        write_rows(
            folder / "eval.jsonl",
            [{"step": s, "eval/pass@1": a} for s, a in zip(steps, accuracy, strict=True)],
        )
        write_rows(
            folder / "guard.jsonl",
            [
                {"step": s, "probe/initial_support": x, "probe/concentration": 0.0, "score": x, "rule": None}
                for s, x in zip(steps, support, strict=True)
            ],
        )
        rows = [
            {"step": s} | ({} if kept[i] is None else {"label/kept_frac": kept[i]})
            for i in range(1, len(accuracy))
            for s in range(5 * i - 4, 5 * i + 1)
        ]
        write_rows(folder / "metrics.jsonl", rows)
        return RunFolder(folder)

    return make


def test_the_weights_of_the_best_score_are_kept(make_run):
    run = make_run("drift", [0.3, 0.8, 0.7, 0.2], [0.3, 0.5, 0.5, 0.5], [None, None, 0.9, 0.3])
    found = replay(run, KEYS)
    assert (found.start, found.end, found.best) == (0.3, 0.2, 0.8)
    # Scores: 0.3, 0.5, 0.5 * 0.9 / 0.9, 0.5 * 0.3 / 0.9.  The latest of equals.
    assert (found.kept_step, found.kept, found.rule) == (10, 0.7, None)


def test_a_broken_rule_ends_the_replay(make_run):
    run = make_run("lost", [0.3, 0.2, 0.1, 0.9], [0.4, 0.05, 0.05, 0.9], [None] * 4)
    found = replay(run, KEYS)
    assert (found.rule, found.stopped, found.kept_step, found.kept) == ("lost", 10, 0, 0.3)
    assert found.after == 0.9


@pytest.mark.parametrize(
    ("accuracy", "wrong"),
    [
        ([0.3, 0.2, 0.1, 0.9], 1),
        ([0.3, 0.2, 0.1, 0.9, 0.1], 1),  # it was better for a while
        ([0.3, 0.8, 0.1, 0.31], 0),  # the best was before the stop, and what came after hardly better than what is kept
        ([0.3, 0.2, 0.1], 0),  # nothing came after
    ],
)
def test_a_stop_is_false_if_something_better_came_after_it(make_run, accuracy, wrong):
    support = [0.4, 0.05, 0.05, 0.05, 0.05][: len(accuracy)]
    found = replay(make_run("lost", accuracy, support, [None] * len(accuracy)), KEYS)
    assert (found.stopped, found.kept) == (10, 0.3)
    assert summarise_replays([found])["false_stops"] == wrong


def test_sums_by_hand(make_run):
    harmed = replay(make_run("a", [0.5, 0.6, 0.1], [0.4, 0.5, 0.3], [None] * 3), KEYS)
    helped = replay(make_run("b", [0.3, 0.4, 0.9], [0.3, 0.35, 0.5], [None] * 3), KEYS)
    found = summarise_replays([harmed, helped])
    assert found["harmed_without"] == 1
    assert found["harmed_with"] == 0
    assert found["helped"] == 2
    assert found["gain_kept"] == pytest.approx(1.0)
    assert found["gain_kept_by_last"] == pytest.approx((-0.4 + 0.6) / 0.7)
    # By the middle (step 5) both supports had risen, that of the harmed run by 0.10, of the other by 0.05: up is good,
    # so the harmed run looks the better one, and the signal is wrong about this pair.
    assert judge_signals([harmed, helped])["support by the initial votes"] == 0.0


def test_unfinished_runs_are_left_out_and_the_command_writes_its_files(make_run, tmp_path, capsys):
    assert replay(make_run("half", [0.3, 0.4], [0.3, 0.3], [None] * 2, finished=False), KEYS) is None
    pytest.importorskip("matplotlib")
    make_run("whole", [0.3, 0.4], [0.3, 0.4], [None] * 2, data="tiny/shift-b")
    main([str(tmp_path), "--json", str(tmp_path / "g.json"), "--picture", str(tmp_path / "g.png")])
    assert "tiny/shift-b" in capsys.readouterr().out
    assert json.loads((tmp_path / "g.json").read_text())["groups"]["all"]["runs"] == 1
    assert (tmp_path / "g.png").stat().st_size > 1000
