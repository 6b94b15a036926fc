"""Which charts the page has, and what is drawn in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from spinerl.report.charts import PALETTE_SIZE, Chart, Legend, Line, Span
from spinerl.report.groups import Group, accuracy
from spinerl.report.words import level_of

__all__ = ["charts_of", "how_to_read"]


@dataclasses.dataclass(frozen=True)
class _Spec:
    """One chart of metrics over steps; `keys` are (metric, label).

    With several runs side by side only the first key is shown, unless `compare_all`, under `note_of_several` where that
    is another text.  `smooth`: a thick line of means; `skip_zero`: metrics that are 0 throughout are left out.
    """

    id: str
    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]
    note: str = ""
    note_of_several: str | None = None
    scale: float = 1.0
    smooth: bool = False
    skip_zero: bool = False
    compare_all: bool = False
    floor: float | None = None
    ceiling: float | None = None
    zero: bool = False

    def chart(self, groups: Sequence[Group], extra: Sequence[Line] = (), extra_legend: Sequence[Legend] = ()) -> Chart:
        """The chart of these runs, with further lines."""
        one = len(groups) == 1
        keys = self.keys if one or self.compare_all else self.keys[:1]
        lines, shown = list(extra), []
        for dash, (key, label) in enumerate(keys):
            found = [(group, group.line(key, label, dash, self.scale, self.smooth)) for group in groups]
            found = [(group, line) for group, line in found if any(y is not None for _, y in line.points)]
            if self.skip_zero and not any(y for _, line in found for _, y in line.points):
                continue
            if found:
                shown.append((label, dash))
            for group, line in found:
                name = label if one else group.label if len(keys) == 1 else f"{group.label}, {label}"
                colour = dash if one else group.colour
                lines.append(dataclasses.replace(line, label=name, colour=colour, dash=dash + _again(group)))
        note = self.note if one or self.note_of_several is None else self.note_of_several
        legend = _legend(groups, shown, extra_legend)
        limits = {"zero": self.zero, "floor": self.floor, "ceiling": self.ceiling}
        return Chart(self.id, self.title, self.unit, note, tuple(lines), legend, **limits)


_MAJORITY = ("label/majority_frac", "majority fraction")
_REWARD = _Spec(
    "reward",
    "Majority-vote reward",
    "mean, 0 to 1",
    (("reward/mean", "reward"), _MAJORITY),
    "Mean reward, and the share of votes that the pseudo-label won.",
    "Mean reward.",
    smooth=True,
    floor=0.0,
    ceiling=1.0,
)
_LENGTH = _Spec(
    "length",
    "Response length",
    "tokens",
    (("rollout/response_length", "response length"),),
    "Mean over the step's responses.",
    smooth=True,
    zero=True,
)
_ENTROPY = _Spec(
    "entropy",
    "Mean token entropy",
    "nats",
    (("rollout/entropy", "entropy"),),
    "Mean over the step's response tokens.",
    smooth=True,
    zero=True,
)
_MAJORITY_OF_SEVERAL = _Spec(
    "majority",
    "Majority fraction",
    "mean, 0 to 1",
    (_MAJORITY,),
    "The share of votes that the pseudo-label won.",
    smooth=True,
    floor=0.0,
    ceiling=1.0,
)
_FORKS = _Spec(
    "forks",
    "Forks and followers",
    "nats",
    (("fork/entropy", "fork entropy"), ("fork/follower_entropy", "follower entropy")),
    "Mean entropy of fork and of follower tokens.",
    smooth=True,
    zero=True,
    compare_all=True,
)
_FURTHER = (
    _Spec(
        "guard",
        "What the guard sees",
        "0 to 1",
        (
            ("guard/score", "label-free score"),
            ("guard/probe/initial_support", "support by the initial votes"),
            ("label/kept_frac", "labels kept"),
        ),
        "The score decides which weights are kept; no label is in it.",
        floor=0.0,
        ceiling=1.0,
    ),
    _FORKS,
    _Spec(
        "mismatch",
        "Sampler and learner",
        "nats",
        (("mismatch/logprob_diff", "log-probability difference"), ("mismatch/kl", "KL")),
        "How far vLLM's log-probabilities of its tokens are from those of the model that learns; means per token.",
        zero=True,
    ),
    _Spec(
        "loss",
        "Loss terms",
        "loss",
        (("loss/total", "total"), ("loss/policy", "policy"), ("loss/anchor", "anchor"), ("loss/band", "band")),
        "Terms that are 0 throughout are left out.",
        "Total loss.",
        smooth=True,
        skip_zero=True,
    ),
    _Spec(
        "abstain",
        "Abstained and truncated",
        "% of responses",
        (("label/abstained_frac", "abstained"), ("rollout/truncated_frac", "truncated")),
        "No readable answer; cut off by the token limit.",
        scale=100,
        smooth=True,
        zero=True,
        ceiling=100.0,
        compare_all=True,
    ),
    _Spec(
        "time",
        "Time per step",
        "seconds",
        (("time/step_s", "step"), ("time/rollout_s", "rollout"), ("time/update_s", "update")),
        "Wall-clock time.",
        "Wall-clock time of a whole step.",
        smooth=True,
        zero=True,
    ),
    _Spec(
        "signal",
        "Groups without a signal",
        "% of questions",
        (("reward/zero_variance_frac", "equal rewards"), ("label/unanimous_frac", "unanimous vote")),
        "Questions whose responses all got the same reward teach nothing.",
        scale=100,
        smooth=True,
        zero=True,
        ceiling=100.0,
    ),
    _Spec(
        "gold",
        "Against gold, for watching only",
        "%",
        (
            ("gold/label_accuracy", "pseudo-labels right"),
            ("gold/reward_accuracy", "rewards right"),
            ("gold/response_accuracy", "responses right"),
        ),
        "Gold answers never reach training.",
        scale=100,
        smooth=True,
        floor=0.0,
        ceiling=100.0,
    ),
)


def charts_of(groups: Sequence[Group]) -> tuple[list[Chart], list[Chart]]:
    """The four dynamics curves, always there; and the further ones for which something was recorded."""
    one = len(groups) == 1
    edges = [line for group in groups if (line := _edges(group, one)) is not None]
    edge_legend = [Legend("entropy band", "s7" if one else "neutral", "area")] if edges else []
    first = [*(spec.chart(groups) for spec in (_REWARD, _LENGTH, _ENTROPY)), _pass_chart(groups)]
    further = [] if one else [_MAJORITY_OF_SEVERAL.chart(groups)]
    for spec in _FURTHER:
        further.append(spec.chart(groups, edges, edge_legend) if spec is _FORKS else spec.chart(groups))
    return first, [chart for chart in further if not chart.is_empty]


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
