"""A process that works for another over pipes: a job in, lines of JSON out, an end when the other ends.  No torch."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["open_job"]


def open_job() -> tuple[dict[str, Any], Callable[..., None]]:
    """(the job, `say`): the first line of standard input, and what writes keywords as a line of standard output.

    What libraries print goes where errors go.  The process ends when its standard input closes, that is with its
    parent, whatever ended that.
    """
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return job, say


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)
