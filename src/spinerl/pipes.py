"""A process that works for another over pipes: a job in, lines of JSON out, an end when the other ends.  No torch.

Every Python that spinerl starts is started by `python_command` in `python_environment`: it imports nothing of the
folder it happens to be started in, where a `random.py` may lie, and the same spinerl as here.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["end_with_parent", "messages", "open_job", "python_command", "python_environment"]


def python_command(module: str) -> list[str]:
    """What runs a module in a process of its own, the working folder not among those that it imports from."""
    return [sys.executable, "-P", "-m", module]


def python_environment() -> dict[str, str]:
    """This process's environment for such a process, and for those that it starts in turn.

    PYTHONPATH keeps its folders, made absolute, but for the working folder, which an empty part of it stands for;
    plug-ins are searched there last (`spinerl.plugins`).  Where this package is not installed, its folder follows.
    """
    try:
        here = os.getcwd()
    except OSError:  # gone
        here = None
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    parts = [os.path.join(here or "/", part) for part in given if here or os.path.isabs(part)]
    apart = [part for part in parts if here is None or os.path.realpath(part) != os.path.realpath(here)]
    kept = [os.path.normpath(part) for part in apart]
    package = Path(__file__).resolve().parents[1]
    if package.name not in ("site-packages", "dist-packages"):  # there it is found, and after Python's own modules
        kept.append(str(package))
    path = os.pathsep.join(dict.fromkeys(kept))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def messages() -> Callable[..., None]:
    """What writes keywords as a line of JSON on standard output; what libraries print there goes where errors go."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    return say


def open_job() -> tuple[dict[str, Any], Callable[..., None]]:
    """(the job, `say`): the first line of standard input, and `messages`.

    The process ends when its standard input closes, that is with its parent, whatever ended that.
    """
    say = messages()
    job = json.loads(sys.stdin.readline())
    end_with_parent()
    return job, say


def end_with_parent() -> None:
    """End this process when its standard input closes, from which nothing else may read any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)
