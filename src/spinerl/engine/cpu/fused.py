"""A model's RMSNorm, SwiGLU and RoPE as one compiled loop each, forward and backward.

Which modules are meant is read off the names that transformers gives: of a norm and its epsilon, of the parts of a
SwiGLU feed-forward block, of the function that applies RoPE to queries and keys.  Whether they do compute that is
checked on the model (`spinerl.engine.cpu.patching`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import torch

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.patching import allows_patch, patch_forwards, suits_cpu
from spinerl.models.loading import LoadedModel

__all__ = ["fused_modules", "fuses_modules", "is_swiglu", "swiglu_layers"]

_ROPE = "apply_rotary_pos_emb"


def fuses_modules(loaded: LoadedModel) -> bool:
    """Whether such parts of the model run as compiled loops: not on other devices, in other types than float32, without
    a compiler, and where the self-check found other numbers."""
    if not suits_cpu(loaded) or kernels.library() is None:
        return False
    return allows_patch(loaded, "fused_modules", partial(_patch, loaded.model))


def fused_modules(loaded: LoadedModel) -> AbstractContextManager[None]:
    """Inside, such parts of the model run as compiled loops, where `fuses_modules`."""
    return _patch(loaded.model) if fuses_modules(loaded) else nullcontext()


@contextmanager
def _patch(model: torch.nn.Module) -> Iterator[None]:
    pairs: list[tuple[torch.nn.Module, Callable[..., Any]]] = []
    roped: dict[str, ModuleType] = {}
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            pairs.append((module, _norm(module)))
        elif is_swiglu(module):
            pairs.append((module, _swiglu(module)))
        source = sys.modules.get(type(module).__module__)
        if source is not None and _takes_cos_sin(getattr(source, _ROPE, None)):
            roped[source.__name__] = source
    with ExitStack() as stack:
        stack.enter_context(patch_forwards(pairs))
        for source in roped.values():
            stack.enter_context(_patched_rope(source))
        yield


def _takes_cos_sin(function: Any) -> bool:
    """Whether a function of this name has the arguments that most models' do (GPT-J, for one, has others)."""
    return function is not None and list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: kernels.rms_norm(states, module.weight, module.variance_epsilon)


def is_swiglu(module: Any) -> bool:
    """Whether a module is a feed-forward block down(silu(gate(x)) * up(x)), by the names of its parts."""
    silu = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    return silu and all(isinstance(part, torch.nn.Module) for part in swiglu_layers(module))


def swiglu_layers(module: Any) -> list[Any]:
    """Its gate, up and down."""
    return [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]


def _swiglu(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: module.down_proj(kernels.swiglu(module.gate_proj(states), module.up_proj(states)))


@contextmanager
def _patched_rope(source: Any) -> Iterator[None]:
    """Inside, RoPE as this module of transformers has it is one loop where it can be."""
    ordinary = getattr(source, _ROPE)

    def apply(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **others: Any) -> Any:
        if more or others or not all(_fits(states, cos, sin) for states in (q, k)):
            return ordinary(q, k, cos, sin, *more, **others)
        rope = [t.expand(len(q), -1, -1) for t in (cos, sin)]
        return tuple(kernels.rope(states.transpose(1, 2), *rope).transpose(1, 2) for states in (q, k))

    setattr(source, _ROPE, apply)
    try:
        yield
    finally:
        setattr(source, _ROPE, ordinary)


def _fits(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """States (R, H, T, D) stored as (R, T, H, D), and cos and sin (R or 1, T, D)."""
    alike = states.dtype == cos.dtype == sin.dtype == torch.float32
    fits = states.dim() == 4 and cos.dim() == 3 and cos.shape[1:] == (states.shape[2], states.shape[3])
    return alike and fits and cos.shape == sin.shape and len(cos) in (1, len(states))
