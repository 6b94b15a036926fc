"""A vision-language model's processor without its weights: what prompts with images look like, and which it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from spinerl.config import ModelConfig
from spinerl.models.loading import open_pretrained, open_settings, reads_images, whole_model
from spinerl.models.vision import Vision, read_processor
from spinerl.types import ImageRef

__all__ = ["Processor", "load_processor"]


class Processor(Vision):
    """As `Vision` for prompts only: token ids without the model's other inputs."""

    def __init__(self, model_type: str, source: str, max_pixels: int = 0, **options: object) -> None:
        self._processor = read_processor(model_type, source, **options)
        self._max_pixels = max_pixels

    def prompt(self, text: str, images: Sequence[ImageRef]) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The prompt's token ids, placeholders grown to the images' tokens; errors as `Vision.prompt`."""
        return tuple(self.processed(text, images)["input_ids"][0].tolist())


def load_processor(config: ModelConfig) -> Processor | None:
    """The processor of the model that this names; None for a model that only reads text.  Raises InputError."""
    config, _ = whole_model(config)
    settings = open_settings(config)
    if not reads_images(settings):
        return None
    return open_pretrained(
        partial(Processor, settings.model_type, max_pixels=config.image_pixels), config, "its processor"
    )
