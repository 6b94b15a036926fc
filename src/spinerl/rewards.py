"""From a rollout and its votes to rewards, whatever they are made of.

A reward is a function of one question's vote that returns a number per response: `spinerl.answers.REWARDS`,
`STEP_REWARDS` below, or a user's own.  It is given whatever else it names among its arguments, out of `OFFERED`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from spinerl.answers import (
    REWARDS,
    Equivalence,
    compass_reward,
    dare_reward,
    evol_reward,
    evol_sides,
    extract_answer,
    majority_reward,
    original_letter,
    reference_reward,
    scope_reward,
    scrl_reward,
)
from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.engine.update import embed_responses
from spinerl.errors import InputError, RunError
from spinerl.hooks import weigh_votes
from spinerl.maths import (
    consensus_scores,
    exploration_bonus,
    low_entropy_reward,
    novelty_scores,
    response_means,
    self_certainty_reward,
)
from spinerl.models.loading import LoadedModel
from spinerl.plugins import ReturnedError, accepts, errors_of, find, is_plugin, numbers
from spinerl.seeding import seed_of
from spinerl.templates import TOKEN_CHARS, TemplateFaultError, apply_template, name_of
from spinerl.types import Batch, Question, Rollout, Vote

__all__ = [
    "COSTLY",
    "OFFERED",
    "STEP_REWARDS",
    "RewardContext",
    "Rewards",
    "alternating_rewards",
    "as_chat",
    "asked_by",
    "check_reward",
    "give_rewards",
    "reference_prompt",
    "reward_named",
]

Rewards = tuple[tuple[float, ...], ...]
"""Per question, per response."""


@dataclass(frozen=True)
class RewardContext:
    """All that a step's rewards may look at.  `anchor` is the initial model, where it is kept.

    What costs a pass of a model is computed when first asked for, for the whole step.
    """

    config: Config
    step: int
    policy: LoadedModel
    anchor: LoadedModel | None
    rollout: Rollout
    votes: tuple[Vote, ...]
    equivalence: Equivalence

    def rows(self, i: int) -> slice:
        """The rollout's rows that answer question i."""
        n = self.rollout.num_responses
        return slice(i * n, (i + 1) * n)

    @cached_property
    def vote_weights(self) -> list[float]:
        """What each response's vote weighs, question-major."""
        return weigh_votes(self.rollout, self.config.vote.weights)

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """(P, N, d): the mean of the policy's last hidden states over each response."""
        return self._embeddings(self.policy)

    @cached_property
    def initial_embeddings(self) -> torch.Tensor:
        """(P, N, d): the same of the initial model."""
        assert self.anchor is not None, "the initial model is kept for a reward that takes it"
        return self._embeddings(self.anchor)

    @cached_property
    def references(self) -> tuple[int | None, ...]:
        """Per question, the class of the answer that the frozen initial model writes after reading the group."""
        config, rollout, anchor = self.config, self.rollout, self.anchor
        assert anchor is not None, "the initial model is kept for a reward that takes it"
        prompts = [
            reference_prompt(anchor, question, rollout.prompts[p], rollout.texts[self.rows(p)], config)
            for p, question in enumerate(rollout.questions)
        ]
        seed = (config.seed, "reference", self.step)
        written = sample_responses(anchor, rollout.questions, prompts, 1, config.rollout, seed)
        found = []
        for vote, question, text, finished in zip(
            self.votes, rollout.questions, written.texts, written.finished_mask.tolist(), strict=True
        ):
            kind = config.answer.kind_of(question.answer_kind)
            answer = extract_answer(text, kind, choices=question.choices, truncated=not finished)
            if kind in ("choice", "auto"):
                answer = original_letter(answer, question.letters)
            # Classes are numbered by first appearance: with the reference last, the responses keep theirs.
            found.append(self.equivalence.classes([*vote.answers, answer], kind)[-1])
        return tuple(found)

    def _embeddings(self, model: LoadedModel) -> torch.Tensor:
        rollout, n = self.rollout, self.rollout.num_responses
        prompts = tuple(rollout.prompts[row // n] for row in range(len(rollout.tokens)))
        batch = Batch(prompts, rollout.tokens, rollout.mask, self.config.rollout.temperature)
        return embed_responses(model, batch, self.config.optim).view(len(self.votes), n, -1)


def _certainties(context: RewardContext, i: int) -> torch.Tensor:
    certainties = context.rollout.certainties
    assert certainties is not None, "the sampler returns them for a reward that takes them"
    return certainties[context.rows(i)]


OFFERED: dict[str, Callable[[RewardContext, int], Any]] = {
    "question": lambda context, i: context.rollout.questions[i],
    "texts": lambda context, i: context.rollout.texts[context.rows(i)],
    "finished": lambda context, i: context.rollout.finished_mask[context.rows(i)].tolist(),
    "num_tokens": lambda context, i: context.rollout.mask[context.rows(i)].sum(dim=1).tolist(),
    "mask": lambda context, i: context.rollout.mask[context.rows(i)],
    "logprobs": lambda context, i: context.rollout.logprobs[context.rows(i)],
    "entropies": lambda context, i: context.rollout.entropies[context.rows(i)],
    "vote_weights": lambda context, i: context.vote_weights[context.rows(i)],
    "step": lambda context, i: context.step,  # noqa: ARG005
    "tie": lambda context, i: context.config.vote.tie,  # noqa: ARG005
    "min_majority_frac": lambda context, i: context.config.vote.min_majority_frac,  # noqa: ARG005
    "min_margin": lambda context, i: context.config.vote.min_margin,  # noqa: ARG005
    "flip_margin": lambda context, i: context.config.vote.flip_margin,  # noqa: ARG005
    "seed": lambda context, i: context.config.seed + context.step,  # noqa: ARG005
    # These cost more: whole distributions, a pass of a model, a response of the initial one.
    "certainties": _certainties,
    "margins": lambda context, i: context.rollout.figures["margins"][context.rows(i)],
    "line_ends": lambda context, i: context.rollout.figures["line_ends"][context.rows(i)],
    "embeddings": lambda context, i: context.embeddings[i],
    "initial_embeddings": lambda context, i: context.initial_embeddings[i],
    "reference": lambda context, i: context.references[i],
}
"""What a reward may take besides the vote, by the name of its argument: (context, question's index) -> value.

`question`: the `Question`.  `texts`, `finished` (not cut off), `num_tokens`: one per response.  `mask`, `logprobs`,
`entropies`, `certainties`: (N, T), nats, 0 on padding.  `margins`: (N, T), `maths.top_margins`.  `line_ends`: (N, T),
whether a token ends a line.  `vote_weights`: what each response's vote weighs (vote.weights).  `embeddings`,
`initial_embeddings`: (N, d), mean hidden states of the model as it is, and as it was.  `reference`: the class in the
vote of the initial model's own synthesis, or None.  `tie` to `seed`: the vote's rules.
"""

COSTLY = ("certainties", "margins", "line_ends", "embeddings", "initial_embeddings", "reference")
"""Those of `OFFERED` that need more than the responses with their log-probabilities and entropies."""


def give_rewards(context: RewardContext) -> Rewards:
    """The rewards of all responses, by `reward`."""
    name = context.config.reward
    reward = reward_named(name)
    asked = _asked(reward, name)
    rewards = []
    for i, vote in enumerate(context.votes):
        given = {one: OFFERED[one](context, i) for one in asked}
        if is_plugin(name):  # it may change what it gets
            given = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
        where = f" on question {context.rollout.questions[i].id!r}"
        try:
            with errors_of("reward", name, where):
                rewards.append(numbers(reward(vote, **given), len(vote.classes)))
        except ReturnedError as error:
            raise InputError(
                f"reward={name}{where}: {error}; it must return a sequence of {len(vote.classes)} finite numbers, one "
                "per response"
            ) from None
    return tuple(rewards)


def alternating_rewards(questions: int, group_size: int) -> Rewards:
    """1, 0, 1, 0, ... to each question's responses: no advantage is zero.

    >>> alternating_rewards(1, 3)
    ((1.0, 0.0, 1.0),)
    """
    return (tuple(float(i % 2 == 0) for i in range(group_size)),) * questions


def check_reward(name: str) -> None:
    """InputError if there is no reward of this name, or it takes something that is not offered."""
    if name == "gold":
        return
    reward = reward_named(name)
    asked = _asked(reward, name)
    if is_plugin(name):
        accepts(reward, "reward", name, "vote", **dict.fromkeys(asked))


def asked_by(name: str) -> frozenset[str]:
    """The arguments of the reward of this name, out of `OFFERED`.

    >>> sorted(asked_by("evol")), sorted(asked_by("gold"))
    (['embeddings'], [])
    """
    return frozenset() if name == "gold" else frozenset(_asked(reward_named(name), name))


def reward_named(name: str) -> Callable[..., Sequence[float]]:
    """The reward of this name; InputError if there is none."""
    return find({**REWARDS, **STEP_REWARDS}, name, "reward")


def _asked(reward: Callable[..., Any], name: str) -> list[str]:
    """The names of a reward's arguments that are offered; of **anything, all that cost nothing."""
    try:
        _, *rest = inspect.signature(reward).parameters.values()
    except Exception:  # a signature may be anything
        raise InputError(f"reward={name} must be a function whose first argument is the vote") from None
    asked = [one.name for one in rest if one.name in OFFERED]
    for one in rest:
        if one.kind is inspect.Parameter.VAR_KEYWORD:
            asked += [other for other in OFFERED if other not in (*COSTLY, *asked)]
        elif one.default is inspect.Parameter.empty and one.name not in OFFERED:
            raise InputError(f"reward={name} asks for {one.name!r}; offered are {', '.join(OFFERED)}")
    return asked


def _no_reward(vote: Vote) -> tuple[float, ...]:
    """0.0 for everyone: for methods that learn only by another term."""
    return (0.0,) * len(vote.classes)


def _constant_reward(vote: Vote) -> tuple[float, ...]:
    """1.0 for everyone: for fine-tuning on whatever was sampled (UPFT)."""
    return (1.0,) * len(vote.classes)


def _similarity_reward(vote: Vote, *, initial_embeddings: torch.Tensor) -> tuple[float, ...]:
    """1.0 for the response whose embedding is nearest to all others' on average, the first of equals; else 0.0.

    SEALONG (arXiv 2411.08147).  Embeddings are the initial model's hidden states, averaged over each response.
    """
    best = int(consensus_scores(initial_embeddings).argmax())
    return tuple(float(j == best) for j in range(len(vote.classes)))


def _entropy_reward(vote: Vote, *, entropies: torch.Tensor, mask: torch.Tensor) -> list[float]:  # noqa: ARG001
    return low_entropy_reward(entropies, mask).tolist()


def _certainty_reward(vote: Vote, *, certainties: torch.Tensor, mask: torch.Tensor) -> list[float]:  # noqa: ARG001
    return self_certainty_reward(certainties, mask).tolist()


def _scrl_reward(vote: Vote, *, entropies: torch.Tensor, mask: torch.Tensor) -> tuple[float, ...]:
    return scrl_reward(vote, response_means(entropies, mask).tolist())


def _dare_reward(vote: Vote, *, entropies: torch.Tensor, mask: torch.Tensor) -> tuple[float, ...]:
    return dare_reward(vote, response_means(entropies, mask).tolist())


def _compass_reward(vote: Vote, *, vote_weights: Sequence[float]) -> tuple[float, ...]:
    return compass_reward(vote, vote_weights)


def _scope_reward(vote: Vote, *, question: Question, vote_weights: Sequence[float], seed: int) -> tuple[float, ...]:
    return scope_reward(vote, vote_weights, seed=seed_of(seed, "scope", question.id))


def _exploration_reward(vote: Vote, *, embeddings: torch.Tensor) -> tuple[float, ...]:
    """The majority's reward and a bonus for hidden states that few responses of the group have.

    r_i = [class_i wins] + 0.1 h_i^T (0.1 I + sum_j h_j h_j^T)^-1 h_i, h the policy's mean hidden state, scaled to
    length 1.  Source: representation-based exploration (arXiv 2510.11686); weight, lambda and scaling are ours.
    """
    bonus = exploration_bonus(embeddings).tolist()
    return tuple(own + 0.1 * more for own, more in zip(majority_reward(vote), bonus, strict=True))


def _evol_reward(vote: Vote, *, embeddings: torch.Tensor) -> tuple[float, ...]:
    """Novelty is measured on the policy's own hidden states, averaged over each response."""
    return evol_reward(vote, novelty_scores(embeddings, torch.tensor(evol_sides(vote))).tolist())


def reference_prompt(
    anchor: LoadedModel, question: Question, prompt: tuple[int, ...], texts: Sequence[str], config: Config
) -> tuple[int, ...]:
    """As many of the group's responses as fit under the prompt limit, and the request for one better response.

    The question itself is left out, as in the source (Compute as Teacher, arXiv 2509.14234, appendix A.4), unless
    prompt.reference_question is set.  A tokenizer without a chat template gets the responses and the beginning of a
    next one, or the question's own prompt: a base model continues, it does not follow requests.
    """
    tokenizer = anchor.tokenizer
    context = anchor.context or config.prompt.max_tokens + config.rollout.max_new_tokens
    limit = max(len(prompt), min(config.prompt.max_tokens, context - config.rollout.max_new_tokens))
    for shown in range(len(texts), -1, -1):
        shows_question = config.prompt.reference_question or not shown
        drafts = "\n\n".join(f"Response {i + 1}: {text}" for i, text in enumerate(texts[:shown]))
        if getattr(tokenizer, "chat_template", None):
            asked = f"{question.text}\n\nOthers answered:" if shows_question else "These responses answer one question:"
            request = (
                f"{asked}\n\n{drafts}\n\nSome of these may be wrong. Weigh them, correct what is wrong, and write one "
                "complete response of your own that ends with the final answer."
            )
            if len(request) > TOKEN_CHARS * limit:
                continue
            text = as_chat(tokenizer, request)
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
        else:
            if len(drafts) > TOKEN_CHARS * limit:
                continue
            before: list[int] = tokenizer(f"{drafts}\n\n")["input_ids"] if shown else []  # pyright: ignore
            cue: list[int] = tokenizer(f"Response {shown + 1}:", add_special_tokens=False)["input_ids"]  # pyright: ignore
            ids = [*before, *(prompt if shows_question else cue)]
        if len(ids) <= limit:
            return tuple(ids)
    return prompt


def as_chat(tokenizer: Any, request: str) -> str:
    """A request as the text of a chat's only message.  RunError where the tokenizer's template refuses it."""
    try:
        return apply_template(tokenizer, [{"role": "user", "content": request}])
    except TemplateFaultError as error:
        raise RunError(f"the chat template of {name_of(tokenizer)} refuses a request ({error})") from None


STEP_REWARDS: dict[str, Callable[..., Sequence[float]]] = {
    "none": _no_reward,
    "constant": _constant_reward,
    "entropy": _entropy_reward,
    "self-certainty": _certainty_reward,
    "evol": _evol_reward,
    "scrl": _scrl_reward,
    "dare": _dare_reward,
    "compass": _compass_reward,
    "scope": _scope_reward,
    "exploration": _exploration_reward,
    "similarity": _similarity_reward,
    "reference": reference_reward,
}
"""Rewards by name that need more than a vote."""
