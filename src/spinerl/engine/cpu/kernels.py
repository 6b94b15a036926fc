"""Loops that torch has no single operator for, compiled on the machine they run on (`spinerl.engine.cpu.library`).

Norms, SwiGLU and rotary positions are five to ten operators each in torch, every one a pass over memory; attention of
one new token to a shared prompt and to its row's own tokens is twenty.  Each is one loop here.  The C files in
`native/` say how each is computed, one operation a file.

float32 on a CPU only, but for matmuls that round their factors to bfloat16.  Functions take contiguous tensors unless
they say otherwise, and raise RuntimeError where `library()` is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spinerl.engine.cpu.attention_kernels import (
    ExtendAttention,
    LayerState,
    LayerWeights,
    decode_attention,
    decoder_step,
    extend_attention,
    extend_attention_backward,
)
from spinerl.engine.cpu.autograd import Function
from spinerl.engine.cpu.calls import addresses, call, constants
from spinerl.engine.cpu.library import library, library_error

__all__ = [
    "BF16_COLUMNS",
    "ExtendAttention",
    "IndexedRows",
    "LayerState",
    "LayerWeights",
    "NormRope",
    "add_indexed",
    "bf16_grad_weight",
    "bf16_matmul",
    "bf16_pack",
    "decode_attention",
    "decoder_step",
    "extend_attention",
    "extend_attention_backward",
    "grad_input",
    "grad_weight",
    "has_bf16",
    "has_fast_gemm",
    "head_dims",
    "library",
    "library_error",
    "norm_rope",
    "norm_rope_backward",
    "pack_panels",
    "pad_to_panel",
    "panel",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_with_rstd",
    "rope",
    "sample",
    "swiglu",
    "swiglu_recompute_backward",
]

IndexedRows = tuple[torch.Tensor, torch.Tensor]
"""Rows of a larger matrix: their numbers (m,) int64, and the matrix (N, ...) float32."""


def head_dims() -> tuple[int, ...]:
    """Sizes of a head that `decode_attention` and `decoder_step` are compiled for; none without a library."""
    found = library()
    return () if found is None else found.constants.head_dims


def panel() -> int:
    """Columns of a packed matrix that are stored together.  Raises RuntimeError where there is no library."""
    return constants().panel


# ---- RMSNorm ----


def rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * states / sqrt(mean(states^2) + eps) over the last axis, with its gradient.

    Args:
        states: (..., n) float32, contiguous or not.
        weight: (n,) float32.
    """
    if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(states, weight, eps)
    return _rms_norm(states.contiguous(), weight, eps, None)


def _rms_norm(
    states: torch.Tensor, weight: torch.Tensor, eps: float, rstd: torch.Tensor | None, add: IndexedRows | None = None
) -> torch.Tensor:
    """The same without a gradient; `rstd` (...), if given, is filled with 1 / sqrt(mean(states^2) + eps)."""
    out, size = torch.empty_like(states), states.shape[-1]
    inputs = (*addresses(states, *(add or (None, None)), weight), eps, *addresses(out, rstd))
    call("rms_norm_forward", states.numel() // size, size, *inputs)
    return out


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        states = states.contiguous()
        rstd = states.new_empty(states.shape[:-1])
        out = _rms_norm(states, weight, eps, rstd)
        ctx.save_for_backward(states, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return *rms_norm_backward(grad_output.contiguous(), *ctx.saved_tensors), None


def rms_norm_with_rstd(
    states: torch.Tensor, add: IndexedRows | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`rms_norm` of states (m, n), plus the rows `add` (m, n) if given, without a gradient; and its rstd (m,)."""
    rstd = states.new_empty(len(states))
    return _rms_norm(states, weight, eps, rstd, add), rstd


def rms_norm_backward(
    grad_output: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    add: IndexedRows | None = None,
    grad_residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of states (..., n), to which `grad_residual` (..., n) is added, and of the weight (n,).

    Args:
        grad_output: (..., n), of what `rms_norm` or `rms_norm_with_rstd` returned for the other arguments.
        rstd: (...), as `rms_norm_with_rstd` returned it.
    """
    grad_states, size = torch.empty_like(states), states.shape[-1]
    grad_weights = weight.new_zeros(constants().num_parts, size)
    inputs = addresses(states, *(add or (None, None)), weight, rstd, grad_output, grad_residual)
    call("rms_norm_backward", rstd.numel(), size, *inputs, *addresses(grad_states, grad_weights))
    return grad_states, grad_weights.sum(0)


def add_indexed(states: torch.Tensor, index: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """states (m, n) plus the rows `index` (m,) int64 of two matrices (N, n)."""
    out = torch.empty_like(states)
    call("add_indexed", *states.shape, *addresses(index, states, first, second, out))
    return out


# ---- SwiGLU ----


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of one shape, with its gradient; contiguous or not."""
    if torch.is_grad_enabled() and (up.requires_grad or gate.requires_grad):
        return _SwiGLU.apply(gate, up)
    return _swiglu(gate.contiguous(), up.contiguous())


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(gate)
    call("swiglu_forward", gate.numel(), *addresses(gate, up, out))
    return out


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        grads = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", gate.numel(), *addresses(gate, up, grad_output.contiguous(), *grads))
        return grads


def swiglu_recompute_backward(
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], grad_output: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """`swiglu` of some rows, and the gradients of gate and up: (m, n) each.

    Args:
        rows: their numbers (m,) int64, and gate and up (N, n).
        grad_output: (m, n).
    """
    found = tuple(torch.empty_like(grad_output) for _ in range(3))
    call("swiglu_recompute_backward", *grad_output.shape, *addresses(*rows, grad_output, *found))
    return found


# ---- rotary positions ----


def rope(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """states * cos + rotate_half(states) * sin, with its gradient.

    Args:
        states: (R, T, H, D), contiguous or not.
        cos, sin: (R, T, D), contiguous or not.
    """
    if torch.is_grad_enabled() and states.requires_grad:
        return _Rope.apply(states, cos, sin)
    return _rope(states, cos, sin, backward=False)


class _Rope(Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rope(states, cos, sin, backward=False)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return _rope(grad_output, *ctx.saved_tensors, backward=True), None, None


def _rope(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool) -> torch.Tensor:
    rows, tokens, heads, head_dim = states.shape
    states, cos, sin = states.contiguous(), cos.contiguous(), sin.contiguous()
    out = torch.empty_like(states)
    call("rope", rows * tokens, heads, head_dim, *addresses(states, cos, sin), int(backward), out.data_ptr())
    return out


@dataclass(frozen=True)
class NormRope:
    """RMSNorm of single heads, if `weight` (D,) is given, then rotary positions, cos and sin (m, D)."""

    weight: torch.Tensor | None
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor


def norm_rope(rows: IndexedRows, heads: int, how: NormRope) -> torch.Tensor:
    """(m, H, D): those rows (m, H * D), each head after RMSNorm and RoPE; without a gradient."""
    index, matrix = rows
    out = matrix.new_empty(len(index), heads, matrix.shape[1] // heads)
    inputs = (*addresses(index, matrix, how.weight), how.eps)
    call("norm_rope_forward", *out.shape, *inputs, *addresses(how.cos, how.sin, out))
    return out


def norm_rope_backward(
    rows: IndexedRows, how: NormRope, grad_output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of those rows (m, H * D) and of the weight (D,) or None, from that of `norm_rope` (m, H, D)."""
    index, matrix = rows
    grad_rows = torch.empty_like(grad_output)
    parts = None if how.weight is None else grad_output.new_zeros(constants().num_parts, grad_output.shape[2])
    inputs = (*addresses(index, matrix, how.weight), how.eps, *addresses(how.cos, how.sin, grad_output))
    call("norm_rope_backward", *grad_output.shape, *inputs, *addresses(grad_rows, parts))
    return grad_rows.flatten(1), None if parts is None else parts.sum(0)


# ---- matmul ----


def has_fast_gemm() -> bool:
    """Whether `grad_weight` and `grad_input` are there and faster than oneDNN: on processors with AVX."""
    found = library()
    return found is not None and found.constants.has_wide_registers


def grad_weight(grad_output: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """(n, k): grad_output (m, n), transposed, times states (m, k).  Raises ValueError unless k is a multiple of 16."""
    out = grad_output.new_empty(grad_output.shape[1], states.shape[1])
    call("grad_weight", *grad_output.shape, states.shape[1], *addresses(grad_output, states, out))
    return out


def grad_input(grad_output: torch.Tensor, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """(m, n): grad_output (m, k) times weight (k, n), added to `into` (m, n) in place if that is given.

    Raises ValueError unless n is a multiple of 16.
    """
    out = grad_output.new_empty(len(grad_output), weight.shape[1]) if into is None else into
    sizes = (*grad_output.shape, weight.shape[1])
    call("grad_input", *sizes, *addresses(grad_output, weight, out), int(into is not None))
    return out


def pack_panels(weight: torch.Tensor) -> torch.Tensor:
    """(..., n / panel, k, panel) for matrices (..., n, k), contiguous or not; the last panel is padded with 0."""
    panel = constants().panel
    *more, n, k = weight.shape
    packed = weight.new_empty(*more, -(-n // panel), k, panel)
    weight = weight.contiguous()
    for one, out in zip(weight.view(-1, n, k), packed.view(-1, *packed.shape[-3:]), strict=True):
        call("pack_panels", n, k, *addresses(one, out))
    return packed


# ---- matmul in bfloat16 ----

BF16_COLUMNS, _BF16_DEPTH = 64, 32  # of bf16.h


def has_bf16() -> bool:
    """Whether the library has matmuls of bfloat16 factors: of a CPU with AMX or AVX-512 BF16."""
    found = library()
    return found is not None and found.functions.bf16_available(1) == 0


def bf16_pack(matrix: torch.Tensor, transposed: bool = True) -> torch.Tensor:
    """A matrix (n, k), transposed, or (k, n), as `bf16_matmul` takes it: (n / 64, k / 32, 4, 16, 32) bfloat16, sizes
    rounded up, filled up with 0."""
    n, depth = matrix.shape if transposed else reversed(matrix.shape)
    sizes = -(-n // BF16_COLUMNS), -(-depth // _BF16_DEPTH), BF16_COLUMNS // 16, 16, _BF16_DEPTH
    packed = matrix.new_empty(sizes, dtype=torch.bfloat16)
    call("bf16_pack", n, depth, *addresses(matrix.contiguous()), int(transposed), packed.data_ptr())
    return packed


def bf16_matmul(states: torch.Tensor, packed: torch.Tensor, n: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """(m, n): states (m, k) times what `bf16_pack` made of a matrix (k, n): both rounded to bfloat16, summed up in
    float32; added to `into` (m, n) in place if that is given."""
    out = states.new_empty(len(states), n) if into is None else into
    sizes = len(states), n, states.shape[1]
    call("bf16_matmul", *sizes, *addresses(states.contiguous(), packed, out), int(into is not None))
    return out


def bf16_grad_weight(grad_output: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """`grad_weight`, both rounded to bfloat16 and summed in float32; k any number."""
    out = grad_output.new_empty(grad_output.shape[1], states.shape[1])
    inputs = grad_output.contiguous(), states.contiguous()
    call("bf16_grad_weight", *grad_output.shape, states.shape[1], *addresses(*inputs, out))
    return out


def pad_to_panel(values: torch.Tensor) -> torch.Tensor:
    """(n,) padded with 0 to a multiple of the panel."""
    return torch.nn.functional.pad(values, (0, -len(values) % constants().panel))


# ---- sampling ----


def sample(
    logits: torch.Tensor, temperature: float, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token per row of p = softmax(logits / temperature): the first whose cumulative probability exceeds the row's
    uniform number.

    Returns tokens (R,) int64, their log-probabilities (R,) and the entropies of p (R,), float32.

    Args:
        logits: (R, V), contiguous in the last axis or copied.
        temperature: above 0.
        uniforms: (R,) in [0, 1).

    Raises MemoryError where there is no memory to work in.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens = uniforms.new_empty(len(logits), dtype=torch.int64)
    figures = torch.empty_like(uniforms), torch.empty_like(uniforms)
    outputs = addresses(uniforms.contiguous(), tokens, *figures)
    call("sample", *logits.shape, logits.stride(0), logits.data_ptr(), 1.0 / temperature, *outputs)
    return tokens, *figures
