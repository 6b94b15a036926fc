"""Which runs of a comparison are there already, and in what state.  No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from spinerl.comparison.keys import leaves
from spinerl.comparison.plan import Comparison, Task
from spinerl.config import Config
from spinerl.errors import InputError
from spinerl.paths import absolute_paths
from spinerl.runs import RunFolder

__all__ = ["ASKED", "ASKING", "ASKING_S", "State", "asked", "states"]

State = Literal["new", "interrupted", "unasked", "done"]
"""Not begun; begun; finished, but its model not yet asked all that is wanted; nothing left to do."""

ASKED = "compare"
"""The folder inside a run folder for what its final model was asked."""

ASKING = "asking"
"""The folder next to it for what searches have done so far."""

ASKING_S = "time/asking_s"
"""The key, in figures.json of that folder, of the seconds that one thing asked of the model took."""

# A run may be continued with another number of threads; where it lives, what is kept of it and who is shown it say
# nothing about it.
_FREE = ("threads", "run", "checkpoint.keep", "track.to", "track.name", "track.project")


def states(comparison: Comparison, overwrite: bool = False) -> dict[Path, State]:
    """The state of every task, by its folder.  Writes nothing.

    A run begun with other settings, or on questions that have changed since, is "new" with `overwrite`.
    Raises InputError for such a run without it, and for a folder that is no run.
    """
    found: dict[Path, State] = {}
    changed: list[tuple[Task, str]] = []
    for task in comparison.tasks:
        difference = _difference(task, comparison.fingerprints[task.data])
        if difference is not None:
            changed.append((task, difference))
        found[task.folder] = "new" if difference is not None else _state(task, comparison.fingerprints)
    if changed and not overwrite:
        (task, difference), more = changed[0], len(changed) - 1
        others = f" (and {more} more runs)" if more > 1 else " (and 1 more run)" if more else ""
        raise InputError(
            f"{task.folder} was begun with other settings: {difference}{others}; give the old ones, another "
            "out=FOLDER, or --overwrite to start what has changed again"
        )
    return found


def asked(folder: Path) -> Mapping[str, Any]:
    """What a run's final model was asked: the request and the questions' fingerprints; {} if nothing was."""
    try:
        found = json.loads((folder / ASKED / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(found, dict) and isinstance(found.get("after"), dict)
    return found if sound and isinstance(found.get("fingerprints", {}), dict) else {}


def _state(task: Task, fingerprints: Mapping[str, str]) -> State:
    if not (task.folder / "config.yaml").is_file():
        if task.folder.exists() and (not task.folder.is_dir() or any(task.folder.iterdir())):
            raise InputError(f"{task.folder} is in the way: it is not a run folder (no config.yaml in it)")
        return "new"
    if "finished" not in RunFolder(task.folder).manifest or not (task.folder / "report.html").is_file():
        return "interrupted"  # the report is what a run writes last
    state = asked(task.folder)
    fingerprints = {**fingerprints, **_by_path(task, fingerprints)}
    same = _whole(state.get("after")) == _whole(task.after) and all(
        fingerprints.get(name) == value for name, value in state.get("fingerprints", {}).items()
    )
    return "done" if same else "unasked"


def _by_path(task: Task, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The fingerprints of a task's questions by the names in its configurations: those of files are absolute paths."""
    others = {one["config"]["data"]["name"]: one["name"] for one in task.after["elsewhere"]}
    names = {task.config.data.name: task.data, **others}
    return {name: fingerprints[given] for name, given in names.items() if given in fingerprints}


def _whole(after: Mapping[str, Any] | None) -> Any:
    """A request with its configurations complete: one saved before a key was added has that key's default."""
    if after is None:
        return None
    try:
        others = [
            {**other, "config": absolute_paths(Config.model_validate(other["config"])).model_dump(mode="json")}
            for other in after["elsewhere"]
        ]
    except (ValidationError, KeyError, TypeError):  # a key is gone since, or it is damaged
        return None
    return json.loads(json.dumps({**after, "elsewhere": others}))


def _difference(task: Task, fingerprint: str) -> str | None:
    """What differs between the run in the folder and the one that is wanted; None if nothing, or no run is there."""
    if not (task.folder / "config.yaml").is_file():
        return None
    run = RunFolder(task.folder)
    try:
        there = dict(leaves(absolute_paths(run.config).model_dump(mode="json")))
    except InputError as error:
        return f"its config.yaml cannot be read ({error})"
    wanted = dict(leaves(task.config.model_dump(mode="json")))
    keys = [key for key in wanted if key not in _FREE and wanted[key] != there.get(key)]
    if keys:
        shown = ", ".join(f"{key}={there.get(key)} there, {wanted[key]} now" for key in keys[:3])
        return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    before = run.manifest.get("data", {}).get("fingerprint")
    return None if before in (None, fingerprint) else f"the questions of {task.data} have changed"
