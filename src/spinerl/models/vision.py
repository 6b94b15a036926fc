"""What a vision-language model adds: prompts that show images, and what the model is given for them.

The vision part of a model sees each image once: what it gives (`get_image_features`) is kept for as long as its
weights do not change, and handed to every pass over the prompt (`mm_encoder_outputs` of transformers' models).  So
all that reads text, the sampler and the update, needs nothing but a few more arguments for the passes in which a
prompt's tokens run; responses continue its keys and values like any others.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, ProcessorMixin
from transformers.utils.hub import cached_file

from spinerl.errors import InputError, reason_of
from spinerl.images import image_key, open_image
from spinerl.machine import to_device
from spinerl.types import ImagePrompt, ImageRef, ShownImages

__all__ = ["Vision", "read_processor", "vision_parameters"]

_CACHE_BYTES = 2**30  # of features, in the machine's memory
_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKEN_NAMES = {"input_ids", "attention_mask", "mm_token_type_ids"}


class Vision:
    """A model's processor and vision part.  Prompts are made and read by the same one.

    Images of more than `max_pixels` are shrunk to that (0: never).  With `share` each image is looked at once, else in
    every pass for every row.  `source` is the model's folder or hub name, `options` are those of transformers'
    `from_pretrained`.  Raises OSError or ValueError where there is no processor, InputError for a model that this does
    not work with.
    """

    def __init__(
        self, model: PreTrainedModel, source: str, max_pixels: int = 0, share: bool = True, **options: Any
    ) -> None:
        self._model = model
        self._inner: Any = model.base_model
        self._processor: Any = read_processor(model.config.model_type, source, **options)
        self._source, self._options = source, options
        self._max_pixels = max_pixels
        self._share = share
        self._parameters = vision_parameters(model)
        self._features: OrderedDict[str, tuple[int, SimpleNamespace]] = OrderedDict()
        self._accepted = set(inspect.signature(self._inner.forward).parameters)
        if "mm_encoder_outputs" not in self._accepted or not hasattr(self._inner, "get_image_features"):
            raise InputError(
                f"{type(model).__name__} cannot be given images that were looked at before (mm_encoder_outputs); "
                "update transformers (tested: 5.23), or choose another vision-language model"
            )

    @property
    def chat_template(self) -> Any:
        """The processor's template, or its tokenizer's; None without either."""
        return self._processor.chat_template or self._processor.tokenizer.chat_template

    @property
    def placeholder_ids(self) -> list[int]:
        """The tokens that stand for images or videos: models refuse more of them than there are features."""
        names = (f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index"))
        found = (getattr(self._model.config, name, None) for name in names)
        return sorted({value for value in found if isinstance(value, int)})

    def prompt(self, text: str, images: Sequence[ImageRef]) -> ImagePrompt:
        """A text with a placeholder for each image -> the prompt, its placeholders grown to the images' tokens.

        Raises BadImageError for an image that cannot be read, InputError for what the processor refuses.
        """
        found = self.processed(text, images)
        ids = found["input_ids"]
        of_tokens = {
            name: value[0]
            for name, value in found.items()
            if name in self._accepted - _TOKEN_NAMES and value.shape[:2] == ids.shape
        }
        positions = None
        if hasattr(self._inner, "get_rope_index"):
            wanted = inspect.signature(self._inner.get_rope_index).parameters
            positions, _ = self._inner.get_rope_index(**{k: v for k, v in found.items() if k in wanted})
            positions = positions[:, 0]
        offset = 0 if positions is None else int(positions.max()) + 1 - ids.shape[1]
        key = "/".join(image_key(image) for image in images)
        return ImagePrompt(ids[0].tolist(), ShownImages(text, tuple(images), key, offset, positions, of_tokens))

    def inputs(self, prompts: Sequence[tuple[int, ...]], width: int, *, left: bool = False) -> dict[str, Any]:
        """The model's inputs next to the ids (b, width) of rows that begin with these prompts.

        Rows are padded on the right, or on the `left`.  {} if no prompt shows an image.  Where the vision part learns
        and gradients are on, they flow into it.
        """
        shown = [p.shown for p in prompts if isinstance(p, ImagePrompt)]
        if not shown:
            return {}
        if self._share:
            distinct = {images.key: images for images in shown}
            by_key = {key: self._features_of(images) for key, images in distinct.items()}
            features = [by_key[images.key] for images in shown]
        else:
            features = [self._looked_at(images) for images in shown]
        arguments: dict[str, Any] = {"mm_encoder_outputs": {"image": _joined(features)}}
        for name in {name for images in shown for name in images.token_inputs}:
            rows = torch.zeros(len(prompts), width, dtype=torch.int64)
            for row, prompt in zip(rows, prompts, strict=True):
                if isinstance(prompt, ImagePrompt):
                    start = width - len(prompt) if left else 0
                    values = prompt.shown.token_inputs[name][: len(prompt)]
                    row[start : start + len(values)] = values
            arguments[name] = to_device(rows, self._model.device)
        if any(images.positions is not None for images in shown):
            positions = [_positions(prompt, width, left) for prompt in prompts]
            arguments["position_ids"] = to_device(torch.stack(positions, dim=1), self._model.device)
        return arguments

    def save(self, folder: Path) -> None:
        """Copy the processor's files next to an adapted model's as they are, those for videos too."""
        options = {name: value for name, value in self._options.items() if name == "revision"}
        for name in _FILES:
            file = cached_file(self._source, name, _raise_exceptions_for_missing_entries=False, **options)
            if file is not None:
                shutil.copy(file, folder / name)

    def _features_of(self, shown: ShownImages) -> SimpleNamespace:
        """What the vision part makes of a prompt's images."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._parameters):
            return self._looked_at(shown)
        version = sum(p._version for p in self._parameters)
        known = self._features.pop(shown.key, None)
        if known is None or known[0] != version:
            with torch.inference_mode(False), torch.no_grad():  # passes that learn use it too
                known = version, _mapped(self._looked_at(shown), lambda tensor: tensor.cpu())
        self._features[shown.key] = known
        while len(self._features) > 1 and sum(_num_bytes(f) for _, f in self._features.values()) > _CACHE_BYTES:
            self._features.popitem(last=False)
        return _mapped(known[1], lambda tensor: to_device(tensor, self._model.device))

    def _looked_at(self, shown: ShownImages) -> SimpleNamespace:
        found = self.processed(shown.text, shown.images)
        wanted = inspect.signature(self._inner.get_image_features).parameters
        inputs = {name: to_device(value, self._model.device) for name, value in found.items() if name in wanted}
        pixels = inputs["pixel_values"]
        inputs["pixel_values"] = pixels.to(self._model.dtype) if pixels.is_floating_point() else pixels
        output = self._inner.get_image_features(**inputs, return_dict=True)
        kept = {"pooler_output": output.pooler_output}
        if getattr(output, "deepstack_features", None) is not None:
            kept["deepstack_features"] = output.deepstack_features
        return SimpleNamespace(**kept)

    def processed(self, text: str, images: Sequence[ImageRef]) -> Mapping[str, torch.Tensor]:
        """What the processor gives for one prompt: `input_ids` (1, T), `pixel_values`, ... by name."""
        try:
            found = self._processor(
                text=[text], images=[self.pictures(images)], return_tensors="pt", add_special_tokens=False
            )
        except (ValueError, TypeError, IndexError, StopIteration) as error:
            raise InputError(f"the model's processor refuses {len(images)} image(s): {reason_of(error)}") from None
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def pictures(self, images: Sequence[ImageRef]) -> list[Any]:
        """The images opened (PIL), shrunk to `max_pixels` where they have more."""
        # Whoever loaded the questions has held them to data.max_image_pixels.
        return [self._fitted(open_image(image, max_pixels=sys.maxsize)) for image in images]

    def _fitted(self, picture: Any) -> Any:
        """The picture, shrunk to `max_pixels` where it has more."""
        width, height = picture.size
        if not self._max_pixels or width * height <= self._max_pixels:
            return picture
        scale = (self._max_pixels / (width * height)) ** 0.5
        return picture.resize((max(1, int(width * scale)), max(1, int(height * scale))))


def vision_parameters(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """Every parameter that only images reach: all but the decoder's and the embeddings'."""
    parts = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    reading = {id(p) for part in parts if part is not None for p in part.parameters()}
    return [p for p in model.parameters() if id(p) not in reading]


def read_processor(model_type: str, source: str, **options: Any) -> ProcessorMixin:
    """The processor of a model without the part that reads videos.

    transformers' own loader needs that part, which needs torchvision, for images too.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    ordinary: Any = getattr(transformers, name or "", None)
    if ordinary is None:
        return transformers.AutoProcessor.from_pretrained(source, **options)

    class ImageProcessor(ordinary):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, path: str, *_args: Any, **_kwargs: Any) -> list[Any]:
            loaders = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
            names = super().get_attributes()
            return [loaders[name].from_pretrained(path, **options) if name in loaders else None for name in names]

    return ImageProcessor.from_pretrained(source, **options)


def _positions(prompt: tuple[int, ...], width: int, left: bool) -> torch.Tensor:
    """Positions (3, width) of a row that begins with this prompt."""
    start = width - len(prompt) if left else 0
    shown = prompt.shown if isinstance(prompt, ImagePrompt) else None
    positions = (torch.arange(width) - start).clamp_min(0).expand(3, width).clone()
    if shown is not None and shown.positions is not None:
        known = shown.positions[:, : len(prompt)]
        positions[:, start + known.shape[1] :] += shown.offset
        positions[:, start : start + known.shape[1]] = known
    return positions


def _joined(parts: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """The features of several prompts' images as if they had been looked at together."""
    return SimpleNamespace(**{name: _merged([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _merged(values: Sequence[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(list(values))
    if isinstance(values[0][0], torch.Tensor):  # one tensor an image
        return [tensor for value in values for tensor in value]
    return [_merged(layer) for layer in zip(*values, strict=True)]


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**{name: _mapped(part, change) for name, part in vars(value).items()})
    return [_mapped(part, change) for part in value]


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_num_bytes, vars(value).values() if isinstance(value, SimpleNamespace) else value))
