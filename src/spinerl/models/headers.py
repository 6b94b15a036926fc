"""A model by its files' headers, no weight of which is read: what it is in a line, and every module and shape of it
without memory for its weights.  Nothing is fetched from the hub for the line."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spinerl.config import Config, ModelConfig
from spinerl.errors import InputError, SpinerlError
from spinerl.machine import pick_device
from spinerl.models.adapters import add_adapters
from spinerl.models.capabilities import Capabilities
from spinerl.models.context import context_length
from spinerl.models.gguf import gguf_shapes
from spinerl.models.loading import LoadedModel, held_weights, open_settings, reads_images, resolve_name, whole_model
from spinerl.models.precision import choose_dtype
from spinerl.models.vision import vision_parameters
from spinerl.models.weights import Shapes, read_json, read_shapes

__all__ = ["ModelFacts", "count", "model_facts", "open_skeleton"]

_MOST_LAYERS = 1000  # a config.json with more is damaged, and its modules would take minutes to make


@dataclass(frozen=True)
class ModelFacts:
    """A model that was looked at.  `parameters` is None where its weights are not on this machine.

    `dtype` is what it would be loaded in, `context` the most tokens of prompt and response (None: any number),
    `num_embeddings` the number of tokens it knows, `adapters` how many folders of adapters are added into it.
    """

    name: str
    architecture: str
    parameters: int | None
    dtype: str
    device: str
    context: int | None
    num_embeddings: int
    reads_images: bool
    adapters: int = 0

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, in bytes; 0 where their number is not known."""
        return (self.parameters or 0) * (2 if self.dtype == "bfloat16" else 4)

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        size = "weights not on this machine yet" if self.parameters is None else f"{count(self.parameters)} parameters"
        said = [self.architecture, size, f"{self.dtype} on {self.device}"]
        said += [] if self.context is None else [f"context of {self.context:,} tokens"]
        said += ["reads images"] * self.reads_images + [f"{self.adapters} folders of adapters"] * bool(self.adapters)
        return f"{self.name}: {', '.join(said)}"


def count(parameters: int) -> str:
    """A number of parameters as one says it.

    >>> count(134_515_008), count(1_720_574_976), count(900)
    ('134.5 M', '1.7 B', '900')
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.1f} {unit}"
    return str(parameters)


def model_facts(config: ModelConfig) -> ModelFacts:
    """Look at a model: its config.json, and the headers of its weights if they are here.

    Raises InputError for one that `spinerl.models.loading.load_model` would refuse for its settings, for weights that
    are missing or damaged, and for a device that is not there.
    """
    whole, adapters = whole_model(config)
    device = pick_device(config.device)
    gguf = Path(resolve_name(whole.name))
    shapes: Shapes | None = None if gguf.is_file() else _shapes(whole)
    settings: Any = open_settings(whole, None if shapes is None else len(shapes))
    if gguf.is_file():  # its header is sound now
        sizes = gguf_shapes(gguf, whole.name)
    else:
        sizes = None if shapes is None else shapes.values()
    parameters = None if sizes is None else sum(map(math.prod, sizes))
    dtype, _ = choose_dtype(config.dtype, torch.device(device), _described(whole) if sizes is None else sizes)
    vocabulary = int(settings.get_text_config().vocab_size)
    return ModelFacts(
        config.name, str(settings.model_type), parameters, dtype, device, context_length(settings), vocabulary,
        reads_images(settings), len(adapters),
    )  # fmt: skip


def _shapes(config: ModelConfig) -> Shapes | None:
    """The shapes of the weights in a folder or the hub's cache; None for a hub name of which not all are there."""
    if Path(resolve_name(config.name)).is_dir():
        return held_weights(config)[1]
    single = _cached(config, "model.safetensors")
    if single is not None:
        return read_shapes([single])
    index = _cached(config, "model.safetensors.index.json")
    names = set() if index is None else set(read_json(index).get("weight_map", {}).values())
    files = [_cached(config, str(name)) for name in sorted(names)]
    return read_shapes(filter(None, files)) if files and all(files) else None


def _described(config: ModelConfig) -> list[tuple[int, ...]]:
    """The shapes of the weights that config.json describes; none where no model can be made of it without them."""
    with suppress(InputError):
        skeleton = open_skeleton(Config(model=config), torch.device("cpu"), torch.float32)
        return [tuple(parameter.shape) for parameter in skeleton.model.parameters()]
    return []


def _cached(config: ModelConfig, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.name, name, revision=config.revision or "main")
    return Path(found) if isinstance(found, str) else None


def open_skeleton(config: Config, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The model of a configuration on the meta device, with its adapters (lora.rank), as it would be on this device.

    It has no tokenizer and computes nothing.  Raises InputError for settings that cannot be read, and for a model that
    cannot be made without its weights.
    """
    whole, _ = whole_model(config.model)
    settings = open_settings(whole)
    text = settings.get_text_config(decoder=True)
    if int(getattr(text, "num_hidden_layers", 0) or 0) > _MOST_LAYERS:
        raise InputError(f"model={config.model.name}: {text.num_hidden_layers} layers in its config.json")
    model = _without_memory(settings, dtype, config)
    tokenizer: Any = None
    loaded = LoadedModel(model, tokenizer, (), 0, device, settings=config.engine, capabilities=Capabilities())
    return replace(loaded, vision=_SEES) if reads_images(settings) else loaded


_SEES: Any = object()
"""Stands for the vision part of a skeleton, of which only the weights count."""


def _without_memory(settings: Any, dtype: torch.dtype, config: Config) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForImageTextToText if reads_images(settings) else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model: Any = loader.from_config(settings, dtype=dtype, trust_remote_code=config.model.trust_remote_code)
            model.tie_weights()
            if reads_images(settings):
                for parameter in vision_parameters(model):
                    parameter.requires_grad_(config.model.train_vision)
            if config.lora.rank and config.steps:
                add_adapters(model, config.lora, config.seed, train_vision=config.model.train_vision)
    except SpinerlError:
        raise
    except Exception as error:  # an architecture whose constructor needs numbers: it is estimated when it is loaded
        raise InputError(f"model={config.model.name}: no estimate without its weights ({error})") from error
    model.eval()
    return model
