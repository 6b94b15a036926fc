"""How far each step goes on in the direction in which its layer has gone so far (log.alignment).

A layer whose steps all point away from the initial weights drifts; one whose steps turn about does not.  Source: GALA
(arXiv 2404.03784), which updates only layers that are aligned; here it is a figure of the log.
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch

from spinerl.engine.snapshot import Snapshot, learned_parameters

__all__ = ["Alignment", "layer_of"]

_NUMBERED = re.compile(r"(.*?\.\d+)\.")


def layer_of(name: str) -> str:
    """The layer of a parameter: up to the first number in its name, else the module that it is in.

    >>> layer_of("model.layers.0.mlp.up_proj.weight"), layer_of("model.embed_tokens.weight")
    ('model.layers.0', 'model.embed_tokens')
    """
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else name.rpartition(".")[0]


class Alignment:
    """Holds a model's initial weights and those before a step; two copies of what learns."""

    def __init__(self, model: torch.nn.Module) -> None:
        """`model`: with its initial weights."""
        self._model = model
        self._initial, self._before = Snapshot(model), Snapshot(model)

    def begin(self) -> None:
        """A step begins: its weights are those of now."""
        self._before.take()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """optim/alignment: the mean over layers of cos(w - w_before, w - w_initial), w their weights after the step.

        Layers that did not move are left out; {} where none did.  After the first step it is 1.
        """
        sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for name, parameter in learned_parameters(self._model).items():
            moved = (parameter - self._before.weights[name]).double()
            away = (parameter - self._initial.weights[name]).double()
            own = sums[layer_of(name)]
            for i, product in enumerate((moved * away, moved * moved, away * away)):
                own[i] += float(product.sum())
        cosines = [dot / (a * b) ** 0.5 for dot, a, b in sums.values() if a > 0 and b > 0]
        return {"optim/alignment": sum(cosines) / len(cosines)} if cosines else {}
