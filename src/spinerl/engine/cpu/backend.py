"""The faster paths for CPUs: which of them a model can take, and how a rollout and an update take them.

This is the one module of `spinerl.engine.cpu` that `spinerl.engine.backend` imports.  Every path is checked on the
model at hand before it is used (`spinerl.engine.self_check`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from transformers import Cache

from spinerl.config import OptimConfig, RolloutConfig
from spinerl.engine.backend import Backend, ForwardPath, PathMemory, SamplingPath
from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.activations import (
    KeptActivations,
    Recorder,
    Reuse,
    keeps_activations,
    kept_bytes,
    token_capacity,
    tokens_within,
)
from spinerl.engine.cpu.decoder import DecoderStep, decoder_parts
from spinerl.engine.cpu.decoder_backward import reused_layers
from spinerl.engine.cpu.extend_attention import extend_cache, spans
from spinerl.engine.cpu.fused import fused_modules, fuses_modules
from spinerl.engine.cpu.linear import (
    onednn_linear,
    packed_weights,
    packs_weights,
    reused_linear,
    rounds_matmuls,
    uses_onednn,
)
from spinerl.engine.cpu.patching import suits_cpu
from spinerl.engine.cpu.shared_decoder import CpuDecoder
from spinerl.engine.forward import (
    MicroBatch,
    check_extending,
    graph_bytes,
    plan,
    shares_prompts,
    states_and_gradient,
    stream_bytes,
)
from spinerl.engine.kv_cache import CopyingDecoder
from spinerl.engine.sampler import sample_responses
from spinerl.engine.sampling import Sampled
from spinerl.engine.self_check import differences, nudged, too_far
from spinerl.engine.shared_prefix import can_share_prompts, check_decoding
from spinerl.models.capabilities import Unsupported
from spinerl.models.loading import LoadedModel
from spinerl.types import Activations, Batch, Question

__all__ = ["CpuBackend"]

_LONGER_PASSES = 3  # times `optim.micro_batch_tokens` where whole layers are reused: they keep less than others at once
_PASS_BYTES = 2**30  # of what a pass keeps for its way back: longer ones were measured to be no faster
_MIXED_PASSES = 2  # times that, where each pass rounds all weights
_SHORTEST = 512  # tokens of a pass, however large the model
_LARGE = 50_000_000  # parameters, from which on a second packed copy of the weights costs more than it gives


class CpuBackend(Backend):
    """`spinerl.engine.backend.Backend` for CPUs."""

    name = "cpu"

    def sampling(self, num_rows: int, num_tokens: int, prompt_lengths: Sequence[int], keep: bool) -> SamplingPath:
        loaded, recorder = self._loaded, None
        may = _keeps_activations(loaded) and _may(loaded, "activation_reuse")
        if keep and may and can_share_prompts(loaded) and not (_adapts(loaded) and _steps_compiled(loaded)):
            # Prompts are padded: to a length that is at most half as much again, and 64 (`shared_prefix`).
            wanted = num_rows * num_tokens + sum(length * 3 // 2 + 64 for length in prompt_lengths)
            capacity = min(wanted, token_capacity(loaded))
            recorder = Recorder(loaded, num_rows, num_tokens, capacity) if capacity else None
        return _CpuSampling(loaded, recorder)

    def forward(self, activations: Activations | None = None) -> ForwardPath:
        loaded, reuse, layers = self._loaded, None, False
        if isinstance(activations, KeptActivations) and self._reuses(activations):
            reuse, layers = Reuse(activations), _reuses_layers(loaded)
        return _CpuForward(loaded, reuse, layers)

    def memory(self, free: float) -> PathMemory:
        loaded, packed = self._loaded, 0
        steps = suits_cpu(loaded) and not loaded.disables("compiled") and _is_llama_style(loaded)
        if suits_cpu(loaded):
            size = sum(layer.weight.nbytes for layer in loaded.model.modules() if type(layer) is torch.nn.Linear)
            copies = steps and _may(loaded, "decoder_step")
            copies += _packs(loaded, bool(copies)) and not loaded.disables("packed-weights")
            packed = size * copies // (2 if loaded.mixed else 1)
        keeps = _keeps_activations(loaded) and _may(loaded, "activation_reuse") and not (steps and _adapts(loaded))
        if not keeps or loaded.disables("shared-prefix"):
            return PathMemory(packed)
        tokens = loaded.settings.activation_tokens or tokens_within(loaded, free)
        return PathMemory(packed, kept_bytes(loaded), tokens, by_layers=steps and _may(loaded, "layer_reuse"))

    def pass_tokens(self, asked: int, by_layers: bool) -> int:
        size = stream_bytes(self._loaded) if by_layers else graph_bytes(self._loaded)
        most = _PASS_BYTES * (_MIXED_PASSES if self._loaded.mixed else 1)
        return min(asked * (_LONGER_PASSES if by_layers else 1), max(_SHORTEST, most // size))

    def machine(self) -> dict[str, Any]:
        found = kernels.library() if _compiles(self._loaded) else None
        return super().machine() | {
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "compiled loops": found is not None,
            **({} if found is None else {"compiled library": found.checksum[:12]}),
        }

    def settle(self, learns: bool = True) -> None:
        super().settle(learns)
        loaded = self._loaded
        if _compiles(loaded):
            fuses_modules(loaded)
            rounds_matmuls(loaded)
            _steps_compiled(loaded)
        if _packs(loaded):
            packs_weights(loaded)
        if not learns:
            return
        uses_onednn(loaded)
        _extends_compiled(loaded)
        if _keeps_activations(loaded):
            token_capacity(loaded)
            _reuses_linear(loaded)
            _reuses_layers(loaded)

    def _reuses(self, activations: KeptActivations) -> bool:
        loaded = self._loaded
        if not _keeps_activations(loaded) or loaded.model.training or not activations.serves(loaded):
            return False
        return _reuses_linear(loaded)


class _CpuSampling(SamplingPath):
    """A rollout with packed weights and compiled loops, whose activations a recorder may keep."""

    def __init__(self, loaded: LoadedModel, recorder: Recorder | None) -> None:
        super().__init__(loaded)
        self._recorder = recorder
        self._compiles = _compiles(loaded)

    @contextmanager
    def running(self) -> Iterator[None]:
        loaded = self._loaded
        with ExitStack() as stack:
            if self._compiles:
                stack.enter_context(fused_modules(loaded))
            packs = packed_weights if _packs(loaded) else onednn_linear
            stack.enter_context(packs(loaded))
            if self._recorder is not None:
                stack.enter_context(self._recorder.recording())
            yield

    def decoder(self) -> CpuDecoder | CopyingDecoder:
        loaded = self._loaded
        if not can_share_prompts(loaded):
            return CopyingDecoder(loaded)
        step, rounds = decoder_step(loaded), rounds_matmuls(loaded)
        # Layer by layer, the last rows of a batch would have all weights rounded at every token.
        few = {"rows_per_thread": 0} if rounds else {}
        return CpuDecoder(loaded, _attends_compiled(loaded), step, self._recorder, **few)

    def begin_rows(self, numbers: torch.Tensor, columns: torch.Tensor) -> None:
        if self._recorder is not None:
            self._recorder.begin_rows(numbers, columns)

    def sample(self, logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> Sampled | None:
        if not self._compiles or logits.dtype != torch.float32:
            return None
        return Sampled(*kernels.sample(logits, temperature, uniforms), logits.new_empty(0), logits.new_empty(0))

    def activations(self) -> KeptActivations | None:
        return None if self._recorder is None else self._recorder.activations()


class _CpuForward(ForwardPath):
    """Passes with oneDNN and compiled loops, which may reuse activations."""

    def __init__(self, loaded: LoadedModel, reuse: Reuse | None, layers: bool, compiled: bool | None = None) -> None:
        """`layers`: activations are reused by whole layers; `compiled`: whether rows extend prompts by a compiled loop,
        None: as checks on the model allow."""
        super().__init__(loaded)
        self._reuse, self._layers, self._compiled = reuse, layers, compiled
        self.pads = reuse is None or not layers

    @contextmanager
    def running(self) -> Iterator[None]:
        loaded = self._loaded
        with ExitStack() as stack:
            stack.enter_context(onednn_linear(loaded))
            if _compiles(loaded):
                stack.enter_context(fused_modules(loaded))
            if self._reuse is not None:
                stack.enter_context((reused_layers if self._layers else reused_linear)(loaded, self._reuse))
            yield

    def passing(
        self, tokens: MicroBatch | Sequence[tuple[int, ...]], width: int, start: int = 0
    ) -> AbstractContextManager[object]:
        return (self._reuse or super()).passing(tokens, width, start)

    def optim(self, optim: OptimConfig) -> OptimConfig:
        tokens = CpuBackend(self._loaded).pass_tokens(optim.micro_batch_tokens, by_layers=not self.pads)
        return optim.model_copy(update={"micro_batch_tokens": tokens})

    def extend(self, layers: Sequence[Any], lengths: Sequence[int], prefix_of: torch.Tensor) -> Cache | None:
        compiled = self._compiled
        if compiled is None:
            if not _extends(self._loaded):
                return None
            compiled = _extends_compiled(self._loaded)
        pairs = [(layer.keys, layer.values) for layer in layers]
        return extend_cache(pairs, lengths, spans(prefix_of), self._reuse, compiled)


class _Reusing(_CpuForward):
    """Passes that reuse activations and are the plain path's in all else: what a self-check compares."""

    @contextmanager
    def running(self) -> Iterator[None]:
        assert self._reuse is not None
        with (reused_layers if self._layers else reused_linear)(self._loaded, self._reuse):
            yield


def _packs(loaded: LoadedModel, steps: bool | None = None) -> bool:
    """Whether oneDNN may have packed copies of the weights.

    Of a large model there is one packed copy, that of the compiled loop, which leaves few of a rollout's matmuls.
    `steps`: whether there is such a loop; None: as found.
    """
    steps = loaded.capabilities.uses("decoder_step") if steps is None else steps
    return not steps or sum(parameter.numel() for parameter in loaded.model.parameters()) < _LARGE


def _compiles(loaded: LoadedModel) -> bool:
    """Whether compiled loops may be used."""

    def check() -> None:
        if kernels.library() is None:
            raise Unsupported(kernels.library_error() or "no library")

    if not suits_cpu(loaded) or loaded.disables("compiled"):
        return False
    return loaded.capabilities.allows("compiled_loops", check)


def _attends_compiled(loaded: LoadedModel) -> bool:
    """Whether shared-prefix decoding gives the same logits with compiled attention."""
    return _compiles(loaded) and loaded.capabilities.allows(
        "compiled_attention", lambda: check_decoding(loaded, CpuDecoder(loaded, compiled=True))
    )


def _steps_compiled(loaded: LoadedModel) -> bool:
    """Whether the model's layers give the same logits as one compiled loop."""

    def check() -> str | None:
        step = DecoderStep(loaded, rounds=rounds_matmuls(loaded))
        as_it_multiplies, compare = _expecting(loaded)
        with as_it_multiplies:
            return check_decoding(loaded, CpuDecoder(loaded, True, step, rows_per_thread=0), compare)

    return _attends_compiled(loaded) and loaded.capabilities.allows("decoder_step", check)


def _expecting(loaded: LoadedModel) -> tuple[AbstractContextManager[None], Callable[..., str | None]]:
    """What a self-check expects: a context in which the plain path's matmuls round as the model's do, and how numbers
    are compared."""
    return (onednn_linear(loaded), too_far) if rounds_matmuls(loaded) else (nullcontext(), differences)


def decoder_step(loaded: LoadedModel) -> DecoderStep | None:
    """The model's layers as one compiled loop, with its weights as they are; None where that gives other logits, is not
    for such a model, or found too little memory."""
    return DecoderStep(loaded, settled=True, rounds=rounds_matmuls(loaded)) if _steps_compiled(loaded) else None


def _adapts(loaded: LoadedModel) -> bool:
    """Whether the model has adapters: its compiled step adds them into its weights, and computes no output of theirs
    that could be kept."""
    return bool(getattr(loaded.model, "peft_config", None))


def _keeps_activations(loaded: LoadedModel) -> bool:
    return not loaded.disables("activation-reuse") and keeps_activations(loaded)


def _may(loaded: LoadedModel, path: str) -> bool:
    """Whether no check has refused a path so far."""
    return path not in loaded.capabilities.verdicts or loaded.capabilities.uses(path)


def _is_llama_style(loaded: LoadedModel) -> bool:
    """Whether there are compiled loops for whole layers of such a model."""
    try:
        return kernels.library() is not None and bool(decoder_parts(loaded, adapters=True))
    except Unsupported:
        return False


def _extends(loaded: LoadedModel) -> bool:
    """Whether rows that extend prompts without copies (`spinerl.engine.cpu.extend_attention`) give the same states and
    the same gradient."""
    path = _CpuForward(loaded, None, False, compiled=False)
    return shares_prompts(loaded) and loaded.capabilities.allows(
        "extend_attention", lambda: check_extending(loaded, path)
    )


def _extends_compiled(loaded: LoadedModel) -> bool:
    """Whether they do so too where that attention is a compiled loop."""
    if not _compiles(loaded) or not _extends(loaded):
        return False
    path = _CpuForward(loaded, None, False, compiled=True)
    return loaded.capabilities.allows("compiled_extend_attention", lambda: check_extending(loaded, path))


def _reuses_linear(loaded: LoadedModel) -> bool:
    """Whether kept outputs of linear layers and of attention give the same states and the same gradient."""
    return loaded.capabilities.allows("activation_reuse", lambda: _check_reuse(loaded, layers=False))


def _reuses_layers(loaded: LoadedModel) -> bool:
    """Whether they do so by whole layers."""
    return _compiles(loaded) and loaded.capabilities.allows("layer_reuse", lambda: _check_reuse(loaded, layers=True))


def _check_reuse(loaded: LoadedModel, layers: bool) -> str | None:
    """Two questions, two responses each: states and a gradient from kept activations, and recomputed."""
    prompts = ((3, 4, 5, 6), (3, 8, 7))
    questions = tuple(Question(str(number), "") for number in range(len(prompts)))
    rollout_config = RolloutConfig(max_new_tokens=5)
    rollout = sample_responses(loaded, questions, prompts, 2, rollout_config, ("check",), keep_activations=True)
    batch = Batch(tuple(p for p in prompts for _ in range(2)), rollout.tokens, rollout.mask, 1.0)
    optim = OptimConfig()
    plain = _CpuForward(loaded, None, False, compiled=False if _extends(loaded) else None)
    as_it_multiplies, compare = _expecting(loaded)
    with as_it_multiplies:
        expected = states_and_gradient(loaded, plan(loaded, batch, batch.mask, optim), plain)
    if not isinstance(rollout.activations, KeptActivations):
        raise Unsupported("sampling kept no activations of this model")

    def again() -> dict[str, torch.Tensor]:
        with nudged(loaded.model):
            return states_and_gradient(loaded, plan(loaded, batch, batch.mask, optim), plain)

    path = _Reusing(loaded, Reuse(rollout.activations), layers)
    with path.running():
        found = states_and_gradient(loaded, plan(loaded, batch, batch.mask, optim), path)
    return compare(found.items(), expected, again)
