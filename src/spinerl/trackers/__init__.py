"""Experiment trackers: TensorBoard, Weights & Biases, trackio, MLflow (docs/trackers.md).  No torch.

A tracker is a class with four methods in a module of its own; it gets what the run folder holds, in order, and holds
each step once, also when the run is killed and resumed.  It runs in a process of its own, and no fault of it stops or
slows the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spinerl.errors import MissingExtraError
from spinerl.files import write_text
from spinerl.trackers.rows import Entry

__all__ = ["TRACKERS", "Tracked", "Tracker", "check_installed", "open_tracker"]

TRACKERS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "TensorBoard"),
    "wandb": ("wandb", "Wandb"),
    "trackio": ("trackio", "Trackio"),
    "mlflow": ("mlflow", "Mlflow"),
}
"""By name: the package that it needs, which is its extra's name too, and its class in the module of its name here."""

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker shows.

    `folder`: the tracker's own, inside the run folder.  `done`: the step with which the run's
    streams end, where the run goes on; what a tracker has of later steps is of a past that was taken back.  `config`:
    the configuration by dotted key.  `note`: says a line to the user.
    """

    folder: Path
    done: int
    config: Mapping[str, Any]
    note: Callable[[str], None]

    @property
    def name(self) -> str:
        """`track.name`, or the run folder's."""
        return self.config["track.name"] or self.folder.parents[1].name

    @property
    def project(self) -> str | None:
        """`track.project`."""
        return self.config["track.project"]

    @property
    def run_id(self) -> str | None:
        """The tracker's own name of the run, where it was remembered."""
        try:
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["id"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) and _ID.fullmatch(found) else None

    def remember(self, run_id: str) -> None:
        """Keep it for when the run goes on."""
        write_text(self.folder / "run.json", json.dumps({"id": run_id}) + "\n")


class Tracker(Protocol):
    """Made with a `Tracked`: opens the store, or goes on with it.  Any error ends it."""

    def write(self, entry: Entry) -> None:
        """One stream's part of one step, which may be in the store already."""
        ...

    def flush(self) -> None:
        """All that is there for now was written."""
        ...

    def close(self, status: str) -> None:
        """The run has ended: finished, failed or killed."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """MissingExtraError for a tracker whose package is not there."""
    for name in names:
        package, _ = TRACKERS[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:  # a folder of data may have a package's name, as `wandb` makes one
            raise MissingExtraError(
                f"track={name} needs {package}, and it is not installed: pip install 'spinerl[{name}]'"
            )


def open_tracker(name: str, run: Tracked) -> Tracker:
    """The tracker called `name`, with a run that is new or goes on.  Raises what its package raises."""
    module = importlib.import_module(f"spinerl.trackers.{name}")
    return getattr(module, TRACKERS[name][1])(run)
