"""A model without memory for its weights: every module and shape, from config.json or a GGUF header only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from spinerl.config import Config
from spinerl.engine.adapters import add_adapters
from spinerl.engine.capabilities import Capabilities
from spinerl.engine.loading import LoadedModel, open_settings, reads_images, whole_model
from spinerl.engine.vision import vision_parameters
from spinerl.errors import InputError, SpinerlError

__all__ = ["open_skeleton"]

_MOST_LAYERS = 1000  # a config.json with more is damaged, and its modules would take minutes to make


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
