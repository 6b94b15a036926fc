"""GGUF files of the tiny random models, written as llama.cpp's converter writes them, and what is asked of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from spinerl.config import load_config
from spinerl.engine.sampler import greedy_responses
from spinerl.models.loading import LoadedModel, load_model
from spinerl.types import Question
from tests.models import CHAT_TEMPLATE, byte_tokenizer, write_model

TEXTS = ("the 1212 in the inn", "  12 + 1\n\n= thé", "")
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("1", "2"), ("Ġ", "1")]
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
}


def opened(name: Path | str, *overrides: str) -> LoadedModel:
    config = load_config(overrides=[f"model={name}", *overrides])
    return load_model(config.model, config.engine)


def greedy(loaded: LoadedModel, tokens: int = 24) -> tuple[list[list[int]], tuple[str, ...]]:
    """(token ids, texts) of greedy responses to a few prompts."""
    questions = [Question(f"q{i}", "?") for i in range(3)]
    config = load_config(overrides=[f"rollout.max_new_tokens={tokens}"])
    rollout = greedy_responses(loaded, questions, ((3, 40, 50, 60, 70), (90, 80, 70), (200,)), config.rollout)
    return rollout.tokens.tolist(), rollout.texts


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a few merges, among them of digits, which it splits off as SmolLM's does."""
    vocab = byte_tokenizer().get_vocab() | {"<|im_end|>": 261}
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
    )


def write_folder(architecture: str, folder: Path) -> Path:
    """A tiny random model with the merging tokenizer, as a Hugging Face folder."""
    write_model(architecture, folder)
    tokenizer = merging_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_gguf(
    folder: Path,
    file: Path,
    *,
    kind: gguf.GGMLQuantizationType | None = None,
    fields: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """The model of a folder as a GGUF file.

    Args:
        kind: how matrices are stored; float32 without one.
        fields: metadata to add or replace.
        without: keys to leave out.
        tensors: tensors to add or replace; None leaves one out.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(f"tiny {config.model_type}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.model_type == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(head_dim)
    _add_tokenizer(writer, PreTrainedTokenizerFast.from_pretrained(folder))
    for key, value in (fields or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, _type_of(value))
    for key in without:
        del writer.kv_data[0][key]
    stored = _tensors(model, architecture) | (tensors or {})
    for name, values in stored.items():
        if values is not None and kind is not None and values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        elif values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _type_of(value: Any) -> gguf.GGUFValueType:
    kinds = {str: "STRING", float: "FLOAT32", int: "UINT32", bool: "BOOL", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(model: Any, architecture: gguf.MODEL_ARCH) -> dict[str, np.ndarray]:
    """Weights under llama.cpp's names, changed as its converter changes them."""
    config, names = model.config, gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tensors = {}
    for name, parameter in model.named_parameters():
        stem, _, ending = name.rpartition(".")
        values = parameter.detach().float().numpy().copy()
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if config.model_type == "gemma2" and "norm" in name:
            values += 1
        tensors[f"{names.get_name(stem)}.{ending}"] = values
    return tensors
