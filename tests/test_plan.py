"""What `spinerl plan` counts is what a run does, and measuring changes nothing."""

from __future__ import annotations

import json

import pytest
import torch

from spinerl.cli import main
from spinerl.config import load_config
from spinerl.data import resolve
from spinerl.plan import count_phases, make_plan, open_plan
from spinerl.train import adapt
from spinerl.workload import open_workload
from tests.e2e.test_guarded_runs import Quiet

LENGTH = 3  # tokens, fewer than any response of the bundled model needs
SMALL = [
    "data.max_questions=7", "questions_per_step=3", "group_size=2", "steps=5", "threads=1", "eval.samples=1",
    f"rollout.max_new_tokens={LENGTH}", "answer.truncated=count", "checkpoint.every=0", "log.sample_questions=0",
    "guard.every=2", "guard.questions=4", "guard.samples=3", "guard.no_go=0", "guard.mode=warn",
]  # fmt: skip


class Counting(Quiet):
    """Adds up what the observer hears of sampled tokens and finished responses."""

    def __init__(self):
        super().__init__()
        self.sampled, self.finished = 0, 0

    def tokens(self, count, finished):
        self.sampled += count
        self.finished += finished


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("eval.every=2", "eval.max_questions=5"),
        ("guard.holdout=2", "rollout.num_votes=4", "data.order=sequential"),
        ("method=spine-memory", "vote.memory_start=3", "vote.slow_decay=0.5"),
        ("vote.memory=sum", "vote.memory_start=1"),
        ("rollout.reuse=2", "guard=off"),
        ("rollout.reuse=0",),
        ("stream.on=true",),
        ("stream.on=true", "stream.answer=both", "stream.steps_each=2", "stream.reset_every=-1"),
        ("method=upft", "forks.num_tokens=2"),
        ("vote.views=[again,rephrase]", "vote.train_views=true", "anchor.fisher=1", "anchor.fisher_questions=2"),
        ("vote.views=[blank]", "guard=off"),
        ("method=none", "steps=0"),
        ("method=none", "steps=0", "eval.views=[reread,blank]"),
        ("eval.views=[blank]", "eval.every=2"),
    ],
)
def test_counts_are_those_of_the_run(tmp_path, keys):
    config = load_config(overrides=[*SMALL, *keys, f"run={tmp_path / 'run'}"])
    observer = Counting()
    run = adapt(config, observer)
    phases = {phase.name: phase for phase in count_phases(resolve(config), 7)}
    # Every response is cut off at LENGTH (or, for upft in training, at 2).
    heard = [phase for name, phase in phases.items() if not name.startswith("answers ")]
    assert observer.sampled == sum(phase.tokens for phase in heard)
    assert observer.finished == sum(phase.responses for phase in heard)
    assert phases["evaluation"].times == len(run.rows("eval.jsonl"))
    if run.rows("guard.jsonl"):
        assert phases["guard"].times == len(run.rows("guard.jsonl"))
    if "steps" in phases:
        rows = run.rows("metrics.jsonl")
        assert phases["steps"].times == len(rows)
        only_voting = 0 if config.vote.train_views else len(config.vote.views)
        votes = config.num_votes * (1 + only_voting)
        assert phases["steps"].trained == sum(row["rollout/num_responses"] * config.group_size / votes for row in rows)
    if config.stream.on:
        answered = [phase.responses for name, phase in phases.items() if name.startswith("answers ")]
        assert sum(answered) == len(run.rows("stream.jsonl"))


def test_the_guard_asks_as_often_as_counted():
    """4 questions, 3 responses each at first; greedily, and once more in other words, before step 1 and at 2, 4, 5."""
    config = load_config(overrides=[*SMALL, "guard.perturbation=greeting"])
    phase = next(phase for phase in count_phases(config, 7) if phase.name == "guard")
    assert phase.responses == 4 * 3 + 4 * 4 * 2


def test_measuring_changes_nothing(tmp_path):
    keys = [*SMALL, "anchor.weight=0.1", "rollout.max_new_tokens=24", "log.sample_questions=1"]
    notes = []
    runs = {}
    for plan in ("on", "off"):
        observer = Quiet()
        observer.note = notes.append
        runs[plan] = adapt(load_config(overrides=[*keys, f"log.plan={plan}", f"run={tmp_path / plan}"]), observer)
    said = [note for note in notes if note.startswith("plan: ")]
    assert len(said) == 1
    assert "tokens to sample, " in said[0]
    weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1]
    samples = [run.rows("samples.jsonl") for run in runs.values()]
    assert samples[0] == samples[1]


def test_a_whole_step_is_measured_where_there_is_time():
    config = resolve(load_config(overrides=[*SMALL, "rollout.max_new_tokens=20", "lora.rank=0"]))
    work = open_workload(config)
    before = [parameter.clone() for parameter in work.loaded.model.parameters()]
    plan = make_plan(work, config, 3600)  # however busy the machine is
    assert (plan.measured.questions, plan.measured.tokens) == (3, 20)
    assert plan.measured.rollout_s > 0
    assert plan.measured.update_s > 0
    assert plan.measured.peak_bytes > sum(parameter.nbytes for parameter in before)
    assert all(torch.equal(a, b) for a, b in zip(before, work.loaded.model.parameters(), strict=True))
    assert not any(parameter.grad is not None for parameter in work.loaded.model.parameters())
    low, high = plan.total_seconds
    assert 0 < low <= high


def test_adapters_are_measured_as_they_will_learn():
    plan = open_plan(load_config(overrides=[*SMALL, "lora.rank=2", "anchor.weight=0.1"]), 0.01)
    assert (plan.measured.questions, plan.measured.tokens) == (1, LENGTH)


def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *SMALL, "--seconds", "0", "--json", str(tmp_path / "plan.json")])
    assert not exit_.value.code
    printed = capsys.readouterr().out
    assert "evaluation" in printed
    assert "time" not in printed.replace("times", "")
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["tokens"] == sum(phase["tokens"] for phase in figures["phases"])
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "data=nowhere.jsonl"])
    assert exit_.value.code == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
