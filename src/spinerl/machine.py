"""What this machine is and how to make it behave: allocator, threads, devices, memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spinerl.errors import InputError
from spinerl.lines import lines_of, read_text

if TYPE_CHECKING:
    import torch

__all__ = [
    "MULTIPLIES_BFLOAT16",
    "bfloat16_support",
    "choose_threads",
    "forget_peak_memory",
    "peak_resident_bytes",
    "pick_device",
    "resident_bytes",
    "set_threads",
    "to_device",
    "tune_allocator",
]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_MADV_HUGEPAGE = 14
_LARGE_PAGE = 2 * 2**20


def tune_allocator() -> bool:
    """Make glibc keep memory once it has it, and take it in large pages; True if that took effect.

    A CPU training step allocates and frees the same few megabytes thousands of times.  By default each is an
    mmap/munmap pair whose pages fault in again at the next use: forward and backward of a small model were
    measured 2.4 times faster without (docs/experiments.md).  Costs memory only up to the peak already reached.
    Does nothing where the C library is not glibc, or where the user set MALLOC_* variables.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    limit = 2**30  # glibc caps the mmap threshold at DEFAULT_MMAP_THRESHOLD_MAX unless set explicitly
    done = [
        mallopt(_M_MMAP_THRESHOLD, limit),
        mallopt(_M_TRIM_THRESHOLD, -1),  # never give back
        mallopt(_M_TOP_PAD, 64 * 2**20),
    ]
    _reserve_large_pages(libc)
    return all(done)


def _reserve_large_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow to half of what is free now (only address space is reserved), and ask for large pages there.

    A page that is used for the first time costs the kernel 1 to 2 us, whether 4 KiB or 2 MiB in size.  The space is
    made by a block too large for the heap as it is, which is freed at once.
    """
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.sbrk.restype = ctypes.c_void_p
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    before = libc.sbrk(0)
    libc.mallopt(_M_MMAP_MAX, 0)  # from the heap, not outside it
    block = libc.malloc(size)
    libc.mallopt(_M_MMAP_MAX, 65536)  # the default
    if block:
        libc.free(block)
        start = -(-before // _LARGE_PAGE) * _LARGE_PAGE
        if libc.sbrk(0) > start:
            libc.madvise(start, libc.sbrk(0) - start, _MADV_HUGEPAGE)


MULTIPLIES_BFLOAT16 = ("AMX", "AVX-512")
"""With these of `bfloat16_support`, less than float32 is worth trying on a CPU: model.dtype=mixed."""


def bfloat16_support() -> str:
    """What the CPU makes of bfloat16: "AMX", "AVX-512", "emulated" (slower than float32), or "unknown"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return "unknown"
    if not flags:
        return "unknown"
    return "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else "emulated"


def pick_device(name: str) -> str:
    """'cuda', 'mps' or 'cpu' for `auto`, else `name` itself after checking that it is there.

    Raises InputError for a device this torch does not see.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"model.device={name} is not available ({reason}); use model.device=auto") from None
    return name


def set_threads(threads: int) -> None:
    """Give torch this many CPU threads.

    Raises InputError where the environment has OpenMP start fewer: oneDNN's matmuls then leave out a part of
    their results and report nothing.
    """
    import torch

    most, reason = _thread_limit()
    if most is not None and threads > most:
        raise InputError(f"threads={threads}, but {reason} in the environment has OpenMP start fewer: unset it")
    torch.set_num_threads(threads)


def _thread_limit() -> tuple[int | None, str]:
    """(most threads that OpenMP is sure to start, because of what); None: as many as it is asked for."""
    if os.environ.get("OMP_DYNAMIC", "").strip().casefold() in ("true", "1"):  # as many as it likes
        return 1, f"OMP_DYNAMIC={os.environ['OMP_DYNAMIC']}"
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return (int(limit) if limit.isdecimal() and int(limit) else None), f"OMP_THREAD_LIMIT={limit}"


def choose_threads(model: torch.nn.Module, vocabulary: int) -> int:
    """The number of CPU threads, 1 or all, that runs this model faster here and now; torch is left set to it.

    Small operators gain little from a second thread, and threads that wait for one another on a busy machine can
    be many times slower than one.  So a few forward passes are timed (well under a second).  Models over 50 M
    parameters always get all: their matmuls are large.
    """
    import torch

    cores = torch.get_num_threads()
    most, _ = _thread_limit()
    if most is not None and most < cores:
        cores = most
        torch.set_num_threads(cores)
    if cores == 1 or sum(p.numel() for p in model.parameters()) > 50_000_000:
        return cores
    ids = torch.arange(64 * 16).view(64, 16) % vocabulary

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
        return time.perf_counter() - start

    seconds(1)  # the first pass sets things up
    single = min(seconds(1) for _ in range(3))
    together = [seconds(cores)]
    while together[-1] < 3 * single and len(together) < 4:  # a hopeless case ends at once
        together.append(seconds(cores))
    best = cores if min(together) < 0.9 * single else 1
    torch.set_num_threads(best)
    return best


def resident_bytes() -> int:
    """Memory of this process now, in bytes; where the system does not say, its peak."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this process has had, in bytes, since `forget_peak_memory` where the system can do that."""
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    import resource  # not on every system

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def forget_peak_memory() -> None:
    """Let the peak start again from here, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int | None:
    """Bytes on a line of /proc/self/status, None where there is no such file."""
    try:
        lines = lines_of(read_text(Path("/proc/self/status")))
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device (itself, where it is there), behind the work that the device has in its queue.

    `tensor.to(device)` would wait until a GPU has done all of that.  The host tensor may be changed afterwards: CUDA
    has read memory that is not pinned when the call returns.  Other devices do not promise that: they are waited for.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
