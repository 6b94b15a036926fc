"""The weights that learn, as they were at one moment."""

from __future__ import annotations

import torch

__all__ = ["Snapshot", "learned_parameters"]


def learned_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name: of a model with adapters only these."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Snapshot:
    """A copy of a model's learned parameters, on their device."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.weights = {name: p.detach().clone() for name, p in learned_parameters(model).items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model these weights again, in place."""
        for name, parameter in learned_parameters(self._model).items():
            parameter.copy_(self.weights[name])

    @torch.no_grad()
    def take(self) -> None:
        """Be of the model as it is now."""
        for name, parameter in learned_parameters(self._model).items():
            self.weights[name].copy_(parameter)
