"""Where a faster path may step in, and the plain path that is always there.

The sampler asks `Backend.sampling` how to run a rollout, scoring and the update ask `Backend.forward` how to run their
passes.  `Backend` itself is the plain path: the model as transformers has it, on any device.  `backend_of` is the one
place where another is chosen: on a CPU, `spinerl.engine.cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from spinerl.types import Activations

if TYPE_CHECKING:
    from transformers import Cache

    from spinerl.config import OptimConfig
    from spinerl.engine.forward import MicroBatch
    from spinerl.engine.kv_cache import CopyingDecoder
    from spinerl.engine.sampling import Sampled
    from spinerl.engine.shared_prefix import SharedDecoder
    from spinerl.models.loading import LoadedModel

__all__ = ["Backend", "ForwardPath", "PathMemory", "SamplingPath", "backend_of", "compiled_loops_facts"]


class PathMemory(NamedTuple):
    """What the paths of a backend hold of a model besides what the plain path holds.

    `packed`: bytes of copies of the weights, while sampling.  `kept_per_token`: bytes that are kept of a token from
    sampling to the update; 0: nothing is.  `kept_tokens`: of how many tokens, at most.  `by_layers`: an update that
    uses what was kept stores nothing else of a token but its residual stream.
    """

    packed: int = 0
    kept_per_token: int = 0
    kept_tokens: int = 0
    by_layers: bool = False


class SamplingPath:
    """How one rollout runs."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def running(self) -> AbstractContextManager[object]:
        """Inside, the model computes as this path wants it to."""
        return nullcontext()

    def decoder(self) -> SharedDecoder | CopyingDecoder:
        """What continues the rows of the batch by a token at a time."""
        from spinerl.engine.kv_cache import CopyingDecoder
        from spinerl.engine.shared_prefix import SharedDecoder, can_share_prompts

        return SharedDecoder(self._loaded) if can_share_prompts(self._loaded) else CopyingDecoder(self._loaded)

    def begin_rows(self, numbers: torch.Tensor, columns: torch.Tensor) -> None:
        """The next pass is of one token in each of these responses (R,): those in the columns (R,)."""

    def sample(self, logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> Sampled | None:
        """As `spinerl.engine.sampling.sample` of all tokens; None: it shall do it."""

    def activations(self) -> Activations | None:
        """What was kept of the rollout for the update that follows; None: nothing."""


class ForwardPath:
    """How the teacher-forced passes of one scoring, or of one update, run."""

    pads = True
    """Whether rows of unlike lengths cost padding where they continue shared prompts."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def running(self) -> AbstractContextManager[object]:
        """Inside, the model computes as this path wants it to."""
        return nullcontext()

    def passing(
        self, tokens: MicroBatch | Sequence[tuple[int, ...]], width: int, start: int = 0
    ) -> AbstractContextManager[object]:
        """Around the pass of a micro-batch, or of prompts padded, or cut, to this width, from token `start` on."""
        return nullcontext()

    def optim(self, optim: OptimConfig) -> OptimConfig:
        """The sizes of passes that suit this path."""
        return optim

    def extend(self, layers: Sequence[Any], lengths: Sequence[int], prefix_of: torch.Tensor) -> Cache | None:
        """A cache of `spinerl.engine.attention.AttendingLayer` with which rows continue shared prompts.

        Args:
            layers: with the prompts' `keys` and `values`, (Q, Hkv, L, D) each, padded on the right.
            lengths: the prompts' lengths, Q of them.
            prefix_of: (R,) the prompt that each row continues, rows of one standing together.

        None: each row gets a copy of its prompt's keys and values.
        """


class Backend:
    """The plain path."""

    name = "torch"

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def sampling(self, num_rows: int, num_tokens: int, prompt_lengths: Sequence[int], keep: bool) -> SamplingPath:
        """For a rollout of so many responses of at most so many tokens.

        Args:
            keep: whether an update with the same weights follows, for which activations may be kept.
        """
        return SamplingPath(self._loaded)

    def forward(self, activations: Activations | None = None) -> ForwardPath:
        """For passes over rows whose activations sampling has kept, or not."""
        return ForwardPath(self._loaded)

    def memory(self, free: float) -> PathMemory:
        """What the paths would hold where so many bytes are free, if no self-check on the model fails.

        Looks at modules and shapes only: a model without memory (`spinerl.models.headers`) will do.
        """
        return PathMemory()

    def pass_tokens(self, asked: int, by_layers: bool) -> int:
        """The tokens of an update's pass where so many are asked for (optim.micro_batch_tokens)."""
        return asked

    def machine(self) -> dict[str, Any]:
        """What the last bits of a run depend on besides its configuration, for its manifest."""
        device = self._loaded.device
        found = {
            "cpu": lambda: {"threads": torch.get_num_threads()},
            "cuda": lambda: {"gpu": torch.cuda.get_device_name(device)},
        }.get(device.type, dict)
        return {"backend": self.name, **found()}

    def settle(self, learns: bool = True) -> None:
        """Run every self-check and measure every memory budget now, rather than when first needed.

        `learns`: also those of scoring and updates.
        """
        from spinerl.engine.forward import settle
        from spinerl.engine.kv_cache import cache_tokens
        from spinerl.engine.shared_prefix import can_share_prompts

        can_share_prompts(self._loaded)
        cache_tokens(self._loaded)
        if learns:
            settle(self._loaded)


def backend_of(loaded: LoadedModel) -> Backend:
    """The backend of a model, by its device and `engine.disable`."""
    if loaded.device.type == "cpu" and not loaded.disables("cpu"):
        from spinerl.engine.cpu.backend import CpuBackend

        return CpuBackend(loaded)
    return Backend(loaded)


def compiled_loops_facts() -> tuple[str | None, str | None]:
    """(why there are no compiled loops for CPUs on this machine, with the compiler's words, or None where there are;
    what is wrong with the folder that keeps them, or None)."""
    from spinerl.engine.cpu.library import library_error, library_note

    return library_error(), library_note()
