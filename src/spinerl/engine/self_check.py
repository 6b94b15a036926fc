"""Comparing a faster path with the plain one: it runs once on the model, on a few tokens, and gives the same numbers or
is not used (`spinerl.models.capabilities` keeps the verdict)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["agree", "differences", "nudged", "only_embeddings_learn", "too_far"]

# Relative to the largest number: what the same sum in another order may differ by.  float64 models compute some
# parts in float32 (transformers' norms).
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
_SMALLEST = 1e-3  # a tensor's numbers are compared relative to at least this share of the largest of all tensors
_ROUNDED, _SAME_WAY = 0.2, 0.9  # share of a norm; cosine
_AMPLIFIED, _MOST = 8.0, 0.01  # times what one rounding of the norms' weights changes; at most


def agree(found: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> bool:
    """Whether two tensors are the same up to their type's rounding, relative to the largest number or to `floor`."""
    return _gap(found, expected, floor) <= _TOLERANCES.get(expected.dtype, 1e-4)


def _gap(found: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    """The largest difference, relative to the largest number or to `floor`."""
    if not expected.numel():
        return 0.0
    scale = expected.detach().abs().max().clamp_min(max(1e-6, floor))
    return float((found.detach() - expected.detach()).abs().max() / scale)


def differences(
    found: Iterable[tuple[str, torch.Tensor]],
    expected: Mapping[str, torch.Tensor],
    again: Callable[[], Mapping[str, torch.Tensor]] | None = None,
) -> str | None:
    """The name of the first tensor that is not the same, as a reason; None if all are.

    Each is compared relative to its own largest number, but to no less than 1/1000 of the largest of all, and may
    differ by what its type may (`agree`).  A deep model amplifies every rounding, the plain path's own too: where the
    type's tolerance does not hold, 8 times what one rounding of the norms' weights changes does, up to 1 %.

    Args:
        again: computes `expected` once more, for that comparison.
    """
    found = list(found)
    floor = _SMALLEST * max((float(t.detach().abs().max()) for t in expected.values() if t.numel()), default=0.0)
    apart = [(name, tensor) for name, tensor in found if not agree(tensor, expected[name], floor)]
    if apart and again is not None:
        moved = again()
        most = min(_MOST, _AMPLIFIED * max(_gap(moved[name], tensor, floor) for name, tensor in expected.items()))
        apart = [(name, tensor) for name, tensor in apart if not _gap(tensor, expected[name], floor) <= most]
    if not apart:
        return None
    name, tensor = apart[0]
    gap = float((tensor.detach() - expected[name].detach()).abs().max())
    return f"{name} differs by {gap:.2g} from the plain path's"


def too_far(
    found: Iterable[tuple[str, torch.Tensor]], expected: Mapping[str, torch.Tensor], *_again: object
) -> str | None:
    """The same of numbers computed with factors that are rounded to bfloat16.

    All outputs (logits, hidden states) together may be off by a fifth of their norm.  All gradients together have to
    point the same way, with a cosine of at least 0.9: where one token carries most of a gradient, as the first of a
    text does in some models, rounding changes its length by more than half.
    """
    sums = {"outputs": torch.zeros(3, dtype=torch.float64), "gradients": torch.zeros(3, dtype=torch.float64)}
    for name, tensor in found:
        a, b = tensor.detach().double(), expected[name].detach().double()
        sums["gradients" if "gradient" in name else "outputs"] += torch.stack(
            [(a * a).sum(), (a * b).sum(), (b * b).sum()]
        )
    aa, ab, bb = sums["outputs"].tolist()
    if not aa - 2 * ab + bb <= _ROUNDED**2 * bb:
        return f"outputs differ by {(max(aa - 2 * ab + bb, 0.0) / max(bb, 1e-300)) ** 0.5:.2g} of their norm"
    aa, ab, bb = sums["gradients"].tolist()
    if not ab >= _SAME_WAY * (aa * bb) ** 0.5:
        return f"gradients have a cosine of {ab / max((aa * bb) ** 0.5, 1e-300):.2g} with those expected"
    return None


@contextmanager
def nudged(model: torch.nn.Module) -> Iterator[None]:
    """Inside, each number of the one-dimensional parameters (norms, biases) is up or down by one rounding, in turns.

    Autograd does not notice: a check may run between a pass and its way back, which finds the same numbers again.
    """
    vectors = [one.data for one in model.parameters() if one.ndim == 1 and one.is_floating_point()]
    kept = [vector.clone() for vector in vectors]
    for vector in vectors:
        signs = 1.0 - 2.0 * (torch.arange(len(vector), device=vector.device) % 2)
        vector.mul_(1 + signs.to(vector.dtype) * torch.finfo(vector.dtype).eps)
    try:
        yield
    finally:
        for vector, before in zip(vectors, kept, strict=True):
            vector.copy_(before)


@contextmanager
def only_embeddings_learn(model: Any) -> Iterator[torch.nn.Parameter]:
    """The input embedding, the only parameter with a gradient meanwhile: a self-check must not cost a model's worth."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.nn.Parameter)
    learned = {parameter: parameter.requires_grad for parameter in model.parameters()}
    kept, weight.grad = weight.grad, None
    try:
        for parameter in learned:
            parameter.requires_grad_(parameter is weight)
        yield weight
    finally:
        for parameter, requires in learned.items():
            parameter.requires_grad_(requires)
        weight.grad = kept
