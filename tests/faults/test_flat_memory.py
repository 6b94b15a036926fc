"""Many questions and many steps: memory, tensors and open files stay as many as they are after the first steps."""

from __future__ import annotations

import gc
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from spinerl.config import load_config
from spinerl.train import adapt
from tests.e2e.test_guarded_runs import Quiet

KEYS = [
    "questions_per_step=4", "group_size=2", "threads=1", "rollout.max_new_tokens=2", "answer.truncated=count",
    "eval.samples=0", "checkpoint.every=10", "checkpoint.keep=1", "guard=warn", "guard.every=10", "guard.questions=4",
    "guard.samples=2", "guard.no_go=0", "log.sample_every=5", "band.weight=0.1", "vote.memory=sum",
    "eval.max_questions=64",
]  # fmt: skip


class Measuring(Quiet):
    """What there is after each step: (tensors, objects, open files, memory in MiB)."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[int, int, int, float]] = []

    def step(self, *_):
        if (len(self.found) + 1) % 10:
            self.found.append((0, 0, 0, 0.0))
            return
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(one), torch.Tensor) for one in objects)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * resource.getpagesize() / 2**20
        self.found.append((tensors, len(objects), len(os.listdir("/proc/self/fd")), memory))


@pytest.mark.parametrize(
    ("num_questions", "steps"),
    [(2000, 40), pytest.param(20_000, 300, marks=pytest.mark.faults)],
    ids=["smoke", "whole"],
)
def test_nothing_grows_with_the_steps(tmp_path, num_questions, steps):
    file = tmp_path / "questions.jsonl"
    rows = ({"id": f"q{i}", "question": f"Tom has {i} pens and buys {i % 7}. How many?"} for i in range(num_questions))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    watch = Measuring()
    adapt(load_config(overrides=[*KEYS, f"data={file}", f"steps={steps}", f"run={tmp_path / 'run'}"]), watch)
    early, late = watch.found[19], watch.found[steps - 1]
    between = steps - 20
    assert late[0] <= early[0], "tensors are kept"
    assert late[1] - early[1] <= 40 * between, "objects are kept: more than a few per question met"
    # two more at most: pipes to the process that compares answers, which starts at the first answer that needs it
    assert late[2] <= early[2] + 2, "files stay open"
    assert late[3] - early[3] <= 8 + 0.05 * between, "memory grows"
