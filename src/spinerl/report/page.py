"""The page: its template filled with what the runs hold, and the one file it is written to."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from spinerl import __version__
from spinerl.errors import InputError
from spinerl.files import draft_of, drafts_in, process_runs, remove_now, write_bytes
from spinerl.report.charts import draw_chart
from spinerl.report.curves import charts_of, how_to_read
from spinerl.report.data import data_of_chart
from spinerl.report.examples import example_views, heat_legend
from spinerl.report.facts import config_table, dump, manifest_table
from spinerl.report.groups import group_runs
from spinerl.report.histogram import draw_histogram
from spinerl.report.labels import draw_history, label_views
from spinerl.report.read import RunData, read_run
from spinerl.report.results import result_tables
from spinerl.report.text import visible
from spinerl.report.tokens import token_views
from spinerl.report.words import headline, progress, summary, title

__all__ = ["Live", "fill", "policy", "render", "write_html", "write_report"]


# Whatever text a run holds: a browser runs our scripts and no other, takes our style and no other, and loads nothing;
# a live page asks the server that it came from.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src data:; {connect}base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Live:
    """What makes a page that of a run in progress.

    Args:
        tag: of this state of the page, as in the server's ETag.
        said: what is shown and when it was last written, in words.
        poll_s: seconds between two questions of the script.
        reload_s: seconds after which a browser without scripts loads the page again.
    """

    tag: str
    said: str
    poll_s: float
    reload_s: int


def write_report(runs: Sequence[Path], out: Path, on_damage: Callable[[str], object] = lambda _: None) -> Path:
    """Write one self-contained HTML file about one or several run folders, and return its path.

    The file appears whole or not at all; parent folders are made.  Runs that differ only by `seed` are drawn
    as their mean and range; a folder given twice counts once.  What is damaged is left out; the page says so, and
    `on_damage` gets a line about each part.  Raises InputError if `runs` is empty or holds a folder that is no run
    folder, or if `out` is a folder or cannot be written.

        write_report([Path("runs/spine-tiny-seed0"), Path("runs/ttrl-tiny-seed0")], Path("report.html"))
    """
    folders = list({os.path.realpath(run): Path(run) for run in runs}.values())
    if not folders:
        raise InputError("no run folder given; a report needs at least one")
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the file to write, for example {out / 'report.html'}")
    found = [read_run(folder) for folder in folders]
    for run in found:
        for line in run.damage:
            on_damage(f"{run.folder / line}")
    return write_html(out, render(found))


def write_html(out: Path, html: str) -> Path:
    """Write a page that appears whole or not at all, and return its path; InputError if it cannot be written."""
    process = os.getpid()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for draft in drafts_in(out.parent, out.name.__eq__):  # of processes that were killed
            if draft.process is not None and not process_runs(draft.process):
                remove_now(draft.path)
        try:
            write_bytes(out, html.encode("utf-8", "replace"), process=process)
        finally:
            draft_of(out, process=process).unlink(missing_ok=True)  # where it could not be written
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {out}: {error}") from None
    return out


def render(runs: Sequence[RunData], live: Live | None = None) -> str:
    """The HTML of a report on the runs (at least one), with `live` one that asks for changes."""
    groups = group_runs(runs)
    top, examples = example_views(groups)
    top_word, tokens = token_views(groups)
    first, second = charts_of(groups)
    steps = [row["step"] for run in runs for row in (*run.metrics, *run.evals)] or [0]
    return fill(
        "report.html.j2",
        title(groups),
        "Test-time reinforcement learning, run report",
        "run folders" if len(runs) > 1 else "run folder",
        live,
        facts=headline(groups),
        summary=[(group.label if len(groups) > 1 else "", summary(group)) for group in groups],
        notes=[(run.name if len(runs) > 1 else "", note) for run in runs for note in (*progress(run), *run.notes)],
        groups=groups,
        tables=result_tables(groups),
        reading=how_to_read(groups, (*first, *second)),
        first=first,
        second=second,
        draw=partial(draw_chart, x_range=(min(steps), max(steps))),
        labels=label_views(groups),
        draw_history=draw_history,
        tokens=tokens,
        word_heat=heat_legend(top_word),
        draw_histogram=draw_histogram,
        examples=examples,
        heat=heat_legend(top),
        manifest=manifest_table(runs),
        config=config_table(runs),
        runs=runs,
        dump=dump,
    )


def fill(template: str, title: str, kicker: str, source: str, live: Live | None = None, **values: Any) -> str:
    """A template of this package filled with the values, and with what every page needs: style, scripts, version.

    Args:
        kicker: the line over the title.
        source: what the page was made from, for its foot.
    """
    script, style, live_script = map(_source, ("script.js", "style.css", "live.js"))
    shared = {"facts": (), "wide": False, "data_of_chart": data_of_chart, "version": __version__}
    return (
        _environment()
        .get_template(template)
        .render(
            shared | values,
            title=title,
            kicker=kicker,
            source=source,
            live=live,
            policy=Markup(policy(live is not None)),
            script=Markup(script),
            css=Markup(style),
            live_script=Markup(live_script),
        )
    )


def policy(live: bool) -> str:
    """The content security policy of a page."""
    scripts = ["script.js", "live.js"] if live else ["script.js"]
    return _POLICY.format(
        scripts=" ".join(_digest(_source(name)) for name in scripts),
        style=_digest(_source("style.css")),
        connect="connect-src 'self'; " if live else "",
    )


@cache
def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment() -> jinja2.Environment:
    """Once for a process: compiling the templates takes longer than filling them."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("spinerl.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _finalize(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
