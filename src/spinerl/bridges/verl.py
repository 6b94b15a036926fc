"""SPINE and its family inside verl 0.9: a Ray cluster samples with vLLM and learns with FSDP.

verl keeps its loop: data loader, rollout servers, sharded actors, reference model, checkpoints.  Votes, rewards,
advantages, forks, band, anchor and loss are ours, the very functions that `spinerl adapt` calls.

`VERL_USE_EXTERNAL_MODULES=spinerl.bridges.verl` makes verl load this file, which registers a trainer and a policy loss
under the name spinerl.  The trainer holds a whole step's responses, so that the vote sees all of a group and a
threshold all of a step; there it freezes the targets and each term's weights, token by token, as further columns of the
step's data.  The actors need but the columns of their own rows: their loss is `sum(weights * per_token)`, whatever the
number of GPUs and of micro-batches.  verl averages gradients over data-parallel ranks, so each one's loss is multiplied
by their number.

`spinerl export verl RECIPE.yaml --out FOLDER` writes the questions and the command (`spinerl.bridges.verl_export`).
"""

# pyright: reportMissingImports=false
# (verl has an environment of its own)

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from spinerl.answers import Equivalence, vote_metrics
from spinerl.bridges.verl_export import check_config
from spinerl.config import Config, allow_plugins, load_config
from spinerl.engine.rollouts import padded, rollout_of
from spinerl.engine.update import Terms, wanted_tokens, weigh_terms
from spinerl.errors import InputError, MissingExtraError, NonFiniteError, RunError
from spinerl.hooks import weigh_questions
from spinerl.maths import masked_mean, response_means
from spinerl.rewards import RewardContext, give_rewards
from spinerl.step import (
    StepState,
    correct_mismatch,
    count_votes,
    freeze_targets,
    rollout_metrics,
    target_metrics,
    trained_rows,
)
from spinerl.types import Batch, Question, Rollout, Targets

__all__ = [
    "COLUMNS",
    "Frozen",
    "Sample",
    "SpineTrainer",
    "check_settings",
    "freeze_step",
    "policy_loss",
    "samples_of",
    "share_rows",
    "spine_loss",
]

for _package in ("verl", "transfer_queue"):
    if importlib.util.find_spec(_package) is None:
        raise MissingExtraError(f"{_package} is not installed: docs/scaling.md (verl) has the commands")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the peer's, about its own imports
    import transfer_queue
    from omegaconf import OmegaConf, open_dict
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import register_policy_loss
    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
    from verl.utils.metric import AggregationType, Metric, reduce_metrics
    from verl.utils.model import get_generation_config
    from verl.workers.utils.padding import no_padding_2_padding

_NAME = "spinerl"
_READ = ("prompts", "responses", "old_log_probs", "entropy", "ref_log_prob", "rollout_log_probs")
_TERMS = ("policy", "anchor", "band", "entropy")
COLUMNS = ("advantages", "returns", *(f"spinerl_{name}" for name in _TERMS), "spinerl_low", "spinerl_high")
"""What the trainer adds to each response's data, a number per token: advantages, each term's weights (0 where it
does not act), and the band's edges in nats.  Terms that are off have no column.  `returns` are for verl's records."""


@dataclass(frozen=True)
class Sample:
    """One response as verl hands it over: its question, its index in the group, and a number per token.

    `anchor_logprobs` are there with a reference model, `sampler_logprobs` where the sampler's account is used.
    """

    key: str
    question: Question
    index: int
    group: str
    number: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    old_logprobs: Sequence[float]
    entropies: Sequence[float]
    anchor_logprobs: Sequence[float] | None = None
    sampler_logprobs: Sequence[float] | None = None


@dataclass(frozen=True)
class Frozen:
    """A step's targets: per key the columns of its response; the keys of each optimizer update; figures; state."""

    columns: Mapping[str, Mapping[str, torch.Tensor]]
    updates: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, float]
    state: StepState


def _groups(samples: Sequence[Sample], config: Config) -> list[Sequence[Sample]]:
    """The samples of each question; RunError where their numbers are not those of a step."""
    n = config.num_votes
    groups = [samples[first : first + n] for first in range(0, len(samples), n)]
    if any(len(own) != n or len({sample.group for sample in own}) != 1 for own in groups):
        sizes: dict[str, int] = {}
        for sample in samples:
            sizes[sample.group] = sizes.get(sample.group, 0) + 1
        wrong = sorted({size for size in sizes.values() if size != n})
        raise RunError(f"a question has {wrong} responses where {n} are to vote: some failed in verl's rollout")
    if len(groups) != config.questions_per_step:
        raise RunError(
            f"verl gave {len(groups)} questions where a step has questions_per_step={config.questions_per_step}"
        )
    return groups


def _rollout(
    samples: Sequence[Sample],
    groups: Sequence[Sequence[Sample]],
    config: Config,
    tokenizer: Any,
    end_ids: Sequence[int],
) -> Rollout:
    """The samples as one rollout, with the actor's log-probabilities and entropies."""
    rollout = rollout_of(
        [own[0].question for own in groups],
        [own[0].prompt for own in groups],
        config.num_votes,
        [sample.response for sample in samples],
        [bool(sample.response) and sample.response[-1] in end_ids for sample in samples],
        tokenizer,
        0,
    )
    rollout = replace(
        rollout,
        logprobs=padded([sample.old_logprobs for sample in samples], 0.0, torch.float32),
        entropies=padded([sample.entropies for sample in samples], 0.0, torch.float32),
        sampler_logprobs=_table([sample.sampler_logprobs for sample in samples]),
    )
    return replace(rollout, log_mass=_truncation_at_most(rollout, config))


def freeze_step(
    samples: Sequence[Sample],
    config: Config,
    tokenizer: Any,
    end_ids: Sequence[int],
    equivalence: Equivalence,
    step: int,
    state: StepState,
) -> Frozen:
    """Vote, reward, and freeze the targets of a whole step; the order of the samples does not matter.

    Responses that only vote have columns of zeros and belong to no update.

    Raises RunError where a group has not as many responses as vote, the step not as many groups as it should, or
    another sampler's account is too far from the actor's (rollout.sampler=vllm).
    """
    samples = sorted(samples, key=lambda sample: (sample.index, sample.group, sample.number))
    groups = _groups(samples, config)
    rollout = _rollout(samples, groups, config, tokenizer, end_ids)
    votes = count_votes(rollout, config.answer, config.vote, equivalence, seed=config.seed + step)
    no_model = cast(Any, None)  # no reward allowed here uses a model
    context = RewardContext(config, step, no_model, None, rollout, votes, equivalence)
    rewards = tuple(own[: config.group_size] for own in give_rewards(context))
    batch, old_logprobs, entropies = trained_rows(rollout, config)
    learned = [sample for own in groups for sample in own[: config.group_size]]
    scorer = None
    if config.anchor.weight:
        anchor_logprobs = _table([sample.anchor_logprobs for sample in samples])
        if anchor_logprobs is None:
            raise RunError("anchor.weight is set, but verl ran no reference model: export the recipe again")
        _, anchor_logprobs, _ = trained_rows(replace(rollout, logprobs=anchor_logprobs), config)
        scorer = partial(_looked_up, anchor_logprobs)
    of_questions = weigh_questions(votes, rollout.questions, config.advantage.question_weight)
    targets, state = freeze_targets(scorer, batch, rewards, old_logprobs, entropies, config, state, of_questions)
    targets, mismatch = correct_mismatch(targets, rollout, config)
    difference, most = mismatch.get("mismatch/logprob_diff", 0.0), config.vllm.max_mismatch
    if not difference <= most:
        raise RunError(
            f"the sampler's log-probabilities differ from the actor's by {difference:.3f} nats on average (allowed: "
            f"vllm.max_mismatch={most:g}): it does not sample from the weights that learn"
        )

    rows = torch.arange(len(learned)).view(len(groups), -1).tensor_split(config.optim.minibatches)
    weights: dict[str, torch.Tensor] = {}
    for own in rows:  # each row is in one update, whose weights are its own
        chosen = torch.zeros(len(learned), 1, dtype=torch.bool)
        chosen[own.flatten()] = True
        for name, table in weigh_terms(targets, batch.mask, chosen, config).items():
            weights[name] = weights.get(name, torch.zeros_like(table)) + table
    tables = _tables(targets, weights, batch)
    columns = {
        sample.key: {name: table[row, : len(sample.response)] for name, table in tables.items()}
        for row, sample in enumerate(learned)
    }
    for sample in samples:
        if sample.key not in columns:
            columns[sample.key] = {name: torch.zeros(len(sample.response)) for name in tables}
    metrics = {
        **rollout_metrics(rollout),
        "rollout/entropy": masked_mean(entropies, batch.mask),
        **vote_metrics(votes),
        **target_metrics(rewards, batch, targets, entropies),
        **mismatch,
    }
    updates = tuple(tuple(learned[row].key for row in own.flatten().tolist()) for own in rows)
    return Frozen(columns, updates, metrics, state)


def _truncation_at_most(rollout: Rollout, config: Config) -> torch.Tensor | None:
    """As much of the two accounts' difference as truncation can explain, as `Rollout.log_mass`; None without any.

    verl's actor gives log-probabilities of the full distribution and vLLM those of the truncated one, log pi - log S
    with log top_p <= log S <= 0; top-k has no lower bound.  Whole distributions, which would tell S, are not there.
    """
    keys = config.rollout
    if rollout.sampler_logprobs is None or (keys.top_p == 1.0 and not keys.top_k):
        return None
    least = -math.inf if keys.top_k else math.log(keys.top_p)
    return (rollout.logprobs - rollout.sampler_logprobs).clamp(least, 0.0)


def share_rows(updates: Sequence[Sequence[str]], lengths: Mapping[str, int], num_ranks: int) -> list[str]:
    """The keys in the order in which verl cuts them up: rank by rank, and each rank's share update by update.

    Ranks have rows of like length: updates of a, b and c, d, as long as they stand, give two ranks a, c and b, d.

    Raises RunError where an update's rows cannot be shared out evenly.
    """
    for keys in updates:
        if len(keys) % num_ranks:
            raise RunError(
                f"an update has {len(keys)} responses, not a multiple of {num_ranks} data-parallel ranks: change "
                "questions_per_step, group_size, optim.minibatches or the number of GPUs"
            )
    ordered = [sorted(keys, key=lambda key: lengths[key]) for keys in updates]
    return [key for rank in range(num_ranks) for keys in ordered for key in keys[rank::num_ranks]]


def spine_loss(
    model_output: Mapping[str, Any], data: TensorDict, dp_group: Any = None, *, config: Config
) -> tuple[torch.Tensor, dict[str, Metric]]:
    """The share of an update's loss that a micro-batch of verl's actor has, times the number of data-parallel ranks.

    It stands in for verl's `ppo_loss`, which has no way to the entropies' gradient outside its own entropy bonus, nor
    to columns of ours.  It is a sum and not a mean: micro-batches add up, and verl divides nothing by their number.

    Args:
        model_output: nested tensors over prompts and responses: log_probs, and entropy where a term needs it.
        data: rows with `COLUMNS`, old_log_probs and, for the anchor, ref_log_prob.

    Raises NonFiniteError if the loss is not finite.
    """
    del dp_group
    logprobs = _wide(no_padding_2_padding(model_output["log_probs"], data))
    entropy = model_output.get("entropy")
    if entropy is None and any(f"spinerl_{name}" in data for name in ("band", "entropy")):
        raise RunError("verl's actor gave no entropies, which the band and the entropy term need")
    entropies = torch.zeros_like(logprobs) if entropy is None else _wide(no_padding_2_padding(entropy, data))
    names = [name for name in (*COLUMNS, "old_log_probs", "ref_log_prob") if name in data]
    tables = {name: data[name].to_padded_tensor(0.0) for name in names}
    weights = {name: tables[f"spinerl_{name}"] for name in _TERMS if f"spinerl_{name}" in tables}
    masks = {name: table > 0 for name, table in weights.items()}
    low, high = tables.get("spinerl_low"), tables.get("spinerl_high")
    targets = Targets(
        advantages=tables["advantages"],
        old_logprobs=tables["old_log_probs"],
        fork_mask=masks["policy"],
        policy_mask=masks["policy"],
        anchor_mask=masks.get("anchor"),
        anchor_logprobs=tables.get("ref_log_prob"),
        band_mask=masks.get("band"),
        band_low=None if low is None else low.amax(dim=1),  # the same at all of a response's tokens
        band_high=None if high is None else high.amax(dim=1),
        entropy_mask=masks.get("entropy"),
    )
    log_ratios = None
    if config.loss.form == "sequence":  # whole responses lie in a micro-batch
        log_ratios = response_means((logprobs.detach() - targets.old_logprobs) * masks["policy"], masks["policy"])
    batch = Batch((), masks["policy"], masks["policy"], config.rollout.temperature)
    terms = Terms(config, batch, targets, weights, log_ratios)
    row_of, column_of = wanted_tokens(targets, weights).nonzero(as_tuple=True)
    if len(row_of):
        cell = (row_of, column_of)
        loss = terms.loss_of(logprobs[cell], entropies[cell], None, row_of, column_of)
    else:  # nothing to learn from: sharded weights ask for the backward pass all the same
        loss = (logprobs.sum() + entropies.sum()) * 0.0
    figures = terms.figures()
    if not torch.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {figures['loss/total']}: stopped before the update; lower optim.lr (now {config.optim.lr:g}) "
            "or use model.dtype=float32"
        )
    num_ranks = int(data["dp_size"])
    metrics = {  # verl sums over micro-batches and averages over ranks
        name: Metric(AggregationType.MAX, value)
        if name.endswith("_max")
        else Metric(AggregationType.SUM, value * num_ranks)
        for name, value in figures.items()
    }
    return loss * num_ranks, metrics


@register_policy_loss(_NAME)
def policy_loss(**_: Any) -> Any:
    """RunError: verl's own way of calling a policy loss hands it neither entropies nor the step's columns.

    Chosen by actor.policy_loss.loss_mode=spinerl, so that an actor which was not given `spine_loss` stops, where else
    it would train something else.
    """
    raise RunError(
        "actor.policy_loss.loss_mode=spinerl needs trainer.v1.trainer_mode=spinerl, whose trainer gives the actors the "
        "whole loss; `spinerl export verl` sets both"
    )


@register_trainer(_NAME)
class SpineTrainer(PPOTrainerSync):
    """verl's synchronous trainer with our votes, rewards, advantages, selection and loss.

    The recipe is the file that `trainer.v1.spinerl.recipe` names.
    """

    def __init__(self, config: Any) -> None:
        file = OmegaConf.select(config, "trainer.v1.spinerl.recipe")
        if not file:
            raise InputError("trainer.v1.spinerl.recipe is not given: `spinerl export verl RECIPE.yaml --out FOLDER`")
        self.spine = allow_plugins(load_config(Path(file)))  # the export asked before it wrote the job, code as it is
        check_config(self.spine)
        check_settings(config, self.spine)
        self._equivalence = Equivalence()
        self._state = StepState()
        self._frozen: Frozen | None = None
        with open_dict(
            config
        ):  # verl checks in several places whether the mode is its synchronous one, and this one is
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def _setup(self) -> None:
        super()._setup()
        self.actor_rollout_wg.set_loss_fn(partial(spine_loss, config=self.spine))

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model = self.config.actor_rollout_ref.model
        listed = getattr(get_generation_config(model.path, model.trust_remote_code), "eos_token_id", None)
        ids = [*(listed if isinstance(listed, list | tuple) else [listed]), self.tokenizer.eos_token_id]
        self._end_ids = tuple(int(i) for i in ids if i is not None)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Freeze the step's targets and put their columns next to the responses."""
        unread = set() if self.spine.rollout.sampler == "vllm" else {"rollout_log_probs"}  # the sampler's account
        names = ["uid", "extra_info", "response_mask", *(name for name in _READ if name not in unread)]
        data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        padding = [bool(tag.get("is_padding")) for tag in batch.tags]
        if any(padding):
            raise RunError(
                f"verl filled the step up with {sum(padding)} empty responses, since what it sampled cannot be shared "
                "out evenly: change questions_per_step, group_size or the number of GPUs"
            )
        samples = samples_of(batch.keys, data)
        frozen = freeze_step(
            samples, self.spine, self.tokenizer, self._end_ids, self._equivalence, self.global_steps, self._state
        )
        columns = {
            name: torch.nested.as_nested_tensor([frozen.columns[key][name] for key in batch.keys], layout=torch.jagged)
            for name in frozen.columns[batch.keys[0]]
        }
        transfer_queue.kv_batch_put(
            keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(columns, batch_size=len(batch))
        )
        metrics.update(frozen.metrics)
        self._frozen, self._state = frozen, frozen.state
        return batch

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """The step's optimizer updates, each on the rows its weights were made for."""
        frozen = self._frozen
        assert frozen is not None
        lengths = {key: tag["seq_len"] for key, tag in zip(batch.keys, batch.tags, strict=True)}
        num_ranks = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1  # as the trainer's own balancing computes it
        learned = batch.select_keys(share_rows(frozen.updates, lengths, num_ranks))
        rows = len(learned) // len(frozen.updates)
        learned.extra_info.update(
            calculate_entropy=self.spine.band.coefficient != 0 or self.spine.entropy.weight != 0,
            compute_loss=True,
            global_batch_size=rows,
            mini_batch_size=rows,
            epochs=self.spine.optim.epochs,
            seed=self.spine.seed,
            dataloader_kwargs={"shuffle": False},
            temperature=self.spine.rollout.temperature,
        )
        output = self.actor_rollout_wg.update_actor(learned)
        figures = {f"actor/{name}": value for name, value in output["metrics"].items()}
        figures["perf/mfu/actor"] = figures.pop("actor/mfu", 0.0)  # the name under which verl keeps it
        metrics.update(reduce_metrics(figures))
        return batch


def check_settings(settings: Any, config: Config) -> None:
    """InputError where verl's tree of settings contradicts the recipe: one was changed after the export."""
    actor, sampler = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    wanted = {
        f"{actor}.policy_loss.loss_mode": [_NAME],
        f"{actor}.strategy": ["fsdp", "fsdp2"],
        f"{actor}.use_kl_loss": [config.anchor.weight > 0],
        f"{actor}.ppo_mini_batch_size": [config.questions_per_step // config.optim.minibatches],
        f"{sampler}.n": [config.num_votes],
        f"{sampler}.temperature": [config.rollout.temperature],
        f"{sampler}.response_length": [config.rollout.max_new_tokens],
        "data.train_batch_size": [config.questions_per_step],
        "data.shuffle": [False],
        "algorithm.use_kl_in_reward": [False],
        "algorithm.filter_groups.enable": [False],
        "algorithm.rollout_correction.bypass_mode": [False],
        "actor_rollout_ref.model.lora_rank": [0],
        "actor_rollout_ref.model.lora.rank": [0],
        "distillation.enabled": [False],
        **({f"{sampler}.calculate_log_probs": [True]} if config.rollout.sampler == "vllm" else {}),
    }
    for key, allowed in wanted.items():
        value = OmegaConf.select(settings, key)
        if value not in allowed:
            choices = " or ".join(map(str, allowed))
            raise InputError(f"{key}={value} contradicts the recipe, which needs {choices}: export it again")


def samples_of(keys: Sequence[str], data: Any) -> list[Sample]:
    """The responses of a step as records, from verl's columns (nested tensors and lists, in the order of the keys).

    Raises RunError for conversations of several turns, and for questions that no export wrote.
    """
    if not bool(data["response_mask"].values().all()):
        raise RunError("a response holds tokens that the model did not say; only single turns are learned from here")
    known = {name: [row.tolist() for row in data[name].unbind()] for name in _READ if name in data}
    samples = []
    for row, (key, group, info) in enumerate(zip(keys, list(data["uid"]), list(data["extra_info"]), strict=True)):
        _, number, part = key.rsplit("_", 2)  # verl's keys: question, response, part of a conversation
        if part != "0":
            raise RunError(f"response {key} has several parts; only single turns are learned from here")
        info = getattr(info, "data", info)
        try:
            question = Question(info["id"], "", choices=tuple(info["choices"] or ()), answer_kind=info["answer_kind"])
            index = int(info["index"])
        except (KeyError, TypeError):
            raise RunError("a question lacks id, choices, answer_kind or index: use the file of an export") from None
        here: dict[str, Any] = {name: rows[row] for name, rows in known.items()}
        samples.append(
            Sample(
                key,
                question,
                index,
                str(group),
                int(number),
                tuple(here["prompts"]),
                tuple(here["responses"]),
                here["old_log_probs"],
                here["entropy"],
                here.get("ref_log_prob"),
                here.get("rollout_log_probs"),
            )
        )
    return samples


def _tables(targets: Targets, weights: Mapping[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
    """`COLUMNS` of all trained rows (B, T), float32."""
    tables = {"advantages": targets.advantages, "returns": targets.advantages}
    tables |= {f"spinerl_{name}": table for name, table in weights.items()}
    if targets.band_low is not None and targets.band_high is not None:
        for name, edges in (("low", targets.band_low), ("high", targets.band_high)):
            tables[f"spinerl_{name}"] = edges.unsqueeze(1).expand(batch.mask.shape)
    return {name: table.float() for name, table in tables.items()}


def _table(rows: Sequence[Sequence[float] | None]) -> torch.Tensor | None:
    """(B, T) float32, or None if some row is missing."""
    known = [row for row in rows if row is not None]
    return padded(known, 0.0, torch.float32) if len(known) == len(rows) else None


def _looked_up(logprobs: torch.Tensor, batch: Batch, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference model's figures, which verl has computed already; nothing allowed here uses its entropies."""
    del batch
    return logprobs * wanted, torch.zeros_like(logprobs)


def _wide(table: torch.Tensor) -> torch.Tensor:
    return table.to(torch.promote_types(table.dtype, torch.float32))
