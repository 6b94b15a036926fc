"""Synthesis of drafts: the unadapted model reads its own k responses and writes one more, whose answer counts.

Source: Compute as Teacher (arXiv 2509.14234), used at inference, without any update.  The prompt is the one that
`reward=reference` gives the initial model (`spinerl.rewards.reference_prompt`): the drafts without the question, unless
prompt.reference_question is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.models.loading import LoadedModel
from spinerl.rewards import reference_prompt
from spinerl.types import OnTokens, Question

__all__ = ["Synthesis", "synthesized_responses"]


class Synthesis(NamedTuple):
    """A synthesized response: `num_tokens` are its own, `num_read` counts the drafts that its prompt has space for."""

    text: str
    truncated: bool
    num_tokens: int
    num_read: int


def synthesized_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    drafts: Sequence[Sequence[str]],
    config: Config,
    on_tokens: OnTokens | None = None,
) -> list[Synthesis]:
    """One response per question, sampled with config.rollout after reading the question's drafts.

    The random streams are (config.seed, "synthesis").  Questions must show no images: these prompts hold none.
    """

    def reading(i: int, num: int) -> tuple[int, ...]:
        return reference_prompt(loaded, questions[i], prompts[i], drafts[i][:num], config)

    read = [reading(i, len(drafts[i])) for i in range(len(questions))]
    # With fewer drafts than there is space for, the prompt is another one.
    num_read = [next(num for num in range(len(drafts[i]) + 1) if reading(i, num) == read[i]) for i in range(len(read))]
    written = sample_responses(loaded, questions, read, 1, config.rollout, (config.seed, "synthesis"), on_tokens)
    lengths, finished = written.mask.sum(dim=1).tolist(), written.finished_mask.tolist()
    rows = zip(written.texts, finished, lengths, num_read, strict=True)
    return [Synthesis(text, not ended, length, num) for text, ended, length, num in rows]
