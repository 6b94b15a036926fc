"""Seconds, ratios and peak memory, measured the same way everywhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinerl.machine import forget_peak_memory, peak_resident_bytes, resident_bytes

__all__ = ["Patience", "figures", "interleave", "peak_memory", "ratios", "seconds_of"]

_PAGE = 4096


@dataclass(frozen=True)
class Patience:
    """How often to repeat: `most` times, but only twice where that has taken `seconds` already (0: any time)."""

    most: int
    seconds: float = 0.0

    def is_spent(self, done: int, started: float) -> bool:
        """Whether to stop after so many repeats, the first of which began at `started` (time.perf_counter)."""
        over = self.seconds > 0 and time.perf_counter() - started > self.seconds
        return done >= self.most or (over and done >= 2)

    def repeats_with_warm_up(self) -> Iterator[int]:
        """0 for the warm-up, then 1, 2, ... until patience is spent."""
        yield 0
        started, done = time.perf_counter(), 0
        while not self.is_spent(done, started):
            done += 1
            yield done


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call; on CUDA all queued work is waited for before and after."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def interleave(
    tasks: Mapping[str, Callable[[int], object]],
    patience: Patience,
    device: str = "cpu",
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of every task, repeated in turns, so that a busy machine slows all of them alike.

    Each task is called once before, untimed.  A task is given the number of the repeat, the untimed one is 0.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in patience.repeats_with_warm_up():
        for name, task in tasks.items():
            note(f"{name}, {f'repeat {repeat} of {patience.most}' if repeat else 'warm-up'}")
            took = seconds_of(lambda task=task, repeat=repeat: task(repeat), device)
            if repeat:
                seconds[name].append(took)
    return seconds


def figures(name: str, repeats: Sequence[float]) -> dict[str, Any]:
    """The median of a figure and the repeats it is made of.

    >>> figures("seconds", [3.0, 1.0, 2.0])
    {'seconds': 2.0, 'seconds_repeats': [3.0, 1.0, 2.0]}
    """
    return {name: statistics.median(repeats), f"{name}_repeats": list(repeats)}


def ratios(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The median of repeat-by-repeat ratios, and those: neighbours in time share the machine's mood.

    >>> ratios("ratio", [4.0, 9.0], [2.0, 3.0])
    {'ratio': 2.5, 'ratio_repeats': [2.0, 3.0]}
    """
    return figures(name, [a / b for a, b in zip(above, below, strict=True)])


def peak_memory(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes by which memory in use grew at its highest during one call; at least one page.

    On CUDA the device's memory; else the resident memory of this process.  Run it in a fresh process: where the
    operating system cannot forget an earlier peak, that peak hides a lower one.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return max(_PAGE, torch.cuda.max_memory_allocated() - before)
    forget_peak_memory()
    before = resident_bytes()
    work()
    return max(_PAGE, peak_resident_bytes() - before)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
