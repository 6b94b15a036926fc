"""The page of a comparison in progress: how far each row's runs are, and their dynamics, as far as they go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinerl.report.charts import PALETTE_SIZE
from spinerl.report.comparison import PageCell, PageLine, PageSection, Range, dynamics, render_comparison
from spinerl.report.groups import Group, Triple, data_of, eval_row, first_and_last, last_part, method_of
from spinerl.report.page import Live
from spinerl.report.read import RunData, number
from spinerl.report.text import show_duration, show_percent, visible
from spinerl.report.words import show_interval

__all__ = ["render_progress"]

_HEADS = (
    ("steps", "done of planned"),
    ("Pass@1", "unadapted"),
    ("Pass@1", "last evaluation"),
    ("majority", "last tenth of the steps"),
    ("length", "tokens, last tenth"),
    ("entropy", "nats, last tenth"),
    ("time", "in steps, all seeds"),
)
_CAPTION = (
    "In the pictures: the last evaluation; a large dot is the mean, small dots are the seeds, and the line goes from "
    "the lowest to the highest, or for one seed is its interval over questions."
)


def render_progress(folder: Path, runs: Sequence[RunData], waiting: Sequence[str], live: Live) -> str:
    """The HTML of the runs DATA/ROW-seedN in a comparison's folder, one section per data set.

    Args:
        waiting: what is said of run folders that cannot be read, or hold nothing yet.
    """
    by_data: dict[str, dict[str, list[RunData]]] = {}
    for run in sorted(runs, key=_begun):
        by_data.setdefault(run.folder.parent.name, {}).setdefault(_row_name(run), []).append(run)
    adapted = list(dict.fromkeys(name for rows in by_data.values() for name in rows if _adapts(rows[name])))
    colours = {name: colour for colour, name in enumerate(adapted)}
    sections = [_section(i, rows, colours) for i, rows in enumerate(by_data.values())]
    notes = [f"{run.folder.parent.name}/{run.name}: {note}" for run in runs for note in run.damage]
    table = "has" if (folder / "comparison.html").is_file() else "will have, once all runs are done,"
    notes += [*waiting, f"{folder / 'comparison.html'} {table} the tables, with intervals over questions."]
    finished = sum("finished" in run.manifest for run in runs)
    facts = [
        ("Runs begun", str(len(runs) + len(waiting))),
        ("Finished", str(finished)),
        ("Data", ", ".join(dict.fromkeys(data_of(run) for run in runs))),
        ("Model", ", ".join(dict.fromkeys(last_part(str(run.setting("model.name", "unknown"))) for run in runs))),
    ]
    return render_comparison(folder.resolve().name, facts, notes, sections, live)


def _begun(run: RunData) -> tuple[str, str]:
    return str(run.manifest.get("started", "~")), run.name


def _row_name(run: RunData) -> str:
    return re.sub(r"-seed-?\d+\Z", "", run.name)


def _adapts(runs: Sequence[RunData]) -> bool:
    return any(run.planned_steps != 0 for run in runs)


def _section(index: int, rows: Mapping[str, Sequence[RunData]], colours: Mapping[str, int]) -> PageSection:
    """One data set: a line per row in the order in which they were begun, and the curves of those that adapt."""
    lines = tuple(_line(name, runs, colours.get(name)) for name, runs in rows.items())
    none = next((Group(name, tuple(runs), 0) for name, runs in rows.items() if not _adapts(runs)), None)
    unadapted = none.eval_mean(0, "eval/pass@1") if none else None
    curves = dynamics(index, {name: rows.get(name, ()) for name in colours}, unadapted[0] if unadapted else None)
    title = data_of(next(iter(rows.values()))[0])
    return PageSection(visible(title), (), _HEADS, lines, curves, _CAPTION)


def _line(name: str, runs: Sequence[RunData], colour: int | None) -> PageLine:
    group = Group(visible(name), tuple(runs), colour or 0)
    before, after = (group.eval_mean(at, "eval/pass@1") for at in (0, -1))
    shown = after or before
    states = ["finished" if "finished" in run.manifest else "unfinished" for run in runs]
    mark = ", ".join(f"seed {run.setting('seed', '?')} {state}" for run, state in zip(runs, states, strict=True))
    cells = (_steps(runs), _share(before), _share(after), *_last_tenth(group), _time(runs))
    picture = None
    if shown is not None:
        value, low, high = shown
        dots = [
            number(row.get("eval/pass@1")) for run in runs if (row := eval_row(run, -1 if after else 0)) is not None
        ]
        several = tuple(dot for dot in dots if dot is not None) if len(runs) > 1 else ()
        picture = Range(value, value if low is None else low, value if high is None else high, several)
    style = "" if colour is None else f"s{colour % PALETTE_SIZE}"
    note = "" if method_of(runs[0]) == name else method_of(runs[0])
    return PageLine(visible(name), mark, note, False, style, "", picture, cells)


def _steps(runs: Sequence[RunData]) -> PageCell:
    planned = runs[0].planned_steps
    done = sorted({run.steps_done for run in runs})
    counts = f"{done[0]}" if len(done) == 1 else f"{done[0]}–{done[-1]}"
    return PageCell(counts, "" if planned is None else f"of {planned}")


def _share(triple: Triple | None) -> PageCell:
    return PageCell("–") if triple is None else PageCell(show_percent(triple[0]), show_interval(triple))


def _last_tenth(group: Group) -> tuple[PageCell, PageCell, PageCell]:
    """Majority fraction, response length and entropy: now, and in small at first."""
    cells = []
    for key, show in (
        ("label/majority_frac", show_percent),
        ("rollout/response_length", lambda value: f"{value:.0f}"),
        ("rollout/entropy", lambda value: f"{value:.2f}"),
    ):
        ends = first_and_last(group, key)
        cells.append(PageCell("–") if ends is None else PageCell(show(ends[1]), f"from {show(ends[0])}"))
    return cells[0], cells[1], cells[2]


def _time(runs: Sequence[RunData]) -> PageCell:
    times = [run.step_seconds for run in runs if run.step_seconds is not None]
    return PageCell(show_duration(sum(times)) if times else "–")
