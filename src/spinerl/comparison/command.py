"""The whole of `spinerl compare`: plan, run what is missing, read, write the tables and the page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from spinerl import __version__
from spinerl.comparison.collect import MethodResult, collect
from spinerl.comparison.figures import figure_lines
from spinerl.comparison.output import as_csv, as_json, as_markdown, print_tables
from spinerl.comparison.page import write_page
from spinerl.comparison.plan import Comparison, Task, plan
from spinerl.comparison.progress import Live
from spinerl.comparison.schedule import Failure, run_tasks
from spinerl.comparison.state import State, states
from spinerl.comparison.table import Table, build_table
from spinerl.comparison.words import sentences
from spinerl.config import allow_plugins, named_code
from spinerl.errors import InputError, RunError, cause_of
from spinerl.lines import counted
from spinerl.locks import FolderInUseError, FolderLock
from spinerl.runs import write_json, write_text
from spinerl.terminal import PlainConsole

__all__ = ["compare", "open_named_code", "tables_of"]


def compare(args: Sequence[str], console: Console | None = None, overwrite: bool = False, allow: bool = False) -> Path:
    """Run the comparison that `[RECIPE.yaml] [KEY=VALUE]...` describes, or the rest of it; its folder.

    Finished runs are kept, interrupted ones continue.  Writes comparison.md, .csv, .json and .html and prints the
    tables.  Raises InputError before anything runs for what is wrong with the arguments, the data or the runs there are
    already, and RunError at the end if a run failed; the tables are then of the others.

    Args:
        overwrite: whether runs begun with other settings are started again.
        allow: whether the code that recipes name may run (`spinerl.config.allow_plugins`).
    """
    console = console or PlainConsole()
    comparison = plan(args)
    open_named_code(comparison, allow, console.print)
    with _locked(comparison.out):
        found = states(comparison, overwrite)
        todo: list[tuple[Task, State]] = [
            (task, found[task.folder]) for task in comparison.tasks if found[task.folder] != "done"
        ]
        done = len(comparison.tasks) - len(todo)
        console.print(f"{comparison.out}: {len(comparison.tasks)} runs, {done} done")
        failures: list[Failure] = []
        if todo:
            jobs = min(comparison.keys.jobs or _cores(comparison.tasks), len(todo))
            command = ["spinerl", "compare", *args]
            with Live(console, len(comparison.tasks), done) as live:
                failures = run_tasks(todo, jobs, comparison.out / "logs", live, command, overwrite)
        failed = {task.folder for task, _ in failures}
        finished = [task for task in comparison.tasks if task.folder not in failed]
        outcomes = collect(comparison, finished, lambda task, why: failures.append((task, why)))
        notes = _notes(comparison, failures)
        if not any(outcomes.values()):
            raise RunError(
                f"no run of {comparison.out} can be read; the first, {failures[0][0].label}: {failures[0][1]}"
            )
        tables = tables_of(comparison, outcomes)
        _write(comparison, tables, outcomes, notes, args)
    print_tables(console, tables)
    for note in notes:
        console.print(note)
    console.print(f"page: {comparison.out / 'comparison.html'}")
    if failures:
        raise RunError(
            f"{len(failures)} of {len(comparison.tasks)} runs failed; the first, {failures[0][0].label}: "
            f"{failures[0][1]}; the same command tries again (a damaged run: delete its folder before)"
        )
    return comparison.out


def tables_of(comparison: Comparison, outcomes: dict[str, list[MethodResult]]) -> list[Table]:
    """A table per data set, and with several one over all of them."""
    k, reference = comparison.keys.samples, comparison.keys.reference
    confidence = comparison.tasks[0].config.eval.confidence
    level = f"{100 * confidence:g} %"
    sets = [(data, [outcomes[data]]) for data in comparison.keys.data if outcomes[data]]
    if len(sets) == len(comparison.keys.data) > 1:
        sets.append((f"All {len(sets)} data sets together", [outcomes[data] for data in comparison.keys.data]))
    tables = []
    for title, groups in sets:
        lines = figure_lines(groups, k, confidence, reference)
        tables.append(build_table(title, lines, k, reference, sentences(lines, reference, level)))
    return tables


def _write(
    comparison: Comparison,
    tables: Sequence[Table],
    outcomes: dict[str, list[MethodResult]],
    notes: Sequence[str],
    args: Sequence[str],
) -> None:
    out = comparison.out
    title = f"Comparison: {', '.join(row.name for row in comparison.rows)}"
    facts = {"spinerl": __version__, "words": list(args), "keys": comparison.keys.model_dump(), "notes": list(notes)}
    write_text(out / "comparison.md", as_markdown(title, tables, notes))
    write_text(out / "comparison.csv", as_csv(tables))
    write_json(out / "comparison.json", as_json(tables, facts))
    write_page(out / "comparison.html", comparison, tables, outcomes, notes)


def _notes(comparison: Comparison, failures: Sequence[Failure]) -> list[str]:
    keys = comparison.keys
    config = comparison.tasks[0].config
    most = max(keys.votes, keys.samples)
    notes = [
        f"Model {config.model.name}; {counted(len(keys.seeds), 'seed')}: "
        f"{', '.join(map(str, keys.seeds))}. Questions are the unit: a question's value is its mean over the seeds.",
        f"Rows without an update start from the first {keys.samples} responses of the unadapted model; their Pass@1 "
        "is that of the answer they give. The equal-token vote is the majority of as many responses as an "
        f"adaptation's sampled tokens would buy, at most {most}. What updates cost shows in the time, not the tokens.",
        "The best step is chosen by gold answers, so it flatters; the other columns are of the last step.",
    ]
    if len(keys.seeds) == 1:
        notes.append("One seed: the intervals are over questions and do not say what another seed would give.")
    return notes + [f"FAILED and left out: {task.label}: {why}" for task, why in failures]


def open_named_code(comparison: Comparison, allow: bool, note: Callable[[str], None]) -> None:
    """Find and permit what the runs name of code that is not ours, before the first of them starts."""
    named = {str(named_code(task.config)): task.config for task in comparison.tasks if named_code(task.config)}
    if not named:
        return
    from spinerl.permission import open_code

    lines: dict[str, None] = {}
    for config in named.values():
        open_code(allow_plugins(config, allow), lambda line: lines.setdefault(line))
    for line in lines:
        note(line)


def _cores(tasks: Sequence[Task]) -> int:
    """Runs at a time where the user did not say: one per core, one at a time on an accelerator."""
    from spinerl.machine import pick_device

    if any(pick_device(device) != "cpu" for device in {task.config.model.device for task in tasks}):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The comparison's folder, made if need be, for this process only."""
    in_use = InputError(f"out={out} is in use: another `spinerl compare` runs there; wait for it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(out)
    except FolderInUseError:
        raise in_use from None
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {cause_of(error)}") from None
    try:
        if not lock.held:
            raise in_use
        for draft in out.glob(".comparison.*.tmp"):  # of a process that was killed
            draft.unlink()
        yield
    finally:
        lock.release()
