"""Tiny random models of real architectures, with a tokenizer of their own, as folders on disk."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from spinerl.config import EngineConfig
from spinerl.engine.cpu.kernels import has_bf16, library

needs_loops = pytest.mark.skipif(library() is None, reason="compiled loops need a C compiler")
needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="needs a CPU with AMX or AVX-512 BF16, and its compiler")

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gemma2", "gpt2", "mistral")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, and a handful of special ones."""
    specials = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=specials[2:],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_model(
    architecture: str,
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.3,
    head_dim: int = 8,
    **sizes: int,
) -> Path:
    """A two-layer model of this architecture with random weights, saved as safetensors; `sizes` go into its config.

    A wide `spread` of the weights gives distributions far from uniform; a narrow one little rounding noise.
    """
    tokenizer = byte_tokenizer()
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "initializer_range": spread,
    }
    if architecture == "gpt2":
        small = {
            "vocab_size": len(tokenizer),
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "initializer_range": spread,
        }
    if architecture == "gemma2":
        small |= {"query_pre_attn_scalar": 8, "sliding_window": 16, "final_logit_softcapping": 5.0}
    if architecture == "mistral":
        small |= {"sliding_window": 16}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **small | sizes))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without(loaded, *parts, **budgets):
    """The same loaded model with these parts of the engine disabled, and these memory budgets."""
    return dataclasses.replace(loaded, settings=EngineConfig(disable=list(parts), **budgets))


def compute_norms_in_float64(model):
    """transformers' RMSNorm computes in float32 whatever the model's type, which hides what is exact beneath 1e-8."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_float64_norm, module)


def _float64_norm(self, states):
    assert states.dtype == torch.float64
    eps = getattr(self, "variance_epsilon", None) or self.eps
    weight = 1.0 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    return weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)
