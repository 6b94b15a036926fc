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
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Replay, linear_layers
from spinerl.engine.cpu.patching import exchanged_forwards, suits_cpu, tried
from spinerl.engine.kv_cache import free_bytes
from spinerl.engine.loading import LoadedModel

__all__ = [
    "fast_products",
    "live_rows",
    "multiply",
    "packed_weights",
    "product",
    "put_back",
    "replayed_products",
    "slopes_back",
    "weight_slope",
]

_Forward = Callable[[torch.Tensor], torch.Tensor]

_ROWS = 64  # the packed layout's hint; any number from 16 on was measured to do for all
_SHARE_OF_MEMORY = 1 / 8  # of what is free: packed matrices are there twice meanwhile
_ROWS_ASKED = 64  # of slopes, to find out whether to look at all of them
_FEW_ARE_LIVE = 0.75  # rows of slopes are taken out where at most this share is not 0
_ROWS_AT_ONCE = 1024  # summed up at a time in a weight's slope, so that they are found in the cache


@contextmanager
def packed_weights(loaded: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers multiply by packed copies of their weights; for inference on CPUs.

    Nothing happens on other devices, in other types than float32, where memory is short, where torch lacks the
    operators, and where a trial gave other numbers.
    """
    size = sum(layer.weight.nbytes for layer in _layers(loaded))
    if suits_cpu(loaded) and size <= _SHARE_OF_MEMORY * free_bytes(loaded.device):
        with tried(loaded, "packed_weights", lambda: _exchange(loaded, _packed), learning=False):
            yield
    else:
        yield


@contextmanager
def fast_products(loaded: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers multiply through oneDNN, forward and backward; where as for `packed_weights`,
    whatever the memory."""
    if suits_cpu(loaded):
        with tried(loaded, "fast_products", lambda: _exchange(loaded, _product)):
            yield
    else:
        yield


def replayed_products(loaded: LoadedModel, replay: Replay) -> AbstractContextManager[None]:
    """Inside, the backbone's linear layers put out what the replay knows, and compute what it does not; their gradients
    are the ordinary ones."""

    def forward_of(number: int, layer: torch.nn.Linear) -> _Forward:
        ordinary = layer.forward

        def forward(states: torch.Tensor) -> torch.Tensor:
            known = replay.output(number)
            return ordinary(states) if known is None else product(states, layer.weight, layer.bias, known)

        return forward

    return exchanged_forwards((layer, forward_of(i, layer)) for i, layer in enumerate(linear_layers(loaded)))


def _layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in loaded.model.modules() if type(layer) is torch.nn.Linear]


def _exchange(loaded: LoadedModel, forward_of: Callable[[torch.nn.Linear], _Forward]) -> AbstractContextManager[None]:
    return exchanged_forwards((layer, forward_of(layer)) for layer in _layers(loaded))


def _packed(layer: torch.nn.Linear) -> _Forward:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(layer.weight.detach(), _ROWS)
    bias = None if layer.bias is None else layer.bias.detach()
    return lambda states: multiply(states, weight, bias)


def _product(layer: torch.nn.Linear) -> _Forward:
    return lambda states: product(states, layer.weight, layer.bias)


def multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states (..., k) times weight (n, k), transposed, plus bias (n,); float32 on a CPU."""
    operators: Any = torch.ops.mkldnn
    return operators._linear_pointwise(states, weight, bias, "none", [], "")


def product(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, known: torch.Tensor | None = None
) -> torch.Tensor:
    """states (..., k) times weight (n, k), transposed, plus bias (n,), and its gradient.

    `known` (..., n) is the result, where there is no need to compute it.
    """
    return _Product.apply(states, weight, bias, known)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        known: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        return _times(states, weight, bias) if known is None else known

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, slopes: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias, _ = ctx.needs_input_grad
        rows, inputs = slopes.contiguous().flatten(0, -2), states.flatten(0, -2)
        live = live_rows(rows)
        if live is not None:
            rows, inputs = rows[live], inputs[live] if of_weight else inputs
        by_states = None
        if of_states:
            by_states = put_back(slopes_back(rows, weight), live, slopes.shape[:-1].numel()).view(states.shape)
        return (
            by_states,
            weight_slope(rows, inputs) if of_weight else None,
            rows.sum(0) if of_bias else None,
            None,
        )


def _times(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if states.dtype == torch.float32 and states.device.type == "cpu":
        return multiply(states, weight, bias)
    return torch.nn.functional.linear(states, weight, bias)


def _by_loops(slopes: torch.Tensor, width: int) -> bool:
    on_cpu = slopes.dtype == torch.float32 and slopes.device.type == "cpu"
    return on_cpu and width % 16 == 0 and len(slopes) > 0 and kernels.has_fast_gemm()


def slopes_back(slopes: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """slopes (m, n) times weight (n, k), added to `into` (m, k) if that is given."""
    if _by_loops(slopes, weight.shape[1]):
        return kernels.grad_input(slopes.contiguous(), weight.contiguous(), into)
    found = _times(slopes, weight.t())
    return found if into is None else into.add_(found)


def put_back(rows: torch.Tensor, live: torch.Tensor | None, count: int) -> torch.Tensor:
    """Rows (m, k) in their places `live` among so many rows of 0; as they are if that is None."""
    return rows if live is None else rows.new_zeros(count, rows.shape[1]).index_copy_(0, live, rows)


def live_rows(slopes: torch.Tensor) -> torch.Tensor | None:
    """Which rows of slopes (m, n) are not all 0, where few enough are; else None.

    A model's last layer has slopes at the selected tokens alone, from where its attention has taken its queries on.
    """
    some = slopes[:: max(1, len(slopes) // _ROWS_ASKED), :: max(1, slopes.shape[1] // 4)]
    if not len(slopes) or some.any(1).float().mean() > _FEW_ARE_LIVE:
        return None
    live = slopes.any(1)
    return live.nonzero().squeeze(1) if live.float().mean() <= _FEW_ARE_LIVE else None


def weight_slope(slopes: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """slopes (m, n), transposed, times states (m, k): (n, k), some rows at a time."""
    if not len(slopes):
        return slopes.new_zeros(slopes.shape[1], states.shape[1])
    if _by_loops(slopes, states.shape[1]):
        return kernels.grad_weight(slopes.contiguous(), states.contiguous())
    wide = slopes.shape[1] > states.shape[1]  # of the two ways round, the one with more rows was measured to be slower
    total: torch.Tensor | None = None
    for few_slopes, few_states in zip(slopes.split(_ROWS_AT_ONCE), states.split(_ROWS_AT_ONCE), strict=True):
        factors = (few_states.t(), few_slopes.t()) if wide else (few_slopes.t(), few_states.t())
        found = _times(*factors)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total.t() if wide else total
