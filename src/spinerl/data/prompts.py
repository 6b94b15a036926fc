"""Question -> prompt: instruction, worked examples, chat template or plain text, token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jinja2

from spinerl.config import PromptConfig
from spinerl.errors import InputError
from spinerl.types import Question

__all__ = [
    "INSTRUCTIONS",
    "Rendered",
    "TextTokenizer",
    "instruction_of",
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


class TextTokenizer(Protocol):
    """The part of a transformers tokenizer that prompts need."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


class Rendered(NamedTuple):
    """Questions kept with their prompts, in order, and how many were too long."""

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    num_too_long: int


def render_text(
    question: Question, tokenizer: TextTokenizer | None, prompt: PromptConfig, *, kind: str = "auto"
) -> str:
    """The prompt as text, for showing: what `render_prompt` turns into ids, without the plain form's BOS.

    With a chat template: system message, worked examples as earlier turns, the question, and the opening of
    the assistant's turn.  Without one (a base model, `prompt.chat_template=off`, or no tokenizer): the
    system text, then blocks `Question: ...`, instruction, `Answer: ...`, the last one ending in `Answer:`
    for the model to go on. `kind` chooses the default instruction; `auto` is the question's own kind.
    Raises InputError for chat_template=on without a template, or when the template refuses the messages.

    >>> print(render_text(Question("1", "2 + 3?"), None, PromptConfig(instruction="")))
    Question: 2 + 3?
    <BLANKLINE>
    Answer:
    """
    instruction = instruction_of(question, prompt, kind)
    if _uses_template(tokenizer, prompt):
        return _templated(question, tokenizer, prompt, instruction)
    blocks = [prompt.system] if prompt.system else []
    for example in prompt.examples:
        blocks.append(f"Question: {_with_instruction(example.question, instruction)}\n\nAnswer: {example.answer}")
    blocks.append(f"Question: {_with_instruction(question.text, instruction)}\n\nAnswer:")
    return "\n\n".join(blocks)


def render_prompt(
    question: Question, tokenizer: TextTokenizer, prompt: PromptConfig, *, kind: str = "auto"
) -> tuple[int, ...]:
    """The prompt's token ids.

    A chat template brings its own special tokens, so none are added; the plain form
    gets the tokenizer's own (one BOS where it has one), except an end token, which would stop the model at
    once.

    Raises as `render_text`.

    >>> from transformers import AutoTokenizer
    >>> from spinerl.tiny import model_path
    >>> tokenizer = AutoTokenizer.from_pretrained(model_path())
    >>> len(render_prompt(Question("1", "2"), tokenizer, PromptConfig(instruction="")))
    3
    """
    text = render_text(question, tokenizer, prompt, kind=kind)
    if _uses_template(tokenizer, prompt):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) > bare and ids[-1] == getattr(tokenizer, "eos_token_id", None):
        ids.pop()
    return tuple(ids)


def render_all(
    questions: Iterable[Question], tokenizer: TextTokenizer, prompt: PromptConfig, *, kind: str = "auto"
) -> Rendered:
    """The questions whose prompts fit `prompt.max_tokens`, their prompts, and the number of the others.

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
        ids = render_prompt(question, tokenizer, prompt, kind=kind)
        if len(ids) > prompt.max_tokens:
            num_too_long += 1
            shortest = len(ids) if shortest is None else min(shortest, len(ids))
            continue
        kept.append(question)
        prompts.append(ids)
    if num_too_long and not kept:
        raise InputError(
            f"all {num_too_long} prompts are longer than prompt.max_tokens={prompt.max_tokens}; "
            f"the shortest has {shortest} tokens: raise prompt.max_tokens"
        )
    return Rendered(tuple(kept), tuple(prompts), num_too_long)


def instruction_of(question: Question, prompt: PromptConfig, kind: str = "auto") -> str:
    """The answer instruction: `prompt.instruction` where given ('' is none), else the answer kind's own."""
    if prompt.instruction is not None:
        return prompt.instruction
    own = question.answer_kind if kind == "auto" else kind
    return INSTRUCTIONS.get(own, INSTRUCTIONS["auto"])


def _uses_template(tokenizer: TextTokenizer | None, prompt: PromptConfig) -> bool:
    has_template = tokenizer is not None and bool(getattr(tokenizer, "chat_template", None))
    if prompt.chat_template == "on" and not has_template:
        raise InputError("prompt.chat_template=on, but the tokenizer has no chat template; allowed here: auto, off")
    return has_template and prompt.chat_template != "off"


def _templated(question: Question, tokenizer: TextTokenizer | None, prompt: PromptConfig, instruction: str) -> str:
    assert tokenizer is not None
    messages: list[dict[str, str]] = [{"role": "system", "content": prompt.system}] if prompt.system else []
    turns: Sequence[tuple[str, str | None]] = [(e.question, e.answer) for e in prompt.examples] + [
        (question.text, None)
    ]
    for text, answer in turns:
        messages.append({"role": "user", "content": _with_instruction(text, instruction)})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    options = {"add_generation_prompt": True, **prompt.template_options, "tokenize": False}
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except jinja2.TemplateError as error:
        raise InputError(
            f"the tokenizer's chat template refuses these messages ({error}); see prompt.system, "
            "prompt.examples and prompt.template_options, or set prompt.chat_template=off"
        ) from None


def _with_instruction(text: str, instruction: str) -> str:
    return f"{text}\n\n{instruction}" if instruction else text
