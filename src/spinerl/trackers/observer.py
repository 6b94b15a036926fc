"""A run's trackers, seen from the run: an observer that says to each tracker's process how far the run is.

A tracker runs in a process of its own (`spinerl.trackers.child`), which reads what the run folder holds.  It is never
waited for while the run works: a message that does not fit into its pipe is left out, since the next one says more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from spinerl.config import Config
from spinerl.errors import reason_of
from spinerl.files import kind_of
from spinerl.observer import Observer
from spinerl.pipes import python_command, python_environment
from spinerl.runs import RunFolder
from spinerl.trackers.rows import sizes_of

__all__ = ["FOLDER", "Trackers"]

FOLDER = "trackers"
"""The folder inside a run folder in which each tracker has one of its own."""

_LAST_S, _GRACE_S = 30.0, 5.0  # a tracker's time at the end of a run that is finished, and of one that is not


class Trackers:
    """The observer of a run with trackers: passes all on to `observer`, and keeps the trackers of `track.to` informed.

    Use as a context manager: its end is the trackers', none of whose processes outlives it.
    """

    def __init__(self, run: RunFolder, config: Config, observer: Observer) -> None:
        self._run, self._names, self._observer = run, config.track.to, observer
        self._children: list[_Child] = []

    def __enter__(self) -> Trackers:
        return self

    def begin(self, done: int) -> None:
        """Start the trackers of a run that is new, or whose streams end with the step `done`."""
        for name in self._names:
            try:
                self._children.append(_Child(name, self._run.path, done))
            except OSError as error:
                self._observer.note(f"track={name}: {reason_of(error)}; the run goes on without it")
        self._look()

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        status = "finished" if kind is None else "failed" if issubclass(kind, Exception) else "killed"
        deadline = time.monotonic() + (_LAST_S if kind is None else _GRACE_S)
        try:
            self._say(end=status)
            for child in self._children:
                self._pass_on(child, child.last_words(deadline))
        finally:
            for child in self._children:
                child.end()

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None:
        self._observer.phase(name, total_tokens, num_responses)

    def tokens(self, count: int, finished: int = 0) -> None:
        self._observer.tokens(count, finished)

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        self._observer.step(metrics, num_steps)
        self._look()

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._observer.evaluation(metrics)
        self._look()

    def look(self, row: Mapping[str, Any]) -> None:
        self._observer.look(row)
        self._look()

    def checkpoint(self, folder: Path) -> None:
        self._observer.checkpoint(folder)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def _look(self) -> None:
        """Let the trackers read on, and hear what they have to say."""
        if not self._children:
            return
        self._say()
        for child in self._children:
            self._pass_on(child, child.words())

    def _say(self, **message: Any) -> None:
        sizes = sizes_of(self._run.path) if self._children else {}
        for child in self._children:
            child.say(sizes=sizes, **message)

    def _pass_on(self, child: _Child, words: list[dict[str, Any]]) -> None:
        for message in words:
            if "note" in message:
                self._observer.note(f"track={child.name}: {message['note']}")
        if child.failure is not None and not child.said:
            child.said = True
            self._observer.note(f"track={child.name}: {child.failure}; {child.log} may say more")


class _Child:
    """A tracker's process.  `failure`: why it writes no more, in a line; `said`: whether the user knows."""

    def __init__(self, name: str, run: Path, done: int) -> None:
        self.name = name
        self.failure: str | None = None
        self.said = False
        self._is_done = False
        self._heard = b""
        self.log = run / FOLDER / name / "log.txt"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for place, wanted in ((run / FOLDER, "a folder"), (self.log.parent, "a folder"), (self.log, "a file")):
            if (kind := kind_of(place)) not in (None, wanted):  # a link may lead anywhere
                raise OSError(f"{place} is {kind}, where {wanted} of the run belongs")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*python_command("spinerl.trackers.child"), name, str(run.absolute()), str(done)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=python_environment(),
                start_new_session=True,  # Ctrl-C is the run's
            )
        for pipe in (self._stdin, self._stdout):
            os.set_blocking(pipe.fileno(), False)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def say(self, **message: Any) -> None:
        """A message shorter than what a pipe takes whole; left out where the pipe is full or its reader gone."""
        with contextlib.suppress(OSError):
            os.write(self._stdin.fileno(), json.dumps(message).encode() + b"\n")

    def words(self) -> list[dict[str, Any]]:
        """What it has said since the last time, without waiting; `failure` is set where it has ended."""
        is_open = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._stdout.fileno(), 4096):
                self._heard += data
            is_open = False
        *lines, self._heard = self._heard.split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self._is_done |= "done" in message
            self.failure = message.get("failed", self.failure)
        if not (is_open or self._is_done or self.failure):
            self.failure = "its process was killed or has crashed"
        return messages

    def last_words(self, deadline: float) -> list[dict[str, Any]]:
        """The same, waiting for its end until the deadline."""
        found = self.words()
        while not self._is_done and self.failure is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self.failure = "not all was written in time"
                break
            select.select([self._stdout], [], [], left)
            found += self.words()
        return found

    def end(self) -> None:
        """Let it go; it is killed, with what it started, where it does not end by itself."""
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_GRACE_S if self._is_done or self.failure else 0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
