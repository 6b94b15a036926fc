"""Replacing the forward functions of a model's modules by faster ones, checked on the model first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from spinerl.engine.self_check import differences, nudged
from spinerl.models.loading import LoadedModel

__all__ = ["allows_patch", "numbers", "patch_forwards", "suits_cpu"]

Forward = Callable[..., Any]


def suits_cpu(loaded: LoadedModel) -> bool:
    """Whether the model is a float32 one on a CPU, which most of this package is for."""
    return loaded.device.type == "cpu" and loaded.model.dtype == torch.float32


def allows_patch(
    loaded: LoadedModel,
    name: str,
    patch: Callable[[], AbstractContextManager[None]],
    *,
    gradients: bool = True,
    fits: Callable[[], None] = lambda: None,
) -> bool:
    """Whether the model may be patched: unless a self-check found other numbers with the patch than without.

    Args:
        gradients: whether they are among those numbers.
        fits: raises Unsupported where the patch needs more memory than there is; asked before the self-check.
    """

    def check() -> str | None:
        fits()
        return _check(loaded, patch, gradients)

    return loaded.capabilities.allows(name, check)


@contextmanager
def patch_forwards(pairs: Iterable[tuple[torch.nn.Module, Forward]]) -> Iterator[None]:
    """Inside, each module's forward function is the other one."""
    pairs = list(pairs)
    before = [(module, module.__dict__.get("forward")) for module, _ in pairs]
    try:
        for module, forward in pairs:
            module.forward = forward
        yield
    finally:
        for module, forward in before:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def _check(loaded: LoadedModel, patch: Callable[[], AbstractContextManager[None]], gradients: bool) -> str | None:
    def again() -> dict[str, torch.Tensor]:
        with nudged(loaded.model):
            return numbers(loaded)

    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        expected = numbers(loaded)
        with patch():
            found = numbers(loaded)
        return differences(found.items(), expected, again)


def numbers(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Logits of a few tokens and, with gradient enabled, the gradient of each parameter of the backbone that learns."""
    ids = torch.arange(12, device=loaded.device).view(3, 4) + 1
    logits = loaded.model(input_ids=ids, use_cache=False).logits
    named = loaded.model.base_model.named_parameters()
    learning = {name: parameter for name, parameter in named if parameter.requires_grad}
    if not learning or not torch.is_grad_enabled():
        return {"logits": logits}
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    gradients = torch.autograd.grad(
        (logits * weights).sum(), list(learning.values()), allow_unused=True, materialize_grads=True
    )
    return {"logits": logits, **{f"the gradient of {name}": g for name, g in zip(learning, gradients, strict=True)}}
