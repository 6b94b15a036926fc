"""Weight matrices laid out for many small products.

Decoding multiplies a few rows by every matrix of the model, token after token, with weights that do not change
meanwhile.  oneDNN, which torch brings along, is 1.1 to 3 times as fast at it (measured for 4 to 128 rows) with
weights in a layout of its own; laying them out costs about one read of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spinerl.engine.cache import free_bytes
from spinerl.engine.loading import LoadedModel
from spinerl.engine.trials import ability, agree

__all__ = ["packed_weights"]

_ROWS = 64  # the layout's hint; any number from 16 on was measured to do for all
_SHARE_OF_MEMORY = 1 / 8  # of what is free: the matrices are there twice meanwhile


@contextmanager
def packed_weights(loaded: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers multiply by packed copies of their weights; for inference on CPUs.

    Nothing happens on other devices, in other types than float32, where memory is short, where torch lacks the
    operators, and where a trial gave other numbers.
    """
    if not _can_pack(loaded):
        yield
        return
    with _packed(loaded):
        yield


def _can_pack(loaded: LoadedModel) -> bool:
    if loaded.device.type != "cpu" or loaded.model.dtype != torch.float32:
        return False
    size = sum(layer.weight.nbytes for layer in _layers(loaded))
    return size <= _SHARE_OF_MEMORY * free_bytes(loaded.device) and ability(
        loaded, "packed_weights", lambda: _trial(loaded)
    )


@torch.no_grad()
def _trial(loaded: LoadedModel) -> bool:
    ids = torch.arange(12, device=loaded.device).view(3, 4) + 1
    plain = loaded.model(input_ids=ids, use_cache=False).logits
    with _packed(loaded):
        return agree(loaded.model(input_ids=ids, use_cache=False).logits, plain)


def _layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in loaded.model.modules() if type(layer) is torch.nn.Linear]


@contextmanager
def _packed(loaded: LoadedModel) -> Iterator[None]:
    layers = _layers(loaded)
    operators: Any = torch.ops.mkldnn
    try:
        for layer in layers:
            weight = operators._reorder_linear_weight(layer.weight.detach(), _ROWS)
            layer.forward = _product(operators._linear_pointwise, weight, layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _product(operator: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    bias = None if bias is None else bias.detach()
    return lambda states: operator(states, weight, bias, "none", [], "")
