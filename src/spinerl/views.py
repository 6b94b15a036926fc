"""The same question asked in other ways in the same step (vote.views), and the votes on all of them as one.

A view is another `Question` with a prompt of its own; a step samples as many responses to it as to the question itself.
`VIEWS` lists the built-in ones.  Nothing is remembered from step to step: random choices are named by the seed, the
step, the question and the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

import torch
from torch.nn.functional import pad

from spinerl.answers import Equivalence, pool_votes
from spinerl.answers.options import permute_options, permuted_places
from spinerl.answers.votes import by_question
from spinerl.config import Config
from spinerl.engine.sampler import averaged_responses
from spinerl.figures import add_figures
from spinerl.hooks import ask_otherwise, blank_around, read_again
from spinerl.images import augmented_image
from spinerl.models.loading import LoadedModel
from spinerl.plugins import find
from spinerl.seeding import seed_of
from spinerl.step import count_votes, sample
from spinerl.types import OnTokens, Question, Rollout, Vote
from spinerl.writing import WRITTEN, longest_prompt, write_questions

__all__ = ["VIEWS", "Asked", "Views", "answered_over_views"]

View = Callable[[Question, Random], Question | str | None]
"""(question, random choices) -> the question asked differently, or only its text; None where it cannot be."""


@dataclass(frozen=True)
class Asked:
    """All that a step asks, each question followed by its views; `num_tokens` were sampled to write them.

    `as_is_frac`: views that cannot be, which ask the question as it stands.
    """

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    num_tokens: int
    as_is_frac: float

    def without_themselves(self) -> Asked:
        """Only the views."""
        kept = [i for i, question in enumerate(self.questions) if question.view]
        questions, prompts = (tuple(all_of[i] for i in kept) for all_of in (self.questions, self.prompts))
        return replace(self, questions=questions, prompts=prompts)


class Views:
    """Asks a step's questions in the ways that vote.views lists, and counts the votes on all of them together."""

    def __init__(self, config: Config, render: Callable[[Question], tuple[int, ...]], equivalence: Equivalence) -> None:
        """`render`: a question's prompt."""
        self._config, self._render, self._equivalence = config, render, equivalence
        self._as_is_frac, self._unsure_frac = 0.0, 1.0

    def ask(
        self,
        policy: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        step: int,
        on_tokens: OnTokens | None = None,
    ) -> Asked:
        """Each question followed by its views, which are written by the policy where they are rephrased.

        A view whose prompt is too long (prompt.max_tokens, the model's context), or that a question cannot have, is the
        question as it stands, sampled once more.  Raises InputError for what a plug-in returns.
        """
        config, names = self._config, self._config.vote.views
        written: dict[int, Sequence[str | None]] = {}
        num_tokens = 0
        for number, name in enumerate(names):
            if name in WRITTEN:
                seed = (config.seed, name, number, step)
                written[number], num = write_questions(policy, questions, name, config, seed, on_tokens)
                num_tokens += num
        asked: list[Question] = []
        shown: list[tuple[int, ...]] = []
        as_is = 0
        for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            asked.append(question)
            shown.append(prompt)
            for number, name in enumerate(names):
                random = Random(seed_of(config.seed, "view", step, question.id, number))
                found = written[number][place] if number in written else self._view(question, name, random)
                view = _complete(question, found, name, number)
                ids = prompt if found is None else self._render(view)
                if len(ids) > max(len(prompt), longest_prompt(policy, config)):
                    view, ids, found = _complete(question, None, name, number), prompt, None
                as_is += found is None
                asked.append(view)
                shown.append(ids)
        return Asked(tuple(asked), tuple(shown), num_tokens, as_is / (len(questions) * len(names)))

    def draw(
        self,
        policy: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        step: int,
        on_tokens: OnTokens | None = None,
    ) -> tuple[Rollout, int]:
        """(responses to all that is asked, 0); the tokens of what was written to ask it count as sampled.

        With vote.unsure_margin the questions are answered first, and views are made of those whose vote is unsure.
        """
        config, own = self._config, None
        unsure = list(range(len(questions)))
        if config.vote.unsure_margin:
            own = sample(policy, questions, prompts, config, step, on_tokens)
            votes = count_votes(own, config.answer, config.vote, self._equivalence, seed=config.seed + step)
            unsure = [i for i, one in enumerate(votes) if _margin(one) < config.vote.unsure_margin]
            self._unsure_frac = len(unsure) / len(questions)
            if not unsure:
                self._as_is_frac = 0.0
                return own, 0
        chosen = [questions[i] for i in unsure], [prompts[i] for i in unsure]
        asked = self.ask(policy, *chosen, step, on_tokens)
        self._as_is_frac = asked.as_is_frac
        if own is not None:
            asked = asked.without_themselves()
        rollout = self._answered(policy, asked, step, on_tokens)
        if own is not None:
            rollout = _joined(own, rollout, unsure, len(config.vote.views), policy.pad_id)
        if asked.num_tokens:
            rollout = replace(rollout, num_drawn=rollout.total_drawn + asked.num_tokens)
        return rollout, 0

    def _answered(self, policy: LoadedModel, asked: Asked, step: int, on_tokens: OnTokens | None) -> Rollout:
        config = self._config
        if config.vote.pool != "average":
            return sample(policy, asked.questions, asked.prompts, config, step, on_tokens)
        keep = not config.model.gradient_checkpointing
        rollout = averaged_responses(
            policy, asked.questions, asked.prompts, 1 + len(config.vote.views), config.rollout, on_tokens,
            keep_activations=keep,
        )  # fmt: skip
        return add_figures(policy, rollout, config)

    def vote(
        self,
        rollout: Rollout,
        fresh: Sequence[Vote],
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
    ) -> tuple[tuple[Vote, ...], dict[str, float]]:
        """(for each question and view of a rollout the vote over all views of the question; their metrics).

        views/agreement: views whose own responses have the winner that the question's own have, of those where both
        have one.  views/share: the label's share of all votes, mean.  views/as_is_frac: views that could not be, and
        asked the question as it stands.

        Args:
            fresh: the vote on each by its own responses.
            weights: what each response's vote weighs, question-major.
            sampled: the step, which names the draws of ties that are broken at random.
        """
        config, size = self._config, 1 + len(self._config.vote.views)
        if config.vote.pool == "own":
            own = [one for one, question in zip(fresh, rollout.questions, strict=True) if not question.view]
            return tuple(fresh), {
                "label/labelled_frac": fmean(one.winner is not None for one in own),
                "views/as_is_frac": self._as_is_frac,
                "views/unsure_frac": self._unsure_frac,
            }
        votes: list[Vote] = []
        own_weights = by_question(weights, fresh)
        agree: list[bool] = []
        for first in range(0, len(fresh), size):
            group = fresh[first : first + size]
            pooled = pool_votes(
                group,
                own_weights[first : first + size],
                config.answer.kind_of(rollout.questions[first].answer_kind),
                equivalence,
                pool="harmonic" if config.vote.pool == "harmonic" else "sum",
                seed=config.seed + sampled,
                **config.vote.rules,
            )
            votes += pooled
            winners = [_winner_among(one, own) for one, own in zip(pooled, group, strict=True)]
            agree += [number == winners[0] for number in winners[1:] if None not in (number, winners[0])]
        own = [one for one, question in zip(votes, rollout.questions, strict=True) if not question.view]
        return tuple(votes), {
            "label/labelled_frac": fmean(one.winner is not None for one in own),
            "views/share": fmean(one.majority_frac for one in own),
            "views/as_is_frac": self._as_is_frac,
            **({"views/agreement": fmean(agree)} if agree else {}),
        }

    def _view(self, question: Question, name: str, random: Random) -> Question | str | None:
        if name == "permuted-options" and self._config.answer.kind_of(question.answer_kind) not in ("choice", "auto"):
            return None  # the options are only named in answers that are letters
        return ask_otherwise(question, find(VIEWS, name, "vote.views"), name, random)


def answered_over_views(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    render: Callable[[Question], tuple[int, ...]],
    equivalence: Equivalence,
    on_tokens: OnTokens | None = None,
) -> tuple[Rollout, int]:
    """(one greedy response to each question, from the mean of its own distributions and of its views' (eval.views);
    how many tokens were decoded for them, those of the views too).

    Source: TTAug (arXiv 2510.03574).
    """
    vote = config.vote.model_copy(update={"views": config.eval.views, "pool": "average"})
    views = Views(config.model_copy(update={"vote": vote}), render, equivalence)
    asked = views.ask(loaded, questions, prompts, 0, on_tokens)
    together = 1 + len(config.eval.views)
    rollout = averaged_responses(loaded, asked.questions, asked.prompts, together, config.rollout, on_tokens)
    return rollout.of_questions(range(0, len(asked.questions), together)), int(rollout.mask.sum())


def _winner_among(pooled: Vote, own: Vote) -> int | None:
    """The winner of a view's own responses, by its number among all views' classes."""
    return None if own.winner is None else pooled.classes[own.classes.index(own.winner)]


def _margin(one: Vote) -> float:
    """How far the leading answer is ahead of the next, as a share of all responses."""
    first, second = [*sorted(one.counts, reverse=True), 0.0, 0.0][:2]
    return (first - second) / max(1, len(one.classes))


def _joined(own: Rollout, views: Rollout, unsure: Sequence[int], num_views: int, pad_id: int) -> Rollout:
    """One rollout of questions, each followed by its views where there are any; `unsure` are the places of those.

    Without activations, which are of one sampling only.
    """
    width = max(own.tokens.shape[1], views.tokens.shape[1])

    def joined(parts: Sequence[torch.Tensor | None], padding: float = 0) -> torch.Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat([pad(x, (0, width - x.shape[1]), value=padding) for x in there]) if there else None

    names = ("mask", "logprobs", "entropies", "certainties", "sampler_logprobs", "log_mass")
    tensors = {name: joined([getattr(one, name) for one in (own, views)]) for name in names}
    figures = {name: joined([own.figures[name], views.figures[name]]) for name in own.figures}
    everything = replace(
        own,
        questions=own.questions + views.questions,
        prompts=own.prompts + views.prompts,
        finished_mask=torch.cat([own.finished_mask, views.finished_mask]),
        texts=own.texts + views.texts,
        tokens=joined([own.tokens, views.tokens], pad_id),
        figures=figures,
        **tensors,
    )
    order: list[int] = []
    for place in range(len(own.questions)):
        order.append(place)
        if place in unsure:
            first = len(own.questions) + unsure.index(place) * num_views
            order += range(first, first + num_views)
    return replace(everything.of_questions(order), num_drawn=own.total_drawn + views.total_drawn)


def _complete(question: Question, found: Question | str | None, name: str, number: int) -> Question:
    """What was found for a view, as a question with an id of its own."""
    if found is None:
        found = question
    if isinstance(found, str):
        found = replace(question, text=found)
    return replace(found, id=f"{question.id}/view {number + 1}", view=name)


def _permuted(question: Question, random: Random) -> Question | None:
    order = permuted_places(question.text, question.choices, random)
    if order is None:
        return None
    text, choices, letters = permute_options(question.text, question.choices, order)
    return replace(question, text=text, choices=choices, letters=letters)


def _augmented(question: Question, random: Random) -> Question | None:
    if not question.images:
        return None
    return replace(question, images=tuple(augmented_image(image, random) for image in question.images))


def _again(question: Question, random: Random) -> Question:  # noqa: ARG001 - every view has the same shape
    return question


def _blank(question: Question, random: Random) -> str:  # noqa: ARG001
    return blank_around(question.text)


def _reread(question: Question, random: Random) -> str:  # noqa: ARG001
    return read_again(question.text.replace("<image>", "the image")) if question.images else read_again(question.text)


def _written(question: Question, random: Random) -> None:
    """`Views.ask` has the policy write all of a step's at once (`spinerl.writing`)."""


VIEWS: dict[str, View] = {
    "again": _again,
    "blank": _blank,
    "reread": _reread,
    "rephrase": _written,
    "similar": _written,
    "permuted-options": _permuted,
    "augmented-images": _augmented,
}
"""Ways to ask a question, by the name configurations use."""
