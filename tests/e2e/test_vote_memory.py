"""Runs that remember votes: their labels counted again from the answers that the run logged."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.data import resolve
from spinerl.engine.sampler import sample_responses
from spinerl.errors import InputError
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from spinerl.step import count_votes
from spinerl.train import adapt
from spinerl.workload import open_workload
from tests.e2e.test_guarded_runs import Quiet

OVERRIDES = [
    "data=tiny/shift-a", "data.max_questions=6", "questions_per_step=3", "group_size=4", "steps=6", "threads=1",
    "guard=off", "checkpoint.every=3", "optim.lr=2e-3",
    "log.sample_every=1", "log.sample_questions=3", "log.sample_responses=4",
]  # fmt: skip


def run(folder, *overrides) -> RunFolder:
    return adapt(load_config(overrides=[*OVERRIDES, f"run={folder}", *overrides]), Quiet())


def recount(made: RunFolder, memory: str, num_start: int) -> list[str | None]:
    """The label of every question and step, by counting answers; numbers are one spelling each here."""
    counts: dict[str, Counter] = {}
    label: dict[str, str | None] = {}
    if num_start:
        for row in made.predictions(step=0):
            counts[row["id"]] = Counter(a for a in row["answers"][:num_start] if a is not None)
            label[row["id"]] = winner(counts[row["id"]], None)
    found = []
    for row in made.rows("samples.jsonl"):
        name = row["question_id"]
        own = counts.setdefault(name, Counter())
        if memory != "fixed" or not own:
            own.update(response["answer"] for response in row["responses"] if response["answer"] is not None)
        now = winner(own, label.get(name))
        label[name] = now or label.get(name)
        found.append(now)
    return found


def winner(counts: Counter, held: str | None) -> str | None:
    best = max(counts.values(), default=0)
    leaders = [answer for answer, count in counts.items() if count == best]
    return held if held in leaders else leaders[0] if len(leaders) == 1 else None


@pytest.mark.parametrize(("memory", "num_start"), [("sum", 0), ("sum", 5), ("fixed", 5)])
def test_labels_are_the_winners_of_all_that_was_said(tmp_path, memory, num_start):
    overrides = [f"vote.memory={memory}", f"vote.memory_start={num_start}", "eval.samples=5"]
    made = run(tmp_path / "run", *overrides)
    labels = [row["label"] for row in made.rows("labels.jsonl")]
    assert len(labels) == 18
    assert labels == recount(made, memory, num_start)
    assert sum(label is not None for label in labels) > 9
    fresh = [row["vote"] for row in made.rows("labels.jsonl")]
    assert fresh != labels
    metrics = made.rows("metrics.jsonl")
    if memory == "sum":
        assert [row["memory/votes"] for row in metrics] == [num_start + 4 * (1 + i // 2) for i in range(6)]
        assert any(row["flipped"] for row in made.rows("labels.jsonl")) == any(
            row.get("memory/flipped_frac") for row in metrics
        )
    else:
        assert {row["memory/votes"] for row in metrics} == {float(num_start or 4)}
        assert not any(row["flipped"] for row in made.rows("labels.jsonl"))
    tokens = [row.get("memory/tokens") for row in metrics]
    assert tokens[1:] == [None] * 5
    if num_start:
        assert tokens[0] == sum(sum(row["lengths"]) for row in made.predictions(step=0))
    else:
        assert tokens[0] is None


def test_start_votes_are_those_of_the_evaluation_drawn_or_not(tmp_path):
    """The same whether an evaluation has them already, and whatever it draws beyond them."""
    overrides = ["vote.memory=sum", "vote.memory_start=4", "steps=2"]
    drawn, taken = run(tmp_path / "a", *overrides, "eval.samples=0"), run(tmp_path / "b", *overrides, "eval.samples=4")
    assert drawn.rows("labels.jsonl") == taken.rows("labels.jsonl")
    first, second = (one.rows("metrics.jsonl")[0]["memory/tokens"] for one in (drawn, taken))
    assert first == second


def test_a_stream_remembers_and_can_have_no_start_votes(tmp_path):
    made = run(tmp_path / "run", "stream.on=true", "vote.memory=sum", "eval.samples=0")
    rows = made.rows("labels.jsonl")
    assert len(rows) == 6
    assert [row["label"] for row in rows] == [row["vote"] for row in rows]  # each question comes once
    with pytest.raises(InputError, match=r"vote\.memory_start=8 cannot go with stream\.on"):
        load_config(overrides=["stream.on=true", "vote.memory=sum", "vote.memory_start=8"])
    with pytest.raises(InputError, match=r"vote\.memory_start=8 needs a memory"):
        load_config(overrides=["vote.memory_start=8"])


def test_a_slow_copy_votes_and_follows(tmp_path):
    made = run(
        tmp_path / "run", "vote.slow_decay=0.5", "steps=3", "checkpoint.every=1", "checkpoint.keep=9", "eval.samples=0"
    )
    slow = {name: p.detach().clone() for name, p in load_model(made.config.model).model.named_parameters()}
    for step in (1, 2, 3):
        folder = made.path / "checkpoints" / f"step-{step:06d}"
        now, saved = load_file(folder / "model.safetensors"), load_file(folder / "voter.safetensors")
        slow = {name: 0.5 * p + 0.5 * now[name] for name, p in slow.items()}
        for name, p in slow.items():
            torch.testing.assert_close(saved[name], p, rtol=1e-6, atol=1e-7)
            assert not torch.equal(saved[name], now[name])
    rows = made.rows("labels.jsonl")
    assert [row["votes"] for row in rows] == [4.0] * 9  # only the copy's, and nothing remembered
    assert [row["label"] for row in rows] != [row["vote"] for row in rows]
    assert all(row["memory/tokens"] > 0 for row in made.rows("metrics.jsonl"))


def test_a_copy_that_stands_still_is_the_unadapted_model(tmp_path):
    """Its vote at any step is that of the initial model, whatever was learned meanwhile."""
    made = run(tmp_path / "run", "vote.slow_decay=0.9999999999", "steps=2", "eval.samples=0")
    work = open_workload(resolve(made.config))
    places = {question.id: i for i, question in enumerate(work.questions)}
    rows = [row for row in made.rows("labels.jsonl") if row["step"] == 2]
    own = work.only([places[row["id"]] for row in rows])
    rollout = sample_responses(work.loaded, own.questions, own.prompts, 4, made.config.rollout, (0, "voter", 2))
    with Equivalence() as equivalence:
        votes = count_votes(rollout, made.config.answer, made.config.vote, equivalence, seed=2)
    assert [one.pseudo_label for one in votes] == [row["label"] for row in rows]
