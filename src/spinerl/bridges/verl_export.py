"""What verl is given to run a recipe of ours: questions in its schema, settings of its own, and the command.

Nothing here imports verl, so that a job can be prepared where it is not installed; `spinerl.bridges.verl` is what
verl then loads.  Gold answers are never written.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spinerl.bridges.keys import Loop, check_keys, refuse
from spinerl.config import Config, PromptConfig, dump_yaml
from spinerl.data import chat_messages, load_data, render_all, render_text
from spinerl.errors import InputError
from spinerl.models.adapters import base_of
from spinerl.models.gguf import require_folder
from spinerl.models.loading import load_tokenizer, open_settings, resolve_name
from spinerl.schedule import question_order
from spinerl.templates import TemplateFaultError, apply_template
from spinerl.types import Question

__all__ = ["BRIDGE", "Exported", "Prompting", "check_config", "export", "no_reward", "overrides", "question_row"]

BRIDGE = "spinerl.bridges.verl"
"""The module that verl loads, by VERL_USE_EXTERNAL_MODULES."""

_LOOP = Loop(
    name="verl",
    top=("method", "seed", "steps", "questions_per_step", "group_size", "reward"),
    sections={
        **dict.fromkeys(("data", "prompt", "answer", "advantage", "forks", "loss"), "*"),
        **dict.fromkeys(("anchor", "band", "entropy", "checkpoint"), "*"),
        "vote": ("tie", "min_majority_frac", "min_margin", "weights"),
        "model": ("name", "dtype", "attention", "trust_remote_code", "gradient_checkpointing"),
        "rollout": ("sampler", "num_votes", "temperature", "top_p", "top_k", "max_new_tokens", "importance_cap"),
        "vllm": ("memory_frac", "max_mismatch"),
        "optim": (
            *("lr", "weight_decay", "beta1", "beta2", "eps", "warmup_steps", "schedule", "max_grad_norm"),
            *("epochs", "minibatches", "micro_batch_rows", "micro_batch_tokens"),
        ),
    },
    reasons={
        "": "it belongs to the native engine",
        "run": "--out names the folder",
        "eval": "nothing is evaluated there; afterwards: `spinerl eval MODEL CHECKPOINT/actor/huggingface data=DATA`",
        "guard": "that loop has no guard; leave it out or give guard=off",
        "stream": "that loop has no streams",
        "vote": "only `spinerl adapt` counts more than a step's own votes, and keeps them in checkpoints",
        "tree": "responses are sampled side by side there",
        "log": "verl has loggers of its own: trainer.logger, trainer.rollout_data_dir",
        "track": "verl has loggers of its own: trainer.logger",
        "rollout": "vLLM under verl samples the responses, and has no such setting",
        "optim": "it belongs to the native engine",
        "vllm": "verl has settings of its own for vLLM; append them to run.sh: actor_rollout_ref.rollout.KEY=VALUE",
        "model": "the model is opened by verl",
        "lora": "adapters are trained by `spinerl adapt`",
    },
)
_CHATML = ("qwen2", "qwen3", "qwen3_moe")
_VERBATIM = ("{{ messages[0]['content'] }}", "{{ bos_token }}{{ messages[0]['content'] }}")
"""Chat templates that say a text as it stands, since verl applies some template to every prompt."""
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, the command's arguments, and what there is to say about them."""

    folder: Path
    command: tuple[str, ...]
    num_questions: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prompting:
    """How verl comes to our prompts: messages per question, options of the template, and another template or None."""

    messages: tuple[tuple[dict[str, str], ...], ...]
    options: Mapping[str, Any]
    template: str | None


def no_reward(**_: Any) -> float:
    """0.0 for each response.  verl computes a reward of one response at a time, where no group can vote."""
    return 0.0


def check_config(config: Config) -> None:
    """InputError, naming the key, for what verl's loop would have to ignore (`spinerl.bridges.keys`)."""
    check_keys(config, _LOOP)
    optim, several = config.optim, config.optim.epochs * config.optim.minibatches > 1
    once = "with several updates a step (optim.epochs, optim.minibatches) it changes the learning rate once a step"
    refused = [
        (
            config.anchor.weight != 0 and config.anchor.estimator == "exact",
            "anchor.estimator=exact",
            "its reference model gives the tokens' log-probabilities only; allowed are k1, k2 and k3",
        ),
        (
            config.band.coefficient != 0 and config.band.edges == "initial",
            "band.edges=initial",
            "its reference model gives no entropies; allowed are current and ema",
        ),
        (several and optim.warmup_steps > 0, f"optim.warmup_steps={optim.warmup_steps}", once),
        (several and optim.schedule != "constant", f"optim.schedule={optim.schedule}", once),
    ]
    for holds, setting, reason in refused:
        if holds:
            raise refuse(_LOOP, setting, reason)


def export(config: Config, folder: Path, *, overwrite: bool = False) -> Exported:
    """Write questions.parquet, recipe.yaml and run.sh into the folder; what a whole job needs besides GPUs and verl.

    The parquet holds the questions of step 1, then those of step 2, and so on, as `spinerl adapt` would ask them.

    Raises InputError for what verl cannot honour, for a folder that is not empty (without `overwrite`), and where
    verl's tokenisation would not give our prompts.
    """
    check_config(config)
    folder = folder.absolute()
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not overwrite:
        raise InputError(f"--out {folder} exists and is not empty; give another folder, or --overwrite")
    if taken and not all((folder / name).is_file() for name in ("run.sh", "recipe.yaml")):
        raise InputError(
            f"--out {folder} holds no export (no run.sh and recipe.yaml), so --overwrite does not touch it"
        )
    name = resolve_name(config.model.name)
    if base_of(name) is not None:
        raise InputError(f"model={config.model.name} is a folder of adapters; `spinerl merge` makes it a whole model")
    require_folder(name, config.model.name, "verl")
    data, _ = load_data(config.data, answer_kind=config.answer.kind)
    tokenizer = load_tokenizer(config.model)
    architecture = open_settings(config.model)
    if hasattr(architecture, "vision_config") or any(question.images for question in data.questions):
        raise InputError("verl's loop is not given images here: `spinerl adapt` trains models that see them")
    rendered = render_all(data.questions, tokenizer, config.prompt, kind=config.answer.kind)
    questions, prompts = rendered.questions, rendered.prompts
    per_step = min(config.questions_per_step, len(questions))
    if per_step % config.optim.minibatches:
        raise refuse(
            _LOOP,
            f"optim.minibatches={config.optim.minibatches}",
            f"it must divide the {per_step} questions of a step (questions_per_step)",
        )
    prompting = _prompting(questions, prompts, tokenizer, config.prompt, config.answer.kind)

    guarded = config.guard.mode != "off"
    local = Path(name).exists()
    model = config.model.model_copy(update={"name": str(Path(name).absolute()) if local else name})
    guard = config.guard.model_copy(update={"mode": "off"})
    config = config.model_copy(update={"model": model, "guard": guard, "questions_per_step": per_step})
    settings = overrides(config, folder, prompting, max(map(len, prompts)))
    order = [
        index
        for step in range(1, config.steps + 1)
        for index in question_order(len(questions), per_step, step, config.data.order, config.seed)
    ]
    rows = [question_row(index, questions[index], prompting.messages[index]) for index in order]
    command = ("python", "-m", "verl.trainer.main_ppo", *settings)
    if taken:
        shutil.rmtree(folder)  # checkpoints too: verl would continue from them
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / "questions.parquet")
    (folder / "recipe.yaml").write_text(dump_yaml(config), encoding="utf-8")
    script = folder / "run.sh"
    script.write_text(_script(command), encoding="utf-8")
    script.chmod(0o755)
    skipped = {**data.skipped, "prompt too long": rendered.num_too_long}
    notes = [*data.notes, *(f"skipped {count} questions: {reason}" for reason, count in skipped.items() if count)]
    if guarded:
        notes.append("without a guard, which verl's loop does not have")
    if architecture.model_type in _CHATML and tokenizer.convert_tokens_to_ids("<|im_end|>") is None:
        notes.append("verl 0.9.1 does not sample this model: it looks for <|im_end|> in every Qwen model's tokenizer")
    if not local:
        notes.append(f"model={name} is fetched by verl, on every node")
    return Exported(folder, command, len(questions), tuple(notes))


def overrides(config: Config, folder: Path, prompting: Prompting, longest_prompt: int) -> tuple[str, ...]:
    """verl's settings for a configuration, as Hydra's overrides; a key that begins with + is new in verl's tree.

    `config.questions_per_step` must be what a step really takes.  The number of GPUs is not among them.

    Args:
        longest_prompt: in tokens.
    """
    optim, rollout = config.optim, config.rollout
    actor, sampler, data = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", str(folder / "questions.parquet")
    longest = longest_prompt + rollout.max_new_tokens
    settings: dict[str, Any] = {
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "spinerl",
        "+trainer.v1.spinerl.recipe": str(folder / "recipe.yaml"),
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES": BRIDGE,
        "data.train_files": [data],
        "data.val_files": [data],  # verl opens one in any case; it is not asked
        "data.train_batch_size": config.questions_per_step,
        "data.max_prompt_length": longest_prompt,
        "data.max_response_length": rollout.max_new_tokens,
        "data.shuffle": False,  # the file is in the order of the steps
        "data.seed": config.seed,
        "data.truncation": "error",
        "data.filter_overlong_prompts": False,
        "data.trust_remote_code": config.model.trust_remote_code,
        **{f"+data.apply_chat_template_kwargs.{key}": value for key, value in prompting.options.items()},
        "actor_rollout_ref.model.path": config.model.name,
        "actor_rollout_ref.model.trust_remote_code": config.model.trust_remote_code,
        "actor_rollout_ref.model.enable_gradient_checkpointing": config.model.gradient_checkpointing,
        **({} if prompting.template is None else {"actor_rollout_ref.model.custom_chat_template": prompting.template}),
        **_attention(config.model.attention),
        f"{actor}.strategy": "fsdp2",
        f"{actor}.policy_loss.loss_mode": "spinerl",
        f"{actor}.ppo_mini_batch_size": config.questions_per_step // optim.minibatches,
        f"{actor}.ppo_epochs": optim.epochs,
        f"{actor}.shuffle": False,
        f"{actor}.use_kl_loss": config.anchor.weight > 0,  # keeps a reference model; the term itself is ours
        f"{actor}.kl_loss_coef": 0.0,
        f"{actor}.entropy_coeff": 0.0,
        f"{actor}.use_dynamic_bsz": optim.micro_batch_rows == 0,
        **_micro_batches(optim.micro_batch_rows, max(optim.micro_batch_tokens, longest), config.anchor.weight > 0),
        f"{actor}.optim.optimizer": "AdamW",
        f"{actor}.optim.lr": optim.lr,
        f"{actor}.optim.weight_decay": optim.weight_decay,
        f"{actor}.optim.betas": [optim.beta1, optim.beta2],
        f"{actor}.optim.override_optimizer_config": {"eps": optim.eps},
        f"{actor}.optim.lr_warmup_steps": optim.warmup_steps,
        f"{actor}.optim.lr_scheduler_type": optim.schedule,
        f"{actor}.optim.clip_grad": optim.max_grad_norm or 1e30,  # verl would clip to 0 where we mean: not at all
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
        **_precision(config.model.dtype),
        f"{sampler}.name": "vllm",
        f"{sampler}.n": config.num_votes,
        f"{sampler}.temperature": rollout.temperature,
        f"{sampler}.top_p": rollout.top_p,
        f"{sampler}.top_k": rollout.top_k or -1,
        f"{sampler}.seed": config.seed,
        f"{sampler}.calculate_log_probs": True,
        f"{sampler}.tensor_model_parallel_size": 1,
        f"{sampler}.gpu_memory_utilization": config.vllm.memory_frac,
        "algorithm.adv_estimator": "grpo",  # without a critic; the advantages are ours
        "algorithm.use_kl_in_reward": False,
        "reward.custom_reward_function.path": "pkg://spinerl.bridges.verl_export",
        "reward.custom_reward_function.name": "no_reward",
        "trainer.total_training_steps": config.steps,
        "trainer.total_epochs": 1,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": config.checkpoint.every or config.steps,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep_meanwhile,
        "trainer.default_local_dir": str(folder / "checkpoints"),
        "trainer.project_name": "spinerl",
        "trainer.experiment_name": folder.name,
        "trainer.logger": ["console"],
    }
    return tuple(f"{key}={_hydra(value)}" for key, value in settings.items())


def question_row(index: int, question: Question, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A question in verl's schema.  Its ground truth is empty: nothing is scored there, and no gold is written."""
    return {
        "data_source": "spinerl",
        "prompt": [dict(message) for message in messages],
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {
            "index": index,
            "id": question.id,
            "answer_kind": question.answer_kind,
            "choices": list(question.choices),
        },
    }


_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("id", pa.string()),
                    ("answer_kind", pa.string()),
                    ("choices", pa.list_(pa.string())),
                ]
            ),
        ),
    ]
)


def _prompting(
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    tokenizer: Any,
    prompt: PromptConfig,
    kind: str,
) -> Prompting:
    """Messages from which verl's own tokenisation makes exactly these prompts, which is checked on every one."""
    if getattr(tokenizer, "chat_template", None) and prompt.chat_template != "off":
        forms = [
            Prompting(
                tuple(tuple(chat_messages(question, prompt, kind=kind)) for question in questions),
                prompt.template_options,
                None,
            )
        ]
    else:
        texts = [render_text(question, tokenizer, prompt, kind=kind) for question in questions]
        messages = tuple(({"role": "user", "content": text},) for text in texts)
        forms = [Prompting(messages, {}, template) for template in _VERBATIM]
    for form in forms:
        if all(_as_verl(form, index, tokenizer) == list(ids) for index, ids in enumerate(prompts)):
            return form
    raise InputError(
        "verl's tokenisation does not give these prompts: it renders the messages and tokenises the text without "
        "special tokens; see prompt.template_options, prompt.chat_template"
    )


def _as_verl(form: Prompting, index: int, tokenizer: Any) -> list[int] | None:
    """The ids that verl makes of a question's messages, by its way of using the chat template; None: it fails."""
    try:
        text = apply_template(tokenizer, form.messages[index], form.options, form.template)
    except TemplateFaultError:
        return None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _micro_batches(rows: int, tokens: int, anchored: bool) -> dict[str, Any]:
    if not rows:
        return {"actor_rollout_ref.actor.ppo_max_token_len_per_gpu": tokens}
    settings = {
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": rows,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": rows,
    }
    return settings | ({"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": rows} if anchored else {})


def _attention(name: str) -> dict[str, Any]:
    """verl's own choice is flash_attention_2 on rows packed into one; the others run padded rows."""
    if name == "auto":
        return {}
    settings: dict[str, Any] = {"+actor_rollout_ref.model.override_config.attn_implementation": name}
    return settings | ({} if name == "flash_attention_2" else {"actor_rollout_ref.model.use_remove_padding": False})


def _precision(dtype: str) -> dict[str, Any]:
    """verl keeps float32 weights and computes in bfloat16, unless it is configured otherwise."""
    if dtype != "float32":
        return {}
    wide = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    return {
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": wide,
        "+actor_rollout_ref.ref.fsdp_config.mixed_precision": wide,
        "actor_rollout_ref.rollout.dtype": "float32",
    }


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar.

    >>> [_hydra(v) for v in (True, None, 1e-6, "a b", [0.9, 1], {"eps": 1e-08})]
    ['true', 'null', '1e-06', '"a b"', '[0.9,1]', '{eps:1e-08}']
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra, value)) + "]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "null", "nan", "inf"):
        return text
    return '"' + re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + ("\\" + end[2] if end[2] else ""), text) + '"'


def _script(command: Sequence[str]) -> str:
    """A shell script: the command, the machines by two variables, and further arguments for verl after it."""
    lines = " \\\n  ".join(shlex.quote(arg) for arg in command[3:])
    return (
        "#!/bin/sh\n"
        "# Written by `spinerl export verl`.  GPUS per node and NODES of the Ray cluster; other arguments go to verl:\n"
        "#   GPUS=8 NODES=1 sh run.sh trainer.logger='[console,tensorboard]'\n"
        "set -e\n"
        f"export VERL_USE_EXTERNAL_MODULES={BRIDGE}\n"
        f"exec {' '.join(command[:3])} \\\n  {lines} \\\n"
        '  trainer.n_gpus_per_node="${GPUS:-8}" trainer.nnodes="${NODES:-1}" "$@"\n'
    )
