"""One measurement in a process of its own: `python -m spinerl.bench.worker`, started by `spinerl.bench.children`.

The first line of standard input is the job; on standard output come lines of JSON: {"note": text} while it works,
at the end {"result": figures} or {"error": text, "kind": name of the exception}.  A fresh process per measurement
keeps memory peaks apart.  The process ends when its standard input closes, that is with its parent.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from spinerl.errors import SpinerlError
from spinerl.pipes import open_job

__all__ = ["TASKS", "main"]

TASKS = {
    "probe": "spinerl.bench.probe:probe",
    "step": "spinerl.bench.step:measure_step",
    "our_step": "spinerl.bench.step:measure_our_step",
    "step_memory": "spinerl.bench.step:measure_step_memory",
    "trl_defaults": "spinerl.bench.step:measure_trl_defaults",
    "rollout": "spinerl.bench.rollout:measure_rollout",
    "update": "spinerl.bench.update:measure_update",
    "update_memory": "spinerl.bench.update:measure_update_memory",
    "sharing": "spinerl.bench.sharing:measure_sharing",
    "images": "spinerl.bench.images:measure_images",
    "efficiency": "spinerl.bench.efficiency:measure_efficiency",
    "scaling": "spinerl.bench.scaling:measure_scaling",
}


def main() -> int:
    """Run the job on standard input; 0 if a result or an error of ours was reported."""
    given, say = open_job()
    try:
        say(result=_run(given, lambda text: say(note=text)))
    except SpinerlError as error:
        say(error=str(error), kind=type(error).__name__)
    return 0


def _run(given: dict[str, Any], note: Any) -> dict[str, Any]:
    module, _, name = TASKS[given["task"]].partition(":")
    from spinerl.bench.settings import Settings
    from spinerl.bench.work import Job
    from spinerl.machine import set_threads, tune_allocator

    if given["tune"]:
        tune_allocator()
    settings = Settings.model_validate(given["settings"])
    if settings.threads:
        set_threads(settings.threads)
    job = Job(settings, Path(given["scratch"]), note, given["options"])
    return getattr(importlib.import_module(module), name)(job)


if __name__ == "__main__":
    sys.exit(main())
