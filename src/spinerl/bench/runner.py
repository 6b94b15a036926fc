"""All parts of a benchmark run, one after the other, and the record they make."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spinerl.bench.children import run_worker
from spinerl.bench.settings import Settings
from spinerl.bench.timing import figures, ratios
from spinerl.errors import MissingExtraError, RunError

__all__ = ["run_bench"]

Note = Callable[[str], None]


def run_bench(settings: Settings, note: Note = lambda _: None, remark: Note = lambda _: None) -> dict[str, Any]:
    """Measure the chosen parts; docs/benchmarks.md says what each figure means.

    A part whose measurement failed is left out, with a remark.  Raises InputError for settings that cannot be had.

    Args:
        note: called with a line about what is being done, many times.
        remark: called with a line that should stay on the screen: a part left out, a file written.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="spinerl-bench-") as folder:
        scratch = Path(folder)
        note("machine and models")
        facts = run_worker("probe", settings, scratch, note)
        machine = facts["machine"]
        decided = settings.model_copy(update={"threads": machine["threads"], "device": machine["device"]})
        result: dict[str, Any] = {**facts, "settings": _without_paths(settings)}
        for part in settings.parts:
            try:
                result[part] = _PARTS[part](
                    decided, scratch, lambda text, part=part: note(f"{part}: {text}"), remark, machine
                )
            except RunError as error:  # the other parts' figures are worth having
                remark(f"{part}: {error}")
        result["seconds"] = time.perf_counter() - started
        return result


def _step(settings: Settings, scratch: Path, note: Note, remark: Note, _: Any) -> dict[str, Any]:
    try:
        found = run_worker("step", settings, scratch, note)
        note("TRL at its defaults")
        found |= run_worker("trl_defaults", settings, scratch, note, tune=False)
        found["ratio_vs_trl_defaults"] = found["seconds_trl_defaults"] / found["seconds"]
    except MissingExtraError as error:
        remark(f"step: no comparison with TRL: {error}")
        found = run_worker("our_step", settings, scratch, note)
    note("peak memory")
    return found | run_worker("step_memory", settings, scratch, note)


def _rollout(settings: Settings, scratch: Path, note: Note, _remark: Note, _: Any) -> dict[str, Any]:
    return run_worker("rollout", settings, scratch, note)


def _update(settings: Settings, scratch: Path, note: Note, _remark: Note, _: Any) -> dict[str, Any]:
    found = run_worker("update", settings, scratch, note)
    note("peak memory")
    peaks = {which: _peaks(which, settings, scratch) for which in ("ours", "dense")}
    return {
        **found,
        **ratios("memory_ratio_vs_dense", peaks["ours"], peaks["dense"]),
        **figures("peak_memory_bytes", peaks["ours"]),
        **figures("peak_memory_dense_bytes", peaks["dense"]),
    }


def _peaks(which: str, settings: Settings, scratch: Path) -> list[int]:
    """Peaks of a few fresh processes: memory hardly varies, so fewer repeats do."""
    return [
        run_worker("update_memory", settings, scratch, which=which)["peak_memory_bytes"]
        for _ in range(min(2, settings.repeats))
    ]


def _sharing(settings: Settings, scratch: Path, note: Note, _remark: Note, _: Any) -> dict[str, Any]:
    return run_worker("sharing", settings, scratch, note)


def _images(settings: Settings, scratch: Path, note: Note, _remark: Note, _: Any) -> dict[str, Any]:
    return run_worker("images", settings, scratch, note)


def _efficiency(settings: Settings, scratch: Path, note: Note, _remark: Note, _: Any) -> dict[str, Any]:
    return run_worker("efficiency", settings, scratch, note)


def _scaling(settings: Settings, scratch: Path, note: Note, remark: Note, machine: dict[str, Any]) -> dict[str, Any]:
    from spinerl.bench.picture import require_matplotlib, write_picture, write_table

    found = run_worker("scaling", settings, scratch, note)
    folder = settings.out_folder
    write_table(folder / "scaling.csv", found["points"], machine)
    remark(f"scaling: {folder / 'scaling.csv'}")
    try:
        require_matplotlib()
    except MissingExtraError as error:
        remark(f"scaling: no picture: {error}")
    else:
        write_picture(folder / "scaling.png", found["points"], found["lines"], machine)
        remark(f"scaling: {folder / 'scaling.png'}")
    return found


_PARTS = {
    "step": _step,
    "rollout": _rollout,
    "update": _update,
    "sharing": _sharing,
    "images": _images,
    "efficiency": _efficiency,
    "scaling": _scaling,
}


def _without_paths(settings: Settings) -> dict[str, Any]:
    """The settings for the record, a folder shortened to its name."""
    given = settings.model_dump(exclude={"out"})
    return {**given, "model": Path(settings.model).name, "parts": list(settings.parts)}
