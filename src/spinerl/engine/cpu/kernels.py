"""Loops that torch has no single operator for: compiled on the machine at hand, from `kernels.c`.

A model's norms, gates and rotations are five to ten operators each, every one a pass over memory; one new token's
attention to a shared prompt and to its own past is twenty.  Each is one loop here.  The C compiler of the machine
compiles them at first use (four seconds) and the result is kept in the user's cache folder; without a compiler
`library` is None and torch's operators do it all.

float32 on a CPU only.  Every function here takes contiguous tensors unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "DECODING_WIDTHS",
    "Continuing",
    "LayerState",
    "LayerWeights",
    "Rows",
    "Turning",
    "add_at",
    "continue_back",
    "continue_prompts",
    "decode_attention",
    "decode_layers",
    "draw",
    "filled_up",
    "gate",
    "gate_both",
    "library",
    "multiplies",
    "normalise",
    "normalise_back",
    "normalise_sum",
    "packed",
    "rotate",
    "slopes_back",
    "turn",
    "turn_back",
    "weight_slope",
]

DECODING_WIDTHS = (16, 32, 64, 128, 256)
"""Widths of a head that `decode_attention` knows."""

_SOURCE = Path(__file__).parent / "native" / "kernels.c"
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TUNING = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # what compilers know, best first
_ROWS_PER_TASK = 4  # of one question: a thread attends for so many at a time
_PARTS = 64  # sums over rows are made of so many, whatever the number of threads


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where no compiler is found or it fails."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None or sys.platform == "win32":
        return None
    key = hashlib.sha256(_SOURCE.read_bytes())
    for fact in (compiler, *_FLAGS, platform.machine(), _processor(), torch.__version__):
        key.update(fact.encode())
    for folder in (_cache_folder(), Path(tempfile.gettempdir()) / f"spinerl-{os.getuid()}"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            file = folder / f"kernels-{key.hexdigest()[:16]}.so"
            if not file.is_file():
                _compile(compiler, file)
            return _declared(ctypes.CDLL(str(file)))
    return None


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spinerl"


def _processor() -> str:
    """What distinguishes processors for which code was compiled: a folder may be shared by machines."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return platform.processor()


def _compile(compiler: str, file: Path) -> None:
    """Raises SubprocessError or OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        made = Path(scratch) / file.name
        for number, tuning in enumerate(_TUNING):
            command = [compiler, *_FLAGS, *tuning, "-o", str(made), str(_SOURCE), "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                break
            except subprocess.CalledProcessError:
                if number == len(_TUNING) - 1:
                    raise
        made.replace(file)  # at once: another process may be doing the same


class _Decoding(ctypes.Structure):
    """`decoding` of kernels.c, field by field."""

    _fields_ = (
        ("rows", ctypes.c_long),
        ("heads", ctypes.c_long),
        ("kv_heads", ctypes.c_long),
        ("queries", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("block_size", ctypes.c_long),
        ("own", ctypes.c_long),
        ("key_blocks", ctypes.c_void_p),
        ("value_blocks", ctypes.c_void_p),
        ("prompt_keys", ctypes.c_void_p),
        ("prompt_values", ctypes.c_void_p),
        ("padded", ctypes.c_long),
        ("longest", ctypes.c_long),
        ("lengths", ctypes.c_void_p),
        ("tasks", ctypes.c_long),
        ("question", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("in_order", ctypes.c_int),
        ("base", ctypes.c_long),
    )


class LayerWeights(ctypes.Structure):
    """`layer_weights` of kernels.c: addresses, None for what is missing."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("first_norm", "attention", "attention_bias", "query_norm", "key_norm", "output", "output_bias"),
            *("second_norm", "gates", "gates_bias", "down", "down_bias"),
        )
    )


class LayerState(ctypes.Structure):
    """`layer_state` of kernels.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("prompt_keys", "prompt_values", "key_blocks", "value_blocks")),
        ("kept", ctypes.c_void_p * 9),
    )


class _Decoder(ctypes.Structure):
    """`decoder` of kernels.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("layers", "hidden", "inner")),
        *((name, ctypes.c_float) for name in ("eps", "head_eps")),
        *((name, ctypes.c_void_p) for name in ("weights", "states", "cosine", "sine", "stream")),
        ("slot", ctypes.c_long),
        ("last_eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("last_norm", "head")),
        ("vocabulary", ctypes.c_long),
        ("logits", ctypes.c_void_p),
    )


class _Continuing(ctypes.Structure):
    """`continuing` of kernels.c, field by field."""

    _fields_ = (
        ("starts", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("longest_row", "heads", "kv_heads", "width")),
        *((name, ctypes.c_void_p) for name in ("queries", "keys", "values", "prompt_keys", "prompt_values")),
        *((name, ctypes.c_long) for name in ("of_question", "of_head", "of_token")),
        ("lengths", ctypes.c_void_p),
        ("longest", ctypes.c_long),
        ("scale", ctypes.c_float),
        ("tasks", ctypes.c_long),
        ("questions", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("question", "first", "count")),
        *((name, ctypes.c_void_p) for name in ("outputs", "totals", "slopes", "by_queries", "by_keys", "by_values")),
        *((name, ctypes.c_void_p) for name in ("by_prompt_keys", "by_prompt_values", "parts")),
    )


def _declared(loops: ctypes.CDLL) -> ctypes.CDLL:
    whole, real, place = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
    loops.norm_forward.argtypes = (whole, whole, *(place,) * 4, real, place, place)
    loops.norm_backward.argtypes = (whole, whole, *(place,) * 9, whole)
    loops.add_at.argtypes = (whole, whole, *(place,) * 5)
    loops.turn_at.argtypes = (whole, whole, whole, place, place, place, real, place, place, place)
    loops.turn_back_at.argtypes = (whole, whole, whole, place, place, place, real, *(place,) * 5, whole)
    loops.gate_forward.argtypes = (whole, place, place, place)
    loops.gate_backward.argtypes = (whole, place, place, place, place, place)
    loops.gate_both_at.argtypes = (whole, whole, *(place,) * 7)
    loops.rotate.argtypes = (whole, whole, whole, place, place, place, ctypes.c_int, place)
    loops.pack.argtypes = (whole, whole, place, place)
    loops.panel.restype = whole
    loops.decode_layers.argtypes = (ctypes.POINTER(_Decoder), ctypes.POINTER(_Decoding), whole)
    loops.weight_slope.argtypes = (whole, whole, whole, place, place, place)
    loops.continue_prompts.argtypes = (ctypes.POINTER(_Continuing), ctypes.c_int)
    loops.decode_attention.argtypes = (ctypes.POINTER(_Decoding), whole, whole)
    loops.draw.argtypes = (whole, whole, whole, place, real, *(place,) * 4)
    loops.slopes_back.argtypes = (whole, whole, whole, place, place, place, ctypes.c_int)
    for name in ("norm", "gate"):
        for way in ("forward", "backward"):
            getattr(loops, f"{name}_{way}").restype = None
    for name in ("gate_both_at", "rotate", "pack", "add_at", "turn_at", "turn_back_at"):
        getattr(loops, name).restype = None
    return loops


def _loops() -> Any:
    loops = library()
    if loops is None:
        raise RuntimeError("no compiled loops: ask spinerl.engine.cpu.kernels.library() first")
    return loops


def normalise(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * states / sqrt(mean(states^2) + eps) over the last axis: states (..., n), weight (n,)."""
    if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        return _Norm.apply(states, weight, eps)  # pyright: ignore[reportReturnType]
    return _normalised(states.contiguous(), weight, eps, None)


def _normalised(
    states: torch.Tensor, weight: torch.Tensor, eps: float, inverse: torch.Tensor | None, kept: Rows | None = None
) -> torch.Tensor:
    """The same without a gradient; `inverse` (...), if given, is filled with 1 / sqrt(mean(states^2) + eps)."""
    found, width = torch.empty_like(states), states.shape[-1]
    inputs = (*_addresses(states, *(kept or (None, None)), weight), eps, *_addresses(found, inverse))
    _loops().norm_forward(states.numel() // width, width, *inputs)
    return found


def _addresses(*tensors: torch.Tensor | None) -> Iterator[int | None]:
    return (None if tensor is None else tensor.data_ptr() for tensor in tensors)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        states = states.contiguous()
        inverse = states.new_empty(states.shape[:-1])
        found = _normalised(states, weight, eps, inverse)
        ctx.save_for_backward(states, weight, inverse)
        return found

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        states, weight, inverse = ctx.saved_tensors
        return *normalise_back(slopes.contiguous(), states, weight, inverse), None


Rows = tuple[torch.Tensor, torch.Tensor]
"""Rows of a larger matrix: their numbers (m,), and the matrix (N, ...)."""


def normalise_sum(
    states: torch.Tensor, kept: Rows | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`normalise` of states (m, n) plus those rows, without a gradient; and (m,) 1 / sqrt(mean(sum^2) + eps)."""
    inverse = states.new_empty(len(states))
    return _normalised(states, weight, eps, inverse, kept), inverse


def normalise_back(
    slopes: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    kept: Rows | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slopes of states, and of the weight, from those of `normalise_sum`; `residual` is added to the first."""
    by_states, width = torch.empty_like(states), states.shape[-1]
    by_weight = weight.new_zeros(_PARTS, width)
    places = _addresses(states, *(kept or (None, None)), weight, inverse, slopes, residual, by_states, by_weight)
    _loops().norm_backward(inverse.numel(), width, *places, _PARTS)
    return by_states, by_weight.sum(0)


def add_at(states: torch.Tensor, places: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """states (m, n) plus the rows `places` (m,) of two matrices (N, n)."""
    found = torch.empty_like(states)
    _loops().add_at(*states.shape, *_addresses(places, states, first, second, found))
    return found


def gate(gates: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """silu(gates) * states, of one shape."""
    if torch.is_grad_enabled() and (states.requires_grad or gates.requires_grad):
        return _Gate.apply(gates, states)  # pyright: ignore[reportReturnType]
    return _gated(gates.contiguous(), states.contiguous())


def _gated(gates: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    found = torch.empty_like(gates)
    _loops().gate_forward(gates.numel(), gates.data_ptr(), states.data_ptr(), found.data_ptr())
    return found


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gates: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        gates, states = gates.contiguous(), states.contiguous()
        ctx.save_for_backward(gates, states)
        return _gated(gates, states)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gates, states = ctx.saved_tensors
        slopes = slopes.contiguous()
        found = torch.empty_like(gates), torch.empty_like(states)
        places = (tensor.data_ptr() for tensor in (gates, states, slopes, *found))
        _loops().gate_backward(gates.numel(), *places)
        return found


def gate_both(kept: tuple[torch.Tensor, torch.Tensor, torch.Tensor], slopes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`gate` of some rows, and their slopes from its slopes (m, n): (m, n) each; without a gradient.

    Args:
        kept: the rows' numbers (m,), and gates and states (N, n).
    """
    found = tuple(torch.empty_like(slopes) for _ in range(3))
    _loops().gate_both_at(*slopes.shape, *_addresses(*kept, slopes, *found))
    return found


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """states * cosines + rotate_half(states) * sines: states (R, T, H, D) at rotary positions (R, T, D)."""
    if torch.is_grad_enabled() and states.requires_grad:
        return _Rotation.apply(states, cosines, sines)  # pyright: ignore[reportReturnType]
    return _rotated(states, cosines, sines, back=False)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(states, cosines, sines, back=False)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _rotated(slopes, *ctx.saved_tensors, back=True), None, None


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, back: bool) -> torch.Tensor:
    rows, tokens, heads, width = states.shape
    states, cosines, sines = states.contiguous(), cosines.contiguous(), sines.contiguous()
    found = torch.empty_like(states)
    places = (tensor.data_ptr() for tensor in (states, cosines, sines))
    _loops().rotate(rows * tokens, heads, width, *places, int(back), found.data_ptr())
    return found


@dataclass(frozen=True)
class Turning:
    """How heads of queries or keys are turned: their norm, if `weight` (D,) is given, and angles (m, D) each."""

    weight: torch.Tensor | None
    eps: float
    cosines: torch.Tensor
    sines: torch.Tensor


def turn(kept: Rows, heads: int, how: Turning) -> torch.Tensor:
    """Those rows (m, H * D), each head normalised and turned: (m, H, D); without a gradient."""
    places, rows = kept
    found = rows.new_empty(len(places), heads, rows.shape[1] // heads)
    angles = _addresses(how.cosines, how.sines, found)
    _loops().turn_at(*found.shape, *_addresses(places, rows, how.weight), how.eps, *angles)
    return found


def turn_back(kept: Rows, how: Turning, slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The slopes of those rows (m, H * D) and of the weight, from the slopes of `turn` (m, H, D)."""
    places, rows = kept
    by_rows = torch.empty_like(slopes)
    by_weight = None if how.weight is None else slopes.new_zeros(_PARTS, slopes.shape[2])
    angles = _addresses(how.cosines, how.sines, slopes, by_rows, by_weight)
    _loops().turn_back_at(*slopes.shape, *_addresses(places, rows, how.weight), how.eps, *angles, _PARTS)
    return by_rows.flatten(1), None if by_weight is None else by_weight.sum(0)


def decode_attention(
    queries: torch.Tensor,
    scaling: float,
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    own: int,
    prompt_keys: torch.Tensor,
    prompt_values: torch.Tensor,
    lengths: torch.Tensor,
    tasks: torch.Tensor,
    order: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one new token per row attends to: output (R, H, D) and the logarithm of the weights' sum (R, H).

    Args:
        queries: (R, H, D), D one of DECODING_WIDTHS; H a multiple of Hkv.
        blocks: keys and values of the rows' own tokens, (R or more, Hkv, size, D) each, `own` tokens in all.
        prompt_keys: (Q, Hkv, n, D, panel): `packed` of each prompt's and head's keys.
        prompt_values: (Q, Hkv, L, D).
        lengths: (Q,) int64, of the prompts, at most L and n.
        tasks: (3, K) int64: a question, and where some of its rows begin in `order` and how many they are.
        order: (R,) int64, the rows by question.
    """
    rows, heads, width = queries.shape
    kv_heads, padded = prompt_keys.shape[1], prompt_keys.shape[2] * prompt_keys.shape[4]
    output, total = torch.empty_like(queries), queries.new_empty(rows, heads)
    pointers = ctypes.c_void_p * len(blocks)
    key_blocks = pointers(*(keys.data_ptr() for keys, _ in blocks))
    value_blocks = pointers(*(values.data_ptr() for _, values in blocks))
    job = _Decoding(
        rows=rows,
        heads=heads,
        kv_heads=kv_heads,
        queries=queries.data_ptr(),
        scale=scaling,
        block_size=blocks[0][0].shape[2],
        own=own,
        key_blocks=ctypes.addressof(key_blocks),
        value_blocks=ctypes.addressof(value_blocks),
        prompt_keys=prompt_keys.data_ptr(),
        prompt_values=prompt_values.data_ptr(),
        padded=padded,
        longest=prompt_values.shape[2],
        outputs=output.data_ptr(),
        totals=total.data_ptr(),
        **_where(lengths, tasks, order),
    )
    if _loops().decode_attention(ctypes.byref(job), width, int(tasks[2].max())):
        raise MemoryError("attention found no room to work in")
    return output, total


def _where(lengths: torch.Tensor, tasks: torch.Tensor, order: torch.Tensor) -> dict[str, int]:
    num_tasks = tasks.shape[1]
    return {
        "lengths": lengths.data_ptr(),
        "tasks": num_tasks,
        "question": tasks.data_ptr(),
        "first": tasks.data_ptr() + 8 * num_tasks,
        "count": tasks.data_ptr() + 16 * num_tasks,
        "order": order.data_ptr(),
    }


def packed(weight: torch.Tensor) -> torch.Tensor:
    """Matrices (..., n, k) as these loops take them: (..., n / panel, k, panel), the last panel filled up with 0."""
    panel = int(_loops().panel())
    *more, n, k = weight.shape
    found = weight.new_empty(*more, -(-n // panel), k, panel)
    weight = weight.contiguous()
    for of, to in zip(weight.view(-1, n, k), found.view(-1, *found.shape[-3:]), strict=True):
        _loops().pack(n, k, of.data_ptr(), to.data_ptr())
    return found


def filled_up(values: torch.Tensor) -> torch.Tensor:
    """(n,) with 0 up to a whole panel."""
    panel = int(_loops().panel())
    return torch.nn.functional.pad(values, (0, -len(values) % panel))


def decode_layers(
    stream: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    weights: Any,
    states: Any,
    sizes: tuple[int, int, int, int],
    eps: tuple[float, float],
    scaling: float,
    own: int,
    block_size: int,
    prompts: tuple[int, int],
    lengths: torch.Tensor,
    tasks: torch.Tensor,
    order: torch.Tensor,
    slot: int,
    last: tuple[torch.Tensor, float, torch.Tensor],
    logits: torch.Tensor,
) -> None:
    """Take `stream` (R, d), the embeddings of one new token per row, through all layers: to the next token's `logits`.

    Args:
        cosines, sines: (R, D), of the tokens' positions.
        weights, states: arrays of LayerWeights and LayerState, one for each layer.
        sizes: the width inside the feed-forward blocks, heads, heads of keys, and D, one of DECODING_WIDTHS.
        eps: of the norms, and of those of single heads.
        own: the rows' own tokens, this one included; their keys and values lie in blocks of `block_size`.
        prompts: columns of the prompts' packed keys, and rows of their values.
        lengths, tasks, order: as for `decode_attention`.
        slot: where what is kept of the first row goes; the others follow.
        last: the last norm's weight and eps, and the `packed` head.
        logits: (R, V filled up to whole panels), to be filled.
    """
    inner, heads, kv_heads, width = sizes
    layers = _Decoder(
        layers=len(weights),
        hidden=stream.shape[1],
        inner=inner,
        eps=eps[0],
        head_eps=eps[1],
        weights=ctypes.addressof(weights),
        states=ctypes.addressof(states),
        cosine=cosines.data_ptr(),
        sine=sines.data_ptr(),
        stream=stream.data_ptr(),
        slot=slot,
        last_eps=last[1],
        last_norm=last[0].data_ptr(),
        head=last[2].data_ptr(),
        vocabulary=logits.shape[1],
        logits=logits.data_ptr(),
    )
    job = _Decoding(
        rows=len(stream),
        heads=heads,
        kv_heads=kv_heads,
        scale=scaling,
        block_size=block_size,
        own=own,
        padded=prompts[0],
        longest=prompts[1],
        **_where(lengths, tasks, order),
    )
    if _loops().decode_layers(ctypes.byref(layers), ctypes.byref(job), width):
        raise MemoryError("a token's layers found no room to work in")


def draw(
    logits: torch.Tensor, temperature: float, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first token whose cumulative probability exceeds its row's number, its log-probability, and the entropy.

    (R,) each, of softmax(logits / temperature): logits (R, V), rows of which may lie apart; uniforms (R,) in [0, 1).
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens = uniforms.new_empty(len(logits), dtype=torch.int64)
    figures = torch.empty_like(uniforms), torch.empty_like(uniforms)
    places = _addresses(uniforms.contiguous(), tokens, *figures)
    if _loops().draw(*logits.shape, logits.stride(0), logits.data_ptr(), 1.0 / temperature, *places):
        raise MemoryError("drawing found no room to work in")
    return tokens, *figures


@functools.cache
def multiplies() -> bool:
    """Whether `weight_slope` and `slopes_back` are there and worth their while: on processors with AVX."""
    loops = library()
    return loops is not None and bool(loops.has_wide_registers())


def weight_slope(slopes: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """slopes (m, n), transposed, times states (m, k), k a multiple of 16: (n, k)."""
    found = slopes.new_empty(slopes.shape[1], states.shape[1])
    places = (tensor.data_ptr() for tensor in (slopes, states, found))
    if _loops().weight_slope(*slopes.shape, states.shape[1], *places):
        raise MemoryError("a weight's slope found no room to work in")
    return found


@dataclass(frozen=True)
class Continuing:
    """Rows that continue prompts: what `continue_prompts` attends with and over.

    `queries` (R, T, H, D), `keys` and `values` (R, T, Hkv, D), D a multiple of 16; or (N, H, D) and (N, Hkv, D) with
    `starts` (R + 1,) int64, where rows of unlike lengths begin and the last ends.  `prompt_keys` and `prompt_values`
    (Q, Hkv, L, D), their last axis in one piece and both laid out alike.  `spans` are prompts' numbers, and where
    their rows begin and end: all rows, in order.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    prompt_keys: torch.Tensor
    prompt_values: torch.Tensor
    lengths: Sequence[int]
    spans: Sequence[tuple[int, int, int]]
    scaling: float
    starts: torch.Tensor | None = None

    @property
    def firsts(self) -> torch.Tensor:
        """(R,) where rows begin among all tokens."""
        return self._starts[:-1]

    @property
    def _starts(self) -> torch.Tensor:
        if self.starts is not None:
            return self.starts
        rows, tokens = self.queries.shape[:2]
        return torch.arange(rows + 1) * tokens

    def run(self, back: bool, **others: torch.Tensor) -> None:
        """Hand it all to the loop, with the tensors that it fills or reads beside."""
        most = _ROWS_PER_TASK if self.prompt_keys.shape[2] else 1  # no prompt is laid out for more than one
        tasks = [
            (question, first, min(most, end - first))
            for question, start, end in self.spans
            for first in range(start, end, most)
        ]
        of_tasks = torch.tensor(tasks).t().contiguous()
        lengths, starts = torch.tensor(self.lengths), self._starts
        questions, kv_heads, longest, width = self.prompt_keys.shape
        tiles = -(-longest // 64)
        parts = self.queries.new_empty(len(tasks) * kv_heads * 2 * tiles * 64 * width if back else 0)
        assert self.prompt_keys.stride() == self.prompt_values.stride()
        inputs = ("queries", "keys", "values", "prompt_keys", "prompt_values")
        job = _Continuing(
            starts=starts.data_ptr(),
            longest_row=int(starts.diff().max()),
            heads=self.queries.shape[-2],
            kv_heads=kv_heads,
            width=width,
            **{name: getattr(self, name).data_ptr() for name in inputs},
            of_question=self.prompt_keys.stride(0),
            of_head=self.prompt_keys.stride(1),
            of_token=self.prompt_keys.stride(2),
            lengths=lengths.data_ptr(),
            longest=longest,
            scale=self.scaling,
            tasks=len(tasks),
            questions=questions,
            question=of_tasks.data_ptr(),
            first=of_tasks.data_ptr() + 8 * len(tasks),
            count=of_tasks.data_ptr() + 16 * len(tasks),
            parts=parts.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in others.items()},
        )
        if _loops().continue_prompts(ctypes.byref(job), int(back)):
            raise MemoryError("attention found no room to work in")


def continue_prompts(job: Continuing) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (like queries) of causal attention over [prompt, row], and the logarithm of the weights' sum (.., H)."""
    output = torch.empty_like(job.queries)
    total = output.new_empty(output.shape[:-1])
    job.run(False, outputs=output, totals=total)
    return output, total


def continue_back(
    job: Continuing, slopes: torch.Tensor, output: torch.Tensor, total: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The slopes of queries, keys, values, and the prompts' keys and values (Q, Hkv, L, D), from the output's."""
    by_queries, by_keys, by_values = (torch.empty_like(t) for t in (job.queries, job.keys, job.values))
    by_prompts = [output.new_empty(job.prompt_keys.shape) for _ in range(2)]
    job.run(
        True,
        outputs=output,
        totals=total,
        slopes=slopes,
        by_queries=by_queries,
        by_keys=by_keys,
        by_values=by_values,
        by_prompt_keys=by_prompts[0],
        by_prompt_values=by_prompts[1],
    )
    return by_queries, by_keys, by_values, *by_prompts


def slopes_back(slopes: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """slopes (m, k) times weight (k, n), n a multiple of 16, added to `into` (m, n) if that is given."""
    found = slopes.new_empty(len(slopes), weight.shape[1]) if into is None else into
    places = (tensor.data_ptr() for tensor in (slopes, weight, found))
    if _loops().slopes_back(*slopes.shape, weight.shape[1], *places, int(into is not None)):
        raise MemoryError("slopes found no room to work in")
    return found
