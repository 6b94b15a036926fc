"""The places where a step calls a user's function on tensors or texts: what it returns is checked before it is used.

Rewards are called in `spinerl.rewards`.  A row of a table is trusted; a plug-in gets copies, since it may change them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch

from spinerl.answers import QUESTION_WEIGHTS
from spinerl.config import ForksConfig
from spinerl.errors import InputError
from spinerl.maths import SELECTORS, TOKEN_FIGURES, VOTE_WEIGHTS
from spinerl.plugins import ReturnedError, errors_of, find, is_plugin, numbers, shown
from spinerl.types import Question, Rollout, Vote

__all__ = [
    "ask_differently",
    "ask_otherwise",
    "blank_around",
    "figures_of",
    "read_again",
    "select_tokens",
    "weigh_questions",
    "weigh_votes",
]


def weigh_votes(rollout: Rollout, name: str) -> list[float]:
    """What each response's vote weighs, at least 0, by the function called `name` (vote.weights).

    InputError naming a plug-in, the question and what was returned, where that is not a number for each response.
    """
    weigh = find(VOTE_WEIGHTS, name, "vote.weights")
    given = rollout.logprobs, rollout.entropies, rollout.mask
    named = {one: rollout.figures[one] for one in figures_of(name)}
    if not is_plugin(name):
        return weigh(*given, **named).tolist()
    num = rollout.num_responses

    def label(row: int) -> str:
        return f"response {row % num} to question {rollout.questions[row // num].id!r}"

    try:
        with errors_of("vote.weights", name):
            copies = {key: value.clone() for key, value in named.items()}
            return list(numbers(weigh(*(one.clone() for one in given), **copies), len(rollout.texts), 0.0, label))
    except ReturnedError as error:
        raise InputError(
            f"vote.weights={name}: {error}; it must return {len(rollout.texts)} finite numbers of at least 0, one per "
            "row"
        ) from None


def figures_of(name: str) -> list[str]:
    """Those of `maths.TOKEN_FIGURES` that the function called `name` (vote.weights) has among its arguments."""
    try:
        asked = inspect.signature(find(VOTE_WEIGHTS, name, "vote.weights")).parameters
    except ValueError:  # some built-in functions have no signature
        return []
    return [one for one in TOKEN_FIGURES if one in asked]


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


def blank_around(text: str) -> str:
    """A question's text with a blank line before and after it."""
    return f"\n{text}\n"


def read_again(text: str) -> str:
    """A question's text twice.  Source: re-reading (arXiv 2309.06275)."""
    return f"{text}\nRead the question again: {text}"


def ask_otherwise(
    question: Question, view: Callable[[Question, Random], Any], name: str, random: Random
) -> Question | str | None:
    """The question as a view asks it (vote.views): another question, only its text, or None where it cannot.

    A plug-in that returns the options in another order has their letters mapped back by their texts.

    InputError naming a plug-in, the question and what was returned, where that is no text and no such question.
    """
    if not is_plugin(name):
        return view(question, random)
    where = f" on question {question.id!r}"
    with errors_of("vote.views", name, where):
        found = view(question, random)
    if found is None:
        return None
    text = found.text if isinstance(found, Question) else found
    try:
        if not (isinstance(text, str) and text.strip() and text.encode()):
            raise ValueError
    except (UnicodeEncodeError, ValueError):
        raise InputError(
            f"vote.views={name}{where}: it returned {shown(found)}; it must return a text that is not blank, a "
            "question with one, or None"
        ) from None
    if not isinstance(found, Question):
        return str(text)
    letters = ""
    if found.choices != question.choices:
        places = [question.choices.index(option) for option in found.choices if option in question.choices]
        if sorted(places) != list(range(len(question.choices))):
            raise InputError(
                f"vote.views={name}{where}: it returned the options {shown(found.choices)}; allowed are the question's "
                f"own, all different, in any order: {shown(question.choices)}"
            )
        letters = "".join(ascii_uppercase[place] for place in places)
    return replace(found, answer_kind=question.answer_kind, in_thought=question.in_thought, letters=letters)
