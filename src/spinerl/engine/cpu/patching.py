"""Exchanging the forward functions of a model's parts for faster ones, tried on the model first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from spinerl.engine.capabilities import ability, agree
from spinerl.engine.loading import LoadedModel

__all__ = ["exchanged_forwards", "suits_cpu", "tried"]

Forward = Callable[..., Any]


def suits_cpu(loaded: LoadedModel) -> bool:
    """Whether the model is a float32 one on a CPU, which the exchanges of this package are for."""
    return loaded.device.type == "cpu" and loaded.model.dtype == torch.float32


@contextmanager
def tried(
    loaded: LoadedModel, name: str, exchange: Callable[[], AbstractContextManager[None]], *, learning: bool = True
) -> Iterator[None]:
    """Inside, the exchange is in force, unless a trial found other numbers with it than without.

    `learning`: gradients are among those numbers.
    """
    if ability(loaded, name, lambda: _trial(loaded, exchange, learning)):
        with exchange():
            yield
    else:
        yield


@contextmanager
def exchanged_forwards(pairs: Iterable[tuple[torch.nn.Module, Forward]]) -> Iterator[None]:
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


def _trial(loaded: LoadedModel, exchange: Callable[[], AbstractContextManager[None]], learning: bool) -> bool:
    with torch.inference_mode(False), torch.set_grad_enabled(learning):
        plain = _figures(loaded)
        with exchange():
            found = _figures(loaded)
    return all(agree(a, b) for a, b in zip(found, plain, strict=True))


def _figures(loaded: LoadedModel) -> list[torch.Tensor]:
    """Logits of a few tokens and, with gradient enabled, the slopes of whatever learns in the backbone."""
    ids = torch.arange(12, device=loaded.device).view(3, 4) + 1
    logits = loaded.model(input_ids=ids, use_cache=False).logits
    learning = [parameter for parameter in loaded.model.base_model.parameters() if parameter.requires_grad]
    if not learning or not torch.is_grad_enabled():
        return [logits]
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    slopes = torch.autograd.grad((logits * weights).sum(), learning, allow_unused=True, materialize_grads=True)
    return [logits, torch.cat([slope.flatten() for slope in slopes])]
