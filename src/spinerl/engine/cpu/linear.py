"""Linear layers on a CPU through oneDNN, which comes with torch.

torch itself multiplies float32 matrices with MKL.  On processors that are not Intel's, MKL uses half of their vector
units' width: there oneDNN was measured to be 2.2 times as fast at the matmuls of a forward pass and at the gradients of
its inputs, 1.5 to 2 times at those of its weights.  In sampling, where few rows are multiplied by every matrix, token
after token, the weights are packed for that beforehand (1.1 to 3 times as fast as MKL, for 4 to 128 rows).

Which library multiplies is decided by the model's type and device only, not by a measurement of time: a resumed run
must round as the first one did.

With model.dtype=mixed, and on processors with instructions for bfloat16 (AMX, AVX-512), both factors of a matmul are
rounded to it and summed up in float32 (`rounds_matmuls`); all else stays float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import Reuse, linear_layers
from spinerl.engine.cpu.autograd import Function
from spinerl.engine.cpu.patching import allows_patch, numbers, patch_forwards, suits_cpu
from spinerl.engine.kv_cache import free_bytes
from spinerl.engine.self_check import too_far
from spinerl.models.capabilities import Unsupported
from spinerl.models.loading import LoadedModel

__all__ = [
    "Matmuls",
    "active_rows",
    "linear",
    "matmuls_of",
    "onednn_linear",
    "packed_weights",
    "packs_weights",
    "reused_linear",
    "rounds_matmuls",
    "scatter_rows",
    "uses_onednn",
]

_Forward = Callable[[torch.Tensor], torch.Tensor]

_PACKED_FOR_ROWS = 64  # the packed layout's hint; any number from 16 on was measured to do for all
_SHARE_OF_MEMORY = 1 / 8  # of what is free: packed matrices are there twice meanwhile
_PROBED_ROWS = 64  # of a gradient, to find out whether to look at all of them
_FEW_ACTIVE = 0.75  # rows of 0 are left out where at most this share of rows is not 0
_HEAD = 16384  # outputs from which on a layer counts as a head
_CHUNK_ROWS = 1024  # summed up at a time in a weight's gradient, so that they are found in the cache


def packs_weights(loaded: LoadedModel) -> bool:
    """Whether packed copies of the model's weights are used: not on other devices, in other types than float32, where
    memory was short, where torch lacks the operators, and where the self-check found other numbers."""

    def fits() -> None:
        size = sum(layer.weight.nbytes for layer in _layers(loaded)) // (2 if rounds_matmuls(loaded) else 1)
        if size > _SHARE_OF_MEMORY * free_bytes(loaded.device):
            raise Unsupported("too little free memory for a second copy of the weights")

    patch = partial(_patch, loaded, _packed)
    if loaded.disables("packed-weights") or not suits_cpu(loaded):
        return False
    return allows_patch(loaded, "packed_weights", patch, gradients=False, fits=fits)


def packed_weights(loaded: LoadedModel) -> AbstractContextManager[None]:
    """Inside, the model's linear layers multiply by packed copies of their weights, where `packs_weights`; for
    inference."""
    if not packs_weights(loaded):
        return nullcontext()
    return _patch(loaded, _packed_rounding if rounds_matmuls(loaded) else _packed)


def uses_onednn(loaded: LoadedModel) -> bool:
    """Whether linear layers multiply through oneDNN: as for `packs_weights`, whatever the memory."""
    if loaded.disables("onednn") or not suits_cpu(loaded):
        return False
    return allows_patch(loaded, "onednn_linear", partial(_patch, loaded, _linear))


def onednn_linear(loaded: LoadedModel) -> AbstractContextManager[None]:
    """Inside, the model's linear layers multiply through oneDNN, forward and backward, where `uses_onednn`; or rounded,
    where `rounds_matmuls`."""
    if rounds_matmuls(loaded):
        return _patch(loaded, partial(_rounding, _RoundedMatmuls()))
    return _patch(loaded, _linear) if uses_onednn(loaded) else nullcontext()


def rounds_matmuls(loaded: LoadedModel) -> bool:
    """Whether linear layers round what they multiply to bfloat16: where model.dtype is, or was chosen to be, mixed, the
    processor has instructions for it, and the self-check found numbers near those of float32."""

    def check() -> str | None:
        if not kernels.has_bf16():
            raise Unsupported(kernels.library_error() or "no instructions for bfloat16 (CPU or compiler)")
        with torch.inference_mode(False), torch.enable_grad():
            expected = numbers(loaded)
            with _patch(loaded, partial(_rounding, _RoundedMatmuls())):
                found = numbers(loaded)
        return too_far(found.items(), expected)

    if not loaded.mixed or loaded.disables("compiled") or not suits_cpu(loaded):
        return False
    return loaded.capabilities.allows("bf16_matmul", check)


def reused_linear(loaded: LoadedModel, reuse: Reuse) -> AbstractContextManager[None]:
    """Inside, the backbone's linear layers take their outputs from kept activations where there are any; their
    gradients are the ordinary ones."""
    matmuls = matmuls_of(loaded)

    def forward_of(number: int, layer: torch.nn.Linear) -> _Forward:
        ordinary = layer.forward

        def forward(states: torch.Tensor) -> torch.Tensor:
            known = reuse.output(number)
            return ordinary(states) if known is None else linear(states, layer.weight, layer.bias, matmuls, known)

        return forward

    return patch_forwards((layer, forward_of(i, layer)) for i, layer in enumerate(linear_layers(loaded)))


def _layers(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [layer for layer in loaded.model.modules() if type(layer) is torch.nn.Linear]


def _patch(loaded: LoadedModel, forward_of: Callable[[torch.nn.Linear], _Forward]) -> AbstractContextManager[None]:
    return patch_forwards((layer, forward_of(layer)) for layer in _layers(loaded))


def _packed(layer: torch.nn.Linear) -> _Forward:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(layer.weight.detach(), _PACKED_FOR_ROWS)
    bias = None if layer.bias is None else layer.bias.detach()
    return lambda states: matmul(states, weight, bias)


def _packed_rounding(layer: torch.nn.Linear) -> _Forward:
    packed, n = kernels.bf16_pack(layer.weight.detach()), layer.out_features
    bias = None if layer.bias is None else layer.bias.detach()

    return lambda states: _rounded_output(states, packed, n, bias)


def _rounded_output(states: torch.Tensor, packed: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    """states (..., k) times a weight (n, k) that `kernels.bf16_pack` packed, transposed, plus bias (n,)."""
    found = kernels.bf16_matmul(states.flatten(0, -2), packed, n).view(*states.shape[:-1], n)
    return found if bias is None else found.add_(bias)


def _linear(layer: torch.nn.Linear) -> _Forward:
    return lambda states: linear(states, layer.weight, layer.bias)


def _rounding(matmuls: Matmuls, layer: torch.nn.Linear) -> _Forward:
    return lambda states: linear(states, layer.weight, layer.bias, matmuls)


def matmul(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states (..., k) times weight (n, k), transposed, plus bias (n,); float32 on a CPU."""
    operators: Any = torch.ops.mkldnn
    return operators._linear_pointwise(states, weight, bias, "none", [], "")


class Matmuls:
    """The three matmuls of a linear layer: in float32."""

    def output(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """states (..., k) times weight (n, k), transposed, plus bias (n,)."""
        return _matmul(states, weight, bias)

    def grad_input(
        self, grad_output: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """grad_output (m, n) times weight (n, k), added to `out` (m, k) if that is given."""
        if _compiled(grad_output, weight.shape[1]):
            return kernels.grad_input(grad_output.contiguous(), weight.contiguous(), out)
        found = _matmul(grad_output, weight.t())
        return found if out is None else out.add_(found)

    def grad_weight(self, grad_output: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """grad_output (m, n), transposed, times states (m, k): (n, k), some rows at a time."""
        if not len(grad_output):
            return grad_output.new_zeros(grad_output.shape[1], states.shape[1])
        if _compiled(grad_output, states.shape[1]):
            return kernels.grad_weight(grad_output.contiguous(), states.contiguous())
        wide = grad_output.shape[1] > states.shape[1]  # the order with more rows was measured to be slower
        found: torch.Tensor | None = None
        for some_grads, some_states in zip(grad_output.split(_CHUNK_ROWS), states.split(_CHUNK_ROWS), strict=True):
            factors = (some_states.t(), some_grads.t()) if wide else (some_grads.t(), some_states.t())
            part = _matmul(*factors)
            found = part if found is None else found.add_(part)
        assert found is not None
        return found.t() if wide else found


_FLOAT32 = Matmuls()


class _RoundedMatmuls(Matmuls):
    """The same of factors rounded to bfloat16, summed up in float32; while the weights stay as they are.

    Weights are packed at each matmul, which costs little where they meet many rows.  A head meets few at a time: its
    packed copies are kept.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], torch.Tensor] = {}

    def output(self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return _rounded_output(states, self._packed(weight, True), len(weight), bias)

    def grad_input(
        self, grad_output: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return kernels.bf16_matmul(grad_output, self._packed(weight, False), weight.shape[1], out)

    def grad_weight(self, grad_output: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return kernels.bf16_grad_weight(grad_output, states)

    def _packed(self, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
        key = weight.data_ptr(), transposed
        found = self._kept.get(key)
        if found is None:
            found = kernels.bf16_pack(weight, transposed)
            if len(weight) >= _HEAD:
                self._kept[key] = found
        return found


def matmuls_of(loaded: LoadedModel) -> Matmuls:
    """How the model's linear layers multiply in passes during which its weights stay as they are."""
    return _RoundedMatmuls() if rounds_matmuls(loaded) else _FLOAT32


def linear(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    matmuls: Matmuls | None = None,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """states (..., k) times weight (n, k), transposed, plus bias (n,), and its gradient.

    `known` (..., n): the output, where it is known already.
    """
    return _Linear.apply(states, weight, bias, matmuls or _FLOAT32, known)


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        matmuls: Matmuls,
        known: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        ctx.matmuls = matmuls
        return matmuls.output(states, weight, bias) if known is None else known

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        rows, inputs = grad_output.contiguous().flatten(0, -2), states.flatten(0, -2)
        active = active_rows(rows)
        if active is not None:
            rows, inputs = rows[active], inputs[active] if needs_weight else inputs
        grad_states = None
        if needs_states:
            num_rows = grad_output.shape[:-1].numel()
            grad_states = scatter_rows(ctx.matmuls.grad_input(rows, weight), active, num_rows).view(states.shape)
        return (
            grad_states,
            ctx.matmuls.grad_weight(rows, inputs) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
            None,
            None,
        )


def _matmul(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    if states.dtype == torch.float32 and states.device.type == "cpu":
        return matmul(states, weight, bias)
    return torch.nn.functional.linear(states, weight, bias)


def _compiled(grad_output: torch.Tensor, width: int) -> bool:
    on_cpu = grad_output.dtype == torch.float32 and grad_output.device.type == "cpu"
    return on_cpu and width % 16 == 0 and len(grad_output) > 0 and kernels.has_fast_gemm()


def active_rows(grad_output: torch.Tensor) -> torch.Tensor | None:
    """Which rows of a gradient (m, n) are not all 0, where they are few enough; else None.

    A model's last layer has a gradient only at the selected tokens, from its queries on.
    """
    some = grad_output[:: max(1, len(grad_output) // _PROBED_ROWS), :: max(1, grad_output.shape[1] // 4)]
    if not len(grad_output) or some.any(1).float().mean() > _FEW_ACTIVE:
        return None
    active = grad_output.any(1)
    return active.nonzero().squeeze(1) if active.float().mean() <= _FEW_ACTIVE else None


def scatter_rows(rows: torch.Tensor, active: torch.Tensor | None, num_rows: int) -> torch.Tensor:
    """Rows (m, k) at the places `active` (m,) among so many rows of 0; as they are if that is None."""
    return rows if active is None else rows.new_zeros(num_rows, rows.shape[1]).index_copy_(0, active, rows)
