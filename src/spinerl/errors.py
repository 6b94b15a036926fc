"""The one exception tree.  `InputError` is the user's to fix (exit code 2); the rest failed while running (1)."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import Any

__all__ = [
    "CheckpointError",
    "DivergedError",
    "InputError",
    "MissingExtraError",
    "NonFiniteError",
    "RunError",
    "SpinerlError",
    "cause_of",
    "did_you_mean",
    "memory_line",
    "reason_of",
    "short",
]


class SpinerlError(Exception):
    """Base of every error this package raises on purpose.  The message is one line a user can act on."""

    exit_code = 1


class InputError(SpinerlError):
    """Refused input: what was wrong, its value, what is allowed, and the key or command that fixes it."""

    exit_code = 2


class MissingExtraError(InputError):
    """An optional package is needed and not installed; the message names the extra."""


class RunError(SpinerlError):
    """A run that started could not go on."""


class NonFiniteError(RunError):
    """A loss or gradient is not finite; raised before the optimizer touches the weights."""


class DivergedError(NonFiniteError):
    """A model's outputs are no numbers any more: the update before was one too many."""


class CheckpointError(RunError):
    """No checkpoint of the run can be read."""


def short(value: Any, most: int = 120, *, bare: bool = False) -> str:
    """A value for a message, in one line of at most so many characters; `bare`: a text without quotes.

    >>> short([1] * 99, 12), short("mine:cautious", bare=True)
    ('[1, 1, 1,...', 'mine:cautious')
    """
    try:
        text = " ".join((value if bare and isinstance(value, str) else repr(value)).split())
    except Exception:  # a whole number of too many digits, or somebody's class
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(word: Any, allowed: Iterable[str]) -> str:
    """' (did you mean "x"?)' for the closest allowed word, or '' if none is close.

    >>> did_you_mean("group_sise", ["group_size", "steps"])
    ' (did you mean "group_size"?)'
    """
    if not isinstance(word, str) or len(word) > 200:
        return ""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def cause_of(error: BaseException) -> str:
    """What the system says of a file or folder, without its number and name; of another error its text.

    >>> cause_of(FileNotFoundError(2, "No such file or directory", "a.txt")), cause_of(ValueError("no such thing"))
    ('No such file or directory', 'no such thing')
    """
    return str(getattr(error, "strerror", None) or error)


def reason_of(error: BaseException, most: int = 300) -> str:
    r"""What an error says, on one line of so many characters at most; one that says nothing gives its type.

    >>> reason_of(ValueError("no\n  such thing")), reason_of(KeyError())
    ('no such thing', 'KeyError')
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


_BYTES = re.compile(r"(?i)(?:tried|unable|failed) to allocate ([0-9]+) bytes")
_SIZE = re.compile(r"(?i)(?:tried|unable|failed) to allocate ([0-9.]+ [KMGT]iB)")
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
    "bad_alloc",
    "can't start new thread",
    "unable to mmap",
)


def memory_line(error: BaseException) -> str | None:
    """What was asked for, in a line, if the error says that there was not enough memory; else None.

    Python, numpy, torch and the system each say it in their own way, some in errors of any class.

    >>> memory_line(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."))
    'out of memory: 4.0 GiB were asked for'
    >>> memory_line(MemoryError("Unable to allocate 7.45 GiB for an array")), memory_line(ValueError("no"))
    ('out of memory: 7.45 GiB were asked for', None)
    """
    text = " ".join(str(error).split())
    is_full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not is_full and not any(one in text.lower() for one in _MEMORY_TEXTS):
        return None
    if found := _BYTES.search(text):
        return f"out of memory: {int(found[1]) / 2**30:.1f} GiB were asked for"
    if found := _SIZE.search(text):
        return f"out of memory: {found[1]} were asked for"
    if "thread" in text:
        return "out of memory or threads: no new thread can be started (see ulimit -u and ulimit -v)"
    return f"out of memory{f': {text[:120]}' if text else ''}"
