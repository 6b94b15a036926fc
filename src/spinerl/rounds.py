"""Responses that several steps learn from (rollout.reuse): sampled for all of a round's questions when it begins.

A round is `reuse` passes over the questions, or with reuse=0 the whole run; fine-tuning methods such as LMSI and RoiRL
learn so.  The responses are part of a checkpoint, since the weights that sampled them are gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spinerl.config import Config
from spinerl.errors import CheckpointError
from spinerl.schedule import question_order
from spinerl.step import sample
from spinerl.types import OnTokens, Rollout
from spinerl.workload import Workload

__all__ = ["Rounds", "first_step"]

_FILE = "responses.safetensors"
_PER_TOKEN = ("logprobs", "entropies", "certainties", "sampler_logprobs", "log_mass")


def first_step(step: int, reuse: int, num_questions: int, per_step: int, order: str) -> int:
    """The step at which the round of this step began.

    >>> [first_step(step, 2, 10, 4, "shuffled") for step in (1, 4, 5)]  # 2 steps a pass, the remainder waits
    [1, 1, 5]
    >>> [first_step(step, 2, 10, 4, "sequential") for step in (1, 6, 7)]
    [1, 1, 7]
    """
    if reuse == 0:
        return 1
    steps = reuse * (num_questions // per_step if order == "shuffled" else -(-num_questions // per_step))
    return step - (step - 1) % steps


class Rounds:
    """Gives each step its responses; samples where a round begins."""

    def __init__(self, config: Config, work: Workload, ranks: Sequence[int], per_step: int) -> None:
        """`ranks`: the questions in the order from which steps take theirs."""
        self._config, self._work, self._ranks, self._per_step = config, work, ranks, per_step
        self._began = 0
        self._held: Rollout | None = None

    def draw(self, step: int, last: int, on_tokens: OnTokens | None = None) -> tuple[Rollout, int]:
        """(the responses of a step, the number of steps since they were sampled); `last` is the run's last step.

        The first step of a round counts the tokens of all of its responses as sampled, the others none.
        """
        first = self._first(step)
        num_drawn = 0
        if self._began != first or self._held is None:
            if step != first:
                raise CheckpointError(
                    f"the responses of the round that began at step {first} are not in the checkpoint"
                )
            chosen = self._work.only(self._asked(step, last))
            held = sample(self._work.loaded, chosen.questions, chosen.prompts, self._config, first, on_tokens)
            num_drawn = held.total_drawn
            self._began, self._held = first, replace(held, num_drawn=None)
        place_of = {question.id: i for i, question in enumerate(self._held.questions)}
        asked = [self._work.questions[self._ranks[index]].id for index in self._indices_of(step)]
        rollout = self._held.of_questions([place_of[name] for name in asked])
        return replace(rollout, num_drawn=num_drawn), step - first

    def num_asked(self, step: int, last: int) -> int:
        """How many questions are answered at this step: all of a round's at its first, at others none."""
        return len(self._asked(step, last)) if step == self._first(step) else 0

    def save(self, folder: Path) -> None:
        """Write the responses into a checkpoint's folder."""
        held = self._held
        assert held is not None
        tensors = {"tokens": held.tokens.int(), "lengths": held.mask.sum(dim=1), "finished": held.finished_mask}
        tensors |= {f"figures.{name}": value for name, value in held.figures.items()}
        tensors |= {name: value for name in _PER_TOKEN if (value := getattr(held, name)) is not None}
        facts = {
            "began": str(self._began),
            "num_responses": str(held.num_responses),
            "ids": json.dumps([question.id for question in held.questions]),
        }
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _FILE, facts)

    def load(self, folder: Path) -> None:
        """Take them from there."""
        with safe_open(folder / _FILE, framework="pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        index_of = {question.id: i for i, question in enumerate(self._work.questions)}
        chosen = self._work.only([index_of[name] for name in json.loads(facts["ids"])])
        tokens = tensors["tokens"].long()
        mask = torch.arange(tokens.shape[1]) < tensors["lengths"].unsqueeze(1)
        texts = [row[own].tolist() for row, own in zip(tokens, mask, strict=True)]
        self._began = int(facts["began"])
        self._held = Rollout(
            questions=chosen.questions,
            prompts=chosen.prompts,
            num_responses=int(facts["num_responses"]),
            tokens=tokens,
            mask=mask,
            finished_mask=tensors["finished"],
            texts=tuple(self._work.loaded.tokenizer.batch_decode(texts, skip_special_tokens=True)),
            figures={name[8:]: value for name, value in tensors.items() if name.startswith("figures.")},
            **{name: tensors[name] for name in _PER_TOKEN if name in tensors},
        )

    def _asked(self, step: int, last: int) -> list[int]:
        """The questions of a step's round, each once."""
        first = end = self._first(step)
        while end < last and self._first(end + 1) == first:
            end += 1
        indices = dict.fromkeys(index for number in range(first, end + 1) for index in self._indices_of(number))
        return [self._ranks[index] for index in indices]

    def _first(self, step: int) -> int:
        order = self._config.data.order
        return first_step(step, self._config.rollout.reuse, len(self._ranks), self._per_step, order)

    def _indices_of(self, step: int) -> list[int]:
        config = self._config
        return question_order(len(self._ranks), self._per_step, step, config.data.order, config.seed)
