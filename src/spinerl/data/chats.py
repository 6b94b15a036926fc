"""Questions written as a chat: a list of messages, of which the last user's is the question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BadChatError", "is_chat", "last_reply", "read_chat"]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
"""Roles by the names that data sets give them."""
KEYS = (("role", "content"), ("from", "value"))


class BadChatError(ValueError):
    """A list of messages that holds no question; the message says why."""


def is_chat(cell: Any) -> bool:
    """Whether a cell is a list of messages, `{role, content}` or `{from, value}`."""
    return (
        isinstance(cell, list | tuple)
        and len(cell) > 0
        and all(isinstance(one, Mapping) and _keys(one) is not None for one in cell)
    )


def read_chat(cell: Any) -> tuple[tuple[tuple[str, str], ...], str]:
    """((role, text) of the messages before the question, the question): the last user's message.

    What follows it is an answer and is left out; it is not taken for gold.  A message's content is a text, or a list
    of parts `{type: text, text}` and `{type: image}`, an image becoming `<image>`.  Raises BadChatError.

    >>> read_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}])
    ((('system', 'Be brief.'),), '2 + 3?')
    """
    messages: list[tuple[str, str]] = []
    for number, message in enumerate(cell, start=1):
        role_key, text_key = _keys(message) or KEYS[0]
        role = ROLES.get(str(message[role_key]).lower())
        if role is None:
            allowed = ", ".join(ROLES)
            raise BadChatError(f"message {number} has the role {message[role_key]!r}; allowed: {allowed}")
        messages.append((role, _text(message[text_key], number)))
    last = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=None)
    if last is None:
        raise BadChatError("none of its messages is a user's, so that there is no question")
    return tuple(messages[:last]), messages[last][1].strip()


def last_reply(cell: Any) -> str | None:
    """The text of a chat's last message where it is an assistant's, else None.

    >>> last_reply([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}])
    '5'
    """
    role_key, text_key = _keys(cell[-1]) or KEYS[0]
    is_reply = ROLES.get(str(cell[-1][role_key]).lower()) == "assistant" and isinstance(cell[-1][text_key], str)
    return cell[-1][text_key] if is_reply else None


def _keys(message: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((keys for keys in KEYS if all(key in message for key in keys)), None)


def _text(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
        texts = []
        for part in content:
            if part.get("type") == "image":
                texts.append("<image>")
            elif isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                raise BadChatError(
                    f"message {number} has a part of type {part.get('type')!r}; read are text and image, with the "
                    "images in data.columns.images"
                )
        return "".join(texts)
    raise BadChatError(f"message {number} must be a text or a list of parts, found {type(content).__name__}")
