"""MLflow: a run in the experiment `track.project`, at MLFLOW_TRACKING_URI or in mlflow.db next to the run folder.

MLflow cannot take a metric back.  A run that goes on reads what is there, and adds what is not: a step that was
logged before a kill and is repeated after it keeps the values that it had.  What is no metric is an artifact by step,
which is replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away is given up in seconds
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

from spinerl.trackers import Tracked
from spinerl.trackers.rows import Entry

__all__ = ["Mlflow"]

_BATCH = 100  # what one call may hold of parameters; of metrics it may be more
_LONGEST = 5000  # characters of a parameter
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class Mlflow:
    """A `Tracker`."""

    def __init__(self, run: Tracked) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place = run.folder.parents[2]  # where the run folder is
        artifacts = None if uri else (place / "mlartifacts").as_uri()
        self._client = MlflowClient(uri or f"sqlite:///{place / 'mlflow.db'}")
        self._there: set[tuple[str, int]] = set()
        if run.run_id is not None and self._goes_on(run.run_id):
            self._id = run.run_id
            return
        name = run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "spinerl"
        self._id = self._client.create_run(self._experiment(name, artifacts), run_name=run.name).info.run_id
        run.remember(self._id)
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        for part in _parts(params):
            self._client.log_batch(self._id, params=part)

    def _goes_on(self, run_id: str) -> bool:
        """Whether there is this run; it is under way again, and what it has is known."""
        try:
            found = self._client.get_run(run_id)
        except MlflowException:
            return False
        for key in found.data.metrics:
            self._there |= {(key, one.step) for one in self._client.get_metric_history(run_id, key)}
        self._client.update_run(run_id, status="RUNNING")
        return True

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # another run has made it meanwhile
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def write(self, entry: Entry) -> None:
        now = int(1000 * time.time())
        named = ((name.replace("@", "_at_"), value) for name, value in entry.scalars.items())
        metrics = [
            Metric(name, value, now, entry.step) for name, value in named if (name, entry.step) not in self._there
        ]
        for part in _parts(metrics):
            self._client.log_batch(self._id, metrics=part)
        for name, table in entry.tables.items():
            split = {"columns": list(table.columns), "data": [list(line) for line in table.rows]}
            self._client.log_dict(self._id, split, f"{name}/step-{entry.step:06d}.json")
        for name, one in entry.histograms.items():
            counted = {"edges": list(one.edges), "counts": list(one.counts)}
            self._client.log_dict(self._id, counted, f"{name}/step-{entry.step:06d}.json")
        for name, text in entry.texts.items():
            self._client.log_text(self._id, text, f"{name}/step-{entry.step:06d}.txt")
            self._client.log_batch(self._id, tags=[RunTag(name, text[:_LONGEST])])

    def flush(self) -> None:
        """Each call has written what it was given."""

    def close(self, status: str) -> None:
        self._client.set_terminated(self._id, _STATUS[status])


def _parts(items: Sequence[Any]) -> list[list[Any]]:
    return [list(items[first : first + _BATCH]) for first in range(0, len(items), _BATCH)]
