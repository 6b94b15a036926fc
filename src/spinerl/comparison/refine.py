"""Verify, correct, vote: the unadapted model checks its own responses and writes those again that it finds wrong.

Source: SETS (arXiv 2501.19306); with one response and without the vote it is self-refine (arXiv 2303.17651).  A check
ends in yes or no.  A response is kept where the check says yes, says neither, was cut off, or has no space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spinerl.answers import extract_answer
from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.models.loading import LoadedModel
from spinerl.rewards import as_chat
from spinerl.templates import TOKEN_CHARS
from spinerl.types import OnTokens, Question

__all__ = ["Refined", "check_request", "correction_request", "refined_responses"]


@dataclass
class Refined:
    """A response after the rounds: its own length, and the tokens of all checks and corrections that led to it."""

    text: str
    truncated: bool
    length: int
    num_tokens: int = 0
    num_corrections: int = 0


def refined_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    drafts: Sequence[Sequence[Refined]],
    config: Config,
    rounds: int = 1,
    on_tokens: OnTokens | None = None,
) -> None:
    """Check every question's drafts, and replace those found wrong, in place; `rounds` times at most for each.

    A correction is checked in the next round; a draft that passes is left as it is.  Checks and corrections are
    sampled with config.rollout; the streams are (config.seed, "verify" or "correct", draft, round), so what becomes of
    a draft does not depend on how many there are.  Questions must show no images: these prompts hold none.
    """
    for j in range(max(map(len, drafts), default=0)):
        under_check = [i for i, own in enumerate(drafts) if j < len(own)]
        for number in range(rounds):
            requests = {i: check_request(questions[i], drafts[i][j].text) for i in under_check}
            checks = _ask(loaded, questions, prompts, requests, config, ("verify", j, number), on_tokens)
            for i, check in checks.items():
                drafts[i][j].num_tokens += check.length
            wrong = {
                i: correction_request(questions[i], drafts[i][j].text, check.text)
                for i, check in checks.items()
                if _verdict(check, questions[i]) == "no"
            }
            found = _ask(loaded, questions, prompts, wrong, config, ("correct", j, number), on_tokens)
            for i, one in found.items():
                draft = drafts[i][j]
                draft.text, draft.truncated, draft.length = one.text, one.truncated, one.length
                draft.num_tokens += one.length
                draft.num_corrections += 1
            under_check = list(found)


def check_request(question: Question, response: str) -> str:
    """What is asked about a response."""
    return (
        f"{question.text}\n\nA response:\n{response}\n\nCheck it step by step. Is its final answer right? "
        'End with "Answer: yes" or "Answer: no".'
    )


def correction_request(question: Question, response: str, check: str) -> str:
    """What is asked where a check finds a response wrong."""
    return (
        f"{question.text}\n\nA response:\n{response}\n\nA check of it:\n{check}\n\n"
        "Correct what is wrong, and write one complete response that ends with the final answer."
    )


def _verdict(check: Refined, question: Question) -> str | None:
    return extract_answer(check.text, "yesno", truncated=check.truncated, in_thought=question.in_thought)


def _ask(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    requests: Mapping[int, str],
    config: Config,
    name: tuple[object, ...],
    on_tokens: OnTokens | None,
) -> dict[int, Refined]:
    """One response to each request, by question; requests that there is no space for get none."""
    ids = {i: _ids(loaded, text, len(prompts[i]), config) for i, text in requests.items()}
    chosen = [i for i, own in ids.items() if own]
    if not chosen:
        return {}
    written = sample_responses(
        loaded,
        [questions[i] for i in chosen],
        [ids[i] for i in chosen],
        1,
        config.rollout,
        (config.seed, *name),
        on_tokens,
    )
    rows = zip(chosen, written.texts, written.finished_mask.tolist(), written.mask.sum(dim=1).tolist(), strict=True)
    return {i: Refined(text, not ended, length) for i, text, ended, length in rows}


def _ids(loaded: LoadedModel, request: str, shortest: int, config: Config) -> tuple[int, ...]:
    """A request as a prompt; () where it is longer than prompt.max_tokens, the question's own, or the context allow.

    A tokenizer without a chat template gets its text: a base model continues it.
    """
    context = loaded.context or config.prompt.max_tokens + config.rollout.max_new_tokens
    limit = max(shortest, min(config.prompt.max_tokens, context - config.rollout.max_new_tokens))
    if len(request) > TOKEN_CHARS * limit:
        return ()
    chat = bool(getattr(loaded.tokenizer, "chat_template", None))
    text = as_chat(loaded.tokenizer, request) if chat else f"{request}\n\n"
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=not chat)["input_ids"]  # pyright: ignore
    return tuple(ids) if len(ids) <= limit else ()
