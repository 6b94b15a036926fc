"""What a comparison shows while it runs: a line per running task and one for all; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from spinerl.comparison.plan import Task

__all__ = ["Live"]

_SECONDS_BETWEEN = 60.0  # lines about runs under way, where there is no terminal


class Live:
    """The watcher of `run_tasks`.  Use as a context manager."""

    def __init__(self, console: Console, num_tasks: int, num_done: int) -> None:
        self._console = console
        self._num, self._done = num_tasks, num_done
        self._rows: dict[Path, TaskID] = {}
        self._said = time.monotonic()
        self._accuracy: dict[Path, float | None] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._progress.add_task("runs", total=num_tasks, completed=num_done, figures="")

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, task: Task) -> None:
        steps = max(1, task.config.steps)
        self._rows[task.folder] = self._progress.add_task(f"  {task.label}", total=steps, figures="starting")

    def heard(self, task: Task, message: Mapping[str, Any]) -> None:
        row = self._rows[task.folder]
        if "step" in message:
            self._progress.update(row, completed=message["step"], figures=message["figures"])
        elif "phase" in message and (message["phase"] != "step" or "progress" in message):
            self._progress.update(row, figures=f"{message['phase']} {message.get('progress', '')}".strip())
            self._report(task, message)
        elif "evaluated" in message:
            self._accuracy[task.folder] = message["accuracy"]
        elif "note" in message and message["note"].startswith("skipped"):
            self._console.print(f"{task.label}: {message['note']}")

    def _report(self, task: Task, message: Mapping[str, Any]) -> None:
        """Without a terminal, a line about a task that has been in one phase for long."""
        now = time.monotonic()
        if "progress" not in message or self._console.is_terminal or now - self._said < _SECONDS_BETWEEN:
            return
        self._said = now
        self._console.print(f"{task.label}: {message['phase']}: {message['progress']}")

    def ended(self, task: Task, failure: str | None) -> None:
        self._progress.remove_task(self._rows.pop(task.folder))
        self._done += 1
        self._progress.update(self._all, completed=self._done)
        if failure is not None:
            said = f"failed: {failure}"
        elif (accuracy := self._accuracy.get(task.folder)) is not None:
            said = f"greedy Pass@1 {100 * accuracy:.1f} %"
        else:
            said = "done"
        self._console.print(f"[{self._done}/{self._num}] {task.label}: {said}")
