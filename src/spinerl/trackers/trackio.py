"""trackio: a run in `track.project`, in trackio's own folder (TRACKIO_DIR), which `trackio show` reads.

A run that goes on is written again from the run folder, in place of the one before: trackio can delete runs, but not
steps.  With TRACKIO_SPACE_ID or TRACKIO_SERVER_URL, a run elsewhere is continued after the last step that it has.
"""

from __future__ import annotations

import os
from typing import Any

import trackio  # pyright: ignore[reportMissingImports] - not in every environment

from spinerl.trackers import Tracked
from spinerl.trackers.rows import Entry

__all__ = ["Trackio"]


class Trackio:
    """A `Tracker`."""

    def __init__(self, run: Tracked) -> None:
        project = run.project or os.environ.get("TRACKIO_PROJECT") or "spinerl"
        remote = any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        if run.run_id is not None and not remote:
            for old in trackio.Api().runs(project):
                if old.id == run.run_id:
                    old.delete()
        self._run = trackio.init(
            project=project,
            name=run.name,
            config={key: value for key, value in run.config.items() if not key.startswith("_")},
            resume="allow" if remote and run.run_id is not None else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        run.remember(self._run.id)
        self._first = self._run._next_step if remote else 0  # no public name for the last step there

    def write(self, entry: Entry) -> None:
        if entry.step < self._first:
            return
        row: dict[str, Any] = dict(entry.scalars)
        row |= {name: trackio.Markdown(text) for name, text in entry.texts.items()}
        for name, one in entry.histograms.items():
            row[name] = trackio.Histogram(np_histogram=(list(one.counts), list(one.edges)))
        for name, table in entry.tables.items():
            row[name] = trackio.Table(columns=list(table.columns), data=[list(line) for line in table.rows])
        self._run.log(row, step=entry.step)

    def flush(self) -> None:
        """A thread of trackio's writes twice a second."""

    def close(self, status: str) -> None:  # noqa: ARG002 - trackio does not say how a run ended
        self._run.finish()
