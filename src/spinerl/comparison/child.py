"""The runs of a comparison, one after the other: `python -m spinerl.comparison.child`, started by `schedule.py`.

Each line of standard input is a job, sent when the one before has ended.  A job runs in a fork of this process, so that
what every run imports is imported once; where a system has no fork, the process runs one job and ends.  On standard
output come lines of JSON that say how far it is, {"done"}, or {"error", "kind"} if an error of ours stopped it, and
last {"ended"} with the exit code.  All of it ends when standard input closes, that is with the parent, whatever ended
that: a run can be killed at any moment and continued.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from spinerl.comparison.after import ask_afterwards
from spinerl.config import Config, allow_plugins
from spinerl.display import step_figures
from spinerl.errors import SpinerlError
from spinerl.pipes import end_with_parent, messages
from spinerl.progress import Meter
from spinerl.runs import RunFolder
from spinerl.train import adapt

__all__ = ["main"]

_SECONDS_BETWEEN = 2.0  # messages about a phase under way


def main() -> int:
    """Run the jobs on standard input; 0, or in the process of a job the exit code of the error that stopped it."""
    say = messages()
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        if not hasattr(os, "fork"):
            return _job(job, say)
        pid = os.fork()
        if not pid:
            _run_and_leave(job, say)
        say(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return 0


def _run_and_leave(job: Mapping[str, Any], say: Callable[..., None]) -> NoReturn:
    """Without the interpreter's own end, which takes more than a second: what a run has open ends with its pipes."""
    code = 1
    try:
        code = _job(job, say)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _job(job: Mapping[str, Any], say: Callable[..., None]) -> int:
    with open(job["log"], "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)
    end_with_parent()
    sys.argv = job["command"]  # the manifest names the command that the user gave
    try:
        _run(job, _Teller(say))
    except SpinerlError as error:
        say(error=str(error), kind=type(error).__name__)
        return error.exit_code
    say(done=True)  # an exit code of 0 could be that of anything which ended the process
    return 0


class _Teller:
    """The observer of a run that passes on what a line of progress needs."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._meter: Meter | None = None
        self._said = 0.0

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None:
        self._meter = Meter(name, total_tokens, num_responses, time.monotonic())
        self._said = time.monotonic()
        self._say(phase=name)

    def tokens(self, count: int, finished: int = 0) -> None:
        """A line now and then: one per call would cost more than it is worth."""
        now = time.monotonic()
        if self._meter is not None:
            self._meter.add(count, finished, now)
            if now - self._said >= _SECONDS_BETWEEN:
                self._said = now
                self._say(phase=self._meter.name, progress=self._meter.line())

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        self._say(step=metrics["step"], num_steps=num_steps, figures=step_figures(metrics))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._say(evaluated=metrics["step"], accuracy=metrics.get("eval/pass@1"))

    def look(self, row: Mapping[str, Any]) -> None:
        """Nothing: the run's last words have it."""

    def checkpoint(self, folder: Path) -> None:
        """Nothing: a comparison does not show them."""

    def note(self, text: str) -> None:
        self._say(note=text)


def _run(job: Mapping[str, Any], teller: _Teller) -> None:
    folder = Path(job["folder"])
    if job["state"] == "new":
        config = Config.model_validate(job["config"])
        if config.track.name is None:  # its folder's name does not have the data
            name = f"{folder.parent.name}/{folder.name}"
            config = config.model_copy(update={"track": config.track.model_copy(update={"name": name})})
        adapt(config, teller, overwrite=job["overwrite"])
    elif job["state"] == "interrupted":
        run = RunFolder.open(folder)
        # Whoever started this process has permitted what these name, and seen that the folder's keys are the same.
        adapt(allow_plugins(run.config), teller, resume=run)
    ask_afterwards(RunFolder.open(folder), job["after"], teller)


if __name__ == "__main__":
    sys.exit(main())
