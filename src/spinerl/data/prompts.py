"""Question -> prompt: instruction, worked examples, chat template or plain text, token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from spinerl.answers.strip import opens_thought
from spinerl.config import PromptConfig
from spinerl.data.images import parts_of
from spinerl.errors import InputError
from spinerl.templates import (
    MAX_PROMPT_CHARS,
    TOKEN_CHARS,
    TemplateFaultError,
    TextTokenizer,
    apply_template,
    name_of,
)
from spinerl.types import ImageRef, Question

__all__ = [
    "INSTRUCTIONS",
    "PromptVision",
    "Rendered",
    "TextTokenizer",
    "instruction_of",
    "next_question",
    "render_all",
    "render_prompt",
    "render_text",
]

STEPS = "Please reason step by step, and put"

INSTRUCTIONS: dict[str, str] = {
    "auto": f"{STEPS} your final answer within \\boxed{{}}.",
    "math": f"{STEPS} your final answer within \\boxed{{}}.",
    "number": f"{STEPS} your final answer, a number, within \\boxed{{}}.",
    "choice": f"{STEPS} the letter of your final choice within \\boxed{{}}.",
    "yesno": f"{STEPS} your final answer, yes, no or maybe, within \\boxed{{}}.",
    "text": f"{STEPS} your final answer, a word or a short phrase, within \\boxed{{}}.",
}
"""Answer instruction by kind.  `math` is the prompt of the Qwen2.5-Math model cards; the rest follow it."""


_END_TOKENS = 32  # of a prompt: the opening of a thought fits in them


class PromptVision(Protocol):
    """What prompts need of a model that sees images (`spinerl.models.vision.Vision`)."""

    @property
    def chat_template(self) -> Any: ...

    def prompt(self, text: str, images: Sequence[ImageRef]) -> tuple[int, ...]: ...


class Rendered(NamedTuple):
    """Questions kept with their prompts, in order, and how many were too long."""

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    num_too_long: int


def render_text(
    question: Question,
    tokenizer: TextTokenizer | None,
    prompt: PromptConfig,
    *,
    kind: str = "auto",
    vision: PromptVision | None = None,
) -> str:
    """The prompt as text, for showing: what `render_prompt` turns into ids, without the plain form's BOS.

    With a chat template: system message, worked examples as earlier turns, the question, and the opening of
    the assistant's turn.  Without one (a base model, `prompt.chat_template=off`, or no tokenizer): the
    system text, then blocks `Question: ...`, instruction, `Answer: ...`, the last one ending in `Answer:`
    for the model to go on. `kind` chooses the default instruction; `auto` is the question's own kind.
    With `vision` its template is used, each image standing where `parts_of` puts it; without, images are left out.
    Raises InputError for chat_template=on without a template, or when the template refuses the messages.

    >>> print(render_text(Question("1", "2 + 3?"), None, PromptConfig(instruction="")))
    Question: 2 + 3?
    <BLANKLINE>
    Answer:
    """
    if _uses_template(tokenizer, prompt, vision):
        assert tokenizer is not None
        messages = chat_messages(question, prompt, kind=kind, images=vision is not None)
        return _templated(tokenizer, prompt, messages, None if vision is None else vision.chat_template)
    instruction = instruction_of(question, prompt, kind)
    system = _system_of(question, prompt)
    blocks = [system] if system else []
    for example in prompt.examples:
        blocks.append(f"Question: {_with_instruction(example.question, instruction)}\n\nAnswer: {example.answer}")
    names = {"user": "Question", "assistant": "Answer"}
    blocks += [f"{names[role]}: {text}" for role, text in question.turns if role in names]
    blocks.append(f"Question: {_with_instruction(question.text, instruction)}\n\nAnswer:")
    return "\n\n".join(blocks)


def render_prompt(
    question: Question,
    tokenizer: TextTokenizer,
    prompt: PromptConfig,
    *,
    kind: str = "auto",
    vision: PromptVision | None = None,
) -> tuple[int, ...]:
    """The prompt's token ids; of a question with images, as `vision` makes them.

    A chat template brings its own special tokens, so none are added; the plain form
    gets the tokenizer's own (one BOS where it has one), except an end token, which would stop the model at
    once.

    Raises as `render_text`; InputError for images that cannot be read, or shown to a model that only reads text.

    >>> from transformers import AutoTokenizer
    >>> from spinerl.tiny import model_path
    >>> tokenizer = AutoTokenizer.from_pretrained(model_path())
    >>> len(render_prompt(Question("1", "2"), tokenizer, PromptConfig(instruction="")))
    3
    """
    text = render_text(question, tokenizer, prompt, kind=kind, vision=vision)
    return _ids_of(text, question, tokenizer, prompt, vision)


def _ids_of(
    text: str, question: Question, tokenizer: TextTokenizer, prompt: PromptConfig, vision: PromptVision | None
) -> tuple[int, ...]:
    """The ids of a rendered prompt."""
    if question.images and vision is None:
        raise InputError(
            f"question {question.id!r} shows an image, and this model only reads text: choose a vision-language model "
            "(model=tiny-vlm is one), or leave images out with data.columns.images=null"
        )
    if len(text) > MAX_PROMPT_CHARS:
        raise InputError(
            f"the prompt of question {question.id!r} has {len(text):,} characters, over {MAX_PROMPT_CHARS:,}; shorten "
            "the question, prompt.system or prompt.examples"
        )
    if question.images:
        assert vision is not None
        if not _uses_template(tokenizer, prompt, vision):
            raise InputError("questions with images need the model's chat template; see prompt.chat_template")
        try:
            return vision.prompt(text, question.images)
        except InputError as error:
            raise InputError(f"question {question.id!r}: {error}") from None
    if _uses_template(tokenizer, prompt, vision):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    added = list(tokenizer("", add_special_tokens=True)["input_ids"])
    if added and ids[-1] == added[-1] == getattr(tokenizer, "eos_token_id", None):
        ids.pop()
    return tuple(ids)


def render_all(
    questions: Iterable[Question],
    tokenizer: TextTokenizer,
    prompt: PromptConfig,
    *,
    kind: str = "auto",
    vision: PromptVision | None = None,
) -> Rendered:
    """The questions whose prompts fit `prompt.max_tokens`, their prompts, and the number of the others.

    A text of over 256 characters for each of those tokens does not fit, whatever the tokenizer, and is not tokenized.
    Raises InputError when questions were given and none fits.

    >>> from transformers import AutoTokenizer
    >>> from spinerl.tiny import model_path
    >>> tokenizer = AutoTokenizer.from_pretrained(model_path())
    >>> questions = [Question("1", "2"), Question("2", "2" * 99)]
    >>> render_all(questions, tokenizer, PromptConfig(max_tokens=60, instruction="")).num_too_long
    1
    """
    kept: list[Question] = []
    prompts: list[tuple[int, ...]] = []
    shortest = None
    num_too_long = 0
    for question in questions:
        text = render_text(question, tokenizer, prompt, kind=kind, vision=vision)
        if not question.images and len(text) > TOKEN_CHARS * prompt.max_tokens:
            num_too_long += 1
            continue
        ids = _ids_of(text, question, tokenizer, prompt, vision)
        if len(ids) > prompt.max_tokens:
            num_too_long += 1
            shortest = len(ids) if shortest is None else min(shortest, len(ids))
            continue
        opened = opens_thought(str(tokenizer.decode(list(ids[-_END_TOKENS:]))))
        kept.append(replace(question, in_thought=True) if opened else question)
        prompts.append(ids)
    if num_too_long and not kept:
        raise InputError(
            f"all {num_too_long} prompts are longer than prompt.max_tokens={prompt.max_tokens}; the shortest has "
            f"{shortest or f'over {TOKEN_CHARS * prompt.max_tokens:,} characters and so more'} tokens: raise "
            "prompt.max_tokens"
        )
    return Rendered(tuple(kept), tuple(prompts), num_too_long)


def instruction_of(question: Question, prompt: PromptConfig, kind: str = "auto") -> str:
    """The answer instruction: `prompt.instruction` where given ('' is none), else the answer kind's own."""
    if prompt.instruction is not None:
        return prompt.instruction
    own = question.answer_kind if kind == "auto" else kind
    return INSTRUCTIONS.get(own, INSTRUCTIONS["auto"])


def next_question(tokenizer: TextTokenizer, prompt: PromptConfig, vision: PromptVision | None = None) -> str | None:
    """The text with which a base model goes on from its answer to a next question; None for prompts by a template.

    It is the plain form's own: what stands between two of its blocks.
    """
    return None if _uses_template(tokenizer, prompt, vision) else "\n\nQuestion:"


def _uses_template(tokenizer: TextTokenizer | None, prompt: PromptConfig, vision: PromptVision | None) -> bool:
    has_template = bool(getattr(tokenizer if vision is None else vision, "chat_template", None))
    if prompt.chat_template == "on" and not has_template:
        raise InputError("prompt.chat_template=on, but the tokenizer has no chat template; allowed here: auto, off")
    return has_template and prompt.chat_template != "off"


def chat_messages(
    question: Question, prompt: PromptConfig, *, kind: str = "auto", images: bool = False
) -> list[dict[str, Any]]:
    """What a chat template is given: the system message, worked examples and the question's own turns, the question.

    With `images` a message is a list of parts, as templates of vision-language models want it, also where there is but
    text; else a text, without its images.
    """
    instruction = instruction_of(question, prompt, kind)
    system = _system_of(question, prompt)
    turns: list[tuple[str, Sequence[str | ImageRef]]] = [("system", [system])] if system else []
    for example in prompt.examples:
        turns += [("user", [_with_instruction(example.question, instruction)]), ("assistant", [example.answer])]
    turns += [(role, [text]) for role, text in question.turns if role != "system"]
    parts: list[str | ImageRef] = parts_of(question) if images else [question.text]
    if isinstance(parts[-1], str):
        turns.append(("user", [*parts[:-1], _with_instruction(parts[-1], instruction)]))
    else:
        turns.append(("user", [*parts, instruction] if instruction else parts))
    if images:
        return [{"role": role, "content": [_message_part(part) for part in parts]} for role, parts in turns]
    return [{"role": role, "content": "".join(map(str, parts))} for role, parts in turns]


def _system_of(question: Question, prompt: PromptConfig) -> str:
    """The system message: prompt.system, else that of the question's own chat."""
    return prompt.system or "\n\n".join(text for role, text in question.turns if role == "system")


def _templated(tokenizer: TextTokenizer, prompt: PromptConfig, messages: Sequence[Any], template: Any) -> str:
    try:
        return apply_template(tokenizer, messages, prompt.template_options, template)
    except TemplateFaultError as error:
        raise InputError(
            f"the chat template of {name_of(tokenizer)} refuses these messages ({error}); see prompt.system, "
            "prompt.examples and prompt.template_options, or set prompt.chat_template=off"
        ) from None


def _message_part(part: str | ImageRef) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _with_instruction(text: str, instruction: str) -> str:
    return f"{text}\n\n{instruction}" if instruction else text
