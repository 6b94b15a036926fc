"""What a model's files hold, looked at before memory is asked for and before anything runs: headers, never pickles.

A safetensors file says in its first bytes which tensors it holds and of what shape.  That is compared with what
config.json describes, so that a folder which is damaged, incomplete or of another model is refused in a line that names
what is wrong, and no weight is ever filled with random numbers.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from spinerl.config import ModelConfig
from spinerl.errors import InputError, cause_of, reason_of
from spinerl.hub import model_fault, one_try, why_away
from spinerl.lines import counted

__all__ = [
    "Shapes",
    "all_finite",
    "check_loaded",
    "check_settings",
    "fault_in",
    "find_file",
    "listed",
    "no_larger_than",
    "no_tables",
    "not_finite",
    "pickled",
    "read_json",
    "read_shapes",
    "weight_files",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors by name."""

PICKLES = "only safetensors weights are read: pickles can run code"
_OTHERS = "config.json and weights are of different models"
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SOME = 10**7  # parameters that a model may lack in its files and still be worth the memory to name them
_LFS = b"version https://git-lfs"
_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"}
_SIZES = _LAYERS | {
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_embd",
    "n_head",
    "n_positions",
    "d_model",
    "num_heads",
    "patch_size",
    "image_size",
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def find_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model's folder, or of a hub name; None where there is none, or where the hub cannot be reached.

    A GGUF file has no such files.
    """
    if Path(source).is_file():
        return None
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    from transformers.utils.hub import cached_file

    quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    options = {f"_raise_exceptions_for_{kind}": value for kind, value in quiet.items()}
    try:
        with one_try():
            found = cached_file(source, name, revision=revision or "main", **options)
    except OSError:
        return None
    return None if found is None else Path(found)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model; InputError naming the file for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = _fault(file) or f"it is no JSON ({reason_of(error, 200)}); download it again"
        raise InputError(f"{file} cannot be read: {reason}") from None
    return found


def check_settings(settings: Mapping[str, Any], file: Path, num_tensors: int | None = None) -> None:
    """InputError for a size in config.json (its parts included) that is no whole number over 0, or for more layers than
    the weights have tensors: transformers would begin to build them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            check_settings(value, file, num_tensors)
        elif key in _SIZES and isinstance(value, int | float | str):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{file}: {key}={value!r} is not a whole number over 0; restore the model's own file")
            if key in _LAYERS and num_tensors is not None and value > num_tensors:
                raise InputError(
                    f"{file}: {key}={value}, and the weights hold only {num_tensors} tensors; restore the model's own "
                    "file"
                )


def weight_files(config: ModelConfig, source: str, settings: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of a model, by its `config.json`, those of an index all there.

    InputError where there are none, or where one is named that is missing, outside the folder or not safetensors.
    """
    named = settings.get("transformers_weights")
    file = None
    for name in (_ONE, _INDEX) if named is None else (str(named),):
        _check_name(name, "config.json" if named is not None else "")
        file = file or find_file(source, name, config.revision)
    if file is None:
        why = (
            None if Path(source).is_dir() or why_away() is None else model_fault(source, config.revision, named or _ONE)
        )
        if why is not None:
            raise InputError(f"model={config.name}: {why}")
        raise InputError(f"model={config.name}: no {named or _ONE}{pickled(source)}; {_advice(source)}")
    if file.suffix != ".json":
        return [file]
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{file}: no `weight_map` of tensors and their files; download it again")
    files = []
    for name in sorted({str(shard) for shard in shards.values()}):
        _check_name(name, str(file))
        found = find_file(source, name, config.revision)
        if found is None:
            raise InputError(f"{file} names {name}, which is missing; download it again")
        files.append(found)
    return files


def read_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The tensors in safetensors files, from their headers; InputError for a file that is damaged or something else."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            reason = _fault(file) or f"damaged ({reason_of(error, 200)}); download it again"
            raise InputError(f"{file} cannot be read: {reason}") from None
    return shapes


@contextmanager
def no_larger_than(shapes: Shapes, config: ModelConfig, packed: bool = False) -> Iterator[None]:
    """Inside, a model that is built without memory (meta device) may have twice the parameters that its weights hold,
    and some; InputError for more, before filling what is missing would cost memory.

    Args:
        packed: whether a number of the weights stands for several (quantized ones).
    """
    held = sum(map(math.prod, shapes.values()))
    most = (16 if packed else 2) * held + _SOME
    total = 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal total
        if parameter is not None and parameter.is_meta:
            total += parameter.numel()
            if total > most:
                raise InputError(
                    f"model={config.name}: config.json describes a model far larger than its weights ({held:,} "
                    f"numbers): {type(module).__name__}.{name} is {_shown(parameter.shape)}; {_OTHERS}"
                )

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)  # pyright: ignore
    try:
        yield
    finally:
        hook.remove()


def check_loaded(model: torch.nn.Module, info: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """What transformers says of a model that it read: InputError for weights that are missing or do not fit.

    Weights that the model has no use for are refused where config.json must be of another model: more layers than it
    describes, another tensor of a layer it has.  Of others there is a line in what is returned.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, held, described = mismatched[0]
        raise InputError(
            f"model={config.name}: {counted(len(mismatched), 'tensor')} of the weights {_have(mismatched)} another "
            f"shape than config.json describes: {name} is {_shown(held)}, not {_shown(described)}; {_OTHERS}"
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        advice = _OTHERS if unexpected else "download the model again: random numbers are no substitute"
        raise InputError(
            f"model={config.name}: the weights lack {counted(len(missing), 'tensor')}: {listed(missing)}; {advice}"
        )
    if not unexpected:
        return ()
    owners = {
        name for name, module in model.named_modules() if not any(True for _ in module.children()) and _has_own(module)
    }
    patterns = {_pattern(name) for name in model.state_dict(keep_vars=True)}
    wrong = [name for name in unexpected if _pattern(name) in patterns or name.rpartition(".")[0] in owners]
    if wrong and getattr(model.config, "quantization_config", None) is None:
        raise InputError(
            f"model={config.name}: the weights hold {counted(len(wrong), 'tensor')} that config.json does not "
            f"describe: {listed(wrong)}; {_OTHERS}"
        )
    return (f"model={config.name}: {counted(len(unexpected), 'tensor')} of the weights not used: {listed(unexpected)}",)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    found = [_is_finite(tensor) for tensor in tensors if tensor.dtype in _FLOATS and tensor.numel()]
    return not found or bool(torch.stack(found).all())


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity."""
    named = list(tensors)
    if all_finite(tensor for _, tensor in named):
        return []
    return [name for name, tensor in named if not all_finite([tensor])]


def _is_finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack(tensor.detach().aminmax()).isfinite().all()  # of a NaN, both are NaN


@contextmanager
def no_tables() -> Iterator[None]:
    """Inside, transformers prints no progress and no table of weights: what is wrong with them is said in one line."""
    from transformers.utils import logging as own

    own.disable_progress_bar()  # reading a local file needs none, and the display owns the terminal
    before = own.get_verbosity()
    own.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        own.set_verbosity(before)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def pickled(source: str) -> str:
    """What is said of pickles in a folder that has nothing else; '' without any."""
    folder = Path(source)
    found = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_ENDS) if folder.is_dir() else []
    return f", only {listed(found)} ({PICKLES})" if found else f" ({PICKLES})"


def _advice(source: str) -> str:
    if Path(source).is_dir():
        return "save it again with transformers' save_pretrained, which writes safetensors, or download it again"
    return "its page on the hub may have them in a pull request: model.revision=refs/pr/N"


def _check_name(name: str, where: str) -> None:
    """InputError for a file of weights that is not safetensors, or not in the model's own folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise InputError(f"{where} names {name}, outside of the model's folder; restore the model's own file")
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(f"{where} names {name}; {PICKLES}")


def _fault(file: Path) -> str | None:
    """What a file is in place of what its name says, where its first bytes give it away."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(len(_LFS))
    except OSError as error:
        return cause_of(error)
    if size == 0:
        return "it is empty; download it again"
    if start == _LFS:
        return "it is a pointer of git-lfs, not the file: run `git lfs pull` in its folder"
    if (file.suffix == ".safetensors" and start[:1] == b"\x80") or start[:2] == b"PK":
        return f"it is a pickle; {PICKLES}"
    return None


def fault_in(folder: str) -> str | None:
    """What is wrong with the first file of a folder that is empty, a pointer of git-lfs, or JSON that is none; None
    where no file gives itself away, and for a hub name."""
    if not Path(folder).is_dir():
        return None
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and (file.suffix in (".json", ".model") or file.name in ("vocab.txt", "merges.txt")):
            reason = _fault(file)
            if reason is not None:
                return f"{file.name}: {reason}"
            if file.suffix == ".json":
                try:
                    read_json(file)
                except InputError as error:
                    return str(error)
    return None


def _pattern(name: str) -> str:
    """The name with * in place of numbers between dots."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _has_own(module: torch.nn.Module) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None


def _have(names: Sequence[Any]) -> str:
    return "has" if len(names) == 1 else "have"


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
