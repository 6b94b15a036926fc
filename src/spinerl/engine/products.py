"""Matrix products on a CPU through oneDNN, which torch brings along.

torch itself multiplies float32 matrices with MKL.  On processors that are not Intel's, MKL uses half of their vector
units' width: there oneDNN was measured to be 2.2 times as fast at the products of a forward pass and at the slopes of
its inputs, 1.5 to 2 times at those of its weights.  In sampling, where few rows are multiplied by every matrix, token
after token, the weights are laid out for that beforehand (1.1 to 3 times as fast as MKL, for 4 to 128 rows).

Which library multiplies is decided by the model's type and device alone, never by the clock: a resumed run must round
as the first one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spinerl.engine.cache import free_bytes
from spinerl.engine.loading import LoadedModel
from spinerl.engine.trials import ability, agree

__all__ = ["fast_products", "multiply", "packed_weights"]

_ROWS = 64  # the packed layout's hint; any number from 16 on was measured to do for all
_SHARE_OF_MEMORY = 1 / 8  # of what is free: packed matrices are there twice meanwhile
_ROWS_AT_ONCE = 1024  # summed up at a time in a weight's slope, so that they are found in the cache


@contextmanager
def packed_weights(loaded: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers multiply by packed copies of their weights; for inference on CPUs.

    Nothing happens on other devices, in other types than float32, where memory is short, where torch lacks the
    operators, and where a trial gave other numbers.
    """
    size = sum(layer.weight.nbytes for layer in _layers(loaded))
    if _suits(loaded) and size <= _SHARE_OF_MEMORY * free_bytes(loaded.device):
        with _tried(loaded, "packed_weights", _packed):
            yield
    else:
        yield


@contextmanager
def fast_products(loaded: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers multiply through oneDNN, forward and backward; where as for `packed_weights`,
    whatever the memory."""
    if _suits(loaded):
        with _tried(loaded, "fast_products", _product):
            yield
    else:
        yield


def _suits(loaded: LoadedModel) -> bool:
    return loaded.device.type == "cpu" and loaded.model.dtype == torch.float32


def _layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in loaded.model.modules() if type(layer) is torch.nn.Linear]


_Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def _tried(loaded: LoadedModel, name: str, forward_of: Callable[[torch.nn.Linear], _Forward]) -> Iterator[None]:
    if ability(loaded, name, lambda: _trial(loaded, forward_of)):
        with _exchanged(loaded, forward_of):
            yield
    else:
        yield


@contextmanager
def _exchanged(loaded: LoadedModel, forward_of: Callable[[torch.nn.Linear], _Forward]) -> Iterator[None]:
    before = [(layer, layer.__dict__.get("forward")) for layer in _layers(loaded)]
    try:
        for layer, _ in before:
            layer.forward = forward_of(layer)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for layer, forward in before:
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _trial(loaded: LoadedModel, forward_of: Callable[[torch.nn.Linear], _Forward]) -> bool:
    """Logits, and the slopes that learning layers give their weights, on a few tokens."""
    ids = torch.arange(12, device=loaded.device).view(3, 4) + 1
    plain = _figures(loaded, ids)
    with _exchanged(loaded, forward_of):
        found = _figures(loaded, ids)
    return all(agree(a, b) for a, b in zip(found, plain, strict=True))


def _figures(loaded: LoadedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    logits = loaded.model(input_ids=ids, use_cache=False).logits
    layer = next((layer for layer in _layers(loaded) if layer.weight.requires_grad), None)
    if layer is None or not logits.requires_grad:
        return [logits]
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return [logits, *torch.autograd.grad((logits * weights).sum(), [layer.weight])]


def _packed(layer: torch.nn.Linear) -> _Forward:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(layer.weight.detach(), _ROWS)
    bias = None if layer.bias is None else layer.bias.detach()
    return lambda states: multiply(states, weight, bias)


def _product(layer: torch.nn.Linear) -> _Forward:
    def forward(states: torch.Tensor) -> torch.Tensor:
        return _Product.apply(states, layer.weight, layer.bias)  # pyright: ignore[reportReturnType]

    return forward


def multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states (..., k) times weight (n, k), transposed, plus bias (n,); float32 on a CPU."""
    operators: Any = torch.ops.mkldnn
    return operators._linear_pointwise(states, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        return multiply(states, weight, bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, slopes: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad
        slopes = slopes.contiguous()
        rows = slopes.flatten(0, -2)
        return (
            multiply(slopes, weight.t()) if of_states else None,
            _weight_slope(rows, states.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _weight_slope(slopes: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """slopes (m, n), transposed, times states (m, k): (n, k), some rows at a time."""
    wide = slopes.shape[1] > states.shape[1]  # of the two ways round, the one with more rows was measured to be slower
    total: torch.Tensor | None = None
    for few_slopes, few_states in zip(slopes.split(_ROWS_AT_ONCE), states.split(_ROWS_AT_ONCE), strict=True):
        factors = (few_states.t(), few_slopes.t()) if wide else (few_slopes.t(), few_states.t())
        found = multiply(*factors)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total.t() if wide else total
