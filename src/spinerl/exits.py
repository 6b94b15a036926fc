"""How a command ends: exit codes, and what is said of what stopped it, always in one line.

0       done; of `adapt`: the run is finished and its model written
1       failed while running: a full disk, too little memory, damaged files
2       refused: nothing was run
129, 130, 143   ended by SIGHUP, SIGINT (Ctrl-C), SIGTERM: 128 + the signal's number
141     what read the output went away (128 + SIGPIPE)
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator

from spinerl.errors import SpinerlError, memory_line

__all__ = ["EndedError", "Signalled", "as_ended", "quiet_output", "signals_raised", "tolerant_output"]

_REFUSED = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM)


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP came; what holds for Ctrl-C holds for these."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class EndedError(SpinerlError):
    """What ended a command that is no error of ours: its exit code, and a line ("" where none can be read)."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Signalled` in the main thread, as Ctrl-C does KeyboardInterrupt.

    A signal that is ignored stays so (nohup).
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _frame: object) -> None:
    raise Signalled(number)


def as_ended(error: BaseException) -> EndedError | None:
    """The exit code and the line for an interruption, a closed pipe, a lack of memory, or a file that cannot be used;
    None for any other error.  Notes of the error (`add_note`) say how to go on."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Signalled) else signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        return EndedError(f"interrupted{by}{notes}", 128 + number)
    if isinstance(error, BrokenPipeError):
        return EndedError(f"what read the output has ended{notes}" if notes else "", 141)
    line = memory_line(error) if isinstance(error, Exception) else None
    if line is not None:
        return EndedError(f"{line}{notes}", 1)
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return EndedError(f"{where}{error.strerror}{notes}", 2 if error.errno in _REFUSED else 1)
    return None


def tolerant_output() -> None:
    """Let no character stop a command: what the terminal's encoding does not have is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # replaced by something simpler
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def quiet_output() -> None:
    """Send what is still to be written nowhere, for the interpreter flushes it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
