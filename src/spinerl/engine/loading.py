"""Opening a Hugging Face causal language model, or a vision-language model, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from spinerl.config import EngineConfig, ModelConfig, RolloutConfig
from spinerl.engine.adapters import base_of, merged
from spinerl.engine.capabilities import Capabilities
from spinerl.engine.vision import Vision, vision_parameters
from spinerl.errors import InputError
from spinerl.files import quoted
from spinerl.machine import pick_device
from spinerl.types import ImagePrompt, Question, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoadedModel",
    "Sampler",
    "fingerprint",
    "load_model",
    "load_tokenizer",
    "open_pretrained",
    "reads_images",
    "resolve_name",
    "save_model",
    "state_of",
    "whole_model",
    "wrap_model",
]


class Sampler(Protocol):
    """Samples for a model in place of our own loop, with its weights as they are at the call.  `facts` are for the
    manifest."""

    facts: Mapping[str, str]

    def respond(
        self,
        loaded: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        num_responses: int,
        rollout: RolloutConfig,
        seed: tuple[object, ...] | None,
        limits: Sequence[int],
        on_tokens: Callable[[int], None] | None,
    ) -> Rollout:
        """As `spinerl.engine.sampler.sample_responses`; `seed` None takes the likeliest tokens."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, its tokenizer, and the ids that end a response.

    `vision` is there for models that see images.  `without_adapters` says that this is the model without its adapters
    (`base`), which every pass must disable (`acting`).  `sampler` samples in place of our own loop.  `stop_texts`
    end a response as those of rollout.stop do.  `settings` say what the engine may use, `capabilities` which of its
    paths suit the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    pad_id: int
    device: torch.device
    vision: Vision | None = None
    without_adapters: bool = False
    sampler: Sampler | None = None
    stop_texts: tuple[str, ...] = ()
    settings: EngineConfig = field(default_factory=EngineConfig)
    capabilities: Capabilities = field(default_factory=Capabilities, compare=False, repr=False)

    def disables(self, part: str) -> bool:
        """Whether `engine.disable` lists this part of the engine."""
        return part in self.settings.disable

    @property
    def base(self) -> LoadedModel:
        """The same model without its adapters: as before it learned, at no cost in memory."""
        return replace(self, without_adapters=True, sampler=None)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, the model computes with its adapters, or without them for `base`."""
        model: Any = self.model
        if not self.without_adapters:
            yield
            return
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()

    def image_inputs(self, prompts: Sequence[tuple[int, ...]], width: int, *, left: bool = False) -> dict[str, Any]:
        """`Vision.inputs`; {} for a model without."""
        return {} if self.vision is None else self.vision.inputs(prompts, width, left=left)

    def offsets(self, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """(Q,) how much further than its number of tokens each prompt's next position lies: 0 without images."""
        offsets = [prompt.shown.offset if isinstance(prompt, ImagePrompt) else 0 for prompt in prompts]
        return torch.tensor(offsets, device=self.device)

    def texts(self, responses: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """The responses' texts, without special tokens and without the text of `stop_texts` that ended one."""
        texts = self.tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True)
        for stop in self.stop_texts:
            texts = [text.removesuffix(stop) for text in texts]
        return tuple(texts)

    @property
    def vocab_size(self) -> int:
        """The number of logits per position."""
        head = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        return int(weight.shape[0] if weight is not None else self.model.config.get_text_config().vocab_size)


def resolve_name(name: str) -> str:
    """The folder of a bundled model, an existing folder (of a run: its adapted model), or a hub name.

    Raises InputError for a folder that is no model.
    """
    from spinerl.tiny import MODELS, model_path

    if name in MODELS:
        return str(model_path(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        for candidate in (folder, folder / "model"):
            if any((candidate / file).is_file() for file in ("config.json", "adapter_config.json")):
                return str(candidate)
        if (folder / "config.yaml").is_file():
            raise InputError(
                f"model={name}: this run has no model yet; `spinerl adapt --resume {quoted(folder)}` goes on with it "
                "(a run of steps=0 has none)"
            )
        raise InputError(f"model={name}: the folder has no config.json, so it is not a Hugging Face model")
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        bundled = " or ".join(MODELS)
        raise InputError(f"model={name}: no such folder; give a Hugging Face folder, a hub name, or {bundled}")
    return name


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; InputError if it cannot be read."""
    from transformers import AutoTokenizer

    return open_pretrained(AutoTokenizer.from_pretrained, whole_model(config)[0])


def load_model(config: ModelConfig, settings: EngineConfig | None = None) -> LoadedModel:
    """The model in evaluation mode (no dropout, also while it learns: the policy that learns is the one sampled).

    Reads safetensors only.  A folder of adapters gives the model they belong to with them added in.

    Raises InputError for a missing folder, weights in another format, an architecture transformers does not know, or
    remote code that was not allowed; MissingExtraError for adapters without peft.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    config, adapters = whole_model(config)
    disable_progress_bar()  # reading a local file needs none, and the display owns the terminal
    device = torch.device(pick_device(config.device))
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        config.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    attention = None if config.attention == "auto" else config.attention
    architecture = open_pretrained(AutoConfig.from_pretrained, config)
    loader = AutoModelForImageTextToText if reads_images(architecture) else AutoModelForCausalLM
    model = open_pretrained(
        loader.from_pretrained, config, dtype=dtype, use_safetensors=True, attn_implementation=attention
    )
    if adapters is not None:
        model = merged(model, adapters)
    model.to(device)  # pyright: ignore[reportArgumentType]
    return wrap_model(model, load_tokenizer(config), config, settings)


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    settings: EngineConfig | None = None,
) -> LoadedModel:
    """A model in memory, where it is and as it is, ready to be adapted; it is put into evaluation mode.

    A model that sees images has its processor opened by `config.name`.  Raises InputError for an encoder-decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"model={config.name} is an encoder-decoder; only causal language models can be adapted")
    model.eval()
    if config.gradient_checkpointing:
        # It acts in training mode only (`spinerl.engine.update.update`), where dropout must not come with it.
        _remove_dropout(model)
        # transformers renamed it on the way to version 6
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    end_ids = _end_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id  # only fills rows up: any id serves a tokenizer without one
    settings, vision = settings or EngineConfig(), None
    if reads_images(model.config):
        share = "shared-images" not in settings.disable
        vision = open_pretrained(partial(Vision, model, max_pixels=config.image_pixels, share=share), config)
        for parameter in vision_parameters(model):
            parameter.requires_grad_(config.train_vision)
    pad_id = pad_id if isinstance(pad_id, int) else 0
    return LoadedModel(model, tokenizer, end_ids, pad_id, model.device, vision, settings=settings)


def reads_images(settings: Any) -> bool:
    """Whether a model with these settings is one that reads images and texts."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return hasattr(settings, "vision_config") and settings.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a whole model as a Hugging Face folder, with its tokenizer and processor."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    if loaded.vision is not None:
        loaded.vision.save(folder)


def whole_model(config: ModelConfig) -> tuple[ModelConfig, str | None]:
    """The settings of the whole model, and the folder of adapters to add to it, if the name is one of adapters."""
    folder = resolve_name(config.name)
    base = base_of(folder)
    return (config, None) if base is None else (config.model_copy(update={"name": base}), folder)


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every weight: two models with equal fingerprints compute the same."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_of(model: torch.nn.Module) -> object:
    """Equal as long as no weight has changed: tensors count what is done to them in place."""
    return tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())


def _remove_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends generation: the model's generation settings and the tokenizer's end token."""
    generation = getattr(model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = list(listed) if isinstance(listed, list | tuple) else [listed]
    ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def open_pretrained(loader: Any, config: ModelConfig, **options: Any) -> Any:
    """What a `from_pretrained` of transformers gives for a model by its name; InputError for what it cannot open."""
    try:
        return loader(
            resolve_name(config.name),
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it brings Python code of its own; read it, then allow it with model.trust_remote_code=true"
        elif "safetensors" in reason:
            reason += " (only safetensors weights are read: they cannot run code)"
        raise InputError(f"model={config.name} could not be loaded: {reason}") from None
