"""What a run shows in the terminal: a live line while it works, plain lines where there is no terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from spinerl.progress import Meter, RunClock, format_clock
from spinerl.stats import Difference

if TYPE_CHECKING:
    from spinerl.config import Config
    from spinerl.footprint import Footprint
    from spinerl.plan import Plan

__all__ = [
    "Display",
    "accuracy_keys",
    "comparison_table",
    "difference_lines",
    "format_share",
    "plan_table",
    "preflight_table",
    "ranking_table",
    "step_figures",
    "stream_lines",
    "subject_table",
]

_BEGINS = {"evaluate": "evaluating ...", "plan": "measuring how long the run will take ..."}
_SECONDS_BETWEEN = 10.0  # lines about a phase under way, where there is no terminal


class Display:
    """The commands' observer.  Use as a context manager.

    On a terminal a live line; elsewhere a line per step and evaluation, and in phases that take long a line every ten
    seconds.  `quiet`: only what is wrong.  `took`: as for `RunClock`.
    """

    def __init__(
        self,
        console: Console,
        config: Config | None = None,
        *,
        quiet: bool = False,
        took: Mapping[str, float] | None = None,
    ) -> None:
        self._console, self._quiet = console, quiet
        self._live = console.is_terminal and not quiet
        self._clock = None if config is None else RunClock(config, took)
        self._meter: Meter | None = None
        self._lengths: dict[str, float] = {}  # tokens of a response, mean, by phase
        self._said = time.monotonic()
        self._latest = ""
        num_steps = 0 if config is None else config.steps
        self._progress = Progress(
            TextColumn("[bold]{task.description:9s}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("starting", total=max(1, num_steps), figures="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None:
        now = time.monotonic()
        self._ended(now)
        length = self._lengths.get(name, 0.0)
        self._meter = Meter(name, total_tokens, num_responses, now, length)
        if self._clock is not None:
            self._clock.begin(name, now)
        self._progress.update(self._task, description=name)
        if self._clock is None:  # no steps: the bar is the phase's
            self._progress.update(self._task, completed=0, total=100)
        if not self._live and name in _BEGINS:
            self._say(_BEGINS[name])

    def tokens(self, count: int, finished: int = 0) -> None:
        meter, now = self._meter, time.monotonic()
        if meter is None:
            return
        meter.add(count, finished, now)
        if self._live:
            if now - meter.began > 0.5:
                done = None if self._clock is not None else 100 * meter.share
                said = f"{self._latest}  {100 * meter.share:.0f} %" if meter.name == "step" else meter.line()
                self._progress.update(self._task, completed=done, figures=said)
        elif now - max(meter.began, self._said) >= _SECONDS_BETWEEN:
            left = None if self._clock is None else self._clock.seconds_left(now)
            whole = "" if left is None else f"; the run: left {format_clock(left)}"
            self._say(f"{meter.name}: {meter.line()}{whole}")

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        step, now = metrics["step"], time.monotonic()
        self._ended(now)
        self._latest = f"{step_figures(metrics)}  {metrics['time/tokens_per_s']:6,.0f} tokens/s"
        if self._clock is not None:
            self._clock.step(step, num_steps, now)
            left = self._clock.seconds_left(now)
            self._latest += "" if left is None else f"  left {format_clock(left)}"
        self._progress.update(self._task, completed=step, total=max(1, num_steps), figures=self._latest)
        if not self._live:
            self._say(f"step {step}/{num_steps}  {self._latest}")

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._ended(time.monotonic())
        shares = [f"{label} {format_share(metrics, key)}" for key, label in accuracy_keys([metrics])] or [
            "no gold answers: accuracy unknown"
        ]
        self._say(f"after step {metrics['step']}: {', '.join(shares)}")

    def look(self, row: Mapping[str, Any]) -> None:  # noqa: ARG002 - what is wrong comes as a note
        self._ended(time.monotonic())

    def checkpoint(self, folder: Path) -> None:
        """Nothing: a line per checkpoint would say little."""

    def note(self, text: str) -> None:
        self._say(text)

    def _ended(self, now: float) -> None:
        """The phase that was under way has ended."""
        if self._clock is not None:
            self._clock.end(now)
        if self._meter is not None and self._meter.num_finished:
            self._lengths[self._meter.name] = self._meter.num_tokens / self._meter.num_finished
        self._meter = None

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if not self._quiet:
            self._console.print(text)


def step_figures(metrics: Mapping[str, Any]) -> str:
    """A step in a few words: how far the votes agree, response length (tokens), entropy (nats)."""
    return (
        f"majority {100 * metrics['label/majority_frac']:3.0f} %  "
        f"length {metrics['rollout/response_length']:5.1f}  entropy {metrics['rollout/entropy']:.3f}"
    )


def stream_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A stream's accuracy in words: before each question was adapted on (prequential), after it; [] for no rows."""
    from spinerl.scoring import stream_figures

    if not rows:
        return []
    figures = stream_figures(rows)
    num = figures["num_questions"]
    whens = {"after" if row.get("when") == "after" else "before" for row in rows}
    asked = "before and after" if len(whens) > 1 else whens.pop()
    known = [
        f"{words} {format_share(figures, key)} right"
        for words, key in (
            ("greedy decoding had", "before"),
            ("the vote", "vote"),
            ("greedy decoding after it", "after"),
        )
        if key in figures
    ]
    if not known:
        return [f"stream: {num} questions answered {asked} they were adapted on (stream.jsonl)"]
    lines = [f"stream: of {num} questions, each answered {asked} it was adapted on, {', '.join(known)}"]
    if "change" in figures:
        change, low, high = (100 * figures[key] for key in ("change", "change_low", "change_high"))
        lines.append(
            f"stream: adapting changed {change:+.1f} points [{low:+.1f}, {high:+.1f}] of {figures['change_num']} "
            f"questions answered both times, p = {figures['change_p']:.2g}"
        )
    return lines


def format_share(metrics: Mapping[str, Any], key: str) -> str:
    """'41.0 % [35.1, 47.2]' from a fraction and its interval.

    >>> format_share({"a": 0.5, "a_low": 0.25, "a_high": 0.75}, "a")
    '50.0 % [25.0, 75.0]'
    """
    text = f"{100 * metrics[key]:.1f} %"
    if f"{key}_low" in metrics:
        text += f" [{100 * metrics[f'{key}_low']:.1f}, {100 * metrics[f'{key}_high']:.1f}]"
    return text


def comparison_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Evaluations side by side, one per column; figures none of them has are left out."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    all_metrics = list(columns.values())
    for key, label in accuracy_keys(all_metrics):
        table.add_row(label, *(format_share(m, key) if key in m else "-" for m in all_metrics))
    for key, label, scale, digits, unit in (
        ("eval/majority_frac", "majority fraction", 100, 1, " %"),
        ("eval/abstained_frac", "abstained", 100, 1, " %"),
        ("eval/truncated_frac", "truncated", 100, 1, " %"),
        ("eval/response_length", "response length", 1, 1, " tokens"),
        ("eval/entropy", "mean token entropy", 1, 3, " nats"),
    ):
        if any(key in m for m in all_metrics):
            table.add_row(label, *(f"{scale * m[key]:.{digits}f}{unit}" if key in m else "-" for m in all_metrics))
    questions = {(m["num_questions"], m["num_gold"]) for m in all_metrics}
    table.caption = "; ".join(f"{n} questions, {g} with gold answers" for n, g in sorted(questions))
    return table


def plan_table(plan: Plan) -> Table:
    """What a run will sample, phase by phase, and how long it will take."""
    from spinerl.plan import format_duration

    timed = plan.measured is not None
    known = plan.measured is not None and plan.measured.length is not None
    table = Table(title=None, show_edge=False, pad_edge=False)
    table.add_column("phase")
    for title in ("times", "responses", "tokens at most", *(("likely time",) if known else ())):
        table.add_column(title, justify="right")
    if timed:
        table.add_column("time at most", justify="right")

    def row(name: str, times: str, responses: int, tokens: int, seconds: tuple[float, float] | None) -> None:
        times_left = () if seconds is None else seconds if known else seconds[1:]
        table.add_row(name, times, f"{responses:,}", f"{tokens:,}", *(format_duration(s) for s in times_left))

    for phase in plan.phases:
        row(phase.name, str(phase.times), phase.responses, phase.tokens, plan.seconds(phase))
    row("all", "", sum(phase.responses for phase in plan.phases), plan.tokens, plan.total_seconds)
    return table


def memory_table(footprint: Footprint) -> Table:
    """What a run holds of memory in each of its phases, part by part."""
    table = Table("memory, GB", title=None, show_edge=False, pad_edge=False)
    for phase in footprint.phases:
        table.add_column(phase.name, justify="right")
    names = dict.fromkeys(name for phase in footprint.phases for name in phase.parts)
    for name in names:
        sizes = (phase.parts.get(name) for phase in footprint.phases)
        table.add_row(name, *("" if size is None else f"{size / 1e9:.2f}" for size in sizes))
    table.add_row("all", *(f"{phase.bytes / 1e9:.2f}" for phase in footprint.phases))
    return table


def preflight_table(figures: Mapping[str, Any]) -> Table:
    """What a sampling pass without updates found, before its verdict."""
    table = Table(title=None, show_edge=False, pad_edge=False, show_header=False)
    low, high = figures["label_accuracy_low"], figures["label_accuracy_high"]
    predicted = f"{100 * figures['label_accuracy']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    table.add_row("predicted label accuracy", predicted)
    for label, key in (
        ("two half votes agree", "reproducibility"),
        ("majority fraction", "majority_frac"),
        ("margin over the second", "margin"),
        ("questions with a label", "labelled_frac"),
        ("answered alike by all", "unanimous_frac"),
        ("responses without an answer", "abstained_frac"),
        ("truncated", "truncated_frac"),
        ("pairs of questions with one label", "concentration"),
        ("questions with the commonest label", "shared_frac"),
    ):
        table.add_row(label, f"{100 * figures[key]:.1f} %")
    table.add_row("answer entropy", f"{figures['answer_entropy']:.2f} nats")
    table.add_row("response length", f"{figures['response_length']:.1f} tokens")
    table.caption = f"{figures['num_questions']} questions, {figures['num_votes']} responses each; no update, no label"
    return table


def ranking_table(ranked: Sequence[Mapping[str, Any]]) -> Table:
    """Runs by their label-free score, the best first."""
    table = Table("", "run", "score", "step kept", "rule", title=None, show_edge=False, pad_edge=False)
    for rank, row in enumerate(ranked, 1):
        table.add_row(str(rank), row["run"], f"{row['score']:.3f}", str(row["kept_step"]), row["rule"] or "")
    return table


def difference_lines(a: str, b: str, differences: Mapping[str, Difference]) -> list[str]:
    """How much better b is than a on the same questions, a line per figure."""
    lines = [f"{b} against {a}, question by question:"]
    for name, d in differences.items():
        lines.append(
            f"{name}: difference {100 * d.difference:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}], from "
            f"{100 * d.mean_a:.1f} % to {100 * d.mean_b:.1f} % of {d.num} questions, p = {d.p_value:.2g} ({d.test})"
        )
    return lines


def subject_table(subjects: Sequence[tuple[str, int, Mapping[str, Any]]]) -> Table:
    """Accuracies by subject."""
    keys = accuracy_keys([figures for *_, figures in subjects])
    table = Table("subject", "questions", *(label for _, label in keys), show_edge=False, pad_edge=False)
    for name, num, figures in subjects:
        table.add_row(name, str(num), *(format_share(figures, key) if key in figures else "-" for key, _ in keys))
    return table


def accuracy_keys(evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(key, label) of the accuracy figures, in reading order; of the many pass@k those at powers of two."""
    found: dict[str, str] = {}
    for metrics in evaluations:
        for key in metrics:
            matched = re.fullmatch(r"eval/(pass|avg|maj)@(\d+)", key)
            if matched is None:
                continue
            name, k = matched[1], int(matched[2])
            if name != "pass" or k & (k - 1) == 0:
                found[key] = "greedy Pass@1" if (name, k) == ("pass", 1) else f"{name}@{k}"
    return list(found.items())
