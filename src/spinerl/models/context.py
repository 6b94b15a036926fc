"""How many tokens a model is made for, prompt and response together, and what a prompt leaves of them.

Learned positions end there; rotary ones go on, and what a model makes of positions it was never trained on is noise
that no figure shows.  So no prompt with its response gets longer: `fit` leaves out questions whose prompts leave too
little, and the sampler ends a response where the context does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from spinerl.errors import InputError

__all__ = ["Fit", "context_length", "fit", "limits_within"]

_LEAST = 4  # a prompt has to leave a quarter of what a response may have


def context_length(settings: Any) -> int | None:
    """The most tokens of prompt and response, from a model's configuration; None where it names none.

    That is max_position_embeddings.  RoPE scaling of the kinds linear, dynamic and yarn multiplies it (yarn: the
    original length); llama3 and longrope are in it already.  Sliding windows change nothing: they limit what a token
    sees, not where it stands.

    >>> from types import SimpleNamespace as Config
    >>> text = Config(max_position_embeddings=100, rope_parameters={"rope_type": "yarn", "factor": 4.0})
    >>> context_length(Config(get_text_config=lambda: text))
    400
    """
    text = settings.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rope, dict):
        return stated
    factor = rope.get("factor")
    if rope.get("rope_type", rope.get("type")) in ("linear", "dynamic", "yarn") and isinstance(factor, int | float):
        original = rope.get("original_max_position_embeddings")
        return max(stated, int((original if isinstance(original, int) else stated) * factor))
    return stated


class Fit(NamedTuple):
    """Which prompts leave enough of a context, in order, what is said of the others, and of responses cut short."""

    kept: tuple[int, ...]
    skipped: tuple[int, ...]
    least: int  # tokens that a prompt has to leave
    note: str | None


def fit(lengths: Sequence[int], max_new_tokens: int, context: int | None) -> Fit:
    """Sort prompts of these lengths (tokens) by whether they fit into a context together with a response.

    One fits that leaves a quarter of `max_new_tokens`, or of the whole context if that is less.  Where one that fits
    leaves less than `max_new_tokens`, its responses end where the context does, which `note` says.

    >>> fit([10, 60, 90], max_new_tokens=64, context=100)[:3]
    ((0, 1), (2,), 16)
    """
    if context is None:
        return Fit(tuple(range(len(lengths))), (), 1, None)
    least = max(1, min(max_new_tokens, context) // _LEAST)
    kept = tuple(i for i, length in enumerate(lengths) if context - length >= least)
    skipped = tuple(i for i, length in enumerate(lengths) if context - length < least)
    spaces = [context - lengths[i] for i in kept if context - lengths[i] < max_new_tokens]
    note = None
    if spaces:
        some = f"{min(spaces)}" if min(spaces) == max(spaces) else f"{min(spaces)} to {max(spaces)}"
        note = (
            f"the model's context has {context} tokens: the prompts of {len(spaces)} of {len(kept)} questions leave "
            f"{some} of them, less than rollout.max_new_tokens={max_new_tokens}, and their responses end there"
        )
    return Fit(kept, skipped, least, note)


def limits_within(context: int | None, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> Sequence[int]:
    """The most tokens of a response to each prompt: its limit, or what the prompt leaves of the context.

    InputError where that is nothing.
    """
    if context is None:
        return limits
    longest = max(map(len, prompts), default=0)
    if longest >= context:
        raise InputError(
            f"a prompt of {longest} tokens leaves nothing for a response in the model's context of {context} tokens; "
            "shorten it, or choose a model with a longer context"
        )
    return [min(limit, context - len(prompt)) for prompt, limit in zip(prompts, limits, strict=True)]
