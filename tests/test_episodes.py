"""Streams whose batches take several steps, are answered afterwards too, and start from the initial weights again."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from spinerl.config import load_config
from spinerl.display import stream_lines
from spinerl.errors import InputError
from spinerl.report.groups import group_runs
from spinerl.report.read import read_run
from spinerl.report.words import summary
from spinerl.runs import RunFolder
from spinerl.train import adapt
from tests.commands import exit_code
from tests.test_schedule import StopAt

KEYS = [
    "model=tiny-reasoner", "data=tiny/shift-a", "data.max_questions=6", "data.order=sequential", "method=ttrl",
    "questions_per_step=2", "group_size=4", "rollout.max_new_tokens=24", "answer.truncated=count", "steps=9",
    "stream.on=true", "stream.steps_each=2", "optim.lr=0.01", "eval.samples=0", "guard=off", "checkpoint.every=1",
    "threads=1",
]  # fmt: skip
EPISODIC = ["stream.answer=both", "stream.reset_every=-1"]


def run(folder, *overrides):
    assert exit_code(["adapt", f"run={folder}", *KEYS, *overrides]) == 0
    return RunFolder.open(folder)


def without_times(rows):
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def test_an_episode_is_two_steps_and_both_answers(tmp_path):
    opened = run(tmp_path / "both", *EPISODIC)
    rows, start = opened.rows("stream.jsonl"), opened.predictions(0)
    before = [row for row in rows if "when" not in row]
    after = [row for row in rows if row.get("when") == "after"]
    names = [row["id"] for row in start]
    assert [(row["step"], row["id"]) for row in before] == list(zip([1, 1, 3, 3, 5, 5], names, strict=True))
    assert [(row["step"], row["id"]) for row in after] == list(zip([2, 2, 4, 4, 6, 6], names, strict=True))
    # Every batch begins with the initial weights, and so does what the run leaves behind.
    assert [row["greedy"] for row in before] == [row["greedy"]["answer"] for row in start]
    assert [row["greedy"] for row in after] != [row["greedy"] for row in before]
    assert [row["greedy"] for row in opened.predictions(6)] == [row["greedy"] for row in start]
    # The answers before adapting are the evaluation's, and cost the same tokens.
    tokens = {row["step"]: row["stream/num_tokens"] for row in opened.rows("metrics.jsonl")}
    only = run(tmp_path / "before", "stream.reset_every=-1")
    spent = sum(row["stream/num_tokens"] for row in only.rows("metrics.jsonl"))
    assert spent == round(6 * opened.rows("eval.jsonl")[0]["eval/greedy_length"])
    assert sum(tokens[step] for step in (1, 3, 5)) == spent
    assert all(tokens[step] > 0 for step in (2, 4, 6))


def test_figures_of_both_answers(tmp_path):
    opened = run(tmp_path / "both", *EPISODIC)
    rows, figures = opened.rows("stream.jsonl"), opened.manifest["stream"]
    right = {
        when: [row["greedy_correct"] for row in rows if row.get("when", "before") == when]
        for when in ("before", "after")
    }
    assert (figures["before"], figures["after"]) == (sum(right["before"]) / 6, sum(right["after"]) / 6)
    assert figures["change"] == pytest.approx((sum(right["after"]) - sum(right["before"])) / 6)
    assert figures["change_low"] <= figures["change"] <= figures["change_high"]
    first, second = stream_lines(rows)
    assert "of 6 questions, each answered before and after it was adapted on" in first
    assert f"adapting changed {100 * figures['change']:+.1f} points" in second
    said = " ".join(summary(group_runs([read_run(tmp_path / "both")])[0]))
    assert "Of 6 questions that came once, as a stream, right were before adapting" in said
    assert f"adapting changed {100 * figures['change']:+.1f} points" in said


def test_only_answers_after_adapting(tmp_path):
    opened = run(tmp_path / "after", "stream.answer=after")
    rows = opened.rows("stream.jsonl")
    assert [row["when"] for row in rows] == ["after"] * 6
    assert {"after", "num_questions"} <= opened.manifest["stream"].keys()
    assert not {"before", "vote", "change"} & opened.manifest["stream"].keys()
    assert opened.rows("eval.jsonl")[-1]["step"] == 6, "without resets the run ends with what it learned"
    start, end = (load_file(path / "model.safetensors") for path in (run_model(tmp_path), tmp_path / "after" / "model"))
    assert any((start[name] != end[name]).any() for name in start)


def run_model(tmp_path):
    """The folder of the initial weights, as a run with a reset leaves them."""
    run(tmp_path / "reset", *EPISODIC, "data.max_questions=2")
    return tmp_path / "reset" / "model"


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["lora.rank=2"],
        ["method=ttadapt", "group_size=1", "stream.steps_each=2", "eval.samples=0"],
        ["method=tt-si", "vote.views=[similar]", "lora.rank=2", "group_size=2", "data.max_questions=4"],
    ],
    ids=["all weights", "adapters", "ttadapt", "tt-si"],
)
def test_an_episode_that_was_interrupted_goes_on_bit_for_bit(tmp_path, keys):
    keys = [*EPISODIC, *keys]
    whole = run(tmp_path / "whole", *keys)
    with pytest.raises(KeyboardInterrupt):
        adapt(load_config(overrides=[f"run={tmp_path / 'cut'}", *KEYS, *keys]), StopAt(3))  # inside the second episode
    assert exit_code(["adapt", "--resume", tmp_path / "cut"]) == 0
    cut = RunFolder.open(tmp_path / "cut")
    for name in ("stream.jsonl", "metrics.jsonl", "eval.jsonl", "labels.jsonl"):
        assert without_times(cut.rows(name)) == without_times(whole.rows(name)), name
    assert cut.manifest["stream"] == whole.manifest["stream"]
    last = whole.rows("eval.jsonl")[-1]["step"]
    assert [row["greedy"] for row in whole.predictions(last)] == [row["greedy"] for row in whole.predictions(0)]


def test_a_stream_cut_short_answers_its_last_batch(tmp_path, capsys):
    opened = run(tmp_path / "short", *EPISODIC, "steps=3")
    assert [(row["step"], row.get("when")) for row in opened.rows("stream.jsonl")] == [
        *[(1, None)] * 2, *[(2, "after")] * 2, *[(3, None)] * 2, *[(3, "after")] * 2
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert "stream: 4 of 6 questions come; all of them with steps=6" in (printed.out + printed.err).replace("\n", " ")


def test_keys_of_streams_need_one():
    for key in ("stream.answer=after", "stream.steps_each=2", "stream.reset_every=-1"):
        with pytest.raises(InputError, match=r"set stream\.on=true"):
            load_config(overrides=[key])
