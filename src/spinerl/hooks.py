"""The places where a step calls a user's function on tensors or texts: what it returns is checked before it is used.

Rewards are called in `spinerl.rewards`.  A row of a table is trusted; a plug-in gets copies, since it may change them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from spinerl.answers import QUESTION_WEIGHTS
from spinerl.config import ForksConfig
from spinerl.errors import InputError
from spinerl.maths import SELECTORS, VOTE_WEIGHTS
from spinerl.plugins import ReturnedError, errors_of, find, is_plugin, numbers, shown
from spinerl.types import Question, Rollout, Vote

__all__ = ["ask_differently", "select_tokens", "weigh_questions", "weigh_votes"]


def weigh_votes(rollout: Rollout, name: str) -> list[float]:
    """What each response's vote weighs, at least 0, by the function called `name` (vote.weights).

    InputError naming a plug-in, the question and what was returned, where that is not a number for each response.
    """
    weigh = find(VOTE_WEIGHTS, name, "vote.weights")
    given = rollout.logprobs, rollout.entropies, rollout.mask
    if not is_plugin(name):
        return weigh(*given).tolist()
    num = rollout.num_responses

    def label(row: int) -> str:
        return f"response {row % num} to question {rollout.questions[row // num].id!r}"

    try:
        with errors_of("vote.weights", name):
            return list(numbers(weigh(*(one.clone() for one in given)), len(rollout.texts), 0.0, label))
    except ReturnedError as error:
        raise InputError(
            f"vote.weights={name}: {error}; it must return {len(rollout.texts)} finite numbers of at least 0, one per "
            "row"
        ) from None


def weigh_questions(votes: Sequence[Vote], questions: Sequence[Question], name: str) -> list[float] | None:
    """What each question counts, at least 0, by the function called `name` (advantage.question_weight); None where all
    count alike ("equal").

    InputError naming a plug-in, the question and what was returned, where that is no such number.
    """
    if name == "equal":
        return None
    weigh = find(QUESTION_WEIGHTS, name, "advantage.question_weight")
    weights = []
    for vote, question in zip(votes, questions, strict=True):
        where = f" on question {question.id!r}"
        with errors_of("advantage.question_weight", name, where):
            given: Any = weigh(vote)
        try:
            with errors_of("advantage.question_weight", name, where):
                weights += numbers([given], 1, 0.0, lambda _: "it")
        except ReturnedError:
            raise InputError(
                f"advantage.question_weight={name}{where}: it returned {shown(given)}; it must return a finite number, "
                "0 or more"
            ) from None
    return weights


def select_tokens(entropies: torch.Tensor, mask: torch.Tensor, keys: ForksConfig) -> torch.Tensor:
    """Which tokens are forks, bool (B, T), within the mask, by forks.selector.

    InputError naming a plug-in and what was returned, where that is no such tensor (or array).
    """
    name = keys.selector
    select = find(SELECTORS, name, "forks.selector")
    if not is_plugin(name):
        counted = {"num_tokens": keys.num_tokens} if name == "first" else {}
        return select(entropies, mask, keys.fraction, keys.scope, **counted)
    with errors_of("forks.selector", name):
        given: Any = select(entropies.clone(), mask.clone(), keys.fraction, keys.scope)
    forks: Any = torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) and given.dtype == np.bool_ else given
    shape = tuple(mask.shape)
    wanted = f"; it must return a bool tensor of the mask's shape {shape}, True on tokens within the mask"
    if not isinstance(forks, torch.Tensor):
        raise InputError(f"forks.selector={name}: it returned {shown(given)}{wanted}")
    if forks.dtype != torch.bool or tuple(forks.shape) != shape:
        raise InputError(f"forks.selector={name}: it returned {forks.dtype} of shape {tuple(forks.shape)}{wanted}")
    with errors_of("forks.selector", name):
        forks = forks.detach().as_subclass(torch.Tensor).to(mask.device).contiguous()
        outside = (forks & ~mask).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise InputError(
            f"forks.selector={name}: it selected {len(outside)} places outside of the mask, the first in row {row}, "
            f"column {column}{wanted}"
        )
    return forks


def ask_differently(question: Question, perturb: Callable[[str], Any], name: str) -> str:
    """A question's text as a perturbation of it has it (guard.perturbation).

    InputError naming a plug-in, the question and what was returned, where that is no text.
    """
    if not is_plugin(name):
        return perturb(question.text)
    where = f" on question {question.id!r}"
    with errors_of("guard.perturbation", name, where):
        text = perturb(question.text)
    try:
        if isinstance(text, str) and text.strip() and text.encode():
            return str(text)
    except UnicodeEncodeError:
        pass
    raise InputError(
        f"guard.perturbation={name}{where}: it returned {shown(text)}; it must return a text, and no blank one"
    )
