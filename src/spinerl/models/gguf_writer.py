"""Writing a model as a GGUF file, the format of llama.cpp, such that reading it back gives the same model.

The pieces are the `gguf` package's: names of tensors, quantization, the file's layout.  Only what is known to come back
the same is written: the architectures in ARCHITECTURES, with byte-level vocabularies that split texts in a way the
format has a name for.  After writing, settings and tokenizer are read again and compared, and a file that would be
another model is not kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from spinerl.errors import InputError, MissingExtraError, RunError, did_you_mean, reason_of
from spinerl.files import draft_of, remove_now
from spinerl.models.gguf import end_ids_of, missing_packages, open_gguf, split_name
from spinerl.models.gguf_header import read_header
from spinerl.models.loading import LoadedModel

__all__ = ["ARCHITECTURES", "KINDS", "Exported", "export_gguf", "kind_of_weights"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""transformers' names, which are llama.cpp's too."""

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""How matrices may be stored, and the format's names; vectors are float32 in any file."""

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # kinds of tokens
_OTHERWISE = "llama.cpp's own converter may: `python convert_hf_to_gguf.py FOLDER` (docs/hub.md)"
# Settings that change nothing that a model computes from tokens up to its context.
_FREE = {
    "architectures", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "dtype",
    "transformers_version", "use_cache", "sliding_window", "use_sliding_window", "max_window_layers", "name_or_path",
    "_name_or_path", "tokenizer_class", "pretraining_tp", "id2label", "label2id", "chunk_size_feed_forward",
}  # fmt: skip
# What is encoded and decoded to see whether the tokenizer has come back.
_TEXTS = (
    "", " ", "Hello, world!", "  two  spaces\n\n\nand\tlines \r\n", "1234567890 12,345.67 x2 3rd", "don't I'LL we've",
    "fünf Äpfel à Paris, naïve façade", "数学の問題を解く。一二三", "Привет, мир 42", "مرحبا ١٢٣", "हिन्दी में",
    "def f(x):\n    return x ** 2  # \\boxed{4}\n", "$\\frac{1}{2}$ ≤ π → ∞", "🙂👩‍👩‍👧 end", "a" * 40 + "_b__C  ",
)  # fmt: skip


class Exported(NamedTuple):
    """What was written: its size in bytes, how matrices are stored, and what is worth a line."""

    size: int
    kind: str
    notes: tuple[str, ...]


def kind_of_weights(dtype: Any) -> str:
    """How weights of a dtype, by its name, are stored without loss."""
    return {"bfloat16": "bf16", "float16": "f16"}.get(str(dtype).removeprefix("torch."), "f32")


def export_gguf(
    loaded: LoadedModel, file: Path, kind: str, name: str, about: Mapping[str, str] | None = None
) -> Exported:
    """Write a model as a GGUF file that appears whole or not at all.

    Args:
        kind: one of KINDS.
        name: the model's, for the file's metadata.
        about: more of it: "license", "description".

    Raises InputError for an architecture, a tokenizer or settings that the file could not give back, for values that
    the kind cannot hold, and where something is at the path already; MissingExtraError without the packages.
    """
    if kind not in KINDS:
        raise InputError(f"--type {kind} is unknown{did_you_mean(kind, KINDS)}; allowed: {', '.join(KINDS)}")
    if os.path.lexists(file):
        raise InputError(f"--out {file} exists; name a new file")
    if missing := missing_packages():
        raise MissingExtraError(f'writing GGUF files needs {" and ".join(missing)}: pip install "spinerl[gguf]"')
    config: Any = loaded.model.config
    architecture = config.model_type
    if loaded.vision is not None or architecture not in ARCHITECTURES:
        _refuse(f"architecture {architecture} is not written here ({', '.join(ARCHITECTURES)} are)")
    if architecture == "qwen2" and _head_dim(config) * config.num_attention_heads != config.hidden_size:
        _refuse(f"its heads have a size of their own (head_dim={_head_dim(config)}), which a qwen2 file cannot say")
    vocabulary = _vocabulary(loaded)
    draft = draft_of(file)
    if os.path.lexists(draft):  # of a process that was killed, or put there
        remove_now(draft)
    try:
        _write(draft, loaded, kind, name, vocabulary, about or {})
        notes = tuple(_check(draft, loaded, vocabulary))
        with draft.open("rb") as handle:
            os.fsync(handle.fileno())
        size = draft.stat().st_size
        draft.rename(file)
    except OSError as error:
        if error.strerror:
            raise
        raise RunError(f"cannot write {file}: {reason_of(error)}; free some space") from None  # numpy's, of a full disk
    finally:
        draft.unlink(missing_ok=True)
    return Exported(size, kind, notes)


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"cannot be written as GGUF such that it stays the same model: {reason}; {_OTHERWISE}")


def _write(
    file: Path, loaded: LoadedModel, kind: str, name: str, vocabulary: _Vocabulary, about: Mapping[str, str]
) -> None:
    """The file in one pass over the weights: only one of them is converted at a time."""
    import gguf

    architecture = loaded.model.config.model_type
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type("model")
    writer.add_name(name)
    if "license" in about:
        writer.add_license(about["license"])
    if "description" in about:
        writer.add_description(about["description"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    _add_settings(writer, loaded.model.config, vocabulary)
    _add_tokenizer(writer, loaded, vocabulary)
    tensors = dict(_tensors(loaded))
    for tensor_name, (shape, _) in tensors.items():
        stored = _stored_as(shape, kind)
        size = int(np.prod(shape))
        blocks, size_of_block = gguf.GGML_QUANT_SIZES[stored]
        dtype = np.dtype(np.float32)
        writer.add_tensor_info(tensor_name, shape, dtype, size // blocks * size_of_block, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for tensor_name, (shape, values) in tensors.items():
            writer.write_tensor_data(_converted(values(), _stored_as(shape, kind), tensor_name))
    finally:
        writer.close()


def _stored_as(shape: Sequence[int], kind: str) -> Any:
    """A tensor's type in the file: float32 for vectors, float16 for rows that are no whole blocks, as in llama.cpp."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    stored = GGMLQuantizationType[KINDS[kind]]
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    return stored if shape[-1] % GGML_QUANT_SIZES[stored][0] == 0 else GGMLQuantizationType.F16


def _converted(values: torch.Tensor, stored: Any, name: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    plain = values.detach().to("cpu", torch.float32).contiguous().numpy()
    if stored == GGMLQuantizationType.F16:
        largest = float(np.abs(plain).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            raise InputError(f"--type f16 cannot hold the values of {name} (up to {largest:g}); take bf16 or f32")
    return plain if stored == GGMLQuantizationType.F32 else quants.quantize(plain, stored)


def _tensors(loaded: LoadedModel) -> Iterator[tuple[str, tuple[tuple[int, ...], Callable[[], torch.Tensor]]]]:
    """(llama.cpp's name, shape and a function that gives the values) of every weight."""
    import gguf

    config = loaded.model.config
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[config.model_type], config.num_hidden_layers)
    for name, parameter in loaded.model.named_parameters():
        stem, _, ending = name.rpartition(".")
        found = names.get_name(stem)
        if found is None or ending not in ("weight", "bias"):
            _refuse(f"its weight {name} has no name there")
        heads = 0
        if config.model_type == "llama" and stem.endswith((".q_proj", ".k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads

        def values(parameter: torch.Tensor = parameter, heads: int = heads) -> torch.Tensor:
            return _interleaved(parameter.detach(), heads) if heads else parameter.detach()

        yield f"{found}.{ending}", (tuple(parameter.shape), values)
    factors = _rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", (tuple(factors.shape), lambda: factors)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head in the order of llama.cpp's RoPE, which pairs neighbours where transformers pairs halves."""
    parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(weight.shape)


# Settings


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_settings(writer: Any, config: Any, vocabulary: _Vocabulary) -> None:
    from gguf import RopeScalingType

    head_dim = _head_dim(config)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind in ("llama3", "yarn") and "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if kind not in ("default", "linear", "yarn", "llama3"):
        _refuse(f"its positions are scaled in a way that has no name there (rope_type={kind})")


def _rope_factors(config: Any) -> torch.Tensor | None:
    """By what Llama 3's scaling divides each frequency, by its formula; None for other models."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = _head_dim(config)
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    lengths = 2 * math.pi * float(rope["rope_theta"]) ** powers  # in tokens
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    share = (original / lengths - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    one, all_of_it = torch.ones_like(lengths), torch.full_like(lengths, factor)
    longer = torch.where(lengths > original / low, all_of_it, between)
    return torch.where(lengths < original / high, one, longer).float()


# Tokenizer


class _Vocabulary(NamedTuple):
    """The tokens by id, filled up to the rows of the embeddings; their kinds; merges; how texts are split."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    split: str
    notes: list[str]


def _vocabulary(loaded: LoadedModel) -> _Vocabulary:
    """What the file needs of the tokenizer; InputError for one that it has no way to describe."""
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    core = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    model = core["model"]
    if (
        model.get("type") != "BPE"
        or model.get("byte_fallback")
        or (core.get("decoder") or {}).get("type") != "ByteLevel"
    ):
        _refuse("its tokenizer is not a byte-level BPE, the kind that is written here")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        _refuse("its tokenizer's BPE has options that have no name there")
    split = split_name(core.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    if split is None:
        _refuse("its tokenizer splits texts in a way that has no name there")
    notes = []
    normalizer = core.get("normalizer")
    if normalizer == {"type": "NFC"}:
        notes.append(
            "its tokenizer composes letters and accents (NFC) before it splits a text, and GGUF has no such step; "
            "texts that are in that form, as nearly all are, read the same"
        )
    elif normalizer is not None:
        _refuse("its tokenizer changes texts before it splits them")
    rows = loaded.num_embeddings
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows
    for token, i in model["vocab"].items():
        if i < rows:
            tokens[i], kinds[i] = token, _NORMAL
    for added in core.get("added_tokens", ()):
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            _refuse(f"its token {added['content']!r} takes the spaces around it with it")
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges", ())]
    return _Vocabulary(tokens, kinds, merges, split, notes)


def _add_tokenizer(writer: Any, loaded: LoadedModel, vocabulary: _Vocabulary) -> None:
    tokenizer: Any = loaded.tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    ids = {"bos": tokenizer.bos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    ends = list(loaded.end_ids)
    first = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else next(iter(ends), None)
    others = [i for i in ends if i != first]
    ids |= {"eos": first, **dict(zip(("eot", "eom"), others, strict=False))}
    for name, i in ids.items():
        if i is not None and i < len(vocabulary.tokens):
            getattr(writer, f"add_{name}_token_id")(int(i))
    empty = tokenizer("")["input_ids"]
    writer.add_add_bos_token(bool(empty) and empty[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    elif tokenizer.chat_template is not None:
        _refuse("it has several chat templates")


# What comes back


def _check(file: Path, loaded: LoadedModel, vocabulary: _Vocabulary) -> Iterator[str]:
    """Read the file, and yield what is worth a line; InputError where it is not the model that was to be written."""
    from transformers import AutoConfig, AutoTokenizer

    config = open_gguf(AutoConfig.from_pretrained, file, str(file))
    own, read = loaded.model.config.to_dict(), config.to_dict()
    for key in type(config)().to_dict().keys() - _FREE:
        if key in own and not _same(own[key], read.get(key), loaded.model.config):
            _refuse(f"its {key}={own[key]!r} would be read as {read.get(key)!r}")
    _check_tokenizer(loaded, open_gguf(AutoTokenizer.from_pretrained, file, str(file)), vocabulary)
    ends = end_ids_of(read_header(file))
    lost = [i for i in loaded.end_ids if i not in ends]
    if lost:
        _refuse(f"responses end at more tokens than the format has places for ({lost})")
    more = [vocabulary.tokens[i] for i in ends if i not in loaded.end_ids]
    if more:
        yield f"whoever reads the file ends responses at {', '.join(more)}, too, as llama.cpp does"
    yield from vocabulary.notes


def _same(own: Any, read: Any, config: Any) -> bool:
    """Whether a setting has come back: numbers as the file's float32 has them."""
    if isinstance(own, Mapping) and isinstance(read, Mapping):
        return all(_same(own.get(key), read.get(key), config) for key in own.keys() | read.keys())
    if isinstance(own, float) and isinstance(read, float | int):
        return np.float32(own) == np.float32(read)
    return own == read


def _check_tokenizer(loaded: LoadedModel, read: Any, vocabulary: _Vocabulary) -> None:
    tokenizer: Any = loaded.tokenizer
    ids = [i for i, kind in enumerate(vocabulary.kinds) if kind != _UNUSED]
    if tokenizer.convert_ids_to_tokens(ids) != read.convert_ids_to_tokens(ids):
        _refuse("its tokenizer would come back with other tokens")
    marked = [vocabulary.tokens[i] for i in ids if vocabulary.kinds[i] in (_CONTROL, _USER_DEFINED)]
    texts = [*_TEXTS, *(f"a{token} b" for token in marked), *(f"{token}{token}" for token in marked)]
    for text in texts:
        for special in (False, True):
            found = [one(text, add_special_tokens=special)["input_ids"] for one in (tokenizer, read)]
            if found[0] != found[1]:
                _refuse(f"its tokenizer would split {text!r} otherwise")
        if tokenizer.decode(found[0]) != read.decode(found[1]):
            _refuse(f"its tokenizer would write {text!r} otherwise")
    if read.chat_template != tokenizer.chat_template:
        _refuse("its chat template would come back changed")
