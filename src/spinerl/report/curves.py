"""Which charts the page has, and what is drawn in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from spinerl.report.charts import PALETTE_SIZE, Chart, Legend, Line, Span
from spinerl.report.groups import Group, accuracy
from spinerl.report.words import level_of

__all__ = ["charts_of", "how_to_read"]


def charts_of(groups: Sequence[Group]) -> tuple[list[Chart], list[Chart]]:
    """The four dynamics curves, always there; and the further ones for which something was recorded."""

    def chart(
        id: str,
        title: str,
        unit: str,
        keys: Sequence[tuple[str, str]],
        note: str = "",
        *,
        scale: float = 1.0,
        smooth: bool = False,
        skip_zero: bool = False,
        compare_all: bool = False,
        extra: Sequence[Line] = (),
        extra_legend: Sequence[Legend] = (),
        floor: float | None = None,
        ceiling: float | None = None,
        zero: bool = False,
    ) -> Chart:
        lines, drawn = list(extra), []
        if len(groups) > 1 and not compare_all:
            keys = keys[:1]
        for dash, (key, label) in enumerate(keys):
            found = [(group, group.line(key, label, dash, scale, smooth)) for group in groups]
            found = [(group, line) for group, line in found if any(y is not None for _, y in line.points)]
            if skip_zero and not any(y for _, line in found for _, y in line.points):
                continue
            if found:
                drawn.append((label, dash))
            for group, line in found:
                name = label if len(groups) == 1 else group.label if len(keys) == 1 else f"{group.label}, {label}"
                colour = dash if len(groups) == 1 else group.colour
                lines.append(dataclasses.replace(line, label=name, colour=colour, dash=dash + _again(group)))
        return Chart(
            id,
            title,
            unit,
            note,
            tuple(lines),
            _legend(groups, drawn, extra_legend),
            zero=zero,
            floor=floor,
            ceiling=ceiling,
        )

    edges = [line for group in groups if (line := _edges(group, len(groups) == 1)) is not None]
    edge_legend = [Legend("entropy band", "s7" if len(groups) == 1 else "neutral", "area")] if edges else []
    majority = ("label/majority_frac", "majority fraction")
    more = (
        []
        if len(groups) == 1
        else [
            chart(
                "majority",
                "Majority fraction",
                "mean, 0 to 1",
                [majority],
                "The share of votes that the pseudo-label won.",
                smooth=True,
                floor=0.0,
                ceiling=1.0,
            ),
        ]
    )
    first = [
        chart(
            "reward",
            "Majority-vote reward",
            "mean, 0 to 1",
            [("reward/mean", "reward"), majority],
            "Mean reward" + (", and the share of votes that the pseudo-label won." if len(groups) == 1 else "."),
            smooth=True,
            floor=0.0,
            ceiling=1.0,
        ),
        chart(
            "length",
            "Response length",
            "tokens",
            [("rollout/response_length", "response length")],
            "Mean over the step's responses.",
            smooth=True,
            zero=True,
        ),
        chart(
            "entropy",
            "Mean token entropy",
            "nats",
            [("rollout/entropy", "entropy")],
            "Mean over the step's response tokens.",
            smooth=True,
            zero=True,
        ),
        _pass_chart(groups),
    ]
    second = [
        *more,
        chart(
            "guard",
            "What the guard sees",
            "0 to 1",
            [
                ("guard/score", "label-free score"),
                ("guard/probe/initial_support", "support by the initial votes"),
                ("label/kept_frac", "labels kept"),
            ],
            "The score decides which weights are kept; no label is in it.",
            floor=0.0,
            ceiling=1.0,
        ),
        chart(
            "forks",
            "Forks and followers",
            "nats",
            [("fork/entropy", "fork entropy"), ("fork/follower_entropy", "follower entropy")],
            "Mean entropy of fork and of follower tokens.",
            smooth=True,
            zero=True,
            compare_all=True,
            extra=edges,
            extra_legend=edge_legend,
        ),
        chart(
            "mismatch",
            "Sampler and learner",
            "nats",
            [("mismatch/logprob_diff", "log-probability difference"), ("mismatch/kl", "KL")],
            "How far vLLM's account of its tokens is from that of the model that learns; means per token.",
            zero=True,
        ),
        chart(
            "loss",
            "Loss terms",
            "loss",
            [
                ("loss/total", "total"),
                ("loss/policy", "policy"),
                ("loss/anchor", "anchor"),
                ("loss/band", "band"),
            ],
            "Terms that are 0 throughout are left out." if len(groups) == 1 else "Total loss.",
            smooth=True,
            skip_zero=True,
        ),
        chart(
            "abstain",
            "Abstained and truncated",
            "% of responses",
            [("label/abstained_frac", "abstained"), ("rollout/truncated_frac", "truncated")],
            "No readable answer; cut off by the token limit.",
            scale=100,
            smooth=True,
            zero=True,
            ceiling=100.0,
            compare_all=True,
        ),
        chart(
            "time",
            "Time per step",
            "seconds",
            [("time/step_s", "step"), ("time/rollout_s", "rollout"), ("time/update_s", "update")],
            "Wall-clock time." if len(groups) == 1 else "Wall-clock time of a whole step.",
            smooth=True,
            zero=True,
        ),
        chart(
            "signal",
            "Groups without a signal",
            "% of questions",
            [("reward/zero_variance_frac", "equal rewards"), ("label/unanimous_frac", "unanimous vote")],
            "Questions whose responses all got the same reward teach nothing.",
            scale=100,
            smooth=True,
            zero=True,
            ceiling=100.0,
        ),
        chart(
            "gold",
            "Against gold, for watching only",
            "%",
            [
                ("gold/label_accuracy", "pseudo-labels right"),
                ("gold/reward_accuracy", "rewards right"),
                ("gold/response_accuracy", "responses right"),
            ],
            "Gold answers never reach training.",
            scale=100,
            smooth=True,
            floor=0.0,
            ceiling=100.0,
        ),
    ]
    return first, [item for item in second if not item.is_empty]


def how_to_read(groups: Sequence[Group], charts: Iterable[Chart]) -> str:
    """How to read the curves: what thin, thick and banded ones are; "" where they need no word."""
    words = []
    if any(len(group.runs) > 1 for group in groups):
        words.append(
            "Runs that differ only by their seed are one curve: their mean, inside a band from the lowest to "
            "the highest, over the steps that all of them reached."
        )
    windows = sorted({line.window for chart in charts for line in chart.lines if line.smoothed})
    if windows:
        steps = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
        words.append(f"Thin lines are single steps, thick ones moving means over {steps} steps.")
    return " ".join(words)


def _pass_chart(groups: Sequence[Group]) -> Chart:
    key, lines = "eval/pass@1", []
    for i, group in enumerate(groups):
        line = group.line(key, group.label if len(groups) > 1 else "Pass@1", scale=100)
        whiskers: list[Span] = []
        if len(group.runs) == 1:
            for row in group.runs[0].evals:
                triple = accuracy(row, key)
                if triple is not None and triple[1] is not None and triple[2] is not None:
                    whiskers.append((float(row["step"]), 100 * triple[1], 100 * triple[2]))
        if any(y is not None for _, y in line.points):
            shift = min(5.0, 16 / len(groups)) * (i - (len(groups) - 1) / 2)
            lines.append(dataclasses.replace(line, dash=_again(group), whiskers=tuple(whiskers), shift=shift))
    level = level_of(groups[0].runs[0])
    evaluated = any(run.evals for group in groups for run in group.runs)
    return Chart(
        "pass1",
        "Greedy Pass@1",
        "%",
        f"Evaluation questions; whiskers are {level} intervals.",
        tuple(lines),
        _legend(groups, [("Pass@1", 0)], ()),
        floor=0.0,
        ceiling=100.0,
        empty="No gold answers: accuracy is unknown." if evaluated else "No evaluation written yet.",
    )


def _edges(group: Group, single: bool) -> Line | None:
    """The area between the band's edges; over several runs the mean edges."""
    low, high = (dict(group.line(f"band/{edge}", "").points) for edge in ("low", "high"))
    spans = [(x, a, b) for x, a in sorted(low.items()) if a is not None and (b := high.get(x)) is not None]
    if not spans:
        return None
    label = "entropy band" if single else f"{group.label}, entropy band"
    return Line(label, colour=PALETTE_SIZE - 1 if single else group.colour, band=tuple(spans))


def _again(group: Group) -> int:
    """How often the palette was used up before this group's colour: the dash that sets it apart from the first."""
    return group.colour // PALETTE_SIZE


def _legend(groups: Sequence[Group], drawn: Sequence[tuple[str, int]], extra: Sequence[Legend]) -> tuple[Legend, ...]:
    """One run: its series, if several.  Several runs: their colours, then the series' dashes, if several."""
    if len(groups) == 1:
        entries = [Legend(label, f"s{dash} d{dash}") for label, dash in drawn]
        return (*entries, *extra) if len(entries) + len(extra) > 1 else ()
    runs = [Legend(group.label, f"{group.style} d{_again(group)}") for group in groups]
    dashes = [Legend(label, f"neutral d{dash}") for label, dash in drawn]
    return (*runs, *(dashes if len(dashes) + len(extra) > 1 else ()), *extra)
