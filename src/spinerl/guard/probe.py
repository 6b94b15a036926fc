"""A few questions that are asked again and again: what has become of the answers the model gave at first?

Before step 1 the initial model votes on them.  These votes are never renewed, so that no training can talk them
into agreement; a pseudo-label of the run itself can be talked into anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spinerl.answers import Equivalence
from spinerl.answers.shared import shared_share
from spinerl.config import Config
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.update import score
from spinerl.figures import add_figures
from spinerl.guard.signals import concentration, refused_share, same_answers
from spinerl.maths import masked_mean
from spinerl.models.context import fit
from spinerl.models.loading import LoadedModel
from spinerl.seeding import seed_of
from spinerl.step import count_votes
from spinerl.types import Batch, OnTokens, Question, Rollout, Vote

__all__ = ["Probe", "open_probe", "pick_probe"]


def pick_probe(num_questions: int, size: int) -> list[int]:
    """Which questions are asked: `size` of them (all, if there are fewer).

    They do not depend on a run's seed, nor do the initial votes: runs of other seeds can be ranked by their scores.
    """
    generator = torch.Generator().manual_seed(seed_of("guard"))
    return sorted(torch.randperm(num_questions, generator=generator)[:size].tolist())


@dataclass(frozen=True)
class Probe:
    """The questions, and what the initial model said to them."""

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    votes: tuple[Vote, ...]  # of the initial model's responses, one per question
    first: Batch  # its first response to each question
    logprobs: torch.Tensor  # (P, T) what it gave their tokens
    length: float  # tokens of its responses, mean
    perturbed: tuple[tuple[int, ...], ...] = ()  # the prompts of the same questions asked differently; () for none

    @property
    def num_asked(self) -> int:
        """Prompts of one look."""
        return len(self.prompts) + len(self.perturbed)

    def ask(
        self, loaded: LoadedModel, config: Config, equivalence: Equivalence, on_tokens: OnTokens | None = None
    ) -> dict[str, Any]:
        """The signals of the model as it is now.

        probe/initial_agreement: questions whose greedy answer is the initial majority's, of those that had one.
        probe/initial_support: the share of initial votes that the greedy answer has, mean; support: of each question.
        probe/concentration: as `signals.concentration`, of the greedy answers.
        probe/readable_frac: greedy responses with an answer that can be read, cut-off ones counting as none.
        probe/refused_frac: greedy responses that decline to answer.
        probe/shared_frac, shared_answer: as `answers.shared.shared_share`, of the greedy answers.
        probe/kl: nats per token, estimate of KL(initial || now) from the initial model's own responses.
        probe/perturbed_agreement: questions whose greedy answer is the same when they are asked differently.
        probe/length_ratio, probe/truncated_frac: of the greedy responses; the length over that of the initial samples.
        """
        both = self.questions + (self.questions if self.perturbed else ())
        rollout = greedy_responses(loaded, both, self.prompts + self.perturbed, config.rollout, on_tokens)
        rollout = add_figures(loaded, rollout, config)
        now = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed)
        size = len(self.questions)
        said = [one.answers[0] if one.classes[0] is not None else None for one in now]
        answers, others = said[:size], said[size:]
        logprobs, _ = score(loaded, self.first, self.first.mask, config.optim)
        kinds = [config.answer.kind_of(question.answer_kind) for question in self.questions]
        shared, shared_answer = shared_share(self.questions, answers, kinds, equivalence)
        labelled = [i for i, one in enumerate(self.votes) if one.pseudo_label is not None]
        agree = [same_answers(self.votes[i].pseudo_label, answers[i], equivalence) for i in labelled]
        support = [_support(one, answer, equivalence) for one, answer in zip(self.votes, answers, strict=True)]
        again = {}
        if others:
            same = [same_answers(a, b, equivalence) for a, b in zip(answers, others, strict=True)]
            again["probe/perturbed_agreement"] = sum(same) / size
        return {
            "probe/initial_agreement": sum(agree) / max(1, len(agree)),
            "probe/initial_support": sum(support) / len(support),
            "support": [round(share, 4) for share in support],
            "probe/concentration": concentration(equivalence.classes(answers)),
            "probe/readable_frac": sum(answer is not None for answer in answers) / size,
            "probe/refused_frac": refused_share(rollout.texts[:size], answers),
            "probe/shared_frac": shared,
            **({} if shared_answer is None else {"shared_answer": shared_answer}),
            "probe/kl": masked_mean(self.logprobs - logprobs, self.first.mask),
            "probe/length_ratio": float(rollout.mask[:size].sum()) / size / max(1.0, self.length),
            "probe/truncated_frac": float((~rollout.finished_mask[:size]).double().mean()),
            **again,
        }


def open_probe(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    equivalence: Equivalence,
    perturbed: Sequence[tuple[int, ...]] = (),
    on_tokens: OnTokens | None = None,
) -> Probe:
    """Let the initial model vote, with `guard.samples` responses to each question.

    A question whose other prompt does not fit into the model's context is asked twice in the same way.
    """
    kept = fit([len(prompt) for prompt in perturbed], config.rollout.max_new_tokens, loaded.context).kept
    perturbed = [prompt if i in kept else prompts[i] for i, prompt in enumerate(perturbed)]
    rollout = sample_responses(loaded, questions, prompts, config.guard.samples, config.rollout, ("guard",), on_tokens)
    rollout = add_figures(loaded, rollout, config)
    votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=0)
    first = _first_of_each(rollout, config.rollout.temperature)
    logprobs, _ = score(loaded, first, first.mask, config.optim)
    length = float(rollout.mask.sum()) / len(rollout.mask)
    return Probe(tuple(questions), tuple(prompts), votes, first, logprobs, length, tuple(perturbed))


def _first_of_each(rollout: Rollout, temperature: float) -> Batch:
    rows = torch.arange(len(rollout.questions)) * rollout.num_responses
    return Batch(rollout.prompts, rollout.tokens[rows], rollout.mask[rows], temperature)


def _support(one: Vote, answer: str | None, equivalence: Equivalence) -> float:
    """The share of a vote's responses that gave this answer."""
    if answer is None:
        return 0.0
    own, *classes = equivalence.classes([answer, *one.answers])
    return sum(c is not None and c == own for c in classes) / len(classes)
