"""A model's norms, gates and rotations as one compiled loop each, forward and backward, on a CPU.

Which modules are meant is read off the names that transformers gives: of a norm and its epsilon, of the parts of a
gated feed-forward block, of the function that turns queries and keys.  Whether they do compute that is tried on the
model (`spinerl.engine.cpu.patching`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.patching import exchanged_forwards, suits_cpu, tried
from spinerl.engine.loading import LoadedModel

__all__ = ["fused_loops", "gated_layers", "is_gated"]

_ROTATION = "apply_rotary_pos_emb"


@contextmanager
def fused_loops(loaded: LoadedModel) -> Iterator[None]:
    """Inside, such parts of the model run as compiled loops.

    Nothing happens on other devices, in other types than float32, without a compiler, and where a trial gave other
    numbers.
    """
    if suits_cpu(loaded) and kernels.library() is not None:
        with tried(loaded, "fused_loops", lambda: _exchange(loaded.model)):
            yield
    else:
        yield


@contextmanager
def _exchange(model: torch.nn.Module) -> Iterator[None]:
    pairs: list[tuple[torch.nn.Module, Callable[..., Any]]] = []
    rotating: dict[str, ModuleType] = {}
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            pairs.append((module, _norm(module)))
        elif is_gated(module):
            pairs.append((module, _gated(module)))
        source = sys.modules.get(type(module).__module__)
        if source is not None and hasattr(source, _ROTATION):
            rotating[source.__name__] = source
    with ExitStack() as stack:
        stack.enter_context(exchanged_forwards(pairs))
        for source in rotating.values():
            stack.enter_context(_rotating(source))
        yield


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: kernels.rms_norm(states, module.weight, module.variance_epsilon)


def is_gated(module: Any) -> bool:
    """Whether a module is a feed-forward block down(silu(gate(x)) * up(x)), by the names of its parts."""
    silu = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return silu and all(isinstance(part, torch.nn.Module) for part in gated_layers(module))


def gated_layers(module: Any) -> list[Any]:
    """Its gate, up and down."""
    return [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]


def _gated(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: module.down_proj(kernels.swiglu(module.gate_proj(states), module.up_proj(states)))


@contextmanager
def _rotating(source: Any) -> Iterator[None]:
    """Inside, the functions of this file of transformers turn queries and keys by one loop where they can."""
    ordinary = getattr(source, _ROTATION)

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **others: Any
    ) -> Any:
        if more or others or not all(_can_turn(states, cos, sin) for states in (q, k)):
            return ordinary(q, k, cos, sin, *more, **others)
        angles = [t.expand(len(q), -1, -1) for t in (cos, sin)]
        return tuple(kernels.rope(states.transpose(1, 2), *angles).transpose(1, 2) for states in (q, k))

    setattr(source, _ROTATION, rotate)
    try:
        yield
    finally:
        setattr(source, _ROTATION, ordinary)


def _can_turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """States (R, H, T, D) that lie as (R, T, H, D), and angles (R or 1, T, D)."""
    alike = states.dtype == cos.dtype == sin.dtype == torch.float32
    fits = states.dim() == 4 and cos.dim() == 3 and cos.shape[1:] == (states.shape[2], states.shape[3])
    return alike and fits and cos.shape == sin.shape and len(cos) in (1, len(states))
