"""One run of a comparison in a process of its own: `python -m spinerl.comparison.child`, started by `schedule.py`.

The first line of standard input is the job; on standard output come lines of JSON that say how far it is, and at
the end {"done"}, or {"error", "kind"} if an error of ours stopped it.  The process ends when its standard input closes,
that is with its parent, whatever ended that: a run can be killed at any moment and continued.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spinerl.display import step_figures
from spinerl.errors import SpinerlError
from spinerl.pipes import open_job

__all__ = ["main"]


def main() -> int:
    """Run the job on standard input; 0 if it is done, the error's exit code if an error of ours was reported."""
    job, say = open_job()
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

    def phase(self, name: str, total_tokens: int) -> None:  # noqa: ARG002 - the observers' common shape
        self._say(phase=name)

    def tokens(self, count: int) -> None:
        """Nothing: a line per token would cost more than it is worth."""

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        self._say(step=metrics["step"], num_steps=num_steps, figures=step_figures(metrics))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._say(evaluated=metrics["step"], accuracy=metrics.get("eval/pass@1"))

    def checkpoint(self, folder: Path) -> None:
        """Nothing: a comparison does not show them."""

    def note(self, text: str) -> None:
        self._say(note=text)


def _run(job: Mapping[str, Any], teller: _Teller) -> None:
    from spinerl.comparison.after import ask_afterwards
    from spinerl.config import Config, allow_plugins
    from spinerl.runs import RunFolder
    from spinerl.train import adapt

    folder = Path(job["folder"])
    if job["state"] == "new":
        adapt(Config.model_validate(job["config"]), teller, overwrite=job["overwrite"])
    elif job["state"] == "interrupted":
        run = RunFolder.open(folder)
        # Whoever started this process has permitted what these name, and seen that the folder's keys are the same.
        adapt(allow_plugins(run.config), teller, resume=run)
    ask_afterwards(RunFolder.open(folder), job["after"], teller)


if __name__ == "__main__":
    sys.exit(main())
