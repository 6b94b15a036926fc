"""How much memory a run will take, part by part and phase by phase, before any weight is read.

Shapes come from config.json or a GGUF header (`spinerl.models.headers`); what the engine keeps of them in each phase
is counted as the engine does it.  docs/scaling.md compares the sums with measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spinerl.config import Config
from spinerl.data import load_data, render_all
from spinerl.engine.backend import backend_of
from spinerl.engine.forward import graph_bytes, stream_bytes
from spinerl.engine.kv_cache import SHARE_OF_MEMORY, bytes_per_token, free_bytes
from spinerl.engine.lm_head import CHUNK_BYTES
from spinerl.engine.sampler import ROWS_ON_CPU
from spinerl.engine.shared_prefix import BLOCK, BLOCK_ON_CPU, PREFILL_TOKENS
from spinerl.errors import SpinerlError
from spinerl.machine import pick_device, resident_bytes
from spinerl.models.gguf import gguf_shapes
from spinerl.models.headers import open_skeleton
from spinerl.models.loading import LoadedModel, held_weights, load_tokenizer, resolve_name, whole_model
from spinerl.models.precision import Precision, choose_dtype, weights_dtype
from spinerl.models.processor import load_processor
from spinerl.models.quantize import BYTES_PER_WEIGHT
from spinerl.step import cuts_short, needs_anchor
from spinerl.types import Question

__all__ = ["Footprint", "MemoryPhase", "Remedy", "estimate", "foresee", "held_bytes", "memory_note", "remedies"]

_LIBRARIES = 480 * 2**20  # of a process with torch and transformers at work, before it holds a model
_ON_GPU = 600 * 2**20  # CUDA's context and the workspaces of its libraries
_HEAD_COPIES = 5  # of a chunk of float32 logits, forward and backward
_WORTH_NAMING = 0.98  # of the peak: what lowers it by less is no remedy
_MOST_BYTES, _SMALL = 24, 8  # a model that takes under 1/8 of memory at so many bytes a parameter fits anyway
_ASKED = 64  # questions whose prompts are made, to learn how long prompts are
_NAMED = 3  # remedies in a line
_FEW_TOKENS, _CACHED = 1024, 8192  # of a pass; of keys and values: what a remedy sets


@dataclass(frozen=True)
class MemoryPhase:
    """A part of a run, and the bytes of all that it holds at once, by name."""

    name: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Footprint:
    """The phases of a run, and the bytes that its device has for it (what this process holds already included)."""

    device: str
    free_bytes: int
    phases: tuple[MemoryPhase, ...]

    @property
    def peak(self) -> MemoryPhase:
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def fits(self) -> bool:
        return self.peak.bytes <= self.free_bytes

    @property
    def sentence(self) -> str:
        """The peak next to what there is, in one line."""
        peak = self.peak
        largest = sorted(peak.parts, key=lambda name: -peak.parts[name])[:2]
        shares = ", ".join(f"{name} {_gb(peak.parts[name])}" for name in largest)
        there = "the GPU has" if self.device.startswith("cuda") else "there are"
        return f"memory: about {_gb(peak.bytes)} at most, in {peak.name} ({shares}); {there} {_gb(self.free_bytes)}"

    def figures(self) -> dict[str, Any]:
        """All figures, for a file."""
        phases = [{"name": phase.name, "bytes": phase.bytes, "parts": dict(phase.parts)} for phase in self.phases]
        return {"device": self.device, "free_bytes": self.free_bytes, "phases": phases, "peak": self.peak.name}


@dataclass(frozen=True)
class Remedy:
    """Keys that lower the peak, and to how many bytes."""

    keys: tuple[str, ...]
    bytes: int
    fits: bool

    @property
    def line(self) -> str:
        return f"{' '.join(self.keys)}: {_gb(self.bytes)}{'' if self.fits else ', not enough'}"


def foresee(config: Config, questions: Sequence[Question] | None = None) -> Footprint:
    """The footprint of a configuration's run on this machine as it is now, before any weight is read.

    Args:
        questions: the run's own, if they were read; their prompts are made here.

    Raises InputError for a model that cannot be opened, and for questions that cannot be asked.
    """
    return _Foresight(config, questions).footprint(config)


def remedies(config: Config, questions: Sequence[Question] | None = None) -> tuple[Remedy, ...]:
    """What would lower the peak of a run that does not fit: keys one by one, the largest gain first, and where none is
    enough, the fewest of them that are together.

    Arguments and errors as for `foresee`.
    """
    ahead = _Foresight(config, questions)
    now = ahead.footprint(config).peak.bytes
    found: list[tuple[Remedy, dict[str, Any]]] = []
    for keys, values in _changes(config, weights_dtype(ahead.precision(config)), ahead.device):
        try:
            lower = ahead.footprint(_changed(config, values))
        except SpinerlError:  # adapters without peft, say
            continue
        if lower.peak.bytes < _WORTH_NAMING * now:
            found.append((Remedy((keys,), lower.peak.bytes, lower.fits), values))
    found.sort(key=lambda one: one[0].bytes)
    single = tuple(remedy for remedy, _ in found)
    if any(remedy.fits for remedy in single):
        return single
    together, keys, last = config, {}, None
    for remedy, values in found:
        (key,) = remedy.keys
        if key.partition("=")[0] in keys:
            continue  # engine.disable names more parts already
        keys[key.partition("=")[0]] = key
        together = _changed(together, values)
        lower = ahead.footprint(together)
        last = Remedy(tuple(keys.values()), lower.peak.bytes, lower.fits)
        if lower.fits:
            break
    return single if last is None or len(last.keys) == 1 else (*single, last)


def memory_note(config: Config, questions: Sequence[Question]) -> str | None:
    """What is worth a line before weights are read: that the run is estimated to take more memory than is free.

    None where it is not, where the model is so small that it cannot be, and where no estimate can be made: what is
    wrong with a model is said when it is opened.
    """
    try:
        device = torch.device(pick_device(config.model.device))
        if _MOST_BYTES * _num_parameters(config) < (free_bytes(device) + held_bytes(device)) / _SMALL:
            return None
        found = foresee(config, questions)
        if found.fits:
            return None
        best = remedies(config, questions)
    except (SpinerlError, OSError, AttributeError):  # the last: a configuration that names its sizes otherwise
        return None
    named = [remedy for remedy in best if remedy.fits][:_NAMED] or best[-1:]
    advice = "; ".join(remedy.line for remedy in named)
    return f"{found.sentence}{advice and '; with '}{advice} (`spinerl plan` has the parts)"


def _num_parameters(config: Config) -> int:
    """Numbers in the files of a model, from their headers.  InputError for files that cannot be read."""
    whole, _ = whole_model(config.model)
    if (file := Path(resolve_name(whole.name))).is_file():
        return sum(map(math.prod, gguf_shapes(file, whole.name)))
    return sum(map(math.prod, held_weights(whole)[1].values()))


class _Foresight:
    """Models without memory, and the lengths of prompts, of one configuration and of changes to it."""

    def __init__(self, config: Config, questions: Sequence[Question] | None) -> None:
        self.device = torch.device(pick_device(config.model.device))
        self._available = int(free_bytes(self.device)) + held_bytes(self.device)
        self._precisions: dict[str, Precision] = {}
        self._opened: dict[tuple[torch.dtype, int, bool], LoadedModel] = {}
        if questions is None:
            questions = load_data(config.data, answer_kind=config.answer.kind)[0].questions
        some = questions[:: max(1, len(questions) // _ASKED)]
        tokenizer, processor = load_tokenizer(config.model), load_processor(config.model)
        rendered = render_all(some, tokenizer, config.prompt, kind=config.answer.kind, vision=processor)
        self._lengths = [len(prompt) for prompt in rendered.prompts]
        self._num_questions = len(questions)

    def precision(self, config: Config) -> Precision:
        """What the model will compute in."""
        asked = config.model.dtype
        if asked not in self._precisions:
            shapes = [tuple(p.shape) for p in self._skeleton(config, torch.float32).model.parameters()]
            self._precisions[asked] = choose_dtype(asked, self.device, shapes)[0]
        return self._precisions[asked]

    def footprint(self, config: Config) -> Footprint:
        chosen = self.precision(config)
        loaded = replace(self._skeleton(config, weights_dtype(chosen)), mixed=chosen == "mixed")
        return estimate(config, loaded, self._lengths, self._num_questions, self._available)

    def _skeleton(self, config: Config, dtype: torch.dtype) -> LoadedModel:
        key = dtype, config.lora.rank, bool(config.steps)
        if key not in self._opened:
            self._opened[key] = open_skeleton(config, self.device, dtype)
        return replace(self._opened[key], settings=config.engine)


def estimate(
    config: Config, loaded: LoadedModel, lengths: Sequence[int], num_questions: int, available: int
) -> Footprint:
    """The same of a model in memory, or of one without memory (`spinerl.models.headers`)."""
    run = _Run(config, loaded, sorted(lengths, reverse=True), num_questions, available)
    phases = [MemoryPhase("loading", run.loading()), MemoryPhase("evaluation", run.evaluation())]
    if config.steps:
        phases += [MemoryPhase("sampling", run.sampling()), MemoryPhase("update", run.update())]
        phases.append(MemoryPhase("optimizer", run.optimizer()))
    nonzero = (MemoryPhase(one.name, {name: size for name, size in one.parts.items() if size}) for one in phases)
    return Footprint(str(loaded.device), available, tuple(nonzero))


def _changes(config: Config, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys that may lower the peak, as they are written and as they are set."""
    engine, optim, rollout = config.engine, config.optim, config.rollout
    if config.steps and not config.lora.rank:
        yield "lora.rank=16", {"lora": {"rank": 16}}
    if dtype == torch.float32:
        yield "model.dtype=bfloat16", {"model": {"dtype": "bfloat16"}}
    if config.model.quantize == "none" and config.rollout.sampler == "native" and config.steps:
        yield "model.quantize=4bit lora.rank=16", {"model": {"quantize": "4bit"}, "lora": {"rank": 16}}
    if config.steps and not config.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true", {"model": {"gradient_checkpointing": True}}
    if device.type == "cpu" and "cpu" not in engine.disable:
        disable = list(engine.disable)
        for part in ("activation-reuse", "packed-weights", "compiled"):
            if part not in disable:
                disable = [*disable, part]
                yield f"engine.disable=[{','.join(disable)}]", {"engine": {"disable": disable}}
    if config.steps and optim.micro_batch_tokens > _FEW_TOKENS:
        yield f"optim.micro_batch_tokens={_FEW_TOKENS}", {"optim": {"micro_batch_tokens": _FEW_TOKENS}}
    if not engine.kv_cache_tokens:
        yield f"engine.kv_cache_tokens={_CACHED}", {"engine": {"kv_cache_tokens": _CACHED}}
    if config.questions_per_step > 1:
        half = config.questions_per_step // 2
        yield f"questions_per_step={half}", {"questions_per_step": half}
    if config.group_size > 2:
        half = config.group_size // 2
        yield f"group_size={half}", {"group_size": half}
    if rollout.max_new_tokens > 1:
        half = rollout.max_new_tokens // 2
        yield f"rollout.max_new_tokens={half}", {"rollout": {"max_new_tokens": half}}


def _changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with these values, sections being merged."""
    merged = {
        key: getattr(config, key).model_copy(update=value) if isinstance(value, dict) else value
        for key, value in values.items()
    }
    return config.model_copy(update=merged)


def held_bytes(device: torch.device) -> int:
    """Bytes that this process holds of the device's memory."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def _quantized(config: Config, loaded: LoadedModel) -> int:
    """Bytes that a model saves which is read in 4 bits (model.quantize), all linear layers but the head's."""
    head = loaded.model.get_output_embeddings()
    if config.model.quantize == "none" or not all(parameter.is_meta for parameter in loaded.model.parameters()):
        return 0
    weights = [m.weight for m in loaded.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    wide = [weight for weight in weights if not weight.requires_grad or not config.steps]
    return int(sum(weight.nbytes - BYTES_PER_WEIGHT * weight.numel() for weight in wide))


class _Run:
    """The sizes of one run."""

    def __init__(
        self, config: Config, loaded: LoadedModel, lengths: Sequence[int], num_questions: int, available: int
    ) -> None:
        self._config, self._loaded = config, loaded
        self._num_questions = num_questions
        self._on_cpu = loaded.device.type == "cpu"
        self._lengths = lengths
        parameters = list(loaded.model.parameters())
        learning = [parameter for parameter in parameters if parameter.requires_grad] if config.steps else []
        self._weights = sum(parameter.nbytes for parameter in parameters) - _quantized(config, loaded)
        self._largest = max((parameter.numel() for parameter in learning), default=0) * 4
        self._gradients = sum(parameter.nbytes for parameter in learning)
        self._masters = sum(parameter.numel() * 4 for parameter in learning if parameter.itemsize < 4)
        self._moments = sum(parameter.numel() for parameter in learning) * 8
        self._itemsize = loaded.model.dtype.itemsize
        self._base = _LIBRARIES if self._on_cpu else _ON_GPU
        free = max(0, available - self._base - self._weights)
        self._paths = backend_of(loaded).memory(free)
        self._per_token = bytes_per_token(loaded.model.config, loaded.model.dtype)
        self._cache_tokens = config.engine.kv_cache_tokens or max(1, int(free * SHARE_OF_MEMORY) // self._per_token)
        self._text = loaded.model.config.get_text_config(decoder=True)
        self._layers, self._hidden = int(self._text.num_hidden_layers), int(self._text.hidden_size)

    def loading(self) -> dict[str, int]:
        """While weights are read."""
        return {"libraries": self._base, "weights": self._weights, "files": 0}

    def evaluation(self) -> dict[str, int]:
        """Answers to all questions, after the last step."""
        config = self._config
        num = min(config.eval.max_questions or self._num_questions, self._num_questions)
        responses = max(1, config.eval_samples)
        return self._held() | self._sampled(num, responses, config.rollout.max_new_tokens)

    def sampling(self) -> dict[str, int]:
        """The responses of a step, from the second on."""
        num = min(self._config.questions_per_step, self._num_questions)
        found = self._held() | self._sampled(num, self._config.num_votes, self._longest)
        return found | {"kept activations": self._kept(at_most=True)}

    def update(self) -> dict[str, int]:
        """Forward and backward of a step's responses."""
        config, loaded, paths = self._config, self._loaded, self._paths
        kept = self._kept(at_most=False)
        by_layers = bool(kept) and paths.by_layers
        rows = min(config.questions_per_step, self._num_questions) * config.group_size
        tokens = rows * self._longest + sum(self._prompts(rows // config.group_size))
        tokens = min(tokens, self._pass_tokens(by_layers, self._longest + max(self._lengths, default=1)))
        size = stream_bytes(loaded) if by_layers else graph_bytes(loaded)
        if config.model.gradient_checkpointing:
            size = stream_bytes(loaded) + graph_bytes(loaded) // max(1, self._layers)
        return self._held() | {
            "gradients": self._gradients + self._masters,
            "kept activations": kept,
            "activations of a pass": tokens * size,
            "logits": self._head(tokens),
        }

    def optimizer(self) -> dict[str, int]:
        """The step of AdamW, whose intermediate results are as large as the largest weight."""
        kept = self._kept(at_most=False)
        return self._held() | {
            "gradients": self._gradients + self._masters,
            "kept activations": kept,
            "AdamW's intermediate results": 2 * self._largest,
        }

    @property
    def _longest(self) -> int:
        """Tokens of a sampled response at most."""
        longest = self._config.rollout.max_new_tokens
        return min(longest, self._config.forks.num_tokens) if cuts_short(self._config) else longest

    def _held(self) -> dict[str, int]:
        """What is there from the first step to the end."""
        config = self._config
        copies = needs_anchor(config) and not config.lora.rank
        whole = 0 if config.lora.rank else self._weights  # of what learns; adapters are small
        return {
            "libraries": self._base,
            "weights": self._weights,
            "reference model": self._weights * copies,
            "slow copy": self._weights * bool(config.vote.slow_decay and config.steps),
            "initial weights": whole * bool(config.stream.reset_every and config.steps),
            "weights to compare with": 2 * whole * bool(config.log.alignment and config.steps),
            "master weights": self._masters,
            "optimizer states": self._moments,
        }

    def _prompts(self, num: int) -> list[int]:
        """The lengths of so many prompts, of those known, the longest first."""
        known = self._lengths or [1]
        return [known[i % len(known)] for i in range(num)] if num > len(known) else list(known[:num])

    def _sampled(self, num: int, responses: int, longest: int) -> dict[str, int]:
        """What a rollout holds: of as many questions at once as `spinerl.engine.sampler` lets in."""
        loaded, config = self._loaded, self._config
        if config.rollout.sampler == "vllm":
            own = config.vllm.url is None and not self._on_cpu
            return {"vLLM": int(config.vllm.memory_frac * torch.cuda.mem_get_info(loaded.device)[1])} if own else {}
        most_rows = ROWS_ON_CPU if self._on_cpu and not config.engine.kv_cache_tokens else math.inf
        lengths: list[int] = []
        for length in self._prompts(num):
            rows, used = (len(lengths) + 1) * responses, sum(lengths) + length
            if lengths and (rows > most_rows or used + rows * longest > self._cache_tokens):
                break
            lengths.append(length)
        rows, block = len(lengths) * responses, BLOCK_ON_CPU if self._on_cpu else BLOCK
        shared = not loaded.disables("shared-prefix")
        own = rows * math.ceil(longest / block) * block
        prompts = len(lengths) * max(lengths, default=0) * (1 if shared else responses)
        packed_keys = prompts // 2 if self._paths.by_layers else 0
        of_one = stream_bytes(loaded) - self._layers * self._hidden * self._itemsize
        vocabulary = loaded.vocab_size
        return {
            "packed weights": self._paths.packed,
            "keys and values": (own + prompts + packed_keys) * self._per_token,
            "prompts' pass": min(PREFILL_TOKENS, max(prompts, 1)) * of_one,
            "logits": rows * vocabulary * (4 + self._itemsize) + (0 if self._paths.by_layers else 3 * CHUNK_BYTES),
        }

    def _kept(self, at_most: bool) -> int:
        """Bytes of activations kept for the update; `at_most`: also of those that turn out to be too many."""
        config, paths = self._config, self._paths
        if not paths.kept_per_token or config.model.gradient_checkpointing or config.rollout.reuse != 1:
            return 0
        if config.tree_bases or config.rollout.sampler != "native":
            return 0
        num = min(config.questions_per_step, self._num_questions)
        lengths = self._prompts(num)
        tokens = num * config.num_votes * self._longest + num * max(lengths)
        if tokens > paths.kept_tokens and not at_most:
            return 0
        return min(tokens, paths.kept_tokens) * paths.kept_per_token

    def _pass_tokens(self, by_layers: bool, row: int) -> int:
        """Tokens of a pass of an update at most."""
        config = self._config.optim
        if config.micro_batch_rows:
            return config.micro_batch_rows * row
        return max(row, backend_of(self._loaded).pass_tokens(config.micro_batch_tokens, by_layers))

    def _head(self, tokens: int) -> int:
        """Logits of a chunk of so many tokens, forward and backward, and the gradient of the head's weight."""
        vocabulary, limit = self._loaded.vocab_size, self._config.optim.head_chunk
        positions = min(tokens, limit or max(1, CHUNK_BYTES // (4 * vocabulary)))
        head = self._loaded.model.get_output_embeddings()
        learns = head is not None and any(parameter.requires_grad for parameter in head.parameters())
        return positions * vocabulary * 4 * _HEAD_COPIES + learns * vocabulary * self._hidden * self._itemsize
