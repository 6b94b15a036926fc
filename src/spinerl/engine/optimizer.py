"""AdamW with warm-up, a schedule and clipping, exact for bfloat16 models and exactly resumable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import get_scheduler

from spinerl.config import OptimConfig
from spinerl.errors import InputError, NonFiniteError
from spinerl.models.weights import all_finite

__all__ = ["Optimizer"]


class Optimizer:
    """Gradients of micro-batches are added up and stepped in float32, whatever the model's dtype.

    A bfloat16 weight has 8 bits: at a learning rate of 1e-6 almost every update would round to nothing.  So
    each low-precision parameter gets a float32 master that learns, and the model holds its rounded copy.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        config: OptimConfig,
        total_updates: int,
        fisher: tuple[float, Sequence[torch.Tensor]] | None = None,
    ) -> None:
        """The weights as they are now are the initial ones, for optim.restore and the Fisher anchor.

        Args:
            fisher: (alpha, F of each parameter that learns): alpha sum F (w - initial w)^2 is part of the loss.
        """
        self._parameters = [p for p in parameters if p.requires_grad]
        self._masters = [
            p if p.dtype in (torch.float32, torch.float64) else p.detach().float().requires_grad_()
            for p in self._parameters
        ]
        if not self._parameters:
            raise InputError("no weight of the model learns: requires_grad is off for all; set it, or give lora.rank")
        self._config, self._fisher = config, fisher
        self._initial = [m.detach().clone() for m in self._masters] if config.restore or fisher else []
        on_cuda = any(p.is_cuda for p in self._masters)
        self._adamw = torch.optim.AdamW(
            self._masters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=on_cuda or None,
        )
        name = "cosine" if config.schedule == "cosine" else "constant_with_warmup"
        self._scheduler = get_scheduler(
            name, self._adamw, num_warmup_steps=config.warmup_steps, num_training_steps=max(1, total_updates)
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            parameter.grad = None
            master.grad = None

    def collect(self) -> None:
        """Add the gradients of the micro-batch just run to the masters'."""
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter is master or parameter.grad is None:
                continue
            wide = parameter.grad.float()
            master.grad = wide if master.grad is None else master.grad.add_(wide)
            parameter.grad = None

    def step(self) -> dict[str, float]:
        """Clip, check and apply the gradient.  Returns its norm before clipping and the learning rate used.

        Without any gradient (every advantage 0 and no other term) the weights stay and the schedule moves on.
        Raises NonFiniteError before the weights change, or where they are no finite numbers afterwards.
        """
        pulled = self._pull()
        held = [master for master in self._masters if master.grad is not None]
        lr = float(self._scheduler.get_last_lr()[0])
        limit = self._config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(held, limit)) if held else 0.0
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the gradient norm is {norm}: stopped before the update; lower optim.lr (now {self._config.lr:g}) "
                "or use model.dtype=float32"
            )
        try:
            self._adamw.step()
            finite = all_finite(held)
        except RuntimeError as error:  # a step so large that it is no float32
            if "overflow" not in str(error):
                raise
            finite = False
        if not finite:
            raise NonFiniteError(
                f"the update left weights that are not finite; lower optim.lr (now {self._config.lr:g})"
            )
        self._restore()
        self._scheduler.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)
        return {"optim/grad_norm": norm, "optim/lr": lr, **pulled}

    @torch.no_grad()
    def _pull(self) -> dict[str, float]:
        """Add the Fisher anchor's gradient, 2 alpha F (w - initial w); its value before this update.

        Source: EATA (arXiv 2204.02610).
        """
        if self._fisher is None:
            return {}
        alpha, fisher = self._fisher
        total = 0.0
        for master, initial, own in zip(self._masters, self._initial, fisher, strict=True):
            pull = own * (master - initial)
            total += float((pull * (master - initial)).sum())
            pull.mul_(2 * alpha)
            master.grad = pull if master.grad is None else master.grad.add_(pull)
        return {"anchor/fisher": alpha * total}

    @torch.no_grad()
    def _restore(self) -> None:
        """Give the weights with the smallest squared gradients, `optim.restore` of those that have one, their initial
        values back; ties at the edge included.

        Source: PETAL (arXiv 2212.09713), whose edge is a quantile over all weights, too.
        """
        if not self._config.restore:
            return
        pairs = zip(self._masters, self._initial, strict=True)
        held = [(master, first, master.grad.abs()) for master, first in pairs if master.grad is not None]
        sizes = torch.cat([size.flatten() for _, _, size in held]) if held else torch.empty(0)
        num = int(self._config.restore * len(sizes))
        if not num:
            return
        edge = sizes.kthvalue(num).values
        for master, first, size in held:
            master.copy_(torch.where(size <= edge, first, master))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the model's own weights."""
        masters = [m.detach() for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        return {
            "adamw": self._adamw.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "masters": masters,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._adamw.load_state_dict(state["adamw"])
        self._scheduler.load_state_dict(state["scheduler"])
        separate = [m for p, m in zip(self._parameters, self._masters, strict=True) if p is not m]
        with torch.no_grad():
            for master, saved in zip(separate, state["masters"], strict=True):
                master.copy_(saved)
