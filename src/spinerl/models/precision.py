"""Which type a model computes in where `model.dtype=auto` leaves it open: bfloat16 on a GPU; on a CPU float32, or mixed
where there are instructions for bfloat16 (AMX, AVX-512) that are measured to be faster at the model's own matmuls.

float32: weights and everything else.  bfloat16: weights and activations; what has to be exact stays float32 (the
optimizer's weights, log-probabilities, norms, losses).  mixed, on CPUs only: all of it float32, but what linear layers
multiply, which is rounded to bfloat16 and summed up in float32 (`spinerl.engine.cpu.linear`).
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch

from spinerl.config import Config
from spinerl.errors import InputError
from spinerl.machine import MULTIPLIES_BFLOAT16, bfloat16_support
from spinerl.models.capabilities import Verdict

__all__ = ["VERDICT", "Precision", "Speed", "choose_dtype", "matmul_speed", "weights_dtype", "with_dtype"]

Precision = Literal["float32", "bfloat16", "mixed"]

VERDICT = "bfloat16"
"""The name of the verdict among a model's capabilities."""

_log = logging.getLogger("spinerl.engine")

_LARGE = 100_000_000  # parameters; smaller models spend much of their time between matmuls
_FASTER = 1.5  # times as fast matmuls have to be
_SECONDS = 0.5  # of the measurement
_ROWS = (32, 512)  # multiplied at once: of a token in sampling, of a pass in an update
_SMALLEST = 64  # a matrix with a shorter side is no linear layer worth measuring
_MOST_ROWS = 4096  # of a weight: a head is measured by a part of it
_MOST_SHAPES = 6  # those with the most numbers


class Speed(NamedTuple):
    """How many times as fast bfloat16 matmuls are as float32 ones, with few rows (sampling) and many (updates)."""

    few_rows: float
    many_rows: float


def choose_dtype(
    asked: str, device: torch.device, shapes: Iterable[tuple[int, ...]], *, seconds: float = _SECONDS
) -> tuple[Precision, Verdict]:
    """What a model computes in, and why; the verdict is whether that is less than float32.

    Args:
        asked: `model.dtype`.
        shapes: of the model's weights, from the headers of its files.
        seconds: how long to measure, where it comes to that.

    Raises InputError where mixed is asked for on another device than a CPU.
    """
    if asked == "mixed" and device.type != "cpu":
        raise InputError(f"model.dtype=mixed is for CPUs; on {device.type} take bfloat16")
    found: Precision = "float32"
    if asked == "float32" or asked == "bfloat16" or asked == "mixed":
        found, reason = asked, f"model.dtype={asked}"
    elif device.type != "cpu":
        found, reason = "bfloat16" if device.type == "cuda" else "float32", f"model.dtype=auto on {device.type}"
    else:
        faster, reason = _on_cpu(list(shapes), seconds)
        found = "mixed" if faster else "float32"
    verdict = Verdict(found != "float32", f"{found}: {reason}")
    _log.info("%s: %s (%s)", VERDICT, "on" if verdict.used else "off", verdict.reason)
    return found, verdict


def weights_dtype(precision: Precision) -> torch.dtype:
    """Of the weights in memory."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def with_dtype(config: Config, recorded: object) -> Config:
    """The configuration with the type that a manifest recorded, where it leaves it open: what goes on rounds as it did.

    >>> with_dtype(Config(), "mixed").model.dtype
    'mixed'
    """
    if config.model.dtype != "auto" or recorded not in get_args(Precision):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": recorded})})


def _on_cpu(shapes: list[tuple[int, ...]], seconds: float) -> tuple[bool, str]:
    """Whether mixed is faster, and what was found."""
    support = bfloat16_support()
    if support not in MULTIPLIES_BFLOAT16:
        return False, f"the CPU has no instructions for bfloat16 ({support})"
    size = sum(map(math.prod, shapes))
    if size < _LARGE:
        return False, f"{size / 1e6:.1f} M parameters, and mixed is considered from {_LARGE / 1e6:.0f} M on"
    speed = matmul_speed(shapes, seconds)
    said = (
        f"matmuls of the model's shapes run {speed.few_rows:.2f} times as fast in bfloat16 with {_ROWS[0]} rows, "
        f"{speed.many_rows:.2f} times with {_ROWS[1]}; needed are {_FASTER:g}"
    )
    return min(speed) >= _FASTER, said


def matmul_speed(shapes: Iterable[tuple[int, ...]], seconds: float) -> Speed:
    """Measured for about so many seconds on this machine, on one thread; once in a process."""
    counts = Counter(shape for shape in shapes if len(shape) == 2 and min(shape) >= _SMALLEST)
    largest = sorted(counts.items(), key=lambda one: (-one[1] * math.prod(one[0]), one[0]))[:_MOST_SHAPES]
    return _measured(tuple(largest), seconds) if largest else Speed(1.0, 1.0)


@lru_cache
def _measured(counts: tuple[tuple[tuple[int, ...], int], ...], seconds: float) -> Speed:
    """`matmul_speed` of shapes with how often each is there: an estimate of memory and loading the model both ask."""
    operators: Any = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and operators._is_mkldnn_bf16_supported()):
        return Speed(1.0, 1.0)  # no bfloat16 matmuls to measure (a CPU with neither AVX-512 nor AVX-NE-CONVERT)
    share = seconds / (len(counts) * len(_ROWS))
    totals = {rows: [0.0, 0.0] for rows in _ROWS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another, the longer the busier the machine is
    try:
        for (n, k), count in counts:
            height = min(n, _MOST_ROWS)
            weights = [torch.randn(height, k).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
            for rows in _ROWS:
                for i, best in enumerate(_fastest(weights, rows, share)):
                    totals[rows][i] += count * best * n / height
    finally:
        torch.set_num_threads(threads)
    return Speed(*(float32 / bfloat16 for float32, bfloat16 in totals.values()))


@torch.inference_mode()
def _fastest(weights: list[torch.Tensor], rows: int, seconds: float) -> list[float]:
    """The least processor time that so many rows times each weight, packed for that, took, in turns, each at least
    three times: a machine that is busy with other work gives the same ratios."""
    operators: Any = torch.ops.mkldnn
    pairs = [(torch.randn(rows, w.shape[1]).to(w.dtype), operators._reorder_linear_weight(w, rows)) for w in weights]
    best = [math.inf] * len(pairs)
    until = time.perf_counter() + seconds
    turns = 0
    while turns < 3 or time.perf_counter() < until:
        for i, (states, weight) in enumerate(pairs):
            started = time.process_time()
            operators._linear_pointwise(states, weight, None, "none", [], "")
            best[i] = min(best[i], time.process_time() - started)
        turns += 1
    return best
