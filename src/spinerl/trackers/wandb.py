"""Weights & Biases: a run in `track.project`, online or, with WANDB_MODE=offline, in RUN/trackers/wandb/wandb.

Each entry is a row of the run's history, its number being the entry's place in the run; charts are drawn over `step`.
A run that goes on has the same id.  Offline, its store is written again from the run folder, in place of the one
before, so that `wandb sync` sends each step once; a server cannot take rows back, so what it has is not sent again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("WANDB_SILENT", "true")

import numpy as np
import wandb

from spinerl.trackers import Tracked
from spinerl.trackers.rows import Entry

__all__ = ["Wandb"]

_STEP = "step"
_START_S = 30  # for a server to answer


class Wandb:
    """A `Tracker`."""

    def __init__(self, run: Tracked) -> None:
        before = run.run_id
        settings = wandb.Settings(
            init_timeout=_START_S, console="off", disable_git=True, disable_code=True, x_disable_stats=True
        )
        run_id = before or secrets.token_hex(4)
        run.remember(run_id)
        self._run = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT") or "spinerl",
            name=run.name,
            id=run_id,
            resume="allow" if before else None,
            config=dict(run.config),
            dir=run.folder,
            settings=settings,
        )
        if self._run.offline:
            own = Path(self._run.dir).parent
            for old in run.folder.glob("wandb/offline-run-*"):
                if old.resolve() != own.resolve():
                    shutil.rmtree(old)
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        self._number = 0
        if self._run.url:
            run.note(self._run.url)

    def write(self, entry: Entry) -> None:
        number, self._number = self._number, self._number + 1
        if number < self._run.starting_step:
            return
        row: dict[str, Any] = {_STEP: entry.step, **entry.scalars, **entry.texts}
        for name, one in entry.histograms.items():
            row[name] = wandb.Histogram(np_histogram=(np.array(one.counts), np.array(one.edges)))
        for name, table in entry.tables.items():
            row[name] = wandb.Table(
                columns=list(table.columns), data=[list(line) for line in table.rows], allow_mixed_types=True
            )
        self._run.log(row, step=number, commit=True)

    def flush(self) -> None:
        """Rows are on their way as soon as they are logged."""

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)
