"""Twenty steps whose every figure is on record: a change that moves any of them must be meant.

float64, so that no rounding flips a sampled token; the record is rewritten by
`SPINERL_WRITE_GOLDEN=1 make test ARGS=tests/golden`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import update
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, rollout_metrics, trained_rows
from spinerl.types import Question
from tests.models import compute_norms_in_float64

RECORD = Path(__file__).parent / "trajectories.json"
TEXTS = ("What is 2 + 3?", "Hi", "A longer question.")
CASES = {
    "spine": ["band.weight=0.1"],
    "spine-ema-anchor": ["band.weight=0.1", "band.edges=ema", "anchor.weight=0.05", "optim.epochs=2"],
    "ttrl": ["method=ttrl"],
    "80-20": ["forks.scope=batch", "band.weight=0"],
}


def trajectory(folder: Path, overrides: list[str]) -> list[dict[str, float]]:
    config = load_config(
        overrides=[
            f"model={folder}",
            "group_size=4",
            "rollout.max_new_tokens=24",
            "optim.lr=2e-3",
            "optim.schedule=cosine",
            *overrides,
        ]
    )
    policy, anchor = load_model(config.model, config.engine), load_model(config.model, config.engine)
    for loaded in (policy, anchor):
        loaded.model.double()
        compute_norms_in_float64(loaded.model)
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in TEXTS]
    questions = [Question(str(i), text) for i, text in enumerate(TEXTS)]
    optimizer = Optimizer(policy.model.parameters(), config.optim, 20 * config.optim.epochs)
    state, rows = StepState(), []
    for step in range(20):
        rollout = sample_responses(policy, questions, prompts, 4, config.rollout, (0, "golden", step))
        batch, old, entropies = trained_rows(rollout, config)
        shares = (batch.tokens % 2 * batch.mask).sum(1) / batch.mask.sum(1)  # a reward that can be learned: odd tokens
        rewards = (shares > 0.5).double().view(3, 4).tolist()
        targets, state = freeze_targets(anchor, batch, rewards, old, entropies, config, state)
        for _ in range(config.optim.epochs):
            figures = update(policy, anchor, batch, targets, optimizer, config, torch.arange(12))
        rows.append({"reward": sum(map(sum, rewards)) / 12, **figures, **rollout_metrics(rollout)})
    return rows


@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_the_recorded_one(model_folders, case):
    found = trajectory(model_folders("qwen3"), CASES[case])
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if os.environ.get("SPINERL_WRITE_GOLDEN"):
        record[case] = found
        RECORD.write_text(json.dumps(record, indent=0) + "\n")
    assert len(record[case]) == 20
    for step, (row, expected) in enumerate(zip(found, record[case], strict=True)):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9), f"step {step}"
    assert any(row["optim/grad_norm"] > 0 for row in found)


def test_the_recorded_runs_differ_and_learn():
    record = json.loads(RECORD.read_text())
    assert len({tuple(row["loss/total"] for row in rows) for rows in record.values()}) == len(CASES)
    ttrl = [row["reward"] for row in record["ttrl"]]
    assert sum(ttrl[-5:]) > sum(ttrl[:5])
