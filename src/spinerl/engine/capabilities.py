"""What the engine found out about the model at hand: which faster paths give its numbers, and how much memory to use.

A faster path runs once on the model, on a few tokens, and its numbers are compared with those of the plain path; the
verdict and its reason are kept, logged (`spinerl.engine`, level INFO) and written to a run's manifest.  A run that is
resumed takes over the verdicts and the memory budgets of its first session (`restore`), so that it rounds as that did.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

__all__ = [
    "STRICT",
    "Capabilities",
    "Unsupported",
    "Verdict",
    "agree",
    "differences",
    "nudged",
    "only_embeddings_learn",
]

STRICT = "SPINERL_STRICT"
"""With this environment variable set to 1, an unexpected error in a self-check is raised, not taken for a no."""

_log = logging.getLogger("spinerl.engine")

# Relative to the largest number: what the same sum in another order may differ by.  float64 models compute some
# parts in float32 (transformers' norms).
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
_SMALLEST = 1e-3  # a tensor's numbers are compared relative to at least this share of the largest of all tensors
_AMPLIFIED, _MOST = 8.0, 0.01  # times what one rounding of the norms' weights changes; at most


class Unsupported(Exception):
    """A path is not made for this model or this machine; its text says why."""


class Verdict(NamedTuple):
    """Whether a path is used, and why."""

    used: bool
    reason: str


class Capabilities:
    """Verdicts by the name of the path, and memory budgets in tokens; both are settled once for a model."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.budgets: dict[str, int] = {}

    def allows(self, name: str, check: Callable[[], str | None]) -> bool:
        """Whether the path of this name may be used; `check` runs only the first time.

        Args:
            check: returns None where the path gives the plain path's numbers, else what differs; raises Unsupported
                where it is not made for the model.  Any other error counts as a no too, for an architecture may break a
                path in ways that cannot be listed; with SPINERL_STRICT=1 it is raised.
        """
        if name not in self.verdicts:
            try:
                with torch.enable_grad():
                    found = check()
                verdict = Verdict(found is None, found or "same numbers as the plain path")
            except Unsupported as error:
                verdict = Verdict(False, str(error))
            except Exception as error:
                if os.environ.get(STRICT, "") == "1":
                    raise
                verdict = Verdict(False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self.verdicts[name] = verdict
            _log.info("%s: %s (%s)", name, "on" if verdict.used else "off", verdict.reason)
        return self.verdicts[name].used

    def uses(self, name: str) -> bool:
        """Whether the path of this name was checked and may be used."""
        return name in self.verdicts and self.verdicts[name].used

    def budget(self, name: str, measure: Callable[[], int]) -> int:
        """A number of tokens that fit into memory, measured only the first time."""
        if name not in self.budgets:
            self.budgets[name] = measure()
            _log.info("%s: %d tokens", name, self.budgets[name])
        return self.budgets[name]

    def clear(self, keep: str = "") -> None:
        """Forget everything, after the model's layers were exchanged, but the verdict of this name."""
        self.verdicts = {name: verdict for name, verdict in self.verdicts.items() if name == keep}
        self.budgets.clear()

    def facts(self) -> dict[str, Any]:
        """For a manifest: {"paths": {name: {"used": bool, "reason": str}}, "tokens": {name: int}}."""
        return {
            "paths": {name: verdict._asdict() for name, verdict in sorted(self.verdicts.items())},
            "tokens": dict(sorted(self.budgets.items())),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take over what `facts` says."""
        for name, verdict in facts.get("paths", {}).items():
            self.verdicts[name] = Verdict(bool(verdict["used"]), str(verdict["reason"]))
        self.budgets |= {name: int(tokens) for name, tokens in facts.get("tokens", {}).items()}


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


@contextmanager
def nudged(model: torch.nn.Module) -> Iterator[None]:
    """Inside, each number of the one-dimensional parameters (norms, biases) is up or down by one rounding, in turns."""
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1 and parameter.is_floating_point()]
    kept = [vector.detach().clone() for vector in vectors]
    with torch.no_grad():
        for vector in vectors:
            signs = 1.0 - 2.0 * (torch.arange(len(vector), device=vector.device) % 2)
            vector.mul_(1 + signs.to(vector.dtype) * torch.finfo(vector.dtype).eps)
    try:
        yield
    finally:
        with torch.no_grad():
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
