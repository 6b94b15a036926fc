"""The step at which a run's reward saturates."""

from __future__ import annotations

import random

from spinerl.guard.saturation import saturation_note, saturation_step
from spinerl.report.groups import group_runs
from spinerl.report.read import read_run
from spinerl.report.words import summary
from spinerl.runs import RunFolder
from tests.commands import exit_code


def test_by_hand():
    # Means of two steps, from step 2 on: 0.1, 0.45, 0.85, 0.9, 0.895; 0.99 * 0.9 = 0.891, first reached at step 5.
    assert saturation_step([0.0, 0.2, 0.7, 1.0, 0.8, 0.99], window=2) == 5
    assert saturation_step([0.0, 0.2, 0.7, 1.0, 0.8, 0.99], share=0.9, window=2) == 4
    assert saturation_step([1.0] * 10) == 5, "flat from the beginning: as early as can be known"
    assert saturation_step([1.0] * 9) is None, "too short"
    assert saturation_step([-1.0] * 10) is None, "99 % of something negative means nothing"


def test_as_by_loops():
    rng = random.Random(0)
    for _ in range(200):
        rewards = [rng.random() for _ in range(rng.randrange(10, 40))]
        found = saturation_step(rewards)
        means = {}
        for step in range(5, len(rewards) + 1):
            means[step] = sum(rewards[step - 5 : step]) / 5
        assert found == min(step for step, mean in means.items() if mean >= 0.99 * max(means.values()))


def test_only_an_early_one_is_said():
    assert saturation_note(11, 40) is None
    assert saturation_note(10, 40).startswith("the mean reward saturated at step 10 of 40")


def test_a_run_says_when_its_reward_saturated(tmp_path):
    keys = ["questions_per_step=1", "group_size=2", "rollout.max_new_tokens=4", "steps=10", "data.max_questions=4"]
    keys += ["answer.kind=text", "answer.truncated=count", "guard=off", "eval.samples=0", "threads=1"]
    assert exit_code(["adapt", f"run={tmp_path / 'run'}", *keys, "method=frequency"]) == 0
    run = RunFolder.open(tmp_path / "run")
    rewards = [row["reward/mean"] for row in run.rows("metrics.jsonl")]
    assert max(rewards) > 0, "some response agrees with itself"
    step = run.manifest["saturation_step"]
    assert step == saturation_step(rewards)
    assert f"step {step} of 10." in " ".join(summary(group_runs([read_run(run.path)])[0]))
    assert exit_code(["adapt", f"run={tmp_path / 'same'}", *keys, "method=upft", "forks.num_tokens=4"]) == 0
    assert "saturation_step" not in RunFolder.open(tmp_path / "same").manifest, "its reward is 1 by construction"
