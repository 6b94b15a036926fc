"""What `spinerl bench` does: settings from overrides, a live line while it measures, a table and a file at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spinerl.bench.runner import run_bench
from spinerl.bench.settings import load_settings
from spinerl.bench.table import results_table
from spinerl.errors import RunError
from spinerl.runs import write_json

__all__ = ["bench"]


def bench(overrides: Sequence[str], json_file: Path | None, out: Console, err: Console) -> None:
    """Measure, print the table to `out`, write the record; progress goes to `err`.

    Raises InputError for refused overrides, RunError at the end if a measurement failed.
    """
    settings = load_settings(overrides)
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        shown = ""

        def note(text: str) -> None:
            nonlocal shown
            progress.update(task, description=text)
            part = text.partition(":")[0]
            if not err.is_terminal and part != shown:  # a line per part is enough for a log
                err.print(f"measuring {part} ...")
            shown = part

        def remark(text: str) -> None:
            err.print(text)

        result = run_bench(settings, note, remark)
    out.print(results_table(result))
    if json_file is not None:
        write_json(json_file, result)
    failed = [part for part in settings.parts if part not in result]
    if failed:
        raise RunError(f"could not measure {', '.join(failed)}; the reasons are above")
