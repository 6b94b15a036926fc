"""Layers of configuration, merged and checked: defaults, a model's profile, a method, a recipe, the command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spinerl.config.checks import checks
from spinerl.config.keys import PLUGIN_KEYS, Config, ModelConfig, describe_keys, value_of
from spinerl.config.texts import HEADLINE, parse_override
from spinerl.errors import InputError, did_you_mean, short
from spinerl.methods import ALIASES, LOSSES, METHODS
from spinerl.recipes import read_recipe

__all__ = [
    "PROFILES",
    "RENAMED",
    "SWITCHES",
    "TRL_NAMES",
    "allow_plugins",
    "expand_layer",
    "explain_value",
    "layer_value",
    "load_config",
    "named_by_file",
    "named_code",
    "profile_of",
    "sets_key",
]

_MAX_NUMBER = 2**63 - 1

# Old keys, read for one release: under which name, and, of switches, which part of the engine they switched off.
RENAMED = {
    "loss.normaliser": "loss.normalizer",
    "rollout.engine": "rollout.sampler",
    "rollout.max_cache_tokens": "engine.kv_cache_tokens",
}
SWITCHES = {
    "rollout.share_prompts": "shared-prefix",
    "optim.share_prompts": "shared-prefix",
    "model.share_images": "shared-images",
    "rollout.compact": "compact",
    "rollout.refill": "refill",
    "optim.trim": "trim",
    "optim.skip": "skip",
    "optim.sort": "sort",
    "optim.fast_products": "onednn",
    "rollout.pack_weights": "packed-weights",
    "rollout.compiled": "compiled",
    "optim.compiled": "compiled",
    "optim.replay": "activation-reuse",
}

# Names that TRL has for what these keys set.
TRL_NAMES = {
    "learning_rate": "optim.lr",
    "max_steps": "steps",
    "num_generations": "rollout.num_votes or group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "temperature": "rollout.temperature",
    "num_iterations": "optim.epochs",
    "steps_per_generation": "optim.minibatches",
    "per_device_train_batch_size": "optim.micro_batch_rows",
    "gradient_accumulation_steps": "optim.micro_batch_rows",
    "beta": "anchor.weight",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "loss_type": "loss",
    "scale_rewards": "advantage.scale",
    "top_entropy_quantile": "forks.fraction",
    "entropy_coef": "entropy.weight",
    "output_dir": "run",
    "seed": "seed",
    "bf16": "model.dtype",
    "use_cpu": "model.device",
}
_RUN_NAMES = ("out", "out_dir", "output", "run_dir", "run_folder")

# What a bundled model needs besides the defaults, which suit models a thousand times its size.
# Chosen on tiny/shift-dev and tiny-vqa/shift-dev (docs/experiments.md).  A model adapted from one keeps its profile: it
# is named by `spinerl_profile` in the model's config.json, or by the model's name.
PROFILES: dict[str, dict[str, Any]] = {
    "tiny-reasoner": {
        "prompt": {"instruction": ""},
        "steps": 40,
        "questions_per_step": 16,
        "group_size": 16,
        "rollout": {"max_new_tokens": 128},
        "optim": {"lr": 5e-4},
    },
    "tiny-vlm": {
        "data": {"name": "tiny-vqa/shift-a"},
        "prompt": {"instruction": ""},
        "steps": 40,
        "questions_per_step": 16,
        "group_size": 16,
        "rollout": {"max_new_tokens": 96},
        "optim": {"lr": 2e-4},
    },
}


def load_config(
    recipe: Mapping[str, Any] | Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    file: Path | str | None = None,
) -> Config:
    """The resolved configuration of a recipe (a YAML file, a mapping, or nothing) and `key=value` overrides.

    No code that it names is run.  What a file names, and no override, does not run later either without a word of the
    user's: see `allow_plugins`.  `file` is where a mapping was read from, if it was; one made in Python has none.

    Raises InputError naming the key, its value and what is allowed; unknown keys with "did you mean".

    >>> load_config(overrides=["method=ttrl", "data.columns.question=problem"]).forks.selector
    'all'
    """
    if not isinstance(recipe, Mapping):
        file, recipe = (recipe, read_recipe(recipe)) if recipe else (None, {})
    disabled: list[str] = []
    from_recipe = _renamed(expand_layer(recipe), disabled)
    from_overrides: dict[str, Any] = {}
    for one in overrides:
        from_overrides = _merge(from_overrides, _renamed(expand_layer(parse_override(one)), disabled))
    given = _merge(from_recipe, from_overrides)
    method = given.get("method", Config.model_fields["method"].default)
    if isinstance(method, str) and method in ALIASES:
        method = from_overrides["method"] = ALIASES[method]
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(
            f"method={short(method)} is not a method{did_you_mean(method, METHODS)}; allowed: {', '.join(METHODS)}"
        )
    model = given.get("model", {})
    model_name = model.get("name", ModelConfig.model_fields["name"].default) if isinstance(model, dict) else None
    layers = [METHODS[method].sets, from_recipe]
    if from_recipe.get("method", method) != method:  # it was written for another method
        layers.reverse()
    layers = [PROFILES.get(profile_of(str(model_name)), {}), *layers, from_overrides]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    merged = _merge(_implied(merged), merged)
    engine = merged.get("engine")
    listed = (engine.get("disable") if isinstance(engine, Mapping) else None) or []
    if disabled and isinstance(engine, Mapping | None) and isinstance(listed, list):
        merged = _merge(merged, {"engine": {"disable": [*listed, *(part for part in disabled if part not in listed)]}})
    config = _validate(merged)
    if file is not None:
        config = named_by_file(config, file, from_overrides)
    return config


def _implied(given: Mapping[str, Any]) -> dict[str, Any]:
    """What other keys make the default of a key: with labels that hold, a learning rate that falls (docs/memory.md).

    Not in a stream, whose last questions are to teach as much as its first.
    """
    vote, stream = (one if isinstance(one := given.get(name), Mapping) else {} for name in ("vote", "stream"))
    if vote.get("memory", "off") in ("off", False) or stream.get("on", False):
        return {}
    return {"optim": {"schedule": "cosine"}}


def named_code(config: Config) -> dict[str, str]:
    """What a configuration names of code that is not spinerl's, by key: plug-ins, a model's own code, vLLM's options.

    >>> named_code(load_config(overrides=["reward=mine:cautious"]))
    {'reward': 'mine:cautious'}
    """
    code = {key: name for key in PLUGIN_KEYS for name in _as_list(value_of(config, key)) if ":" in name}
    if config.model.trust_remote_code:
        code["model.trust_remote_code"] = "true"
    # Numbers are settings; texts may name classes, by whatever key vLLM has for them.
    if any(not isinstance(value, int | float | None) or "code" in key for key, value in config.vllm.options.items()):
        code["vllm.options"] = short(config.vllm.options)
    return code


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def named_by_file(config: Config, file: Path | str, *words: Mapping[str, Any]) -> Config:
    """The configuration, remembering that `file` names its code, but for what one of the layers `words` has just so."""
    marked = config.model_copy()
    typed = {key for key in named_code(config) for layer in words if layer_value(layer, key) == value_of(config, key)}
    marked._code_from = {key: str(file) for key in named_code(config) if key not in typed}
    return marked


def allow_plugins(config: Config, allowed: bool = True) -> Config:
    """The configuration with leave to run the code that its files name (`--allow-plugins`): the reader trusts them."""
    marked = config.model_copy()
    marked._code_allowed = allowed
    return marked


_MISSING = object()


def layer_value(layer: Mapping[str, Any], key: str) -> Any:
    """What a nested layer gives to a dotted key; `_MISSING` for nothing."""
    value: Any = layer
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def sets_key(layer: Mapping[str, Any], key: str) -> bool:
    """Whether a nested layer gives a value to a dotted key."""
    return layer_value(layer, key) is not _MISSING


def profile_of(model_name: str, depth: int = 8) -> str:
    """The name of a model's profile: the one its folder's config.json gives, else the model's own name.

    A folder of adapters has the profile of the model they belong to, which may have adapters itself, so many deep.
    """
    if not depth:
        return model_name
    for folder in (Path(model_name), Path(model_name) / "model"):
        try:
            base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
            return profile_of(base, depth - 1) if isinstance(base, str) else model_name
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        try:
            profile = json.loads((folder / "config.json").read_text(encoding="utf-8"))["spinerl_profile"]
            return profile if isinstance(profile, str) else model_name
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return model_name


def expand_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The layer with `model: X`, `data: X` and `loss: X` written out; InputError for an unknown loss."""
    expanded: dict[str, Any] = {}
    for key, value in layer.items():
        if key == "loss" and not isinstance(value, Mapping):
            if not isinstance(value, str) or value not in LOSSES:
                raise InputError(
                    f"loss={short(value)} is not a loss{did_you_mean(value, LOSSES)}; allowed: {', '.join(LOSSES)}"
                )
            expanded = _merge(expanded, LOSSES[value].sets)
        elif key in HEADLINE and not isinstance(value, Mapping):
            expanded = _merge(expanded, {key: {HEADLINE[key]: value}})
        else:
            expanded = _merge(expanded, {key: value})
    return expanded


def _renamed(layer: dict[str, Any], disabled: list[str]) -> dict[str, Any]:
    """The layer under today's names of keys, with one line of notice for old ones.

    Parts of the engine that old switches turn off are added to `disabled`.
    """
    notes = []
    for old in (*RENAMED, *SWITCHES):
        section, _, name = old.partition(".")
        own = layer.get(section)
        if not isinstance(own, Mapping) or name not in own:
            continue
        value = own[name]
        layer = {**layer, section: {key: other for key, other in own.items() if key != name}}
        if old in RENAMED:
            notes.append(f"{old} is called {RENAMED[old]}")
            section, _, name = RENAMED[old].partition(".")
            layer = _merge({section: {name: value}}, layer)  # where both are given, the new name wins
        elif not isinstance(value, bool):
            raise InputError(f"{old}={value!r}: it was true or false, and is engine.disable=[{SWITCHES[old]}] now")
        elif not value:
            notes.append(f"{old}=false is engine.disable=[{SWITCHES[old]}]")
            disabled.append(SWITCHES[old])
    guard, vote = layer.get("guard"), layer.get("vote")
    if isinstance(guard, Mapping) and "tolerance" in guard and guard["tolerance"] is None:
        remembers = isinstance(vote, Mapping) and vote.get("memory") not in (None, False, "off")
        layer = {**layer, "guard": {**guard, "tolerance": 0.05 if remembers else 0.0}}
        notes.append(f"guard.tolerance=null is {layer['guard']['tolerance']:g}")
    if notes:
        logging.getLogger("spinerl.config").warning("old keys, read until the next release: %s", "; ".join(notes))
    return layer


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` merged into `base`, section by section; neither is changed."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _validate(merged: Mapping[str, Any]) -> Config:
    _check_numbers(merged)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise InputError("; ".join(_explain(item) for item in error.errors()[:3])) from None
    for holds, message in checks(config):
        if not holds:
            raise InputError(message)
    return config


def _check_numbers(value: Any, key: str = "") -> None:
    """InputError for a whole number that no library below could hold."""
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise InputError(f"{key}={short(value)}: a whole number is at most {_MAX_NUMBER}")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, below in items:
        _check_numbers(below, f"{key}.{name}" if key else str(name))


def _explain(item: Any) -> str:
    """One line for one pydantic error: key, value, what is allowed."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        keys = [name for name, *_ in describe_keys(unlisted=True)]
        sections = {name.rsplit(".", 1)[0] for name in keys if "." in name}
        parent, _, last = key.rpartition(".")
        siblings = [name for name in [*keys, *sections] if name.rpartition(".")[0] == parent]
        known = {**TRL_NAMES, **dict.fromkeys(_RUN_NAMES, "run")}.get(key, "").replace(" or ", '" or "')
        near = f' (did you mean "{known}"?)' if known else ""
        near = near or did_you_mean(last, [name.rpartition(".")[2] for name in siblings])
        if not near:
            near = did_you_mean(key, keys) or did_you_mean(f"x.{last}", [f"x.{k.rpartition('.')[2]}" for k in keys])
            near = near.replace('"x.', '"')
        return f"unknown key {short(key, bare=True)}{near}; `spinerl config --keys` lists them all"
    return explain_value(item)


def explain_value(item: Any) -> str:
    """One line for one pydantic error about a value: key, value, what is allowed."""
    key = ".".join(str(part) for part in item["loc"])
    shown = "a mapping" if isinstance(item["input"], Mapping) else short(item["input"])
    return f"{key}={shown}: {item['msg'][0].lower()}{item['msg'][1:]}"
