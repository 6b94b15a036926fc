"""Opening a Hugging Face causal language model, or a vision-language model, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from spinerl.config import EngineConfig, ModelConfig, RolloutConfig
from spinerl.errors import InputError, RunError, SpinerlError
from spinerl.files import quoted
from spinerl.hub import model_fault, one_try
from spinerl.machine import pick_device
from spinerl.models import precision
from spinerl.models.adapters import adapter_folder, base_of, merged
from spinerl.models.capabilities import Capabilities, Verdict
from spinerl.models.context import context_length
from spinerl.models.gguf import PACKAGED, find_gguf, gguf_shapes, open_gguf, packaged_file
from spinerl.models.quantize import compute_alike, quantize_options, require_quantizable
from spinerl.models.vision import Vision, vision_parameters
from spinerl.models.weights import (
    Shapes,
    check_loaded,
    check_settings,
    fault_in,
    find_file,
    listed,
    no_larger_than,
    no_tables,
    not_finite,
    read_json,
    read_shapes,
    weight_files,
)
from spinerl.types import ImagePrompt, OnTokens, Question, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoadedModel",
    "Sampler",
    "Steering",
    "fingerprint",
    "held_weights",
    "is_gguf",
    "load_model",
    "load_tokenizer",
    "open_pretrained",
    "open_settings",
    "reads_images",
    "resolve_name",
    "save_model",
    "state_of",
    "stored_dtype",
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
        on_tokens: OnTokens | None,
    ) -> Rollout:
        """As `spinerl.engine.sampler.sample_responses`; `seed` None takes the likeliest tokens."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, its tokenizer, and the ids that end a response.

    `vision` is there for models that see images.  `without_adapters` says that this is the model without its adapters
    (`base`), which every pass must disable (`acting`).  `sampler` samples in place of our own loop.  `stop_texts`
    end a response as those of rollout.stop do.  `mixed`: linear layers may round what they multiply to bfloat16
    (`spinerl.models.precision`).  `settings` say what the engine may use, `capabilities` which of its
    paths suit the model.  `notes` are worth a line each before anything is done with it.  `steering`: what moves its
    logits where it samples.
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
    mixed: bool = False
    settings: EngineConfig = field(default_factory=EngineConfig)
    capabilities: Capabilities = field(default_factory=Capabilities, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    steering: Steering | None = None

    def disables(self, part: str) -> bool:
        """Whether `engine.disable` lists this part of the engine."""
        return part in self.settings.disable

    @property
    def precision(self) -> str:
        """What it computes in, as model.dtype names it."""
        return "mixed" if self.mixed else str(self.model.dtype).removeprefix("torch.")

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
        """(Q,) on the CPU: how much further than its number of tokens each prompt's next position lies: 0 without
        images."""
        return torch.tensor([prompt.shown.offset if isinstance(prompt, ImagePrompt) else 0 for prompt in prompts])

    def texts(self, responses: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """The responses' texts, without special tokens and without the text of `stop_texts` that ended one."""
        texts = self.tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True)
        for stop in self.stop_texts:
            texts = [text.removesuffix(stop) for text in texts]
        return tuple(texts)

    @property
    def context(self) -> int | None:
        """The most tokens of a prompt and its response together; None: any number."""
        others = () if self.steering is None else self.steering.models
        lengths = [context_length(one.model.config) for one in (self, *others)]
        return min((length for length in lengths if length is not None), default=None)

    @property
    def num_embeddings(self) -> int:
        """The number of tokens that a prompt may hold."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # pyright: ignore

    @property
    def vocab_size(self) -> int:
        """The number of logits per position."""
        head = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        return int(weight.shape[0] if weight is not None else self.model.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class Steering:
    """Two models of the same vocabulary, whose difference in logits times `weight` is added to another model's."""

    adapted: LoadedModel
    base: LoadedModel
    weight: float

    @property
    def models(self) -> tuple[LoadedModel, LoadedModel]:
        return self.adapted, self.base


def resolve_name(name: str) -> str:
    """The folder of a bundled model, an existing folder (of a run: its adapted model), a GGUF file, or a hub name.

    Raises InputError for a folder or file that is no model, MissingExtraError for a model whose package is missing.
    """
    from spinerl.tiny import MODELS, model_path

    if name in MODELS:
        return str(model_path(name))
    if (packaged := packaged_file(name)) is not None:
        return str(packaged)
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
    if (file := find_gguf(name)) is not None:
        return str(file)
    if folder.is_dir():
        raise InputError(f"model={name}: the folder has no config.json, so it is not a Hugging Face model")
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.lower().endswith(".gguf"):
        what = "this file is no GGUF file" if folder.exists() else "no such folder or file"
        bundled = " or ".join((*MODELS, *PACKAGED))
        raise InputError(f"model={name}: {what}; give a Hugging Face folder, a GGUF file, a hub name, or {bundled}")
    return name


def is_gguf(config: ModelConfig) -> bool:
    """Whether the model's name, or that of the model its adapters belong to, is of a GGUF file."""
    return Path(resolve_name(whole_model(config)[0].name)).is_file()


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; InputError if it cannot be read, or knows no token."""
    from transformers import AutoTokenizer

    config, _ = whole_model(config)
    tokenizer = None
    try:
        tokenizer = open_pretrained(AutoTokenizer.from_pretrained, config, "its tokenizer")
    except InputError:
        source = resolve_name(config.name)
        if not Path(source).is_dir() or find_file(source, "tokenizer.json") is not None:
            raise
    if tokenizer is None or len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise InputError(
            f"model={config.name}: it has no tokenizer.json, and no tokenizer can be made of its other files; copy the "
            "tokenizer's files into the model's folder"
        )
    return tokenizer


def load_model(config: ModelConfig, settings: EngineConfig | None = None) -> LoadedModel:
    """The model in evaluation mode (no dropout, also while it learns: the policy that learns is the one sampled).

    Reads safetensors, or a GGUF file.  A folder of adapters gives the model they belong to with them added in.

    Raises InputError for a missing folder, weights in another format, damaged, missing, of other shapes than
    config.json describes, or not finite, an architecture transformers does not know, or remote code that was not
    allowed; MissingExtraError for adapters without peft.
    """
    config, adapters = whole_model(config)
    try:
        return _load_whole(config, settings, adapters)
    except InputError as error:
        if not adapters or adapters[0] in str(error):
            raise
        raise InputError(f"the adapters in {adapters[0]} belong to {config.name}: {error}") from None


def _load_whole(config: ModelConfig, settings: EngineConfig | None, adapters: Sequence[str]) -> LoadedModel:
    """`load_model` once it is known which model and whose adapters."""
    device = torch.device(pick_device(config.device))
    require_quantizable(config, resolve_name(config.name), adapters)
    model, chosen, verdict, notes = _read_model(config, device)
    for folder in adapters:
        model = merged(model, folder)
    if adapters:
        model.requires_grad_(True)  # a plain model again, which peft has left frozen
    if config.quantize == "none":
        model.to(device)  # pyright: ignore[reportArgumentType]
    else:  # it was read to its device
        compute_alike(model)
    mixed = chosen == "mixed"
    loaded = replace(wrap_model(model, load_tokenizer(config), config, settings), notes=notes, mixed=mixed)
    loaded.capabilities.verdicts[precision.VERDICT] = verdict
    return loaded


def _read_model(
    config: ModelConfig, device: torch.device
) -> tuple[PreTrainedModel, precision.Precision, Verdict, tuple[str, ...]]:
    """A whole model from its folder, hub name or GGUF file, every weight of it read, what it computes in and why, and
    what is worth a line."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    attention = None if config.attention == "auto" else config.attention
    if Path(file := resolve_name(config.name)).is_file():  # `models.gguf` checks that the file has every weight
        chosen, verdict = precision.choose_dtype(config.dtype, device, gguf_shapes(Path(file), config.name))
        dtype = precision.weights_dtype(chosen)
        loader = AutoModelForCausalLM.from_pretrained
        with no_tables():
            return open_pretrained(loader, config, dtype=dtype, attn_implementation=attention), chosen, verdict, ()
    described, shapes = held_weights(config)
    chosen, verdict = precision.choose_dtype(config.dtype, device, shapes.values())
    dtype = precision.weights_dtype(chosen)
    architecture = open_settings(config, len(shapes))
    loader = AutoModelForImageTextToText if reads_images(architecture) else AutoModelForCausalLM
    with no_tables(), no_larger_than(shapes, config, packed="quantization_config" in described):
        model, info = open_pretrained(
            loader.from_pretrained,
            config,
            dtype=dtype,
            **quantize_options(config, device, dtype),
            use_safetensors=True,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are refused by name
        )
    return model, chosen, verdict, check_loaded(model, info, config)


def held_weights(config: ModelConfig) -> tuple[dict[str, Any], Shapes]:
    """A whole model's config.json and the shapes of its weights, from headers only.

    InputError for weights that are missing, damaged or not safetensors.
    """
    source = resolve_name(config.name)
    file = find_file(source, "config.json", config.revision)
    if file is None:
        open_settings(config)  # says why
    described = read_json(file) if file is not None else {}
    return described, read_shapes(weight_files(config, source, described))


def open_settings(config: ModelConfig, num_tensors: int | None = None) -> Any:
    """The configuration of a whole model (transformers' own class); InputError for one that cannot be a model's.

    `num_tensors`: how many its weights have, if that is known.
    """
    from transformers import AutoConfig

    file = find_file(resolve_name(config.name), "config.json", config.revision)
    if file is not None:
        check_settings(read_json(file), file, num_tensors)  # before transformers counts up its layers
    return open_pretrained(AutoConfig.from_pretrained, config, "its config.json")


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    settings: EngineConfig | None = None,
) -> LoadedModel:
    """A model in memory, where it is and as it is, ready to be adapted; it is put into evaluation mode.

    A model that sees images has its processor opened by `config.name`.  Raises InputError for an encoder-decoder, for
    weights that are not finite, and for a tokenizer of another model.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"model={config.name} is an encoder-decoder; only causal language models can be adapted")
    broken = not_finite(model.named_parameters())
    if broken:
        raise InputError(
            f"model={config.name}: NaN or infinite numbers in {len(broken)} of its weights: {listed(broken)}; it has "
            "diverged, or its files are damaged: take an earlier one"
        )
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
        read = partial(Vision, model, max_pixels=config.image_pixels, share=share)
        vision = open_pretrained(read, config, "its processor")
        for parameter in vision_parameters(model):
            parameter.requires_grad_(config.train_vision)
    loaded = LoadedModel(model, tokenizer, end_ids, 0, model.device, vision, settings=settings)
    pad_id = pad_id if isinstance(pad_id, int) and 0 <= pad_id < loaded.num_embeddings else 0
    return _of_its_tokenizer(replace(loaded, pad_id=pad_id), config)


def _of_its_tokenizer(loaded: LoadedModel, config: ModelConfig) -> LoadedModel:
    """The model with those of its end tokens that it can write; InputError where its tokenizer is of another model.

    Special tokens past the embeddings are common, in tokenizers that a family of models shares, and do no harm.
    """
    rows, tokenizer = loaded.num_embeddings, loaded.tokenizer
    wrong = []
    if len(tokenizer) > rows:
        added = tokenizer.added_tokens_decoder
        beyond = [i for i in range(rows, len(tokenizer)) if i not in added or not added[i].special]
        wrong = [token for token in tokenizer.convert_ids_to_tokens(beyond) if token]
    if wrong:
        raise InputError(
            f"model={config.name}: its embeddings have {rows} rows, and its tokenizer {len(tokenizer)} tokens: "
            f"{len(wrong)} cannot be read ({listed([repr(token) for token in wrong])}); tokenizer and weights are of "
            "different models"
        )
    end_ids = tuple(i for i in loaded.end_ids if 0 <= i < rows)
    if loaded.end_ids and not end_ids:
        raise InputError(
            f"model={config.name}: no response could end, for of {rows} tokens none has the eos_token_id "
            f"{', '.join(map(str, loaded.end_ids))}; correct generation_config.json"
        )
    return replace(loaded, end_ids=end_ids)


def stored_dtype(config: ModelConfig) -> str:
    """The dtype of a model's weights as its folder has them, by its config.json; float32 for adapters added into their
    model, and for the values of a GGUF file."""
    source = resolve_name(config.name)
    file = None if whole_model(config)[1] else find_file(source, "config.json", config.revision)
    described = read_json(file) if file is not None else {}
    found = described.get("dtype", described.get("torch_dtype"))
    return found if isinstance(found, str) else "float32"


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


def whole_model(config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The settings of the whole model, and the folders of adapters to add to it, one after the other, if the name is
    one of adapters.  Those may belong to a model that has adapters itself.

    Raises InputError where their model is missing, or where they belong to themselves.
    """
    name, folders = config.name, []
    while (folder := adapter_folder(resolve_name(name), config.revision)) is not None:
        if folder in folders:
            raise InputError(
                f"model={config.name}: the adapters in {folder} name themselves as their model; correct "
                "base_model_name_or_path in adapter_config.json"
            )
        folders.insert(0, folder)
        name = base_of(folder)
        assert name is not None
        try:
            resolve_name(name)
        except InputError as error:
            raise InputError(
                f"the adapters in {folder} belong to {name}, which cannot be opened ({error}); correct "
                "base_model_name_or_path in adapter_config.json"
            ) from None
    return (config.model_copy(update={"name": name}) if folders else config), tuple(folders)


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


def open_pretrained(loader: Any, config: ModelConfig, what: str = "", **options: Any) -> Any:
    """What a `from_pretrained` of transformers gives for a model by its name; InputError for what it cannot open.

    Whatever it raises is a fault of the files: they were written by others, and it reads them.  `what` names the part.
    RunError where memory is not enough.
    """
    source = resolve_name(config.name)
    if Path(source).is_file():
        return open_gguf(loader, Path(source), config.name, **options)
    try:
        with one_try():
            return loader(
                source,
                revision=config.revision or "main",
                trust_remote_code=config.trust_remote_code,
                **options,
            )
    except SpinerlError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said:
            raise RunError(
                f"model={config.name} does not fit into memory ({said or 'out of memory'}); choose a smaller one, or "
                "model.dtype=bfloat16"
            ) from error
        explained = isinstance(error, OSError | ValueError | ImportError) and said
        if not Path(source).is_dir() and (fault := model_fault(source, config.revision)) is not None:
            raise InputError(f"model={config.name}: {fault}") from error
        reason = fault_in(source) or (said if explained else f"{type(error).__name__}: {said}")
        if "trust_remote_code" in str(error):
            reason = "it brings Python code of its own; read it, then allow it with model.trust_remote_code=true"
        elif "safetensors" in reason:
            reason += " (only safetensors weights are read: they cannot run code)"
        raise InputError(f"model={config.name}{what and f': {what}'} could not be loaded: {reason}") from error
