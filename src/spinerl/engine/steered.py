"""Decoding with logits that two other models move: z + w (z_adapted - z_base) at every token.

Sources: proxy-tuning (arXiv 2401.08565), EFT (arXiv 2310.12962), ProxyThinker (arXiv 2505.24872).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

import torch

from spinerl.engine.backend import SamplingPath
from spinerl.engine.kv_cache import CopyingDecoder
from spinerl.engine.shared_prefix import SharedDecoder
from spinerl.models.loading import LoadedModel, Steering

__all__ = ["SteeredDecoder"]


class SteeredDecoder:
    """As `spinerl.engine.shared_prefix.SharedDecoder`: the same rows in three decoders, their logits combined."""

    def __init__(
        self,
        loaded: LoadedModel,
        decoder: SharedDecoder | CopyingDecoder,
        steering: Steering,
        paths: Sequence[SamplingPath],
    ) -> None:
        """`decoder`: that of the model itself; `paths`: how the adapted and the base model run."""
        self._models, self._paths, self._weight = steering.models, paths, steering.weight
        self._decoders = [decoder, *(path.decoder() for path in paths)]
        self.shares_prompts = all(one.shares_prompts for one in self._decoders)
        if not self.shares_prompts:  # rows leave the batch by each decoder's own rule: they must be of one kind
            self._decoders = [CopyingDecoder(one) for one in (loaded, *self._models)]
        self.max_cohorts = self._decoders[0].max_cohorts
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for model, path in zip(self._models, self._paths, strict=True):
                stack.enter_context(model.acting())
                stack.enter_context(path.running())
            for decoder in self._decoders:
                stack.enter_context(decoder)
            self._inside = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()

    @property
    def num_cohorts(self) -> int:
        return self._decoders[0].num_cohorts

    def admit(self, prompts: Sequence[tuple[int, ...]], num_responses: int) -> torch.Tensor:
        """Logits (Q, V) after each of these prompts, each of which gets `num_responses` rows; V of the narrowest."""
        return self._moved(*(decoder.admit(prompts, num_responses) for decoder in self._decoders))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (R, V) after one more token in each row; `tokens` (R,)."""
        return self._moved(*(decoder.step(tokens) for decoder in self._decoders))

    def keep(self, active: torch.Tensor) -> torch.Tensor | None:
        """Drop finished rows, where that pays: from all three alike."""
        order, *_ = [decoder.keep(active) for decoder in self._decoders]
        return order

    def _moved(self, logits: torch.Tensor, adapted: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Of the ids that all three know; the others, to which embeddings are padded, stand for no token."""
        num = min(one.shape[1] for one in (logits, adapted, base))
        own, adapted, base = (one[:, :num].float() for one in (logits, adapted, base))
        return own + self._weight * (adapted - base)
