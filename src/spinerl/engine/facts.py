"""What a model is, from its files' headers: no weight is read, and none is fetched from the hub."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinerl.config import ModelConfig
from spinerl.engine.context import context_length
from spinerl.engine.gguf import gguf_shapes
from spinerl.engine.loading import held_weights, open_settings, reads_images, resolve_name, whole_model
from spinerl.engine.weights import Shapes, read_json, read_shapes
from spinerl.machine import pick_device

__all__ = ["ModelFacts", "model_facts"]


@dataclass(frozen=True)
class ModelFacts:
    """A model that was looked at.  `parameters` is None where its weights are not on this machine.

    `context` is the most tokens of prompt and response (None: any number), `num_embeddings` the number of tokens it
    knows, `adapters` how many folders of adapters are added into it.
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
        return (self.parameters or 0) * (4 if self.dtype == "float32" else 2)

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

    Raises InputError for one that `spinerl.engine.loading.load_model` would refuse for its settings, for weights that
    are missing or damaged, and for a device that is not there.
    """
    whole, adapters = whole_model(config)
    device = pick_device(config.device)
    dtype = config.dtype if config.dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"
    gguf = Path(resolve_name(whole.name))
    shapes: Shapes | None = None if gguf.is_file() else _shapes(whole)
    settings: Any = open_settings(whole, None if shapes is None else len(shapes))
    if gguf.is_file():  # its header is sound now
        sizes = gguf_shapes(gguf, whole.name)
    else:
        sizes = None if shapes is None else shapes.values()
    parameters = None if sizes is None else sum(map(math.prod, sizes))
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


def _cached(config: ModelConfig, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.name, name, revision=config.revision or "main")
    return Path(found) if isinstance(found, str) else None
