"""ONE training step.  The file to read first.

Everything without a gradient (answers, votes, rewards, advantages, old and anchor log-probabilities, forks, band
edges) is computed once for the whole batch and frozen; the update only slices rows of it.  No gold answer can
reach this module: its records have no field for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from spinerl.answers import Equivalence, count_vote, vote_metrics
from spinerl.answers.shared import void_shared
from spinerl.calibration import calibration_metrics, checked_rows, score_checks, shown_targets
from spinerl.config import AnswerConfig, Config, VoteConfig
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.sampling import truncation_of
from spinerl.engine.tree import tree_responses
from spinerl.engine.update import score, score_with_mass, update
from spinerl.figures import add_figures
from spinerl.hooks import select_tokens, weigh_questions, weigh_votes
from spinerl.maths import (
    band_edges,
    batch_advantages,
    blend_edges,
    bounded_advantages,
    entropic_advantages,
    entropy_advantages,
    group_advantages,
    importance_weights,
    masked_mean,
    median_mad_edges,
    mismatch_figures,
    pass_k_advantages,
    prefix_tree_advantages,
    response_means,
)
from spinerl.models.loading import LoadedModel
from spinerl.rewards import RewardContext, Rewards, asked_by, give_rewards
from spinerl.types import Batch, OnTokens, Question, Rollout, StepRecord, Targets, Vote

__all__ = [
    "StepState",
    "Tally",
    "correct_mismatch",
    "count_votes",
    "cuts_short",
    "freeze_targets",
    "needs_anchor",
    "rollout_metrics",
    "sample",
    "target_metrics",
    "themselves",
    "train_step",
    "trained_groups",
    "trained_rows",
]

Scorer = Callable[[Batch, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(batch, wanted (B, T)) -> a model's log-probabilities and entropies (B, T) of the wanted tokens, 0.0 elsewhere."""


class Tally(Protocol):
    """Counts more than a step's own votes: `spinerl.memory.Memories`, `spinerl.views.Views`."""

    def vote(
        self,
        rollout: Rollout,
        fresh: Sequence[Vote],
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
    ) -> tuple[tuple[Vote, ...], dict[str, float]]:
        """(the votes that decide, their metrics).

        Args:
            fresh: a vote per question over its own responses.
            weights: what each response's vote weighs, question-major.
            sampled: the step at which the responses were sampled.
        """
        ...


@dataclass(frozen=True)
class StepState:
    """What one step hands to the next besides the weights: the moving band edges in nats (edges=ema only)."""

    band_edges: tuple[float, float] | None = None


def train_step(
    policy: LoadedModel,
    anchor: LoadedModel | None,
    optimizer: Optimizer,
    equivalence: Equivalence,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    step: int,
    state: StepState,
    on_tokens: OnTokens | None = None,
    oracle: Callable[[Sequence[Question], Sequence[Vote]], Rewards] | None = None,
    draw: Callable[[], tuple[Rollout, int]] | None = None,
    memory: Tally | None = None,
) -> tuple[StepRecord, StepState]:
    """Sample, vote, reward, select, update; the record of it and the state for the next step.

    Args:
        oracle: gives the rewards for reward=gold, which nothing here could: a step has no gold answers.
        draw: gives the responses, and how many steps ago they were sampled, where they are not sampled here
            (rollout.reuse, `spinerl.rounds`; vote.views, `spinerl.views`).
        memory: counts more than the step's own votes: earlier ones (vote.memory), or those on all views of a question
            together; it is changed.

    Raises NonFiniteError before the weights change if the loss or the gradient is not finite.
    """
    watch = _Stopwatch()
    over_limit = equivalence.stats["num_over_limit"]
    rollout, age = (sample(policy, questions, prompts, config, step, on_tokens), 0) if draw is None else draw()
    watch.lap("rollout")
    sampled = step - age  # what was decided of responses when they were sampled is decided so again
    fresh = votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed + sampled)
    remembered, void_frac = dict[str, float](), 0.0
    if memory is not None:
        votes, remembered = memory.vote(rollout, fresh, weigh_votes(rollout, config.vote.weights), sampled, equivalence)
    if oracle is not None:
        all_rewards = oracle(questions, votes)
    else:
        kinds = [config.answer.kind_of(question.answer_kind) for question in rollout.questions]
        votes, void_frac = void_shared(votes, rollout.questions, kinds, config.vote.max_shared, equivalence)
        all_rewards = give_rewards(RewardContext(config, sampled, policy, anchor, rollout, votes, equivalence))
    groups = trained_groups(rollout, config)
    rewards = tuple(all_rewards[i][: config.group_size] for i in groups)
    over_limit = equivalence.stats["num_over_limit"] - over_limit
    watch.lap("answers")
    batch, old_logprobs, entropies = _learned_rows(policy, rollout, config, age)
    counts = _question_weights(votes, rollout, groups, config)
    targets, state = freeze_targets(anchor, batch, rewards, old_logprobs, entropies, config, state, counts)
    targets, mismatch = correct_mismatch(targets, rollout, config)
    watch.lap("targets")
    updates = _updates(policy, anchor, optimizer, batch, targets, config, len(questions), on_policy=not age)
    watch.lap("update")
    metrics = {
        **rollout_metrics(rollout),
        **vote_metrics([fresh[i] for i in themselves(rollout)]),
        **remembered,
        **({"label/void_frac": void_frac} if void_frac else {}),
        **({"label/over_limit": float(over_limit)} if over_limit else {}),
        **target_metrics(rewards, batch, targets, entropies),
        **mismatch,
        **(calibration_metrics(targets, batch) if config.loss.form == "calibration" else {}),
        **_mean_over(updates),
        "optim/updates": float(len(updates)),
        **({} if draw is None or config.vote.views else {"rollout/age": float(age)}),
        **watch.figures(rollout),
    }
    if config.loss.form == "calibration":
        targets = shown_targets(targets, rollout, _trained(rollout, config))
    record = StepRecord(step, metrics, replace(rollout, activations=None), votes, rewards, targets, fresh)
    return (_without_views(record, groups) if config.vote.views else record), state


def _learned_rows(
    policy: LoadedModel, rollout: Rollout, config: Config, age: int
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """(batch, old log-probabilities, entropies) of what a step learns from, sampled `age` steps ago: responses, or with
    loss.form=calibration checks of them."""
    if config.loss.form == "calibration":
        batch = checked_rows(policy, rollout, _trained(rollout, config), config)
        return batch, *score_checks(policy, batch, config)
    batch, old_logprobs, entropies = trained_rows(rollout, config)
    if not age:
        old_logprobs = _rescored(policy, batch, old_logprobs, config, len(themselves(rollout)))
    return batch, old_logprobs, entropies


def _question_weights(
    votes: Sequence[Vote], rollout: Rollout, groups: Sequence[int], config: Config
) -> list[float] | None:
    """What each question or view that is trained on counts: by its vote, and with vote.pool=own only views; None: 1."""
    learned = [rollout.questions[i] for i in groups]
    counts = weigh_questions([votes[i] for i in groups], learned, config.advantage.question_weight)
    if config.vote.pool == "own":
        counts = [own * bool(one.view) for own, one in zip(counts or [1.0] * len(groups), learned, strict=True)]
    return counts


def _updates(
    policy: LoadedModel,
    anchor: LoadedModel | None,
    optimizer: Optimizer,
    batch: Batch,
    targets: Targets,
    config: Config,
    num_questions: int,
    on_policy: bool,
) -> list[dict[str, float]]:
    """All optimizer updates of a step, and what each saw; `on_policy`: the first has the weights that sampled."""
    # A question goes with its views, if each has as many.
    units = len(batch.tokens) // config.group_size if config.vote.pool == "own" else num_questions
    by_question = torch.arange(len(batch.tokens)).view(units, -1)
    minibatches = by_question.tensor_split(min(config.optim.minibatches, num_questions))
    updates: list[dict[str, float]] = []
    for _ in range(config.optim.epochs):
        for rows in minibatches:
            first = on_policy and not updates
            updates.append(update(policy, anchor, batch, targets, optimizer, config, rows.flatten(), on_policy=first))
            batch = replace(batch, activations=None)  # they were of the weights before
    optimizer.zero_grad()  # nothing reads gradients any more, and the next step samples first
    return updates


def sample(
    policy: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    step: int,
    on_tokens: OnTokens | None = None,
) -> Rollout:
    """Responses side by side, or as a tree; with certainties if something needs them."""
    seed = (config.seed, "train", step)
    certainties = "certainties" in asked_by(config.reward)
    if config.tree_bases:
        rollout = tree_responses(policy, questions, prompts, config, seed, on_tokens, certainties)
        return add_figures(policy, rollout, config)
    limits = None
    if cuts_short(config):
        limits = [min(config.forks.num_tokens, config.rollout.max_new_tokens)] * len(questions)
    rollout = sample_responses(
        policy,
        questions,
        prompts,
        config.num_votes,
        config.rollout,
        seed,
        on_tokens,
        certainties=certainties,
        limits=limits,
        keep_activations=not config.model.gradient_checkpointing and config.rollout.reuse == 1,
    )
    return add_figures(policy, rollout, config)


def cuts_short(config: Config) -> bool:
    """Whether only a response's first tokens are sampled, because nothing reads what comes after them (UPFT)."""
    return config.reward == "constant" and config.forks.selector == "first"


def needs_anchor(config: Config) -> bool:
    """Whether anything asks the initial model: otherwise no second copy is kept in memory."""
    if config.steps == 0:
        return False
    band = config.band.coefficient > 0 and config.band.edges == "initial"
    learns = config.anchor.weight > 0 or config.loss.form == "dpo"
    return learns or band or bool(asked_by(config.reward) & {"reference", "initial_embeddings"})


def count_votes(
    rollout: Rollout, answer: AnswerConfig, voting: VoteConfig, equivalence: Equivalence, seed: int
) -> tuple[Vote, ...]:
    """One vote per question over all of its responses; unparsable and (by default) truncated ones abstain."""
    n = rollout.num_responses
    weights = weigh_votes(rollout, voting.weights)
    unfinished = (~rollout.finished_mask).tolist()
    truncated = unfinished if answer.truncated == "abstain" else [False] * len(unfinished)
    return tuple(
        count_vote(
            rollout.texts[i * n : (i + 1) * n],
            truncated[i * n : (i + 1) * n],
            answer.kind_of(question.answer_kind),
            equivalence,
            choices=question.choices,
            in_thought=question.in_thought,
            letters=question.letters,
            **voting.rules,
            weights=weights[i * n : (i + 1) * n],
            seed=seed,
        )
        for i, question in enumerate(rollout.questions)
    )


def trained_rows(rollout: Rollout, config: Config) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """(batch, sampler's log-probabilities, entropies) of the first `group_size` responses to each question.

    The log-probabilities are of the full distribution or of the truncated one (rollout.scored), entropies of the full.
    Responses to a question are exchangeable draws, so the first are as good as any to train on; all have voted.
    """
    rows = _trained(rollout, config)
    prompts = tuple(rollout.prompts[row // rollout.num_responses] for row in rows.tolist())
    activations = None if rollout.activations is None else rollout.activations.of_rows(rows)
    batch = Batch(prompts, rollout.tokens[rows], rollout.mask[rows], config.rollout.temperature, activations)
    logprobs = rollout.sampled_logprobs if config.rollout.scored == "truncated" else rollout.logprobs
    return batch, logprobs[rows], rollout.entropies[rows]


def themselves(rollout: Rollout) -> list[int]:
    """The places of the questions of a rollout that are no view of another (vote.views)."""
    return [place for place, question in enumerate(rollout.questions) if not question.view]


def trained_groups(rollout: Rollout, config: Config) -> list[int]:
    """The places of the questions whose responses are trained on: all, or without vote.train_views those themselves."""
    return list(range(len(rollout.questions))) if config.vote.train_views else themselves(rollout)


def _trained(rollout: Rollout, config: Config) -> torch.Tensor:
    """Which rows of the rollout are trained on."""
    rows = torch.arange(len(rollout.tokens)).view(len(rollout.questions), rollout.num_responses)
    return rows[trained_groups(rollout, config), : config.group_size].flatten()


def _without_views(record: StepRecord, groups: Sequence[int]) -> StepRecord:
    """The record of the questions themselves, whatever else was asked; `groups` are the places trained on."""
    places = themselves(record.rollout)
    trained = [groups.index(place) for place in places]
    rollout = record.rollout.of_questions(places)
    rows = torch.arange(len(record.targets.advantages)).view(len(groups), -1)[trained].flatten()
    return replace(
        record,
        rollout=rollout,
        votes=tuple(record.votes[place] for place in places),
        rewards=tuple(record.rewards[place] for place in trained),
        fresh_votes=tuple(record.fresh_votes[place] for place in places),
        targets=record.targets.of_rows(rows, rollout.tokens.shape[1]),
    )


def _rescored(
    policy: LoadedModel, batch: Batch, old_logprobs: torch.Tensor, config: Config, num_questions: int
) -> torch.Tensor:
    """The sampler's log-probabilities, or those of a pass where several updates clip ratios of whole responses.

    Their edges are narrower than what sampling and teacher forcing may differ by in bfloat16.
    """
    num_updates = config.optim.epochs * min(config.optim.minibatches, num_questions)
    if config.loss.form != "sequence" or num_updates == 1:
        return old_logprobs
    truncate = truncation_of(config.rollout, policy) if config.rollout.scored == "truncated" else None
    logprobs, _, log_mass = score_with_mass(policy, batch, batch.mask, config.optim, truncate)
    return logprobs - log_mass


def freeze_targets(
    anchor: LoadedModel | Scorer | None,
    batch: Batch,
    rewards: Sequence[Sequence[float]],
    old_logprobs: torch.Tensor,
    entropies: torch.Tensor,
    config: Config,
    state: StepState,
    weights: Sequence[float] | None = None,
) -> tuple[Targets, StepState]:
    """All that the update needs and that carries no gradient.

    The sampler's log-probabilities are the old ones: they are of the same weights, so no second forward is run.
    `anchor` is the initial model, or a function that scores with it; `weights`, one per question, multiply its
    advantages.
    """
    advantages = _advantages(rewards, batch, entropies, config)
    if weights is not None:
        per_row = torch.tensor(weights, dtype=advantages.dtype).repeat_interleave(config.group_size)
        advantages = advantages * per_row.unsqueeze(1)
    forks = select_tokens(entropies, batch.mask, config.forks)
    # Fine-tuning is a mean over the responses kept: those that count for nothing have no weight either.
    policy_mask = forks & (advantages != 0) if config.loss.form in ("nll", "dpo") else forks

    anchor_mask = None
    if config.anchor.weight:
        anchor_mask = forks if config.anchor.scope == "forks" else batch.mask
    anchor_logprobs = anchor_entropies = None
    initial_edges = bool(config.band.coefficient) and config.band.edges == "initial"
    asks_anchor = anchor_mask is not None and config.anchor.estimator != "exact"
    if anchor is not None and (initial_edges or asks_anchor or config.loss.form == "dpo"):
        wanted = forks if anchor_mask is None else forks | anchor_mask
        ask = anchor if callable(anchor) else partial(score, anchor, optim=config.optim)
        anchor_logprobs, anchor_entropies = ask(batch, wanted)

    band_mask = low = high = None
    if config.band.coefficient:
        band_mask = forks
        source = anchor_entropies if config.band.edges == "initial" else entropies
        assert source is not None
        if config.band.edges == "median-mad":
            low, high = median_mad_edges(source, forks)
        else:
            low, high = band_edges(source, forks, config.band.low, config.band.high)
        if config.band.edges == "ema":
            present = forks.any(dim=1)
            now = (masked_mean(low, present), masked_mean(high, present))
            edges = blend_edges(state.band_edges, now, config.band.ema_decay)
            low, high = (torch.full_like(low, edge) for edge in edges)
            state = StepState(edges)
    targets = Targets(
        advantages=advantages,
        old_logprobs=old_logprobs,
        fork_mask=forks,
        policy_mask=policy_mask,
        anchor_mask=anchor_mask,
        anchor_logprobs=anchor_logprobs,
        band_mask=band_mask,
        band_low=low,
        band_high=high,
        entropy_mask=(forks if config.entropy.scope == "forks" else batch.mask) if config.entropy.weight else None,
    )
    return targets, state


def correct_mismatch(targets: Targets, rollout: Rollout, config: Config) -> tuple[Targets, dict[str, float]]:
    """Targets whose advantages make up for tokens that another engine sampled, and how far it disagreed.

    The policy term of every loss is proportional to the advantage, so weighing one weighs the other.
    """
    if rollout.sampler_logprobs is None:
        return targets, {}
    cap = config.rollout.importance_cap
    own = rollout.sampled_logprobs  # truncation is no disagreement
    figures = mismatch_figures(own, rollout.sampler_logprobs, rollout.mask, cap)
    rows = _trained(rollout, config)
    weights = importance_weights(own[rows], rollout.sampler_logprobs[rows], rollout.mask[rows], cap)
    corrected = replace(targets, advantages=targets.advantages * weights)
    return corrected, {f"mismatch/{name}": value for name, value in figures.items()}


def _advantages(
    rewards: Sequence[Sequence[float]], batch: Batch, entropies: torch.Tensor, config: Config
) -> torch.Tensor:
    """Advantages per token (B, T), float64, 0 on padding."""
    given = torch.tensor(rewards, dtype=torch.float64)
    keys = config.advantage
    if keys.credit == "prefix-tree":
        assert keys.scale in ("std", "none")  # others are refused by the configuration
        advantages = prefix_tree_advantages(given, batch.tokens, batch.mask, keys.scale, keys.eps)
    else:
        if keys.scale == "entropic":
            centred = entropic_advantages(given)
        elif keys.scale == "pass-k":
            centred = pass_k_advantages(given, keys.k, keys.eps)
        else:
            centre = batch_advantages if keys.scope == "batch" else group_advantages
            centred = centre(given, keys.scale, keys.eps)
        advantages = centred.view(-1, 1).expand(batch.mask.shape)
    if keys.entropy == "reshape":
        means = response_means(entropies, batch.mask).double().view(given.shape)
        bounds = (max(0.0, 1.0 - keys.entropy_range), 1.0 + keys.entropy_range) if keys.entropy_range else ()
        advantages = advantages * entropy_advantages(torch.ones_like(given), means, *bounds).view(-1, 1)
    if keys.bound:
        advantages = bounded_advantages(advantages, keys.bound)
    return advantages * batch.mask


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Figures of the sampled responses only: lengths in tokens, entropy in nats."""
    lengths = rollout.mask.sum(dim=1).double()
    return {
        "rollout/num_responses": float(len(lengths)),
        "rollout/num_tokens": float(lengths.sum()),
        "rollout/num_drawn": float(rollout.total_drawn),
        "rollout/response_length": float(lengths.mean()),
        "rollout/response_length_max": float(lengths.max()),
        "rollout/truncated_frac": float((~rollout.finished_mask).double().mean()),
        "rollout/entropy": masked_mean(rollout.entropies, rollout.mask),
        **({} if rollout.log_mass is None else {"rollout/truncated_mass": _truncated_mass(rollout)}),
    }


def _truncated_mass(rollout: Rollout) -> float:
    """The mean probability of tokens that could not be drawn (top-p, top-k, min-p)."""
    assert rollout.log_mass is not None
    return masked_mean(-torch.expm1(rollout.log_mass.double()), rollout.mask)


def target_metrics(
    rewards: Sequence[Sequence[float]], batch: Batch, targets: Targets, entropies: torch.Tensor
) -> dict[str, float]:
    """Figures of the rewards, the forks and the band."""
    given = torch.tensor(rewards, dtype=torch.float64)
    forks, followers = targets.fork_mask, batch.mask & ~targets.fork_mask
    figures = {
        "reward/mean": float(given.mean()),
        "reward/zero_variance_frac": float((given == given[:, :1]).all(dim=1).double().mean()),
        "fork/fraction": int(forks.sum()) / max(1, int(batch.mask.sum())),
        "fork/entropy": masked_mean(entropies, forks),
    }
    if followers.any():
        figures["fork/follower_entropy"] = masked_mean(entropies, followers)
    if targets.band_low is not None and targets.band_high is not None:
        low, high = targets.band_low.unsqueeze(1), targets.band_high.unsqueeze(1)
        present = forks.any(dim=1)
        figures["band/low"] = masked_mean(targets.band_low, present)
        figures["band/high"] = masked_mean(targets.band_high, present)
        figures["band/inside_frac"] = masked_mean(((entropies >= low) & (entropies <= high)).double(), forks)
    return figures


def _mean_over(updates: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over a step's optimizer updates."""
    listed = list(updates)
    return {key: sum(figures[key] for figures in listed) / len(listed) for key in listed[0]}


class _Stopwatch:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def figures(self, rollout: Rollout) -> dict[str, float]:
        total = self._last - self._start
        return {
            **{f"time/{name}_s": seconds for name, seconds in self._laps.items()},
            "time/step_s": total,
            "time/tokens_per_s": float(rollout.mask.sum()) / total,
            "time/rollout_tokens_per_s": rollout.total_drawn / self._laps["rollout"],
        }
