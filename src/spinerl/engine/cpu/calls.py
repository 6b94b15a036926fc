"""How Python calls the compiled loops: addresses of tensors, the number of threads, and error codes as exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from spinerl.engine.cpu.bindings import Constants, Library
from spinerl.engine.cpu.library import library

__all__ = ["addresses", "call", "constants"]

_ERRORS: dict[int, tuple[type[Exception], str]] = {  # the bits of kernels.h
    1: (MemoryError, "no memory to work in"),
    2: (ValueError, "a head_dim that it was not compiled for: see kernels.head_dims()"),
    4: (ValueError, "a size that it does not support: columns and head_dim are multiples of 16, heads of kv_heads"),
    8: (RuntimeError, "no instructions for bfloat16: see kernels.has_bf16()"),
}


def _library() -> Library:
    found = library()
    if found is None:
        raise RuntimeError("no compiled loops: ask spinerl.engine.cpu.library.library() first")
    return found


def constants() -> Constants:
    """What the library was compiled with.  Raises RuntimeError where there is none."""
    return _library().constants


def call(name: str, *args: Any) -> None:
    """Call a function of kernels.h with torch's number of threads.

    Raises MemoryError or ValueError for the error code that it returns, RuntimeError where there is no library.
    """
    status = getattr(_library().functions, name)(torch.get_num_threads(), *args)
    if status:
        kind, text = _ERRORS.get(status & -status, (RuntimeError, f"error {status}"))
        raise kind(f"{name}: {text}")


def addresses(*tensors: torch.Tensor | None) -> Iterator[int | None]:
    """Of their first numbers; None for None."""
    return (None if tensor is None else tensor.data_ptr() for tensor in tensors)
