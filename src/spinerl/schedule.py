"""Which questions a step takes, and in which order questions come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from spinerl.config import Config, DataConfig, StreamConfig
from spinerl.data import load_data, render_all
from spinerl.engine.update import embed_responses
from spinerl.errors import InputError
from spinerl.maths import nearest_first, sift_order
from spinerl.models.loading import LoadedModel
from spinerl.seeding import seed_of
from spinerl.types import Batch, ImagePrompt

__all__ = ["num_steps", "question_order", "rank_questions", "within_agreement"]


def question_order(
    num_questions: int,
    per_step: int,
    step: int,
    order: str,
    seed: int,
    stream: StreamConfig | None = None,
) -> list[int]:
    """The questions of one step, none twice; depends on nothing but the arguments.

    shuffled: each epoch is a fresh permutation cut into steps; the remainder that fills no whole step is left for
    another epoch's.  Otherwise: as they stand, round and round.  A stream (that is on) comes once, each batch for
    `stream.steps_each` steps: its last batch has what is left, and a step after that is empty.

    >>> question_order(5, 2, 3, "sequential", 0)
    [4, 0]
    >>> question_order(5, 2, 3, "sequential", 0, StreamConfig(on=True))
    [4]
    >>> [question_order(5, 2, step, "sequential", 0, StreamConfig(on=True, steps_each=2)) for step in (1, 2, 3)]
    [[0, 1], [0, 1], [2, 3]]
    """
    first = (step - 1) * per_step
    if stream is not None and stream.on:
        first = stream.batch(step) * per_step
        arrival = list(range(num_questions))
        if order == "shuffled":
            arrival = torch.randperm(num_questions, generator=_generator(seed, 0)).tolist()
        return arrival[first : first + per_step]
    if order != "shuffled":
        return [(first + i) % num_questions for i in range(per_step)]
    epoch, index = divmod(step - 1, num_questions // per_step)
    shuffled = torch.randperm(num_questions, generator=_generator(seed, epoch))
    return shuffled[index * per_step : (index + 1) * per_step].tolist()


def within_agreement(latest: Mapping[str, float], ids: Sequence[str], low: float, high: float, least: int) -> list[int]:
    """The places of the questions whose majority fraction lies in [low, high]; one that is not known counts as inside.

    If these are fewer than `least`, those nearest to the range fill up, earlier places first.

    Source: TTC-RL (arXiv 2510.04786) keeps questions of medium success; without labels that is agreement.

    >>> within_agreement({"a": 1.0, "b": 0.5, "c": 0.1}, ["a", "b", "c", "d"], 0.25, 0.6, 3)
    [1, 2, 3]
    """

    def distance(name: str) -> float:
        share = latest.get(name, low)
        return max(low - share, share - high, 0.0)

    inside = [place for place, name in enumerate(ids) if distance(name) == 0.0]
    outside = sorted(set(range(len(ids))) - set(inside), key=lambda place: (distance(ids[place]), place))
    return sorted([*inside, *outside[: max(0, least - len(inside))]])


def num_steps(config: Config, num_questions: int) -> int:
    """`steps`; of a stream, at most `stream.steps_each` per batch of questions.

    >>> from spinerl.config import load_config
    >>> num_steps(load_config(overrides=["steps=60", "questions_per_step=8", "stream.on=true"]), 20)
    3
    """
    if not config.stream.on:
        return config.steps
    return min(config.steps, -(-num_questions // config.questions_per_step) * config.stream.steps_each)


def rank_questions(
    config: Config,
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    ids: Sequence[str],
    predictions: Sequence[Mapping[str, Any]],
) -> list[int]:
    """The order in which questions stand, for orders that rank them; the given order for the others.

    easy-to-hard: by the majority fraction among the initial model's sampled responses, large first; it is in
    `predictions`, the rows of the evaluation before step 1.  nearest: by the cosine to the nearest question of
    `data.target`, of the initial model's hidden states averaged over the prompt.  sift: as `maths.sift_order`, of its
    hidden states at the prompt's last token (TTC-RL).

    Raises InputError where what an order needs is not there.
    """
    if config.data.order == "easy-to-hard":
        agreement = {row["id"]: float(row["majority_frac"]) for row in predictions if "majority_frac" in row}
        missing = [name for name in ids if name not in agreement]
        if missing:
            raise InputError(
                f"data.order=easy-to-hard needs votes on every question before step 1, and {len(missing)} have none: "
                "set eval.samples=-1 (or 2 and more) and eval.max_questions=0"
            )
        return sorted(range(len(ids)), key=lambda i: (-agreement[ids[i]], i))
    if config.data.order in ("nearest", "sift"):
        name = config.data.order
        if config.data.target is None:
            raise InputError(
                f"data.order={name} needs data.target: the questions to prepare for (a data set or a file)"
            )
        given = DataConfig(name=config.data.target)
        target, _ = load_data(given, answer_kind=config.answer.kind)
        _, target_prompts, _ = render_all(
            target.questions, loaded.tokenizer, config.prompt, kind=config.answer.kind, vision=loaded.vision
        )
        if any(isinstance(prompt, ImagePrompt) for prompt in (*prompts, *target_prompts)):
            raise InputError(f"data.order={name} compares texts, and these questions show images: choose another order")
        embed, rank = (_embed, nearest_first) if name == "nearest" else (_embed_last, sift_order)
        return rank(embed(loaded, prompts, config), embed(loaded, target_prompts, config)).tolist()
    return list(range(len(ids)))


def _embed(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], config: Config) -> torch.Tensor:
    """A vector (N, d) per prompt: the mean of the hidden states at all its tokens but the last."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[*prompt[1:], *([loaded.pad_id] * (width - len(prompt)))] for prompt in prompts])
    mask = torch.arange(width - 1) < torch.tensor([[len(prompt) - 1] for prompt in prompts])
    batch = Batch(tuple(prompt[:1] for prompt in prompts), tokens, mask, 1.0)
    return embed_responses(loaded, batch, config.optim)


def _embed_last(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], config: Config) -> torch.Tensor:
    """A vector (N, d) per prompt: the hidden state at its last token."""
    tokens = torch.full((len(prompts), 1), loaded.pad_id)  # the state before a response's first token
    batch = Batch(tuple(prompts), tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    return embed_responses(loaded, batch, config.optim)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, "order", epoch))
