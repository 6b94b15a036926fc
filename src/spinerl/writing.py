"""Questions that the policy writes, which views ask (vote.views=rephrase, similar): in other words, or another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spinerl.answers.options import choice_lines, shows_choices
from spinerl.answers.strip import after_last_thought, strip_thoughts
from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.errors import RunError
from spinerl.models.loading import LoadedModel
from spinerl.templates import TOKEN_CHARS, TemplateFaultError, apply_template, name_of
from spinerl.types import OnTokens, Question

__all__ = ["WRITTEN", "Written", "longest_prompt", "write_questions"]


@dataclass(frozen=True)
class Written:
    """What is asked for: `request` of a model with a chat template, `line` after the question of one without.

    `new`: another question, which has other options and pictures: it is written of questions that have neither.
    """

    request: str
    line: str
    new: bool = False


WRITTEN = {
    "rephrase": Written(
        "Write the following question in other words. Keep every number, name, quantity and condition, and ask for the "
        "same answer.",
        "The same question in other words:",
    ),
    "similar": Written(
        "Write another question like the following one: of the same kind, as hard, in the same form, with other "
        "numbers and names.",
        "A similar question with other numbers:",
        new=True,
    ),
}
"""By the name of the view."""


def write_questions(
    policy: LoadedModel,
    questions: Sequence[Question],
    name: str,
    config: Config,
    seed: tuple[object, ...],
    on_tokens: OnTokens | None = None,
) -> tuple[list[str | None], int]:
    """(what the policy writes of each question, by `WRITTEN`, None where that cannot be used; tokens sampled).

    It is sampled at the rollout's temperature and length.  Lines of options stay as they are; where options stand
    elsewhere in the text, a text that does not show them all behind their letters is not used, nor is one that is cut
    off, or says the same.  Images are not shown, and come before the new text.
    """
    kind = WRITTEN[name]
    stems, ends = zip(*map(_split, questions), strict=True)
    requests = [_request(policy, stem, kind, config) for stem in stems]
    places = [
        place
        for place, (ids, question) in enumerate(zip(requests, questions, strict=True))
        if len(ids) <= longest_prompt(policy, config) and not (kind.new and (question.choices or question.images))
    ]
    texts: list[str | None] = [None] * len(questions)
    if not places:
        return texts, 0
    asked = [replace(questions[place], images=()) for place in places]
    prompts = [requests[place] for place in places]
    written = sample_responses(policy, asked, prompts, 1, config.rollout, seed, on_tokens)
    for place, text, finished in zip(places, written.texts, written.finished_mask.tolist(), strict=True):
        new = after_last_thought(strip_thoughts(text).text).strip().replace("<image>", "the image")
        if not _uses_template(policy, config):
            new = new.partition("\n")[0].strip()  # a base model goes on with something else
        options = () if ends[place] else questions[place].choices
        if finished and new and new != stems[place] and shows_choices(new, options):
            texts[place] = f"{new}{ends[place]}"
    return texts, written.total_drawn


def _split(question: Question) -> tuple[str, str]:
    """(a question's text without the lines of its options, these lines)."""
    lines = "".join(f"\n{line}" for line in choice_lines(question.choices))
    stem = question.text.removesuffix(lines)
    return stem.replace("<image>", "the image"), question.text[len(stem) :]


def _request(policy: LoadedModel, text: str, kind: Written, config: Config) -> tuple[int, ...]:
    """A prompt that asks for what is to be written of a question."""
    tokenizer: Any = policy.tokenizer
    template = None if policy.vision is None else policy.vision.chat_template
    if not _uses_template(policy, config):
        asked = f"Question: {text}\n\n{kind.line}"
        return tuple(tokenizer(asked[: TOKEN_CHARS * config.prompt.max_tokens])["input_ids"])
    request = f"{kind.request} Do not solve it; write only the question.\n\n{text}"
    content: Any = request if policy.vision is None else [{"type": "text", "text": request}]
    try:
        shown = apply_template(
            tokenizer, [{"role": "user", "content": content}], config.prompt.template_options, template
        )
    except TemplateFaultError as error:
        raise RunError(f"the chat template of {name_of(tokenizer)} refuses a request ({error})") from None
    return tuple(tokenizer(shown, add_special_tokens=False)["input_ids"])


def _uses_template(policy: LoadedModel, config: Config) -> bool:
    owner = policy.tokenizer if policy.vision is None else policy.vision
    return config.prompt.chat_template != "off" and bool(getattr(owner, "chat_template", None))


def longest_prompt(policy: LoadedModel, config: Config) -> int:
    """The longest prompt of a view, in tokens."""
    context = policy.context
    most = config.prompt.max_tokens
    return most if context is None else min(most, context - config.rollout.max_new_tokens)
