"""Runs tasks in child processes, so many at a time, listens to them, and ends them when the user does.

A child reads jobs from standard input, one after the other, and ends when that closes.  It sits in a process group of
its own: Ctrl-C reaches only this process, which then ends its children and what they started, and no others.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from spinerl import errors
from spinerl.comparison.plan import Task
from spinerl.comparison.state import State
from spinerl.errors import InputError, RunError, SpinerlError
from spinerl.exits import Signalled
from spinerl.lines import lines_of, read_text
from spinerl.pipes import python_command, python_environment

__all__ = ["Failure", "Watcher", "run_tasks"]

_GRACE_S = 5.0
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

Failure = tuple[Task, str]
"""A task that could not be finished, and why, in one line."""


class Watcher(Protocol):
    """Called for what happens to the tasks.  `spinerl.comparison.progress` is the one the command uses."""

    def started(self, task: Task) -> None: ...

    def heard(self, task: Task, message: Mapping[str, Any]) -> None:
        """A message of `child.py`: a phase, a step, an evaluation, a note."""
        ...

    def ended(self, task: Task, failure: str | None) -> None: ...


def run_tasks(
    tasks: Sequence[tuple[Task, State]],
    jobs: int,
    logs: Path,
    watcher: Watcher,
    command: Sequence[str] = ("spinerl", "compare"),
    overwrite: bool = False,
) -> list[Failure]:
    """Run the tasks, never more than `jobs` at a time; the failed ones, the others being done.

    A run that fails while running (a loss that is not finite, a full disk) does not stop the others.  Refused input
    stops everything: InputError.  Any exception here, Ctrl-C too, ends the children.

    Args:
        logs: folder for what the children print.
        command: the arguments that the user gave, for the runs' manifests.
        overwrite: whether a new run takes the place of one in its folder.
    """
    waiting, failures = deque(tasks), []
    running: dict[Path, _Child] = {}
    idle: list[_Child] = []
    heard: queue.SimpleQueue[tuple[Path, dict[str, Any] | None] | int] = queue.SimpleQueue()
    logs.mkdir(parents=True, exist_ok=True)
    restore = _interrupts_to(heard)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task, state = waiting.popleft()
                job = {
                    "folder": str(task.folder),
                    "config": task.config.model_dump(mode="json"),
                    "after": task.after,
                    "state": state,
                    "overwrite": overwrite,
                    "command": list(command),
                }
                log = logs / f"{task.folder.parent.name}-{task.folder.name}.log"
                running[task.folder] = idle.pop() if idle else _Child(log, heard)
                running[task.folder].begin(task, job, log)
                watcher.started(task)
            news = heard.get()
            if isinstance(news, int):
                raise KeyboardInterrupt if news == signal.SIGINT else Signalled(news)
            folder, message = news
            child = running.get(folder)
            if child is None:  # it ended with nothing to do
                continue
            if message is None or "ended" in message:
                del running[folder]
                failure = child.reason(None if message is None else message["ended"])
                if message is not None:
                    idle.append(child)
                watcher.ended(child.task, failure)
                if failure is not None:
                    failures.append((child.task, failure))
            elif "done" in message:
                child.is_done = True
            elif "error" in message:
                child.error = getattr(errors, message["kind"], RunError)(message["error"])
                if isinstance(child.error, InputError):
                    raise InputError(f"{child.task.label}: {child.error}")
            else:
                watcher.heard(child.task, message)
    finally:
        for child in (*running.values(), *idle):
            child.ask_to_end()
        for child in (*running.values(), *idle):
            child.end()
        for log in logs.glob("*.log"):
            if not log.stat().st_size:  # nothing was said
                log.unlink()
        with contextlib.suppress(OSError):
            logs.rmdir()
        restore()
    return failures


def _interrupts_to(heard: queue.SimpleQueue[Any]) -> Callable[[], None]:
    """Let Ctrl-C, SIGTERM and SIGHUP be news like any other, not an exception anywhere: a child half started would be
    forgotten.

    Returns what puts the old ways back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, lambda number, _: heard.put(number))
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


class _Child:
    """A process that runs tasks, one at a time."""

    task: Task
    error: SpinerlError | None
    is_done: bool

    def __init__(self, log: Path, heard: queue.SimpleQueue[Any]) -> None:
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                python_command("spinerl.comparison.child"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**python_environment(), **_ENVIRONMENT},
                start_new_session=True,
            )
        self._heard = heard
        self._listener: threading.Thread | None = None

    def begin(self, task: Task, job: Mapping[str, Any], log: Path) -> None:
        """Send a task; what it prints goes to the log."""
        self.task, self.error, self.is_done, self._log = task, None, False, log
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its log says of what
            self._process.stdin.write(json.dumps({**job, "log": str(log)}) + "\n")
            self._process.stdin.flush()
        if self._listener is None:
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
        elif not self._listener.is_alive():  # the process has ended since its last task
            self._heard.put((task.folder, None))

    def _listen(self) -> None:
        lines = self._process.stdout
        assert lines is not None
        with contextlib.suppress(ValueError):  # the pipe was closed while it was read
            for line in lines:
                self._heard.put((self.task.folder, json.loads(line)))
        self._heard.put((self.task.folder, None))

    def reason(self, code: int | None = None) -> str | None:
        """Why the task is not done, in one line; None if it is.  `code`: how it ended; None: as the process did."""
        if code is None:
            self.end()
            code = self._process.wait()
        if self.error is not None:
            return str(self.error)
        if code == 0 and self.is_done:
            return None
        last = [line.strip() for line in lines_of(read_text(self._log, errors="replace")) if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}" + (" before its end" if not code else "")
        return f"{how}: {last[-1][:300] if last else 'it said nothing'} ({self._log})"

    def ask_to_end(self) -> None:
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """See the process out and let go of its pipes; it is killed if it does not heed `ask_to_end` in time."""
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: int) -> None:
        """To the child and what it started; not once it is gone, when its number may be another's."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
