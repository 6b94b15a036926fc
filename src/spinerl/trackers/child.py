"""A tracker in a process of its own: `python -m spinerl.trackers.child NAME RUN DONE`, started by `observer.py`.

A line on standard input says how far the run's streams go; what is new there goes to the tracker.  On standard output
come lines of JSON: {"note"}, and at the end {"done"} or {"failed"}.  The process, and what the tracker's package has
started, ends when its standard input closes, that is with the run, whatever ended that.  No torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from spinerl.errors import InputError, reason_of
from spinerl.locks import FolderInUseError, FolderLock
from spinerl.pipes import messages
from spinerl.trackers import Tracked, open_tracker
from spinerl.trackers.rows import Tail, flat_config, outcome_entry

__all__ = ["main"]

_OTHER_S = 10.0  # for the process of a run that was killed to end


class _Orders:
    """What the run has said last; listens in a thread, in which the process ends when the run does."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._sizes: dict[str, int] | None = None
        self._end: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self) -> tuple[dict[str, int], str | None]:
        """(bytes of each stream, how the run ended or None) as soon as there is something new."""
        with self._news:
            while self._sizes is None:
                self._news.wait()
            sizes, self._sizes = self._sizes, None
            return sizes, self._end

    def _listen(self) -> None:
        heard = b""
        while data := os.read(0, 65536):
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                with self._news:
                    self._sizes = message["sizes"]
                    self._end = message.get("end", self._end)
                    self._news.notify()
        _end_all()


def main() -> None:
    """Serve one tracker until the run ends."""
    name, run, done = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    say = messages()
    orders = _Orders()
    try:
        try:
            _serve(name, run, done, orders, say)
            say(done=True)
        except BaseException as error:  # of a package that is not ours: whatever it is, the run goes on
            traceback.print_exc()  # into the log
            sys.stderr.flush()
            say(failed=reason_of(error))
    finally:
        _end_all()


def _serve(name: str, run: Path, done: int, orders: _Orders, say: Any) -> None:
    folder = run / "trackers" / name
    lock = _lock(folder)
    sizes, end = orders.wait()
    tracker = open_tracker(name, Tracked(folder, done, flat_config(run), lambda text: say(note=text)))
    tail, last = Tail(run), 0
    while True:
        for entry in tail.read(sizes):
            tracker.write(entry)
            last = max(last, entry.step)
        tracker.flush()
        if end is not None:
            break
        sizes, end = orders.wait()
    outcome = outcome_entry(run, last) if end == "finished" else None
    if outcome is not None:
        tracker.write(outcome)
    tracker.close(end)
    lock.release()


def _lock(folder: Path) -> FolderLock:
    """Be the one process that writes to this tracker for this run; the one of a run that was killed is about to end."""
    deadline = time.monotonic() + _OTHER_S
    while True:
        try:
            return FolderLock(folder)
        except FolderInUseError as owner:
            if time.monotonic() > deadline:
                raise InputError(f"{folder} is being written by {owner}") from None
            time.sleep(0.05)


def _end_all() -> None:
    """End this process and all that it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
