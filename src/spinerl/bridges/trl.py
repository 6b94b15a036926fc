"""SPINE and its family inside TRL's GRPOTrainer: several GPUs, sharded weights and vLLM servers come from there.

TRL keeps its loop: data loader, generation, accelerate, DDP, FSDP, DeepSpeed, checkpoints.  Votes, rewards, advantages,
forks, band, anchor and loss are ours, the very functions that `spinerl adapt` calls.

Every process holds the token ids of the whole rollout, never only its own share: the vote sees all of a group, a
threshold all of a step, and a term's weights sum to 1 over all processes and micro-batches of an optimizer update.
Processes share only the forward and backward passes.  They average gradients, so each one's loss is multiplied by
their number.

    torchrun --nproc_per_node 2 -m spinerl.bridges.trl RECIPE.yaml [KEY=VALUE]... [trl.ARGUMENT=VALUE]...
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from spinerl.answers import Equivalence, vote_metrics
from spinerl.bridges.keys import Loop, check_keys, refuse
from spinerl.config import TRL_NAMES, Config, allow_plugins, load_config, read_recipe, split_override
from spinerl.data import load_data, render_all, resolve
from spinerl.engine.forward import MicroBatch, micro_batch
from spinerl.engine.rollouts import rollout_of
from spinerl.engine.update import Terms, wanted_tokens, weigh_terms
from spinerl.errors import InputError, MissingExtraError, NonFiniteError, RunError, SpinerlError, did_you_mean
from spinerl.hooks import weigh_questions
from spinerl.lines import one_line
from spinerl.machine import choose_threads, set_threads, tune_allocator
from spinerl.maths import (
    exact_kl,
    log_distribution,
    masked_mean,
    response_means,
    token_figures,
)
from spinerl.models.adapters import base_of
from spinerl.models.gguf import require_folder
from spinerl.models.loading import held_weights, load_tokenizer, resolve_name
from spinerl.recipes import split_args
from spinerl.rewards import RewardContext, Rewards, asked_by, give_rewards
from spinerl.schedule import question_order
from spinerl.step import (
    StepState,
    count_votes,
    freeze_targets,
    rollout_metrics,
    target_metrics,
    trained_rows,
)
from spinerl.types import Batch, Question, Rollout, Targets, Vote

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

__all__ = ["SpineConfig", "SpineTrainer", "check_config", "deal_rows", "main", "micro_loss", "training_arguments"]

if importlib.util.find_spec("trl") is None:
    _missing = "trl is not installed: pip install 'spinerl[trl]'"
    if __name__ == "__main__":
        print(f"spinerl: {_missing}", file=sys.stderr)
        raise SystemExit(MissingExtraError.exit_code)
    raise MissingExtraError(_missing)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the peer's, about its own imports
    from accelerate.utils import broadcast_object_list, gather_object
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils.logging import disable_progress_bar
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

_LOOP = Loop(
    name="TRL",
    top=("method", "run", "seed", "steps", "questions_per_step", "group_size", "threads", "reward"),
    sections={
        **dict.fromkeys(("data", "prompt", "answer", "advantage", "forks", "loss"), "*"),
        **dict.fromkeys(("anchor", "band", "entropy", "checkpoint"), "*"),
        "vote": ("tie", "min_majority_frac", "min_margin", "weights"),
        "model": ("name", "revision", "dtype", "device", "attention", "trust_remote_code", "gradient_checkpointing"),
        "rollout": ("num_votes", "temperature", "top_p", "top_k", "min_p", "max_new_tokens"),
        "optim": (
            *("lr", "weight_decay", "beta1", "beta2", "eps", "warmup_steps", "schedule", "max_grad_norm"),
            *("epochs", "minibatches", "micro_batch_rows", "micro_batch_tokens"),
        ),
    },
    reasons={
        "eval": "this loop does not evaluate; afterwards: `spinerl eval MODEL RUN/model data=DATA`",
        "guard": "this loop has no guard; leave it out or give guard=off",
        "stream": "this loop has no streams",
        "vote": "only `spinerl adapt` counts more than a step's own votes, and keeps them in checkpoints",
        "tree": "TRL samples responses side by side",
        "log": "this loop writes metrics.jsonl only",
        "track": "TRL has trackers of its own: trl.report_to=wandb",
        "rollout": "TRL samples the responses, and has no such setting",
        "vllm": "TRL has arguments of its own for vLLM: trl.use_vllm=true, trl.vllm_mode=server, ...",
        "optim": "it belongs to the native engine",
        "model": "images are not shown to models here",
        "lora": "adapters are trained by `spinerl adapt`",
    },
)
# TRL's own arguments that may be given: those that choose machines, by how their names begin.
_ARGUMENTS = (
    *("use_vllm", "vllm_", "use_transformers_continuous", "transformers_continuous", "cache_implementation"),
    *("deepspeed", "ds3_", "fsdp", "ddp_", "gradient_checkpointing_kwargs", "cast_lm_head_to_fp32", "tf32"),
    *("report_to", "run_name", "logging_steps", "disable_tqdm", "save_only_model", "log_level"),
)


@dataclass
class SpineConfig(GRPOConfig):
    """TRL's arguments with a spinerl configuration next to them, as plain data; `training_arguments` makes both.

    What TRL would compute from its own arguments (rewards, advantages, loss) follows only `recipe`.
    """

    recipe: dict[str, Any] = field(default_factory=dict, metadata={"help": "the spinerl configuration"})

    @property
    def spine(self) -> Config:
        """The configuration; InputError if the recipe is none."""
        return load_config(self.recipe)


def check_config(config: Config) -> None:
    """InputError, naming the key, for what this loop would have to ignore (`spinerl.bridges.keys`)."""
    check_keys(config, _LOOP)
    if config.model.device not in ("auto", "cpu", "cuda"):
        raise refuse(
            _LOOP,
            f"model.device={config.model.device}",
            "the launcher gives each process its device; allowed are auto, cpu and cuda",
        )


def training_arguments(
    config: Config, *, num_questions: int, longest_prompt: int, num_processes: int | None = None, **trl: Any
) -> SpineConfig:
    """TRL's arguments for a configuration.

    Args:
        longest_prompt: in tokens; with `optim.micro_batch_tokens` it decides how many rows run at once.
        num_processes: None: what the launcher says.
        trl: further arguments of TRL's, those that choose machines and not the method.

    Raises InputError for what cannot be honoured, and for rows that cannot be shared out evenly.
    """
    check_config(config)
    _check_arguments(trl)
    on_cpu = config.model.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and trl.get("deepspeed"):
        raise InputError(
            f"trl.deepspeed={trl['deepspeed']} needs GPUs: on a CPU accelerate lets it use only one process"
        )
    if num_processes is None:
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_step = min(config.questions_per_step, num_questions)
    rows = per_step * config.num_votes
    parts = min(config.optim.minibatches, per_step)
    if rows % (num_processes * parts):
        raise InputError(
            f"questions_per_step={per_step} times {config.num_votes} responses (group_size or rollout.num_votes) is "
            f"{rows} rows, not a multiple of {num_processes} processes times optim.minibatches={parts}"
        )
    per_update = rows // (num_processes * parts)
    learned = -(-per_step // parts) * config.group_size  # rows of the largest update
    at_once = _rows_at_once(config, longest_prompt)
    micros = next(n for n in range(1, per_update + 1) if per_update % n == 0 and learned <= n * num_processes * at_once)
    num_updates = config.optim.epochs * parts
    needs_anchor = config.anchor.weight > 0 or (config.band.coefficient > 0 and config.band.edges == "initial")
    settings: dict[str, Any] = {
        "recipe": config.model_copy(update={"guard": config.guard.model_copy(update={"mode": "off"})}).model_dump(),
        "output_dir": str(_folder(config)),
        "seed": config.seed,
        "use_cpu": on_cpu,
        "bf16": config.model.dtype in ("bfloat16", "mixed") or (config.model.dtype == "auto" and not on_cpu),
        "model_init_kwargs": {
            "dtype": "float32",  # bfloat16 is what passes compute in; weights that learn stay wide
            "revision": config.model.revision or "main",
            "use_safetensors": True,
            **({} if config.model.attention == "auto" else {"attn_implementation": config.model.attention}),
        },
        "trust_remote_code": config.model.trust_remote_code,
        "disable_dropout": True,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "remove_unused_columns": False,
        "shuffle_dataset": False,
        "per_device_train_batch_size": per_update // micros,
        "gradient_accumulation_steps": micros,
        "steps_per_generation": micros * parts,
        "num_iterations": config.optim.epochs,
        "num_generations": config.num_votes,
        "max_completion_length": config.rollout.max_new_tokens,
        "temperature": config.rollout.temperature,
        "top_p": config.rollout.top_p,
        "top_k": config.rollout.top_k,
        "min_p": config.rollout.min_p or None,
        "beta": (config.anchor.weight or 1.0) if needs_anchor else 0.0,  # TRL keeps a reference model if it is not 0
        "vllm_importance_sampling_correction": False,
        **_optimizer_arguments(config),
        "max_steps": config.steps * num_updates,
        "save_strategy": "steps" if config.checkpoint.every else "no",
        "save_steps": max(1, config.checkpoint.every * num_updates),
        "save_total_limit": config.checkpoint.keep_meanwhile,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer's, about its own arguments
        return SpineConfig(**{**settings, **trl})


def _optimizer_arguments(config: Config) -> dict[str, Any]:
    optim = config.optim
    return {
        "optim": "adamw_torch",
        "learning_rate": optim.lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_epsilon": optim.eps,
        "max_grad_norm": optim.max_grad_norm,
        "lr_scheduler_type": "cosine" if optim.schedule == "cosine" else "constant_with_warmup",
        "warmup_steps": optim.warmup_steps,
    }


class SpineTrainer(GRPOTrainer):
    """TRL's trainer with our votes, rewards, advantages, selection and loss.

    Args:
        model: a name, a folder or a model.
        args: of `training_arguments`.
        questions, prompts: what is asked, and its token ids, one tuple per question.
        processing_class: the tokenizer.
        others: TRL's further arguments (callbacks, optimizers, ...).

    >>> trainer = SpineTrainer.of(load_config(overrides=["steps=3", "run=runs/three"]))  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    _name = "SPINE"
    _tag_names: ClassVar[list[str]] = ["spinerl"]

    def __init__(
        self,
        model: Any,
        args: SpineConfig,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        processing_class: PreTrainedTokenizerBase,
        **others: Any,
    ) -> None:
        self.config = args.spine
        check_config(self.config)
        if any(question.images for question in questions):
            raise InputError("these questions show images, which TRL's loop is not given; `spinerl adapt` shows them")
        self._questions, self._prompts = tuple(questions), tuple(prompts)
        per_step = min(self.config.questions_per_step, len(self._questions))
        order = [
            place
            for step in range(1, self.config.steps + 1)
            for place in question_order(len(self._questions), per_step, step, self.config.data.order, self.config.seed)
        ]
        texts = [processing_class.decode(list(prompt)) for prompt in self._prompts]
        super().__init__(
            model=model,
            reward_funcs=_no_reward,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": texts[place], "place": place} for place in order]),
            processing_class=processing_class,
            **others,
        )
        if hasattr(cast(Any, self.model).config, "vision_config"):
            raise InputError(
                f"model={self.config.model.name} sees images, which TRL's loop is not given; use spinerl adapt"
            )
        assert args.steps_per_generation is not None
        self._num_micros = args.gradient_accumulation_steps
        self._rollout_micros = args.steps_per_generation * args.num_iterations
        rows = args.per_device_train_batch_size * args.steps_per_generation * self.accelerator.num_processes
        if rows != per_step * self.config.num_votes:
            raise RunError(
                f"the rows of a step were shared out among another number of processes than the "
                f"{self.accelerator.num_processes} that run; launch with torchrun, and look at the line each prints"
            )
        if self.ref_model is not None and self.config.band.edges == "initial":  # the edges are of its entropies
            add_fused_lm_head(
                self.accelerator.unwrap_model(self.ref_model),
                temperature=args.temperature,
                cast_lm_head_to_fp32=args.cast_lm_head_to_fp32,
                outputs=("log_probs", "entropy"),
            )
        longest = max(len(prompt) for prompt in self._prompts)
        self._at_once = _rows_at_once(self.config, longest)
        self._equivalence = Equivalence()
        self._reads_tokens = bool(asked_by(self.config.reward) & {"entropies", "logprobs"})
        self._state = StepState()
        self._learned: _Learned | None = None
        self.notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config, *, trl: Mapping[str, Any] | None = None, **others: Any) -> SpineTrainer:
        """A trainer for a configuration: questions read, prompts rendered, model opened.  Gold answers are not kept."""
        config = resolve(config)
        check_config(config)
        _check_arguments(trl or {})
        folder = resolve_name(config.model.name)
        if base_of(folder) is not None:
            raise InputError(
                f"model={config.model.name} is a folder of adapters; `spinerl merge` makes it a whole model"
            )
        require_folder(folder, config.model.name, "TRL")
        held_weights(config.model)  # TRL opens the model by itself
        data, _ = load_data(config.data, answer_kind=config.answer.kind)
        tokenizer = load_tokenizer(config.model)
        rendered = render_all(data.questions, tokenizer, config.prompt, kind=config.answer.kind)
        questions, prompts = rendered.questions, rendered.prompts
        args = training_arguments(
            config, num_questions=len(questions), longest_prompt=max(map(len, prompts)), **(trl or {})
        )
        trainer = cls(folder, args, questions, prompts, tokenizer, **others)
        skipped = {**data.skipped, "prompt too long": rendered.num_too_long}
        said = (f"skipped {count} questions: {reason}" for reason, count in skipped.items() if count)
        trainer.notes = (*data.notes, *said)
        if config.guard.mode != "off":
            trainer.notes += ("without a guard, which TRL's loop does not have",)
        return trainer

    # What TRL calls.

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All of them: the native optimizer decays every weight alike."""
        return [name for name, _ in model.named_parameters()]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """This process's share of the next micro-batch; samples and scores a new rollout when the last is used up."""
        if not cast(Any, self.model).training:
            raise InputError("this trainer does not evaluate; afterwards: `spinerl eval MODEL RUN/model data=DATA`")
        micros = self._num_micros
        index = self._step % self._rollout_micros
        if self._learned is None or index == 0:
            self._learned = self._roll_out(generation_batch)
        number, micro = divmod(index, micros)
        if micro == 0 or self._learned.terms is None:
            self._begin_update(self._learned, number)
        return {"rows": self._learned.shares[micro], "last": micro == micros - 1}

    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of the whole update's loss that these rows have, times the number of processes."""
        del return_outputs, num_items_in_batch
        learned = self._learned
        assert learned is not None
        assert learned.terms is not None
        loss = micro_loss(
            model,
            learned.terms,
            learned.batch,
            learned.wanted,
            inputs["rows"],
            anchor=self.ref_model,
            pad_id=self._pad_id,
            whole=self._whole,
            autocast=lambda: self.accelerator.autocast(),
        )
        if inputs["last"]:
            self._end_update(learned.terms)
        return loss * self.accelerator.num_processes

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The prompts as we rendered them: a text need not give the same tokens again."""
        assert len(prompts) == len(self._asked)
        return [list(self._prompts[place]) for place in self._asked], None, {}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: TRL's would say that it was GRPO."""

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise NonFiniteError(
                f"the gradient norm is {float(norm)}: stopped before the update; lower optim.lr (now "
                f"{self.config.optim.lr:g}) or use model.dtype=float32"
            )
        return norm

    # A step.

    def _roll_out(self, rows: Sequence[Mapping[str, Any]]) -> _Learned:
        """Sample this process's rows, gather everyone's, vote, reward and freeze the targets of the whole step."""
        config = self.config
        self._asked = [int(row["place"]) for row in rows]
        tokens = self._generate([row["prompt"] for row in rows])[1]
        mine = list(zip(self._asked, tokens, strict=True))
        rollout = self._rollout_of(gather_object(mine))
        if config.num_votes == config.group_size or config.vote.weights != "equal" or self._reads_tokens:
            rollout = replace(rollout, **self._figures_of(rollout))
            batch, old_logprobs, entropies = trained_rows(rollout, config)
        else:  # the figures of those that only vote are not used
            batch, *_ = trained_rows(rollout, config)
            old_logprobs, entropies = self._score(self.model, batch, batch.mask)
        step = self.state.global_step * self._num_micros // self._rollout_micros + 1
        votes, rewards = self._judge(rollout, step)
        targets, self._state = freeze_targets(
            self._score_anchor,
            batch,
            rewards,
            old_logprobs,
            entropies,
            config,
            self._state,
            weigh_questions(votes, rollout.questions, config.advantage.question_weight),
        )
        self._note(
            {
                **rollout_metrics(rollout),
                "rollout/entropy": masked_mean(entropies, batch.mask),
                **vote_metrics(votes),
                **target_metrics(rewards, batch, targets, entropies),
            }
        )
        groups = torch.arange(len(batch.tokens)).view(len(votes), -1)
        minibatches = groups.tensor_split(min(config.optim.minibatches, len(votes)))
        return _Learned(batch, targets, tuple(rows.flatten() for rows in minibatches))

    def _rollout_of(self, sampled: Sequence[tuple[int, list[int]]]) -> Rollout:
        """All processes' responses as one record; log-probabilities and entropies are not known yet."""
        n = self.config.num_votes
        places = [place for place, _ in sampled[::n]]
        if [place for place, _ in sampled] != [place for place in places for _ in range(n)]:
            raise RunError("the responses to a question do not lie together across processes")
        responses = [ids for _, ids in sampled]
        return rollout_of(
            [self._questions[place] for place in places],
            [self._prompts[place] for place in places],
            n,
            responses,
            [bool(ids) and ids[-1] in self.eos_token_ids for ids in responses],
            self._tokenizer,
            self._pad_id,
        )

    def _figures_of(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        prompts = tuple(rollout.prompts[row // rollout.num_responses] for row in range(len(rollout.tokens)))
        batch = Batch(prompts, rollout.tokens, rollout.mask, self.config.rollout.temperature)
        logprobs, entropies = self._score(self.model, batch, batch.mask)
        return {"logprobs": logprobs, "entropies": entropies}

    def _judge(self, rollout: Rollout, step: int) -> tuple[tuple[Vote, ...], Rewards]:
        """Votes and rewards: the first process finds them and sends them to the others, as comparing answers has time
        limits that processes may reach at different points."""
        config = self.config
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            votes = count_votes(rollout, config.answer, config.vote, self._equivalence, seed=config.seed + step)
            no_model = cast(Any, None)  # no reward allowed here uses a model
            context = RewardContext(config, step, no_model, None, rollout, votes, self._equivalence)
            found = [(votes, tuple(rewards[: config.group_size] for rewards in give_rewards(context)))]
        broadcast_object_list(found)
        return found[0]

    def _begin_update(self, learned: _Learned, number: int) -> None:
        """Fix the weights of the update's terms, and share its rows out."""
        config, batch, targets = self.config, learned.batch, learned.targets
        rows = learned.minibatches[number % len(learned.minibatches)]
        chosen = torch.zeros(len(batch.tokens), 1, dtype=torch.bool)
        chosen[rows] = True
        weights = weigh_terms(targets, batch.mask, chosen, config)
        log_ratios = None
        if config.loss.form == "sequence":
            log_ratios = torch.zeros(len(batch.tokens))
            if number:  # the weights are no longer those that sampled
                selected = targets.policy_mask & chosen
                now, _ = self._score(self.model, batch, selected)
                log_ratios = response_means((now - targets.old_logprobs) * chosen, selected)
        learned.terms = Terms(config, batch, targets, weights, log_ratios)
        learned.wanted = wanted_tokens(targets, weights)
        shares = deal_rows(rows, batch, self.accelerator.num_processes, self._num_micros)
        learned.shares = shares[self.accelerator.process_index]

    def _end_update(self, terms: Terms) -> None:
        """Note what the update saw, over all processes; NonFiniteError on all of them before the weights change."""
        figures = terms.figures()
        names = sorted(figures.keys() - {"loss/log_ratio_max"})
        device = self.accelerator.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        sums = self._summed(torch.tensor([figures[name] for name in names], dtype=wide, device=device)).tolist()
        largest = gather_object([figures["loss/log_ratio_max"]])
        figures = dict(zip(names, sums, strict=True)) | {"loss/log_ratio_max": max(largest)}
        if not math.isfinite(figures["loss/total"]):
            raise NonFiniteError(
                f"the loss is {figures['loss/total']}: stopped before the update; lower optim.lr (now "
                f"{self.config.optim.lr:g}) or use model.dtype=float32"
            )
        self._note(figures)

    @torch.no_grad()
    def _score(self, model: Any, batch: Batch, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probabilities, entropies) of the wanted tokens (B, T), on the CPU; the processes share the passes."""
        num_processes = self.accelerator.num_processes
        most = -(-len(batch.tokens) // num_processes)
        rows = torch.arange(len(batch.tokens))
        shares = deal_rows(rows, batch, num_processes, -(-most // self._at_once))
        shape, device = batch.tokens.shape, self.accelerator.device
        dtype = torch.float64 if self._weights_type == torch.float64 else torch.float32
        logprobs, entropies = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        for share in shares[self.accelerator.process_index]:
            micro, real = _micro_of(batch, wanted, share, self._pad_id)
            with self.accelerator.autocast():
                found, entropy, _ = _run(model, batch, micro, device, self._whole)
            if real:
                cell = (micro.row_of, micro.column_of)
                logprobs[cell] = found.to(dtype)
                if entropy is not None:  # TRL's reference model gives none, and none is asked of it
                    entropies[cell] = entropy.to(dtype)
        return self._summed(logprobs).cpu(), self._summed(entropies).cpu()

    def _score_anchor(self, batch: Batch, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._score(self.ref_model, batch, wanted)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.accelerator.reduce(values, "sum"))

    def _note(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._metrics["train"][name].append(value)

    @property
    def _pad_id(self) -> int:
        return cast(int, self._tokenizer.pad_token_id)

    @property
    def _weights_type(self) -> torch.dtype:
        return next(self.accelerator.unwrap_model(self.model).parameters()).dtype

    @property
    def _whole(self) -> bool:
        """Whether whole distributions are computed: TRL's fused head gives two figures of each, in float32."""
        exact = self.config.anchor.weight > 0 and self.config.anchor.estimator == "exact"
        return exact or self._weights_type == torch.float64


@dataclass
class _Learned:
    """What is learned from a rollout: all of its trained rows, and of the update at hand its terms and this process's
    rows, micro-batch by micro-batch."""

    batch: Batch
    targets: Targets
    minibatches: tuple[torch.Tensor, ...]
    terms: Terms | None = None
    wanted: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    shares: Sequence[torch.Tensor] = ()


def deal_rows(rows: torch.Tensor, batch: Batch, num_processes: int, num_parts: int) -> list[list[torch.Tensor]]:
    """The rows of each process in each of its micro-batches: rows of like length run at the same time.

    Every process has as many micro-batches, some maybe empty, as sharded weights demand: a pass takes all processes.

    >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]) > 0
    >>> batch = Batch(((1,),) * 4, torch.zeros(4, 3), mask, 1.0)
    >>> [[part.tolist() for part in own] for own in deal_rows(torch.arange(4), batch, 2, 2)]
    [[[1], [2]], [[3], [0]]]
    """
    prompts = torch.tensor([len(batch.prompts[row]) for row in rows.tolist()])
    order = rows[(batch.mask[rows].sum(dim=1) + prompts).argsort(stable=True)]
    parts = order.tensor_split(num_parts)
    return [[part[rank::num_processes] for part in parts] for rank in range(num_processes)]


def micro_loss(
    model: Any,
    terms: Terms,
    batch: Batch,
    wanted: torch.Tensor,
    rows: torch.Tensor,
    *,
    anchor: Any = None,
    pad_id: int = 0,
    whole: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """The share of an update's loss that these rows have, ready to go backward; it may be 0, but has its gradient.

    The model, wrapped or not, has TRL's fused head.  Over all processes and micro-batches the shares add up to the
    loss.

    Args:
        wanted: (B, T) of `wanted_tokens`.
        rows: an index into the batch, possibly empty.
        anchor: the initial model, for an exact KL.
        whole: compute whole distributions.
    """
    device = next(model.parameters()).device
    micro, real = _micro_of(batch, wanted, rows, pad_id)
    with autocast():
        logprobs, entropies, logits = _run(model, batch, micro, device, whole)
    reference = None
    if terms.wants_anchor_logits:
        with torch.no_grad(), autocast():
            reference = _run(anchor, batch, micro, device, True)[2]
    assert entropies is not None
    if not real:  # it takes part in the passes, which sharded weights ask of all processes, and adds nothing
        return (logprobs.sum() + entropies.sum()) * 0.0
    kl = None
    if reference is not None:
        assert logits is not None
        kl = exact_kl(log_distribution(logits, batch.temperature), reference, batch.temperature)
    return terms.loss_of(logprobs, entropies, kl, micro.row_of, micro.column_of)


def _run(
    model: Any, batch: Batch, micro: MicroBatch, device: torch.device, whole: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(log-probabilities, entropies, logits) at a micro-batch's wanted tokens; logits only if `whole`.

    One call of the model, through whatever wraps it.
    """
    ids, positions = micro.input_ids.to(device), micro.positions.to(device)
    tokens = batch.tokens[micro.row_of, micro.column_of].to(device)
    if whole:
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[positions]
        return *token_figures(logits, tokens, batch.temperature), logits
    labels = torch.full_like(ids, -100)  # the token after each position; -100: no need of it
    labels.view(-1)[positions] = tokens
    outputs = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    entropies = None if outputs.entropy is None else outputs.entropy.flatten()[positions]
    return outputs.log_probs.flatten()[positions], entropies, None


def _micro_of(batch: Batch, wanted: torch.Tensor, rows: torch.Tensor, pad_id: int) -> tuple[MicroBatch, bool]:
    """These rows' wanted tokens, ready for a pass; without any, the batch's first token, and False."""
    columns = torch.arange(wanted.shape[1])
    last = torch.where(wanted[rows], columns, -1).amax(dim=1).tolist()
    ends = {row: end for row, end in zip(rows.tolist(), last, strict=True) if end >= 0}
    if ends:
        return micro_batch(batch, wanted, list(ends), ends, pad_id), True
    first = torch.zeros_like(wanted)
    first[0, 0] = True
    return micro_batch(batch, first, [0], {0: 0}, pad_id), False


def _no_reward(**_: Any) -> list[float | None]:
    """TRL needs a reward function, and here would call it with only one process's rows."""
    raise RunError("rewards are given by the whole group's vote, not by a function of one process's responses")


def _rows_at_once(config: Config, longest_prompt: int) -> int:
    """Rows of a forward and backward on one process."""
    longest = longest_prompt + config.rollout.max_new_tokens
    return config.optim.micro_batch_rows or max(1, config.optim.micro_batch_tokens // longest)


def _check_arguments(trl: Mapping[str, Any]) -> None:
    """InputError for an argument of TRL's that a key of ours stands for, or that would change the method."""
    known = {argument.name for argument in fields(GRPOConfig)}
    for name in trl:
        if name not in known:
            raise InputError(f"trl.{name} is no argument of TRL's{did_you_mean(name, known)}")
        if name in TRL_NAMES:
            raise InputError(f"trl.{name} is set by {TRL_NAMES[name]}: give that")
        if not name.startswith(_ARGUMENTS) or "importance_sampling" in name:
            raise InputError(f"trl.{name} cannot be given: what is learned, and from what, follows only spinerl's keys")


def _folder(config: Config) -> Path:
    return config.run_folder if config.run is not None else config.run_folder.with_name(config.run_folder.name + "-trl")


def _parse(args: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration of `[--allow-plugins] [RECIPE] [KEY=VALUE]...`, and TRL's own arguments (`trl.ARGUMENT=VALUE`,
    or a section `trl` of the recipe)."""
    allowed = "--allow-plugins" in args
    file, rest = split_args([one for one in args if one != "--allow-plugins"])
    recipe = read_recipe(file) if file else {}
    trl = recipe.pop("trl", None) or {}
    if not isinstance(trl, dict):
        raise InputError("the recipe's section trl must hold `argument: value` lines")
    for one in [one for one in rest if one.startswith("trl.")]:
        rest.remove(one)
        name, trl[name] = split_override(one.removeprefix("trl."))
    return allow_plugins(load_config(recipe, rest, file=file), allowed), trl


def _say(line: str) -> None:
    """Print it in one write: torchrun's processes share a terminal and keep no buffers, so parts would mix."""
    print(f"{line}\n", end="", flush=True)


class _Lines(TrainerCallback):
    """A line per optimizer update, in metrics.jsonl and on the terminal, from the first process."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero or not logs or "loss/total" not in logs:
            return
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"update": state.global_step, **logs}) + "\n")
        shown = {
            "majority": "label/majority_frac",
            "reward": "reward/mean",
            "entropy": "rollout/entropy",
            "length": "rollout/response_length",
            "loss": "loss/total",
            "gradient": "grad_norm",
        }
        known = [f"{label} {float(logs[name]):.4g}" for label, name in shown.items() if logs.get(name) is not None]
        _say(f"update {state.global_step}/{state.max_steps}  " + "  ".join(known))


def main(args: Sequence[str] | None = None) -> None:
    """`python -m spinerl.bridges.trl`, by itself or under torchrun or accelerate: every error of ours is one line."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        accelerator = _run_from(list(sys.argv[1:] if args is None else args), rank)
    except SpinerlError as error:
        if rank == 0 or not isinstance(error, InputError):  # what is refused, every process refuses
            print(f"spinerl: {one_line(str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    # What wraps the model must go before the process group it holds: as the group's last owner it would wait, holding
    # the interpreter's lock, for a thread of gloo's that needs the lock.
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()


def _run_from(args: Sequence[str], rank: int) -> Accelerator:
    config, trl = _parse(args)
    check_config(config)
    _check_arguments(trl)
    folder = _folder(config)
    if rank == 0 and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"run={folder} exists and is not empty; give another run=FOLDER")
    tune_allocator()
    disable_progress_bar()
    if config.threads:
        set_threads(config.threads)
    trainer = SpineTrainer.of(config, trl=trl, callbacks=[_Lines(folder / "metrics.jsonl")])
    trainer.remove_callback(PrinterCallback)
    accelerator = trainer.accelerator
    if not config.threads and accelerator.device.type == "cpu" and accelerator.num_processes == 1:
        model = cast(Any, trainer.model)
        choose_threads(model, model.config.vocab_size)
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    _say(f"spinerl: process {rank + 1} of {accelerator.num_processes} on {device}")
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for line in trainer.notes:
            _say(f"spinerl: {line}")
    trainer.train()
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")  # else the shards are all that is saved
    trainer.save_model(str(folder / "model"))
    if rank == 0:
        names = f"{config.model.name} {folder / 'model'} data={config.data.name}"
        _say(f"spinerl: saved {folder / 'model'}; to compare: spinerl eval {names}")
    return accelerator


if __name__ == "__main__":
    main()
