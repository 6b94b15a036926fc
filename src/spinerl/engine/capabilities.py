"""Fast paths are tried on the model at hand before they are trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from spinerl.engine.loading import LoadedModel

__all__ = ["ability", "agree", "only_embeddings_learn"]

# Relative to the largest number: what the same sum in another order may differ by.  float64 models compute some
# parts in float32 (transformers' norms).
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


def ability(loaded: LoadedModel, name: str, trial: Callable[[], bool]) -> bool:
    """Whether a trial run succeeded; run once and remembered in `loaded.abilities`.

    Any error means no: an architecture may break a fast path in ways that cannot be listed.
    """
    if name not in loaded.abilities:
        try:
            with torch.enable_grad():
                loaded.abilities[name] = trial()
        except Exception:  # see above: the plain path is always there
            loaded.abilities[name] = False
    return loaded.abilities[name]


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results are the same up to the rounding of their type."""
    scale = expected.abs().max().clamp_min(1e-6)
    return bool((found - expected).abs().max() <= _TOLERANCES.get(expected.dtype, 1e-4) * scale)


@contextmanager
def only_embeddings_learn(loaded: LoadedModel) -> Iterator[torch.nn.Parameter]:
    """The input embedding, the only parameter with a gradient meanwhile: a trial must not cost a model's worth."""
    weight = loaded.model.get_input_embeddings().weight
    assert isinstance(weight, torch.nn.Parameter)
    learned = {parameter: parameter.requires_grad for parameter in loaded.model.parameters()}
    kept, weight.grad = weight.grad, None
    try:
        for parameter in learned:
            parameter.requires_grad_(parameter is weight)
        yield weight
    finally:
        for parameter, requires in learned.items():
            parameter.requires_grad_(requires)
        weight.grad = kept
