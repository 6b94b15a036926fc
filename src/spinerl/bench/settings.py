"""The settings of a benchmark run: one frozen record of typed keys, read from key=value overrides.  No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from spinerl.config import explain_value, split_override
from spinerl.errors import InputError, did_you_mean

__all__ = ["PARTS", "Settings", "load_settings"]

Part = Literal["step", "rollout", "update", "sharing", "images", "efficiency", "scaling"]
PARTS: tuple[Part, ...] = ("step", "rollout", "update", "sharing", "images", "efficiency", "scaling")


def _split_parts(value: Any) -> Any:
    """`parts=all` and `parts=step,update` written out as lists."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple):
        value = tuple(name for part in value for name in (PARTS if part == "all" else (part,)))
        return tuple(part for part in PARTS if part in value) + tuple(part for part in value if part not in PARTS)
    return value


def _split_numbers(value: Any) -> Any:
    """`8,32` as a list."""
    return value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value


class Settings(BaseModel):
    """The workload of a benchmark run and how often it is repeated.  Lengths are in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    parts: Annotated[tuple[Part, ...], BeforeValidator(_split_parts)] = Field(
        PARTS[:-1], min_length=1, description="what to measure: a list, one name, or all"
    )
    model: str = Field("random", description="random, tiny-reasoner, or a folder; random is built from the sizes below")
    hidden_size: int = Field(256, ge=8, description="random model: width")
    layers: int = Field(8, ge=1, description="random model: layers")
    heads: int = Field(4, ge=1, description="random model: attention heads")
    kv_heads: int = Field(2, ge=1, description="random model: heads of keys and values")
    head_dim: int = Field(64, ge=2, multiple_of=2, description="random model: width of a head")
    intermediate_size: int = Field(768, ge=8, description="random model: width inside the feed-forward blocks")
    vocabulary: int = Field(512, ge=16, description="random model: tokens in the vocabulary")
    questions: int = Field(8, ge=1, description="questions of a step")
    group_size: int = Field(16, ge=2, description="responses to each question")
    prompt_tokens: int = Field(200, ge=1, description="length of every prompt")
    new_tokens: int = Field(128, ge=2, description="the most tokens of a response")
    repeats: int = Field(5, ge=1, description="timed repeats of everything, after a warm-up")
    part_seconds: int = Field(
        45, ge=0, description="once a comparison took so long, two repeats are enough; 0: always all (seconds)"
    )
    threads: int = Field(0, ge=0, description="CPU threads, the same for all; 0: one or all, whichever is faster")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "mixed"] = Field("auto", description="as model.dtype")
    lr: float = Field(1e-6, gt=0, description="learning rate of every update")
    trl_rows: int = Field(0, ge=0, description="TRL's rows per forward and backward; 0: try some, keep the fastest")
    update_vocabulary: int = Field(151936, ge=16, description="part update: tokens in the vocabulary")
    update_hidden_size: int = Field(128, ge=8, description="part update: the model's width")
    update_layers: int = Field(2, ge=1, description="part update: the model's layers")
    update_questions: int = Field(2, ge=1, description="part update: questions")
    update_group_size: int = Field(8, ge=2, description="part update: responses to each question")
    update_prompt_tokens: int = Field(64, ge=1, description="part update: length of every prompt")
    update_new_tokens: int = Field(64, ge=2, description="part update: length of every response")
    sharing_questions: int = Field(1, ge=1, description="part sharing: questions")
    sharing_prompt_tokens: int = Field(1000, ge=1, description="part sharing: length of every prompt")
    sharing_new_tokens: int = Field(100, ge=2, description="part sharing: length of every response")
    images_questions: int = Field(2, ge=1, description="part images: questions, each with an image")
    images_group_sizes: Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_split_numbers)] = Field(
        (8, 32), min_length=1, description="part images: responses to each question, measured one after the other"
    )
    images_side: int = Field(224, ge=28, description="part images: width and height of an image (pixels)")
    images_new_tokens: int = Field(64, ge=2, description="part images: length of every response")
    images_hidden_size: int = Field(192, ge=64, multiple_of=64, description="part images: the vision tower's width")
    images_layers: int = Field(6, ge=1, description="part images: the vision tower's layers")
    out: str | None = Field(
        None,
        description="part scaling: folder of the picture and the table; null: docs/benchmarks if it is there, else .",
    )
    seed: int = Field(0, ge=0, description="of the weights, the prompts and the sampling")

    @property
    def out_folder(self) -> Path:
        """Where the scaling picture and its CSV go."""
        if self.out is not None:
            return Path(self.out)
        usual = Path("docs/benchmarks")
        return usual if usual.is_dir() else Path(".")


def load_settings(overrides: Sequence[str] = ()) -> Settings:
    """The settings that `key=value` overrides give.

    Raises InputError naming the key, its value and what is allowed; unknown keys with "did you mean".

    >>> load_settings(["parts=update,step", "repeats=3"]).parts
    ('step', 'update')
    """
    given: dict[str, Any] = {}
    for one in overrides:
        key, given[key] = split_override(one, "spinerl bench parts=update repeats=3")
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        raise InputError("; ".join(_explain(item) for item in error.errors()[:3])) from None
    if settings.heads % settings.kv_heads:
        raise InputError(f"kv_heads={settings.kv_heads} must divide heads={settings.heads}")
    if settings.trl_rows and settings.questions * settings.group_size % settings.trl_rows:
        raise InputError(
            f"trl_rows={settings.trl_rows} must divide the {settings.questions * settings.group_size} responses of a "
            "step, questions * group_size"
        )
    if "scaling" in settings.parts and not settings.out_folder.is_dir():
        raise InputError(f"out={settings.out}: no such folder; make it first, or leave the key out")
    return settings


def _explain(item: Any) -> str:
    """One line for one pydantic error: key, value, what is allowed."""
    key = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        keys = list(Settings.model_fields)
        return f"unknown key {key}{did_you_mean(key, keys)}; allowed: {', '.join(keys)}"
    if key == "parts":
        return f"parts={item['input']!r}: allowed: {', '.join(PARTS)}, all{did_you_mean(str(item['input']), PARTS)}"
    return explain_value(item)
