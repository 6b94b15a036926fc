"""A short run at high pressure: the step at which its labels collapse, and weights that stay."""

from __future__ import annotations

import json

import pytest

from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.data import resolve
from spinerl.guard import preflight, pressure
from spinerl.guard.pressure import collapse_step
from spinerl.seeding import seed_of
from spinerl.step import count_votes, sample
from spinerl.workload import open_workload
from tests.commands import exit_code

KEYS = [
    "model=tiny-reasoner", "data=tiny/in-domain", "data.max_questions=8", "method=ttrl", "questions_per_step=4",
    "group_size=4", "rollout.max_new_tokens=48", "threads=1",
]  # fmt: skip


def rows(agreement, majority=None):
    majority = majority or [0.9] * len(agreement)
    return [{"agreement": a, "majority_frac": m} for a, m in zip(agreement, majority, strict=True)]


def test_the_collapse_step_by_hand():
    assert collapse_step(rows([0.8, 0.5, 0.39, 0.41, 0.39, 0.1])) == 5, "one step under half is noise"
    assert collapse_step(rows([0.8, 0.41, 0.4])) is None, "half is not under half"
    assert collapse_step(rows([0.8, 0.8, 0.3])) == 3, "the last step has no other after it"
    assert collapse_step(rows([0.8] * 4, [0.9, 0.4, 0.3, 0.9])) == 2, "the majority fraction counts as well"
    assert collapse_step(rows([0.0] * 3)) is None, "what was never there does not collapse"
    assert collapse_step([]) is None


@pytest.fixture(scope="module")
def scene():
    """The bundled model on questions that it mostly answers alike, and its votes."""
    config = resolve(load_config(overrides=KEYS))
    work = open_workload(config)
    with Equivalence() as equivalence:
        rollout = sample(work.loaded, work.questions, work.prompts, config, seed_of("votes") % 1000)
        yield work, count_votes(rollout, config.answer, config.vote, equivalence, seed=0), equivalence


def run(scene, *overrides):
    work, votes, equivalence = scene
    return preflight._pressed(work, votes, resolve(load_config(overrides=[*KEYS, *overrides])), equivalence, None)


def test_pressure_makes_labels_collapse_and_leaves_the_weights(scene):
    before = {name: p.detach().clone() for name, p in scene[0].loaded.model.named_parameters()}
    hard = run(scene, "guard.probe_steps=5", "guard.pressure=1000", "optim.lr=1e-3")
    assert hard.collapse_step is not None
    assert 2 <= hard.collapse_step <= 5
    assert all((p == before[name]).all() for name, p in scene[0].loaded.model.named_parameters())
    soft = run(scene, "guard.probe_steps=3", "guard.pressure=1", "optim.lr=1e-9")
    assert soft.collapse_step is None
    assert "the labels held" in soft.sentence
    # Step 1 is the same: its responses are sampled before anything was learned.
    assert soft.rows[0] == hard.rows[0]
    assert soft.rows[0]["agreement"] > 0.4


def test_weights_that_diverge_have_collapsed(scene, monkeypatch):
    taken = []

    def diverging(*args):
        taken.append(args)
        if len(taken) == 3:
            raise pressure.NonFiniteError("the loss is nan")
        return step(*args)

    step = pressure.train_step
    monkeypatch.setattr(pressure, "train_step", diverging)
    found = run(scene, "guard.probe_steps=5", "guard.pressure=1", "optim.lr=1e-9")
    assert found.collapse_step == 3
    assert "diverged in step 3" in found.sentence


def test_preflight_takes_it_if_asked(tmp_path, capsys):
    short = ["guard.preflight_questions=4", "questions_per_step=2", "group_size=2", "rollout.max_new_tokens=8"]
    file = tmp_path / "found.json"
    asked = ["preflight", "tiny-reasoner", "tiny/shift-a", *short, "threads=1"]
    assert exit_code([*asked, "guard.probe_steps=2", "lora.rank=2", "--json", file]) == 0
    found = json.loads(file.read_text())["probe_run"]
    assert [row["step"] for row in found["rows"]] == [1, 2]
    assert "probe run, 2 steps at 10 times the learning rate" in capsys.readouterr().out.replace("\n", " ")
    assert exit_code([*asked, "--json", file]) == 0
    assert "probe_run" not in json.loads(file.read_text())
    assert exit_code([*asked, "guard.probe_steps=2", "method=grpo-gold"]) == 2
    assert "cannot go with method=grpo-gold" in capsys.readouterr().err.replace("\n", " ")
