"""Histograms over nats as inline SVG, by plain Python: outlines of several steps over each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spinerl.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Legend,
    format_number,
    nice_ticks,
    svg_plot,
    x_axis,
    y_tick,
)

__all__ = ["Histogram", "Outline", "draw_histogram"]

_FEWEST_BINS = 10  # the axis is at least so long
_MOST_DECADES = 5  # of a logarithmic axis under 100 %


@dataclass(frozen=True)
class Outline:
    """One series: its share of each bin in percent; `part` is the share that is filled under the outline.

    `style` is the CSS classes of its colour and dash.  Without a part all of it is filled.
    """

    label: str
    style: str
    shares: tuple[float, ...]
    part: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Histogram:
    """A histogram to draw: bin i reaches from edges[i] to edges[i + 1] (nats), the last one has no upper end.

    `unit` stands over the y axis, `note` under the title; `part` names the filled part in hover texts.
    """

    id: str
    title: str
    unit: str
    edges: tuple[float, ...]
    outlines: tuple[Outline, ...]
    note: str = ""
    part: str = ""
    legend: tuple[Legend, ...] = ()
    logarithmic: bool = False

    @property
    def is_empty(self) -> bool:
        return not any(share > 0 for outline in self.outlines for share in outline.shares)

    @property
    def num_shown(self) -> int:
        """Bins up to the last that holds anything, and a few at least."""
        used = (i + 1 for outline in self.outlines for i, share in enumerate(outline.shares) if share > 0)
        return min(len(self.edges), max(_FEWEST_BINS, *used, 0))


def draw_histogram(chart: Histogram) -> Markup:
    """The histogram as one <svg>, with a title, a description in words, axes, outlines and a hover text per bin."""
    frame = _Frame.fit(chart)
    parts = [*_axes(chart, frame)]
    for outline in chart.outlines:
        parts.append(_area(outline, frame))
    for outline in chart.outlines:
        parts.append(_steps(outline, frame))
    parts += _hits(chart, frame)
    return svg_plot(chart.id, chart.title, _describe(chart), parts)


@dataclass(frozen=True)
class _Frame:
    """Where data land: the shown bins' edges, upper end included, and the y axis in percent."""

    edges: tuple[float, ...]
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def fit(cls, chart: Histogram) -> _Frame:
        count = chart.num_shown
        edges = chart.edges[: count + 1]
        if len(edges) == count:  # the open bin is drawn as wide as the one before it
            edges = (*edges, edges[-1] + (edges[-1] - edges[-2] if count > 1 else 1.0))
        shares = [share for o in chart.outlines for share in (*o.shares, *(o.part or ())) if share > 0] or [100.0]
        if not chart.logarithmic:
            return cls(edges, 0.0, 1.08 * max(shares), False)
        lowest = max(min(1.0, 0.6 * min(shares)), 10.0 ** (2 - _MOST_DECADES))  # the smallest share stands out
        return cls(edges, lowest, 100.0, True)

    @property
    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return nice_ticks(self.low, self.high)
        return [10.0**power for power in range(math.ceil(math.log10(self.low) - 1e-9), 3)]

    def x(self, value: float) -> float:
        width = WIDTH - LEFT - RIGHT
        return round(LEFT + width * (value - self.edges[0]) / (self.edges[-1] - self.edges[0]), 1)

    def y(self, value: float) -> float:
        if self.logarithmic:
            top, bottom = math.log10(self.high), math.log10(self.low)
            up = (math.log10(max(value, self.low)) - bottom) / (top - bottom)
        else:
            up = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up, 1)


def _axes(chart: Histogram, frame: _Frame) -> Iterable[Markup]:
    for tick in frame.ticks:
        yield y_tick(frame.y(tick), f"{tick:g}")
    ticks = nice_ticks(frame.edges[0], frame.edges[-1], 6)
    yield from x_axis([(frame.x(tick), f"{tick:g}") for tick in ticks], chart.unit, "entropy, nats")


def _area(outline: Outline, frame: _Frame) -> Markup:
    filled = outline.shares if outline.part is None else outline.part
    return Markup('<path class="band {s}" d="{d}Z"/>').format(s=outline.style, d=_path(filled, frame))


def _steps(outline: Outline, frame: _Frame) -> Markup:
    return Markup('<path class="curve {s}" data-name="{n}" d="{d}"/>').format(
        s=outline.style, n=outline.label, d=_path(outline.shares, frame)
    )


def _path(shares: Sequence[float], frame: _Frame) -> str:
    """A line of steps over the shown bins that begins and ends on the axis."""
    bottom = frame.y(frame.low)
    tops = "".join(f"V{frame.y(share)}H{frame.x(right)}" for share, right in zip(shares, frame.edges[1:], strict=False))
    return f"M{frame.x(frame.edges[0])},{bottom}{tops}V{bottom}"


def _hits(chart: Histogram, frame: _Frame) -> Iterable[Markup]:
    """Invisible columns whose title is the hover text of their bin."""
    yield Markup('<g class="hits">')
    for i in range(chart.num_shown):
        words = [_range(chart.edges, i)]
        for outline in chart.outlines:
            part = ""
            if outline.part is not None:
                part = f", {chart.part} {format_number(outline.part[i])}\u00a0%"
            words.append(f"{outline.label}: {format_number(outline.shares[i])}\u00a0%{part}")
        left, right = frame.x(frame.edges[i]), frame.x(frame.edges[i + 1])
        yield Markup('<rect x="{x}" y="{y}" width="{w}" height="{h}"><title>{t}</title></rect>').format(
            x=left, y=TOP, w=round(right - left, 1), h=HEIGHT - TOP - BOTTOM, t="\n".join(words)
        )
    yield Markup("</g>")


def _range(edges: Sequence[float], i: int) -> str:
    return f"{edges[i]:g} to {edges[i + 1]:g} nats" if i + 1 < len(edges) else f"{edges[i]:g} nats and more"


def _describe(chart: Histogram) -> str:
    """The histogram in words, for those who hear it."""
    said = []
    for outline in chart.outlines:
        i = max(range(len(outline.shares)), key=outline.shares.__getitem__)
        said.append(
            f"{outline.label}: most often {_range(chart.edges, i)} ({format_number(outline.shares[i])}\u00a0%)."
        )
    return f"{chart.unit} by entropy in nats. " + " ".join(said)
