"""The process in which chat templates run: `python -m spinerl._templates`, an isolated one (`spinerl.isolated`).

Requests: {"template", "messages", "options", "most_chars"} -> {"status": "ok", "text"}, or {"status": "refused", "why"}
where the template raises an exception, or writes more than so many characters.

The environment that templates run in is that of transformers, with all that it adds to Jinja's.  Its utilities import
no torch.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from spinerl.isolated import Work, serve

__all__ = ["main"]

_WARM_UP = {
    "template": "{% for m in messages %}{{ m.role | trim }}{{ m | tojson }}{% endfor %}",
    "messages": [{"role": "user", "content": "2 + 3?"}],
    "options": {"tools": None},
    "most_chars": 1000,
}
_render: Any = None


def main() -> int:
    """Serves requests from standard input until it ends."""
    return serve(_prepare)


def _prepare() -> Work:
    global _render
    from transformers.utils.chat_template_utils import render_jinja_template

    _render = render_jinja_template
    _reply(_WARM_UP)
    return _reply


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    try:
        (text,), _ = _render([request["messages"]], chat_template=request["template"], **request["options"])
    except MemoryError:
        return {"status": "memory"}
    except Exception as error:  # a template may raise whatever Python does: it is a program
        return {"status": "refused", "why": _why(error)}
    if len(text) > request["most_chars"]:
        return {"status": "refused", "why": f"it writes {len(text):,} characters, over {request['most_chars']:,}"}
    return {"status": "ok", "text": text}


def _why(error: Exception) -> str:
    """The exception in a line; a template that raises one itself (`raise_exception`) has said what it wants to say."""
    name, text = type(error).__name__, " ".join(str(error).split())[:300]
    line = getattr(error, "lineno", None)
    said = text if name == "TemplateError" else f"{name}: {text}" if text else name
    return said + (f", line {line} of it" if line else "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
