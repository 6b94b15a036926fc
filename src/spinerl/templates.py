"""Chat templates are programs that come with a model: they run in a process of their own, within limits.

One process serves this one for all its prompts.  It starts in a second, next to whatever else is done (`prepare`), and
a prompt then takes some tenths of a millisecond.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spinerl.isolated import IsolatedProcess

__all__ = [
    "MAX_PROMPT_CHARS",
    "TEMPLATE_OPTIONS_TAKEN",
    "TOKEN_CHARS",
    "TemplateFaultError",
    "TextTokenizer",
    "apply_template",
    "name_of",
    "prepare",
    "render_template",
]

MAX_PROMPT_CHARS = 4_000_000
"""A template that writes more is refused."""

TOKEN_CHARS = 256
"""Longer than any token: a text of more characters for each token allowed is too long before it is tokenized."""

TEMPLATE_OPTIONS_TAKEN = frozenset(
    {
        "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
        "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "self",
    }
)  # fmt: skip
"""What transformers' `apply_chat_template` takes for itself, so that no template can be given it."""

_CPU_S = 2.0  # processor seconds for one prompt; templates of real models take a thousandth of one
_MEMORY_BYTES = 1 << 30

_lock = threading.Lock()
_process: IsolatedProcess | None = None
_faults: dict[str, str] = {}  # templates that broke a limit are not tried again for every question


class TextTokenizer(Protocol):
    """The part of a transformers tokenizer that prompts need."""

    chat_template: Any

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any: ...

    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def get_chat_template(self, chat_template: Any = None, tools: Any = None) -> str: ...

    def decode(self, token_ids: Any) -> Any: ...


class TemplateFaultError(ValueError):
    """A template cannot be rendered; the message says what went wrong in it."""


def prepare() -> None:
    """Starts the process, if it does not run, and does not wait for it."""
    with _lock:
        _running()


def render_template(template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """What a chat template makes of messages, as transformers' `apply_chat_template(tokenize=False)` does.

    Args: `options`, what the template sees besides the messages; plain JSON values.
    Raises: TemplateFaultError where it raises an exception, or takes more than 2 seconds of processor time, 1 GiB of
    memory or 4 million characters; RunError if the process cannot be started.

    >>> render_template("{{ messages[0].content }}{{ mark }}", [{"role": "user", "content": "a"}], {"mark": "!"})
    'a!'
    """
    with _lock:
        if (known := _faults.get(template)) is not None:
            raise TemplateFaultError(known)
        request = {
            "template": template,
            "messages": list(messages),
            "options": dict(options),
            "most_chars": MAX_PROMPT_CHARS,
        }
        reply = _ask(request)
        if reply["status"] == "crash":  # perhaps someone else ended it
            reply = _ask(request)
        if reply["status"] == "ok":
            return reply["text"]
        if reply["status"] == "refused":
            raise TemplateFaultError(reply["why"])
        _faults[template] = {
            "timeout": f"it takes more than {_CPU_S:.0f} seconds of processor time",
            "memory": f"it takes more than {_MEMORY_BYTES >> 30} GiB of memory",
        }.get(reply["status"], "it ends the process that it runs in")
        raise TemplateFaultError(_faults[template])


def apply_template(
    tokenizer: TextTokenizer, messages: Sequence[Any], options: Mapping[str, Any] | None = None, template: Any = None
) -> str:
    """The text that a tokenizer's chat template makes of messages, up to the opening of the assistant's turn.

    The template runs in a process of its own, within limits.  A tokenizer with a way of its own to apply one (a class
    that comes with the model and was allowed to run, or one without Jinja) is called here.

    Args: `options`, what the template sees besides the messages; `template`, another one than the tokenizer's.
    Raises: TemplateFaultError, saying what went wrong.
    """
    chosen = {} if template is None else {"chat_template": template}
    if not getattr(tokenizer.apply_chat_template, "__module__", "").startswith("transformers.tokenization_utils_base"):
        try:
            return tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False, **chosen, **(options or {})
            )
        except Exception as error:
            raise TemplateFaultError(f"{type(error).__name__}: {error}") from None
    seen = dict(options or {})
    try:
        text = tokenizer.get_chat_template(template, seen.get("tools"))
    except (ValueError, KeyError, TypeError) as error:  # several by name, and none of this name
        raise TemplateFaultError(" ".join(str(error).split())) from None
    return render_template(text, messages, {**tokenizer.special_tokens_map, "add_generation_prompt": True, **seen})


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    process = _running()
    try:
        reply = process.ask(request)
    except BaseException:
        _end()
        raise
    if reply is None:
        _end()
        reply = {"status": process.failure}
    return reply


def name_of(tokenizer: TextTokenizer) -> str:
    """Where a tokenizer and its template come from, for a message."""
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")


def _running() -> IsolatedProcess:
    global _process
    if _process is None or _process.owner != os.getpid():  # after a fork, the parent's is not ours to speak to
        _process = IsolatedProcess(
            "spinerl._templates", "the process for chat templates", cpu_s=_CPU_S, memory_bytes=_MEMORY_BYTES
        )
    return _process


def _end() -> None:
    global _process
    if _process is not None and _process.owner == os.getpid():
        _process.close()
    _process = None


atexit.register(_end)
