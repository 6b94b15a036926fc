"""From a rollout and its votes to rewards, whatever they are made of.

Most rewards are functions of a vote alone (`spinerl.answers.REWARDS`, or a user's `module:function`).  The rest look
at tokens, hidden states or the initial model: `STEP_REWARDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from spinerl.answers import (
    REWARDS,
    Equivalence,
    evol_reward,
    evol_sides,
    extract_answer,
    leave_one_out_reward,
    reference_reward,
)
from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.engine.policy import embed_responses
from spinerl.engine.sampler import sample_responses
from spinerl.maths import consensus_scores, low_entropy_reward, novelty_scores, self_certainty_reward
from spinerl.plugins import find
from spinerl.types import Batch, Question, Rollout, Vote

__all__ = ["STEP_REWARDS", "RewardContext", "Rewards", "check_reward", "give_rewards", "reference_prompt"]

Rewards = tuple[tuple[float, ...], ...]
"""Per question, per response."""


@dataclass(frozen=True)
class RewardContext:
    """All that a reward may look at.  `anchor` is the initial model, where it is kept."""

    config: Config
    step: int
    policy: LoadedModel
    anchor: LoadedModel | None
    rollout: Rollout
    votes: tuple[Vote, ...]
    equivalence: Equivalence


def give_rewards(context: RewardContext) -> Rewards:
    """The rewards of all responses, by `reward`."""
    config = context.config
    if config.reward in STEP_REWARDS:
        return STEP_REWARDS[config.reward](context)
    reward = find(REWARDS, config.reward, "reward")
    if reward is leave_one_out_reward:  # it votes again, so it must keep to the same rules
        rules = config.vote
        seed = config.seed + context.step
        reward = partial(reward, **rules.rules, flip_margin=rules.flip_margin, seed=seed)
    return tuple(tuple(reward(vote)) for vote in context.votes)


def check_reward(name: str) -> None:
    """InputError if there is no reward of this name."""
    if name not in STEP_REWARDS and name != "gold":
        find({**REWARDS, **STEP_REWARDS}, name, "reward")


def _no_reward(context: RewardContext) -> Rewards:
    """0.0 for everyone: for methods that learn by another term alone."""
    return tuple((0.0,) * len(vote.classes) for vote in context.votes)


def _constant_reward(context: RewardContext) -> Rewards:
    """1.0 for everyone: for fine-tuning on whatever was sampled (UPFT)."""
    return tuple((1.0,) * len(vote.classes) for vote in context.votes)


def _similarity_reward(context: RewardContext) -> Rewards:
    """1.0 for the response whose embedding is nearest to all others' on average, the first of equals; else 0.0.

    SEALONG (arXiv 2411.08147).  Embeddings are the initial model's hidden states, averaged over each response.
    """
    assert context.anchor is not None, "the initial model is kept when reward=similarity"
    chosen = [int(consensus_scores(own).argmax()) for own in _embeddings(context, context.anchor)]
    n = context.rollout.num_responses
    return tuple(tuple(float(j == best) for j in range(n)) for best in chosen)


def _embeddings(context: RewardContext, model: LoadedModel) -> torch.Tensor:
    """(P, N, d): the mean of the model's last hidden states over each response."""
    rollout, config, n = context.rollout, context.config, context.rollout.num_responses
    prompts = tuple(rollout.prompts[row // n] for row in range(len(rollout.tokens)))
    batch = Batch(prompts, rollout.tokens, rollout.mask, config.rollout.temperature)
    return embed_responses(model, batch, config.optim).view(len(context.votes), n, -1)


def _entropy_reward(context: RewardContext) -> Rewards:
    rollout = context.rollout
    return _by_question(low_entropy_reward(rollout.entropies, rollout.mask), rollout)


def _certainty_reward(context: RewardContext) -> Rewards:
    rollout = context.rollout
    assert rollout.certainties is not None, "the sampler is asked for them when reward=self-certainty"
    return _by_question(self_certainty_reward(rollout.certainties, rollout.mask), rollout)


def _evol_reward(context: RewardContext) -> Rewards:
    """Novelty is measured on the policy's own hidden states, averaged over each response."""
    embeddings = _embeddings(context, context.policy)
    return tuple(
        evol_reward(vote, novelty_scores(own, torch.tensor(evol_sides(vote))).tolist())
        for vote, own in zip(context.votes, embeddings, strict=True)
    )


def _reference_reward(context: RewardContext) -> Rewards:
    """The frozen initial model reads the group and writes one response; agreeing with its answer is rewarded."""
    config, rollout, anchor = context.config, context.rollout, context.anchor
    assert anchor is not None, "the initial model is kept when reward=reference"
    n = rollout.num_responses
    prompts = [
        reference_prompt(anchor, question, rollout.prompts[p], rollout.texts[p * n : (p + 1) * n], config)
        for p, question in enumerate(rollout.questions)
    ]
    written = sample_responses(
        anchor, rollout.questions, prompts, 1, config.rollout, (config.seed, "reference", context.step)
    )
    rewards = []
    for vote, question, text, finished in zip(
        context.votes, rollout.questions, written.texts, written.finished_mask.tolist(), strict=True
    ):
        kind = question.answer_kind if config.answer.kind == "auto" else config.answer.kind
        answer = extract_answer(text, kind, choices=question.choices, truncated=not finished)
        # Classes are numbered by first appearance: with the reference last, the responses keep theirs.
        reference = context.equivalence.classes([*vote.answers, answer], kind)[-1]
        rewards.append(reference_reward(vote, reference))
    return tuple(rewards)


def reference_prompt(
    anchor: LoadedModel, question: Question, prompt: tuple[int, ...], texts: Sequence[str], config: Config
) -> tuple[int, ...]:
    """As many of the group's responses as fit under the prompt limit, and the request for one better response.

    The question itself is left out, as in the source (Compute as Teacher, arXiv 2509.14234, appendix A.4), unless
    prompt.reference_question is set.  A tokenizer without a chat template gets the responses and the beginning of a
    next one, or the question's own prompt: a base model continues, it does not follow requests.
    """
    tokenizer = anchor.tokenizer
    positions = (
        getattr(anchor.model.config.get_text_config(), "max_position_embeddings", None) or config.prompt.max_tokens
    )
    limit = max(len(prompt), min(config.prompt.max_tokens, positions - config.rollout.max_new_tokens))
    for shown in range(len(texts), -1, -1):
        shows_question = config.prompt.reference_question or not shown
        drafts = "\n\n".join(f"Response {i + 1}: {text}" for i, text in enumerate(texts[:shown]))
        if getattr(tokenizer, "chat_template", None):
            asked = f"{question.text}\n\nOthers answered:" if shows_question else "These responses answer one question:"
            request = (
                f"{asked}\n\n{drafts}\n\nSome of these may be wrong. Weigh them, correct what is wrong, and write one "
                "complete response of your own that ends with the final answer."
            )
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
            )
            ids: list[int] = tokenizer(str(text), add_special_tokens=False)["input_ids"]  # pyright: ignore
        else:
            before: list[int] = tokenizer(f"{drafts}\n\n")["input_ids"] if shown else []  # pyright: ignore
            cue: list[int] = tokenizer(f"Response {shown + 1}:", add_special_tokens=False)["input_ids"]  # pyright: ignore
            ids = [*before, *(prompt if shows_question else cue)]
        if len(ids) <= limit:
            return tuple(ids)
    return prompt


def _by_question(rewards: torch.Tensor, rollout: Rollout) -> Rewards:
    return tuple(tuple(own) for own in rewards.view(len(rollout.questions), rollout.num_responses).tolist())


STEP_REWARDS: dict[str, Callable[[RewardContext], Rewards]] = {
    "none": _no_reward,
    "constant": _constant_reward,
    "entropy": _entropy_reward,
    "self-certainty": _certainty_reward,
    "evol": _evol_reward,
    "similarity": _similarity_reward,
    "reference": _reference_reward,
}
"""Rewards by name that need more than a vote."""
