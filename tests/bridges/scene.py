"""What the tests of all bridges share: fixed responses, the native engine's losses and gradients, processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from spinerl.answers import Equivalence
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.rollouts import rollout_of
from spinerl.engine.update import score, update
from spinerl.rewards import RewardContext, give_rewards
from spinerl.step import StepState, count_votes, freeze_targets, trained_rows
from spinerl.types import Batch, Rollout, Targets, Vote

ROOT = Path(__file__).parents[2]

# Three questions of eight responses.  On two processes each samples twelve, so "b" is split, four and four: its first
# half by itself says 8, all of it says 7 (four to three; another 7 is cut off: no vote).  Lengths differ, so that a
# mean per process or per micro-batch would show.
SAID = {
    "a": ["So 2 + 3 is \\boxed{5}", "\\boxed{5.0}", "hm \\boxed{6}", "\\boxed{10/2}", "\\boxed{7}", "no idea",
          "it is six: \\boxed{6}", "\\boxed{5}"],
    "b": ["\\boxed{8}", "\\boxed{8}", "I think, after some thought, \\boxed{8}", "\\boxed{7}",
          "\\boxed{7}", "seven \\boxed{7}", "\\boxed{7}", "\\boxed{7.0} I say"],
    "c": ["\\boxed{1}", "x", "\\boxed{2} or \\boxed{3}", "\\boxed{1}", "well then, \\boxed{2}", "y", "\\boxed{1}", "z"],
}  # fmt: skip
TEXTS = {"a": "What is 2 + 3?", "b": "And a longer question: 3 + 4 is what?", "c": "1?"}
CUT_OFF = 12


class Native(NamedTuple):
    """What was said, (prompt, response) ids; what the native engine made of it; a loss and a gradient per update."""

    said: list[tuple[tuple[int, ...], tuple[int, ...]]]
    rollout: Rollout
    votes: tuple[Vote, ...]
    batch: Batch
    targets: Targets
    losses: list[float]
    gradients: list[dict[str, torch.Tensor]]


def native(config, policy, anchor, questions, prompts) -> Native:
    """The native engine's updates from the fixed responses to these three questions."""
    n = config.num_votes
    responses = []
    for row, text in enumerate(text for name in TEXTS for text in SAID[name]):
        ids = policy.tokenizer(text).input_ids
        responses.append(tuple(ids) if row == CUT_OFF else (*ids, policy.end_ids[0]))
    said = [(prompts[row // n], ids) for row, ids in enumerate(responses)]
    finished = [row != CUT_OFF for row in range(len(said))]
    rollout = rollout_of(questions, prompts, n, responses, finished, policy.tokenizer, policy.pad_id)
    everyone = Batch(tuple(p for p, _ in said), rollout.tokens, rollout.mask, config.rollout.temperature)
    logprobs, entropies = score(policy, everyone, rollout.mask, config.optim)
    rollout = replace(rollout, logprobs=logprobs, entropies=entropies)
    with Equivalence() as equivalence:
        votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=1)
        context = RewardContext(config, 1, policy, anchor, rollout, votes, equivalence)
        rewards = tuple(own[: config.group_size] for own in give_rewards(context))
    batch, old, kept = trained_rows(rollout, config)
    targets, _ = freeze_targets(anchor, batch, rewards, old, kept, config, StepState())
    gradients = []

    class Recording(Optimizer):
        def step(self):
            gradients.append({name: p.grad.clone() for name, p in policy.model.named_parameters()})
            return super().step()

    optimizer = Recording(policy.model.parameters(), config.optim, config.optim.epochs * config.optim.minibatches)
    rows = torch.arange(len(batch.tokens)).view(len(questions), -1).tensor_split(config.optim.minibatches)
    losses = []
    for number in range(config.optim.epochs * config.optim.minibatches):
        own = rows[number % len(rows)].flatten()
        figures = update(policy, anchor, batch, targets, optimizer, config, own, on_policy=number == 0)
        losses.append(figures["loss/total"])
    return Native(said, rollout, votes, batch, targets, losses, gradients)


def write_neighbour(loaded, folder: Path) -> None:
    """A model a little different from this one, whose weights move: an anchor."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def apart(found: dict, expected: dict) -> float:
    """The largest difference between two gradients, relative to the largest entry of the expected one."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


def environment() -> dict[str, str]:
    """Of the processes that `launch` starts."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def launch(num_processes: int, *command: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """Run a Python file or module (`-m name`) with these overrides, under torchrun if on several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return subprocess.run(
        [sys.executable, *(torchrun if num_processes > 1 else []), *command],
        capture_output=True,
        text=True,
        env=environment() | {"MASTER_PORT": port},
        cwd=ROOT,
        timeout=timeout,
        check=False,
    )
