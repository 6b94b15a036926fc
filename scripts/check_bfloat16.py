#!/usr/bin/env python3
"""What bfloat16 rounds away on a CPU: figures of docs/scaling.md.

    python scripts/check_bfloat16.py tiny-reasoner
    python scripts/check_bfloat16.py --questions 1 --tokens 16 smollm2-135m

The sampler's log-probabilities and entropies against teacher forcing, within each of float32, mixed (where the CPU has
instructions for it) and bfloat16, and the gradient of one update against float32's, from the same responses; processor
seconds of each.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch

from spinerl.config import Config, load_config, override
from spinerl.engine.backend import backend_of
from spinerl.engine.cpu.kernels import has_bf16
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import score, update
from spinerl.models.loading import LoadedModel, load_model
from spinerl.rewards import alternating_rewards
from spinerl.step import StepState, freeze_targets, trained_rows
from spinerl.types import Question, Rollout

TEXTS = (
    "Tom has 3 pens and buys 4 more. How many pens does he have?",
    "The capital of France is",
    "A box holds 12 eggs. How many eggs are in 3 boxes?",
    "Once upon a time there was a fox who",
)


class Recording(Optimizer):
    """Keeps the gradient, in float32, instead of applying it."""

    def step(self) -> dict[str, float]:
        held = [m.grad if m.grad is not None else torch.zeros_like(m) for m in self._masters]
        self.gradient = torch.cat([grad.flatten().float() for grad in held])
        return {}


def opened(name: str, dtype: str, num_questions: int, tokens: int) -> tuple[LoadedModel, Config]:
    """The model on the CPU, no token ending a response, and the configuration of a step."""
    keys = [f"model.dtype={dtype}", "model.device=cpu", "group_size=4", f"rollout.max_new_tokens={tokens}"]
    config = load_config(overrides=[override("model", name), *keys, f"questions_per_step={num_questions}"])
    loaded = load_model(config.model, config.engine)
    backend_of(loaded).settle()
    return replace(loaded, end_ids=()), config


def sampled(loaded: LoadedModel, config: Config) -> Rollout:
    """Four responses to each question."""
    texts = TEXTS[: config.questions_per_step]
    prompts = [tuple(loaded.tokenizer(text).input_ids) for text in texts]
    questions = [Question(str(i), text) for i, text in enumerate(texts)]
    return sample_responses(loaded, questions, prompts, config.group_size, config.rollout, ("bfloat16",))


def disagreement(loaded: LoadedModel, config: Config, rollout: Rollout) -> dict[str, float]:
    """Mean and largest difference between sampler and teacher forcing, in nats."""
    batch, old, entropies = trained_rows(rollout, config)
    logprobs, scored = score(loaded, batch, batch.mask, config.optim)
    found = {}
    for what, gap in (("logprob", logprobs - old), ("entropy", scored - entropies)):
        gaps = gap[batch.mask].abs()
        found |= {f"{what}_diff_mean": float(gaps.mean()), f"{what}_diff_max": float(gaps.max())}
    return found


def gradient(loaded: LoadedModel, config: Config, rollout: Rollout) -> torch.Tensor:
    """Of one update from these responses, alternately rewarded."""
    batch, old, entropies = trained_rows(rollout, config)
    batch = replace(batch, activations=None)
    rewards = alternating_rewards(config.questions_per_step, config.group_size)
    targets, _ = freeze_targets(None, batch, rewards, old, entropies, config, StepState())
    optimizer = Recording(loaded.model.parameters(), config.optim, 1)
    update(loaded, None, batch, targets, optimizer, config, torch.arange(len(batch.tokens)))
    return optimizer.gradient


def check(name: str, num_questions: int = len(TEXTS), tokens: int = 32) -> dict[str, Any]:
    """All figures of a model, by type."""
    found: dict[str, Any] = {"model": name}
    rollout, wide = None, None
    for dtype in ("float32", *(["mixed"] if has_bf16() else []), "bfloat16"):
        loaded, config = opened(name, dtype, num_questions, tokens)
        times = [time.process_time()]
        own = sampled(loaded, config)
        times.append(time.process_time())
        rollout = rollout or own
        grad = gradient(loaded, config, rollout).double()  # sums over all weights
        times.append(time.process_time())
        wide = grad if wide is None else wide
        found[dtype] = disagreement(loaded, config, own) | {
            "gradient_cosine": float(torch.dot(wide, grad) / (wide.norm() * grad.norm())),
            "gradient_norm_ratio": float(grad.norm() / wide.norm()),
            "sampling_cpu_s": times[1] - times[0],
            "update_cpu_s": times[2] - times[1],
            "paths": [path for path, verdict in loaded.capabilities.verdicts.items() if verdict.used],
        }
        del loaded
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--questions", type=int, default=len(TEXTS))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("models", nargs="+")
    given = parser.parse_args()
    for model in given.models:
        print(json.dumps(check(model, given.questions, given.tokens), indent=1), flush=True)
