"""Budget forcing: one greedy response per question, made as long as a budget of tokens, without any update.

Source: s1 (arXiv 2501.19393).  Where the model would end before the budget is spent, its end token is dropped and a
cue ("Wait") appended, so that it goes on; where the budget ends first, an answer cue is appended and a few more
tokens allowed.  s1 does so inside its thinking delimiters; here the whole response is the thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spinerl.config import RolloutConfig
from spinerl.engine.sampler import greedy_responses
from spinerl.models.context import limits_within
from spinerl.models.loading import LoadedModel
from spinerl.types import OnTokens, Question

__all__ = ["Forced", "forced_responses", "ids_of"]


@dataclass
class Forced:
    """A forced response: its tokens with the cues, how many of them the model wrote, and whether it was ended."""

    ids: list[int] = field(default_factory=list)
    num_tokens: int = 0
    cut: bool = False
    truncated: bool = False
    done: bool = False


def forced_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    rollout: RolloutConfig,
    budget: int,
    cue: str,
    answer: str,
    answer_tokens: int,
    on_tokens: OnTokens | None = None,
) -> list[tuple[str, bool, int]]:
    """(text, truncated, tokens written by the model) per question; cues are in the text and not in the count.

    Args:
        budget: tokens of a response, cues included, before the answer cue; at least 1.  Less where the model's context
            leaves less before the answer.
        answer_tokens: tokens after the answer cue; a response that needs more is truncated.
    """
    cue_ids, answer_ids = (ids_of(loaded, text) for text in (cue, answer))
    states = [Forced() for _ in questions]
    budgets = limits_within(
        None if loaded.context is None else loaded.context - len(answer_ids) - answer_tokens,
        prompts,
        [budget] * len(prompts),
    )

    def ask(chosen: Sequence[int], limit: int) -> list[tuple[list[int], bool]]:
        """(new tokens, whether they end) of the chosen questions' continuations."""
        found = greedy_responses(
            loaded,
            [questions[i] for i in chosen],
            [prompts[i] + tuple(states[i].ids) for i in chosen],
            rollout.model_copy(update={"max_new_tokens": limit}),
            on_tokens,
        )
        rows = zip(found.tokens, found.mask, found.finished_mask.tolist(), strict=True)
        return [(tokens[mask].tolist(), ended) for tokens, mask, ended in rows]

    while chosen := [i for i, state in enumerate(states) if not state.done]:
        # One limit for all: greedy tokens do not depend on it, so the surplus of the others is cut off again.
        limit = max(budgets[i] - len(states[i].ids) for i in chosen)
        for i, (new, ended) in zip(chosen, ask(chosen, limit), strict=True):
            state, num_left = states[i], budgets[i] - len(states[i].ids)
            state.cut = len(new) > num_left or not ended
            state.num_tokens += min(len(new), num_left)
            state.ids += new[:num_left] if state.cut else _without_end(new, loaded)
            state.done = state.cut or len(state.ids) + len(cue_ids) >= budgets[i]
            if not state.done:
                state.ids += cue_ids
    if chosen := [i for i, state in enumerate(states) if state.cut]:
        for i in chosen:
            states[i].ids += answer_ids
        for i, (new, ended) in zip(chosen, ask(chosen, answer_tokens), strict=True):
            states[i].num_tokens += len(new)
            states[i].ids += new
            states[i].truncated = not ended
    decode = loaded.tokenizer.decode
    return [(str(decode(s.ids, skip_special_tokens=True)), s.truncated, s.num_tokens) for s in states]


def ids_of(loaded: LoadedModel, text: str) -> list[int]:
    """The tokens of a text that is appended to a response."""
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]


def _without_end(ids: list[int], loaded: LoadedModel) -> list[int]:
    return ids[:-1] if ids and ids[-1] in loaded.end_ids else ids
