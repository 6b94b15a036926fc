"""Linear layers in 4 bits (NF4) through bitsandbytes: what a model takes beneath adapters that learn.

Source: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from spinerl.config import ModelConfig
from spinerl.errors import InputError, MissingExtraError

__all__ = ["BYTES_PER_WEIGHT", "compute_alike", "quantize_options", "require_quantizable"]

# Else each run says that one of its CPU kernels is a download.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

BYTES_PER_WEIGHT = 0.5 + 4 / 64
"""Of a linear layer: 4 bits a weight and a float32 scale for every 64."""


def quantize_options(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given for `model.quantize`; {} for none.  `dtype`: what is computed in."""
    if config.quantize == "none":
        return {}
    from transformers import BitsAndBytesConfig

    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": kind, "device_map": {"": str(device)}}


def compute_alike(model: torch.nn.Module) -> None:
    """Let layers in 4 bits compute with gradients as without.

    On a CPU with AVX-512 BF16, bitsandbytes packs the weights of a model in evaluation mode for another loop, which
    rounds otherwise and through which no gradient flows; models learn in that mode here, for there is no dropout.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def require_quantizable(config: ModelConfig, source: str, adapters: Sequence[str]) -> None:
    """Refuse what cannot be read in 4 bits: GGUF files, and adapters, which would be rounded away with their model.

    Raises InputError; MissingExtraError without bitsandbytes.
    """
    if config.quantize == "none":
        return
    if Path(source).is_file():
        raise InputError(
            f"model.quantize={config.quantize} takes folders, and {config.name} is a GGUF file: `spinerl merge "
            f"{config.name} --out FOLDER`, then model=FOLDER"
        )
    if adapters:
        raise InputError(
            f"model.quantize={config.quantize}: {adapters[0]} has adapters, which 4 bits would round; `spinerl merge` "
            "them first, or leave model.quantize out"
        )
    missing = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"model.quantize={config.quantize} needs {' and '.join(missing)}, not installed here: pip install "
            '"spinerl[quantize]"'
        )
