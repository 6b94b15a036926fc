"""Low-rank adapters (LoRA) through peft: the model's own weights rest, and the model without adapters is the anchor."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from spinerl.config import LoraConfig
from spinerl.errors import InputError, MissingExtraError, did_you_mean, reason_of
from spinerl.models.weights import PICKLES, find_file, listed, not_finite, read_json, read_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "adapted_weight",
    "adapted_weights",
    "adapter_folder",
    "add_adapters",
    "base_of",
    "has_plain_adapters",
    "learned_nothing",
    "merged",
    "require_peft",
    "save_adapters",
]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_adapters(model: PreTrainedModel, lora: LoraConfig, seed: int, *, train_vision: bool = False) -> None:
    """Give the model adapters that learn, and keep everything else from learning.

    The model computes the same as before: an adapter's second matrix is zero at first.  `seed` draws the first ones.
    Adapted are the linear layers that `lora.targets` names, of the decoder only unless the vision part learns too.

    Raises MissingExtraError without peft, InputError where `lora.targets` names no linear layer.
    """
    require_peft()
    import peft

    targets = _targets(model, lora.targets, train_vision)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        lora_dropout=0.0,  # the policy that learns is the one sampled
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)


def save_adapters(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write only the adapters, and whose they are: `base` is the name or folder of the model they were added to."""
    import peft

    config: Any = model.peft_config["default"]  # pyright: ignore[reportAttributeAccessIssue]
    config.base_model_name_or_path = base
    config.save_pretrained(folder)
    # Saying that embeddings are not adapted keeps peft from asking the hub whether they were resized.
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)  # pyright: ignore[reportArgumentType]
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})


def learned_nothing(folder: Path | str) -> bool:
    """Whether the adapters in a folder change nothing: every second matrix is 0, as before the first update."""
    file = Path(folder) / _WEIGHTS
    if not file.is_file():
        return False
    with safe_open(file, framework="pt") as tensors:
        seconds = [name for name in tensors.keys() if ".lora_B." in name]  # noqa: SIM118 - not a mapping
        return bool(seconds) and not any(tensors.get_tensor(name).any() for name in seconds)


def adapter_folder(name: str, revision: str | None = None) -> str | None:
    """The folder of the adapters in a folder or under a hub name; None for a whole model."""
    file = find_file(name, _CONFIG, revision)
    if file is None:
        return None
    if not Path(name).is_dir():
        find_file(name, _WEIGHTS, revision)  # next to it, in the hub's cache
    return str(file.parent)


def base_of(folder: str) -> str | None:
    """The model whose adapters are in this folder; None for a folder of a whole model, or a hub name."""
    file = Path(folder) / _CONFIG
    if not file.is_file():
        return None
    name = read_json(file).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{file} does not say which model its adapters belong to (base_model_name_or_path)")
    return name


def merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with the adapters of a folder added into its weights: a plain model again, whose weights are frozen.

    Raises InputError for adapters that are pickles, damaged, incomplete, not finite, or of another model.
    """
    require_peft()
    import peft

    held = _held_adapters(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is checked below, or the business of peft
        try:
            adapted: Any = peft.PeftModel.from_pretrained(model, folder)
            wanted = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        except Exception as error:  # whatever peft raises is a fault of the files
            raise InputError(_misfit(folder, reason_of(error))) from error
    missing = sorted(name for name in wanted if name not in held)
    if missing:
        raise InputError(
            f"the adapters in {folder} lack {len(missing)} of their weights: {listed(missing)}; copy them again"
        )
    unknown = sorted(name for name in held if ".lora_" in name and name not in wanted)
    if unknown:
        raise InputError(_misfit(folder, f"it has no place for {len(unknown)} of their weights: {listed(unknown)}"))
    broken = not_finite((name, weight) for name, weight in adapted.named_parameters() if ".lora_" in name)
    if broken:
        raise InputError(f"the adapters in {folder} hold NaN or infinite numbers: {listed(broken)}; take earlier ones")
    return adapted.merge_and_unload()


def _held_adapters(folder: str) -> set[str]:
    """The names of the weights in a folder of adapters; InputError where they are none that are read."""
    settings, file = read_json(Path(folder) / _CONFIG), Path(folder) / _WEIGHTS
    if settings.get("peft_type") != "LORA":
        raise InputError(f"the adapters in {folder} are of type {settings.get('peft_type')!r}; those read are LORA")
    if settings.get("megatron_config"):
        raise InputError(f"the adapters in {folder} name a module to import (megatron_config), which is not done")
    if not file.is_file():
        pickle = f", only adapter_model.bin ({PICKLES})" if (Path(folder) / "adapter_model.bin").is_file() else ""
        raise InputError(
            f"the adapters in {folder} have no {_WEIGHTS}{pickle}; save them again with peft's save_pretrained"
        )
    shapes = read_shapes([file])
    largest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    ranks = settings.get("rank_pattern") or {}
    for rank in (settings.get("r"), *(ranks.values() if isinstance(ranks, dict) else (ranks,))):
        if not isinstance(rank, int) or not 1 <= rank <= largest:
            raise InputError(f"{Path(folder) / _CONFIG}: r={rank!r}, and no weight of the adapters is as large as that")
    return set(shapes)


def _misfit(folder: str, reason: str) -> str:
    return (
        f"the adapters in {folder} do not fit the model they name ({base_of(folder)}): {reason}; correct "
        f"base_model_name_or_path in {_CONFIG}, or take the adapters of that model"
    )


def adapted_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of every weight once, named as without adapters, what they add being added in.

    The model stays as it is; a sum exists only while its caller holds it.
    """
    layers = {}
    if getattr(model, "peft_config", None):
        from peft.tuners.lora import LoraLayer

        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, weight in model.named_parameters():
        owner, _, own = name.rpartition(".")
        layer: Any = layers.get(owner.removesuffix(".base_layer")) if owner.endswith(".base_layer") else None
        if layer is None:
            if ".lora_" not in name:
                yield name, weight.detach()
        else:
            found = adapted_weight(layer) if own == "weight" else weight.detach()
            yield f"{owner.removesuffix('.base_layer')}.{own}", found


def adapted_weight(layer: Any) -> torch.Tensor:
    """The weight (n, k) of a linear layer, what its adapters add being added in; without a gradient."""
    weight = layer.weight.detach()
    for adapter in getattr(layer, "active_adapters", ()):
        weight = weight + layer.get_delta_weight(adapter).detach()
    return weight


def has_plain_adapters(layer: torch.nn.Module) -> bool:
    """Whether `adapted_weight` is all there is to this layer with adapters, as it is to those of `add_adapters`."""
    if type(layer).__module__ != "peft.tuners.lora.layer" or type(layer).__name__ != "Linear":
        return False
    found: Any = layer
    plain = type(found.get_base_layer()) is torch.nn.Linear and not found.merged
    return plain and not found.lora_variant and not any(found.lora_bias.values())


def _targets(model: PreTrainedModel, wanted: str, train_vision: bool) -> list[str]:
    head = model.get_output_embeddings()
    parts = [model] if train_vision else [model.get_decoder()]
    inside = {id(module) for part in parts for module in part.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and id(module) in inside and module is not head
    ]
    if wanted != "all-linear":
        ends = tuple(part.strip() for part in wanted.split(",") if part.strip()) or (wanted,)
        there = sorted({name.rpartition(".")[2] for name in linear})
        for unknown in (end for end in ends if end not in there):
            raise InputError(
                f"lora.targets={wanted}: {unknown!r} names no linear layer of this model"
                f"{did_you_mean(unknown, there)}; there are {', '.join(there)}, or all-linear for all of them"
            )
        return [name for name in linear if name.rpartition(".")[2] in ends]
    return linear


def require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("LoRA needs peft, and it is not installed: pip install 'spinerl[lora]'")
