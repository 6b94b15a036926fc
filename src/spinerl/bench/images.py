"""Part images: questions that show an image, the image's work shared by all responses and passes or not."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spinerl.bench.models import IMAGE, write_vision_model
from spinerl.bench.sharing import sharing_figures
from spinerl.bench.timing import figures, interleave, ratios
from spinerl.bench.work import Job, Work, bench_config
from spinerl.engine.optimizer import Optimizer
from spinerl.models.loading import load_model
from spinerl.types import ImagePrompt, ImageRef, Question

__all__ = ["measure_images"]

_OFF = ("engine.disable=[shared-prefix,shared-images]",)


def measure_images(job: Job) -> dict[str, Any]:
    """Seconds of rollout and update without sharing over those with it, and of `generate` over our rollout.

    The figures of the largest group, and `by_group_size` those of all.  Nothing is kept from one repeat to the next:
    every repeat shows images that were not seen before.
    """
    folder = job.scratch / "vision"
    write_vision_model(job.settings, folder)
    sizes: dict[str, Any] = {}
    for group_size in job.settings.images_group_sizes:
        settings = job.settings.model_copy(
            update={
                "model": str(folder),
                "questions": job.settings.images_questions,
                "group_size": group_size,
                "new_tokens": job.settings.images_new_tokens,
            }
        )
        sizes[str(group_size)] = _measure(replace(job, settings=settings))
    return {**sizes[str(max(job.settings.images_group_sizes))], "by_group_size": sizes}


def _measure(job: Job) -> dict[str, Any]:
    sides = {name: _Side(job, overrides) for name, overrides in (("on", ()), ("off", _OFF))}
    learnt: dict[str, Any] = {}

    def sample(name: str, repeat: int) -> None:
        work = sides[name].work(repeat)
        learnt[name] = work, work.targets(work.sample())

    def learn(name: str, _: int) -> None:
        work, (batch, targets) = learnt[name]
        work.learn(batch, targets)

    tasks: dict[str, Any] = {"generate": lambda repeat: sides["on"].generate(repeat)}
    for name in sides:
        tasks[f"rollout, sharing {name}"] = lambda repeat, name=name: sample(name, repeat)
        tasks[f"update, sharing {name}"] = lambda repeat, name=name: learn(name, repeat)
    seconds = interleave(tasks, job.patience(), sides["on"].device, job.note)
    return {
        **sharing_figures(seconds),
        **ratios("ratio_vs_generate", seconds["generate"], seconds["rollout, sharing on"]),
        **figures("generate_seconds", seconds["generate"]),
    }


class _Side:
    """A model, and new questions for every repeat."""

    def __init__(self, job: Job, overrides: tuple[str, ...]) -> None:
        self._settings = job.settings
        self._config = bench_config(job, overrides=overrides)
        self._loaded = replace(load_model(self._config.model, self._config.engine), end_ids=())
        self._optimizer = Optimizer(self._loaded.model.parameters(), self._config.optim, 1)

    @property
    def device(self) -> str:
        return str(self._loaded.device)

    def work(self, repeat: int) -> Work:
        vision = self._loaded.vision
        assert vision is not None
        questions = tuple(Question(f"{repeat}-{i}", "") for i in range(self._settings.questions))
        prompts = tuple(
            vision.prompt(f"{IMAGE} w2=2 w3=3 w4=0", [_noise(self._settings.images_side, (repeat, i))])
            for i in range(self._settings.questions)
        )
        return Work(self._loaded, questions, prompts, self._config, self._optimizer)

    def _processed(self, prompt: tuple[int, ...]) -> Mapping[str, torch.Tensor]:
        assert isinstance(prompt, ImagePrompt)
        assert self._loaded.vision is not None
        return self._loaded.vision.processed(prompt.shown.text, prompt.shown.images)

    def generate(self, repeat: int) -> None:
        """transformers' own sampling of as many tokens, the processor's inputs repeated for each row."""
        work, settings = self.work(repeat), self._settings
        inputs: dict[str, torch.Tensor] = {}
        for name in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"):
            rows = [self._processed(prompt)[name] for prompt in work.prompts]
            inputs[name] = torch.cat(rows).repeat_interleave(settings.group_size, 0).to(self._loaded.device)
        with torch.inference_mode():
            self._loaded.model.generate(  # pyright: ignore[reportCallIssue]
                **inputs,
                do_sample=True,
                max_new_tokens=settings.new_tokens,
                min_new_tokens=settings.new_tokens,
                top_k=0,
                pad_token_id=self._loaded.pad_id,
            )


def _noise(side: int, seed: tuple[int, ...]) -> ImageRef:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageRef(data=file.getvalue())
