"""Loops that torch has no single operator for: compiled on the machine at hand, from `kernels.c`.

A model's norms, gates and rotations are five to ten operators each, every one a pass over memory; one new token's
attention to a shared prompt and to its own past is twenty.  Each is one loop here.  The C compiler of the machine
compiles them at first use (two seconds) and the result is kept in the user's cache folder; without a compiler
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["DECODING_WIDTHS", "decode_attention", "gate", "library", "normalise", "rotate"]

DECODING_WIDTHS = (16, 32, 64, 128, 256)
"""Widths of a head that `decode_attention` knows."""

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TUNING = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # what compilers know, best first
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
        ("blocks", ctypes.c_long),
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
    )


def _declared(loops: ctypes.CDLL) -> ctypes.CDLL:
    whole, real, place = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
    loops.norm_forward.argtypes = (whole, whole, place, place, real, place, place)
    loops.norm_backward.argtypes = (whole, whole, place, place, place, place, place, place, whole)
    loops.gate_forward.argtypes = (whole, place, place, place)
    loops.gate_backward.argtypes = (whole, place, place, place, place, place)
    loops.rotate.argtypes = (whole, whole, whole, place, place, place, ctypes.c_int, place)
    loops.decode_attention.argtypes = (ctypes.POINTER(_Decoding), whole, whole)
    for name in ("norm_forward", "norm_backward", "gate_forward", "gate_backward", "rotate"):
        getattr(loops, name).restype = None
    return loops


def _loops() -> Any:
    loops = library()
    if loops is None:
        raise RuntimeError("no compiled loops: ask spinerl.engine.kernels.library() first")
    return loops


def normalise(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * states / sqrt(mean(states^2) + eps) over the last axis: states (..., n), weight (n,)."""
    if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        return _Norm.apply(states, weight, eps)  # pyright: ignore[reportReturnType]
    states = states.contiguous()
    found = torch.empty_like(states)
    width = states.shape[-1]
    _loops().norm_forward(
        states.numel() // width, width, states.data_ptr(), weight.data_ptr(), eps, found.data_ptr(), None
    )
    return found


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        states = states.contiguous()
        found, inverse = torch.empty_like(states), states.new_empty(states.shape[:-1])
        width = states.shape[-1]
        arguments = (states.data_ptr(), weight.data_ptr(), eps, found.data_ptr(), inverse.data_ptr())
        _loops().norm_forward(inverse.numel(), width, *arguments)
        ctx.save_for_backward(states, weight, inverse)
        return found

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        states, weight, inverse = ctx.saved_tensors
        slopes = slopes.contiguous()
        by_states, width = torch.empty_like(states), states.shape[-1]
        by_weight = weight.new_zeros(_PARTS, width)
        inputs = (tensor.data_ptr() for tensor in (states, weight, inverse, slopes))
        _loops().norm_backward(inverse.numel(), width, *inputs, by_states.data_ptr(), by_weight.data_ptr(), _PARTS)
        return by_states, by_weight.sum(0), None


def gate(gates: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """silu(gates) * states, of one shape."""
    if torch.is_grad_enabled() and (states.requires_grad or gates.requires_grad):
        return _Gate.apply(gates, states)  # pyright: ignore[reportReturnType]
    gates, states = gates.contiguous(), states.contiguous()
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
        found = torch.empty_like(gates)
        _loops().gate_forward(gates.numel(), gates.data_ptr(), states.data_ptr(), found.data_ptr())
        return found

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gates, states = ctx.saved_tensors
        slopes = slopes.contiguous()
        found = torch.empty_like(gates), torch.empty_like(states)
        places = (tensor.data_ptr() for tensor in (gates, states, slopes, *found))
        _loops().gate_backward(gates.numel(), *places)
        return found


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """states * cosines + rotate_half(states) * sines, as rotary positions are: states (R, T, H, D), others (R, T, D)."""
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
        prompt_keys: (Q, Hkv, D, n), n a multiple of 32, finite everywhere.
        prompt_values: (Q, Hkv, L, D).
        lengths: (Q,) int64, of the prompts, at most L and n.
        tasks: (3, K) int64: a question, and where some of its rows begin in `order` and how many they are.
        order: (R,) int64, the rows by question.
    """
    rows, heads, width = queries.shape
    kv_heads, padded = prompt_keys.shape[1], prompt_keys.shape[3]
    output, total = torch.empty_like(queries), queries.new_empty(rows, heads)
    pointers = ctypes.c_void_p * len(blocks)
    key_blocks = pointers(*(keys.data_ptr() for keys, _ in blocks))
    value_blocks = pointers(*(values.data_ptr() for _, values in blocks))
    num_tasks = tasks.shape[1]
    job = _Decoding(
        rows,
        heads,
        kv_heads,
        queries.data_ptr(),
        scaling,
        len(blocks),
        blocks[0][0].shape[2],
        own,
        ctypes.addressof(key_blocks),
        ctypes.addressof(value_blocks),
        prompt_keys.data_ptr(),
        prompt_values.data_ptr(),
        padded,
        prompt_values.shape[2],
        lengths.data_ptr(),
        num_tasks,
        tasks.data_ptr(),
        tasks.data_ptr() + 8 * num_tasks,
        tasks.data_ptr() + 16 * num_tasks,
        order.data_ptr(),
        output.data_ptr(),
        total.data_ptr(),
    )
    if _loops().decode_attention(ctypes.byref(job), width, int(tasks[2].max())):
        raise MemoryError("attention found no room to work in")
    return output, total
