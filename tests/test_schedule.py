"""The order of questions, and streams."""

from __future__ import annotations

import json

import pytest

from spinerl.config import StreamConfig, load_config
from spinerl.errors import InputError
from spinerl.runs import RunFolder
from spinerl.schedule import question_order, rank_questions
from spinerl.train import adapt
from tests.commands import exit_code
from tests.e2e.test_guarded_runs import Quiet


def test_an_epoch_has_every_question_once():
    seen = [q for step in (1, 2, 3) for q in question_order(12, 4, step, "shuffled", 0)]
    assert sorted(seen) == list(range(12))
    assert seen != [q for step in (4, 5, 6) for q in question_order(12, 4, step, "shuffled", 0)]


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_stream_comes_once_and_its_last_step_takes_what_is_left(order):
    seen = [q for step in (1, 2, 3) for q in question_order(10, 4, step, order, 0, StreamConfig(on=True))]
    assert sorted(seen) == list(range(10))
    assert question_order(10, 4, 4, order, 0, StreamConfig(on=True)) == []
    assert (seen == list(range(10))) == (order == "sequential")


def test_easy_to_hard_follows_the_initial_majority():
    config = load_config(overrides=["data.order=easy-to-hard"])
    rows = [{"id": "a", "majority_frac": 0.2}, {"id": "b", "majority_frac": 0.9}, {"id": "c", "majority_frac": 0.2}]
    assert rank_questions(config, None, [], ["a", "b", "c"], rows) == [1, 0, 2]
    with pytest.raises(InputError, match=r"eval\.samples"):
        rank_questions(config, None, [], ["a", "b", "d"], rows)


TINY = ["steps=3", "questions_per_step=4", "group_size=4", "data.max_questions=10", "rollout.max_new_tokens=24"]


class StopAt(Quiet):
    """Ends a run as Ctrl-C would, once a step is in a checkpoint."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def checkpoint(self, folder):
        if folder.name == f"step-{self._step:06d}":
            raise KeyboardInterrupt


def run(folder, *overrides):
    return exit_code(["adapt", f"run={folder}", *TINY, *overrides])


def test_a_stream_answers_before_it_adapts(tmp_path, capsys):
    folder = tmp_path / "stream"
    assert (
        run(folder, "stream.on=true", "steps=9", "eval.samples=0", "data.order=sequential", "checkpoint.every=1") == 0
    )
    opened = RunFolder.open(folder)
    rows = opened.rows("stream.jsonl")
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 2
    before = {row["id"]: row["greedy"]["answer"] for row in opened.predictions(0)}
    first = [row for row in rows if row["step"] == 1]
    assert [row["greedy"] for row in first] == [before[row["id"]] for row in first], "the first batch: no step yet"
    assert "each answered before it was adapted on" in capsys.readouterr().out.replace("\n", " ")


def test_a_stream_with_resets_forgets(tmp_path):
    folder = tmp_path / "reset"
    overrides = ["stream.on=true", "stream.reset_every=1", "eval.samples=0", "data.order=sequential", "optim.lr=0.01"]
    assert run(folder, *overrides) == 0
    opened = RunFolder.open(folder)
    before = {row["id"]: row["greedy"]["answer"] for row in opened.predictions(0)}
    assert all(row["greedy"] == before[row["id"]] for row in opened.rows("stream.jsonl"))
    assert run(tmp_path / "kept", *[word for word in overrides if "reset" not in word]) == 0
    kept = RunFolder.open(tmp_path / "kept").rows("stream.jsonl")
    assert any(row["greedy"] != before[row["id"]] for row in kept), "without resets the weights have moved"


def test_orders_that_rank(tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text(json.dumps({"question": "3+4=", "answer": "7"}) + "\n")
    assert run(tmp_path / "near", "data.order=nearest", f"data.target={target}", "eval.samples=0") == 0
    assert run(tmp_path / "sift", "data.order=sift", f"data.target={target}", "eval.samples=0") == 0
    assert run(tmp_path / "easy", "data.order=easy-to-hard") == 0
    rows = RunFolder.open(tmp_path / "easy")
    agreement = {row["id"]: row["majority_frac"] for row in rows.predictions(0)}
    asked = [row["id"] for row in rows.rows("labels.jsonl") if row["step"] == 1]
    assert agreement[asked[0]] == max(agreement.values())


def test_questions_of_medium_agreement(tmp_path, capsys):
    """Every round of two steps takes its questions from those whose latest vote was neither settled nor scattered."""
    folder = tmp_path / "band"
    keys = [
        "data.min_agreement=0.3", "data.max_agreement=0.7", "data.agreement_every=2", "steps=6", "questions_per_step=2",
        "eval.samples=4", "answer.truncated=count", "checkpoint.every=1", "optim.lr=0.005", "guard=off", "threads=1",
    ]  # fmt: skip
    assert run(folder, *keys) == 0
    opened = RunFolder.open(folder)
    latest = {row["id"]: row["majority_frac"] for row in opened.predictions(0)}
    labels = opened.rows("labels.jsonl")
    for before in (0, 2, 4):
        inside = {name for name, share in latest.items() if 0.3 <= share <= 0.7}
        assert len(inside) >= 2, "the rule is at work"
        of_round = [row for row in labels if before < row["step"] <= before + 2]
        assert {row["id"] for row in of_round} <= inside
        latest |= {row["id"]: row["majority_frac"] for row in of_round}
    # The same after an interruption inside of a round.
    config = load_config(overrides=[f"run={tmp_path / 'again'}", *TINY, *keys])
    with pytest.raises(KeyboardInterrupt):
        adapt(config, StopAt(3))
    assert exit_code(["adapt", "--resume", tmp_path / "again"]) == 0
    assert RunFolder.open(tmp_path / "again").rows("labels.jsonl") == labels
    assert exit_code(["adapt", *TINY, *keys, "data.max_agreement=0.2", f"run={tmp_path / 'no'}"]) == 2
    assert "is over data.max_agreement" in capsys.readouterr().err.replace("\n", " ")


def test_gold_is_said_everywhere(tmp_path, capsys):
    assert run(tmp_path / "gold", "method=grpo-gold", "eval.samples=0") == 0
    assert "learned from gold answers" in capsys.readouterr().out.replace("\n", " ")
    assert RunFolder.open(tmp_path / "gold").manifest["uses_gold"] is True
    questions = tmp_path / "unlabeled.jsonl"
    questions.write_text("".join(json.dumps({"question": f"{i}+4="}) + "\n" for i in range(12)))
    assert run(tmp_path / "none", "method=grpo-gold", f"data={questions}") == 2
    assert "have none" in capsys.readouterr().err.replace("\n", " ")
