"""Line charts as inline SVG, by plain Python.  Colours and dashes are CSS classes; every text is escaped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from spinerl.report.read import Point

__all__ = [
    "BOTTOM",
    "HEIGHT",
    "LEFT",
    "PALETTE_SIZE",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Chart",
    "Line",
    "Span",
    "draw_chart",
    "draw_interval",
    "format_number",
    "nice_ticks",
    "show_thousands",
    "svg_plot",
    "x_axis",
    "y_tick",
]

PALETTE_SIZE = 8  # .s0 ... .s7 in style.css
_DASHES = 4  # .d0 ... .d3
WIDTH, HEIGHT = 480, 264  # of every plot
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 36  # its margins
_INSET = 8  # between the frame and the first and last step
_MOST_POINTS = 400  # of one line; longer ones keep the extremes of each stretch
_MARKED_POINTS = 16  # lines of at most so many points show each
_SMOOTHED_POINTS = 30  # lines of more points are drawn thin, with a moving mean over them

Span = tuple[float, float, float]
"""(step, low, high)."""


@dataclass(frozen=True)
class Line:
    """One curve: its points, and optionally a filled band or whiskers around it.

    `colour` and `dash` count from 0 and wrap around.  A line without points and with a band is only the area.
    """

    label: str
    points: tuple[Point, ...] = ()
    colour: int = 0
    dash: int = 0
    band: tuple[Span, ...] = ()
    whiskers: tuple[Span, ...] = ()
    smooth: bool = False
    shift: float = 0.0  # to the right, in drawing units, so that whiskers of several lines stand side by side

    @property
    def style(self) -> str:
        return f"s{self.colour % PALETTE_SIZE} d{self.dash % _DASHES}"

    @property
    def smoothed(self) -> bool:
        """Whether it is drawn as a thin line with a moving mean over it."""
        return self.smooth and len(_finite(self.points)) > _SMOOTHED_POINTS

    @property
    def window(self) -> int:
        """Points in the moving mean: about an eighth of them, odd."""
        return min(25, max(5, len(self.points) // 8)) | 1


@dataclass(frozen=True)
class Legend:
    """One legend entry: `style` is the CSS classes of its swatch, `kind` is "line" or "area"."""

    label: str
    style: str
    kind: str = "line"


@dataclass(frozen=True)
class Chart:
    """A chart to draw: `unit` stands over the y axis, `note` under the title, `empty` where no curve is.

    `floor` and `ceiling` are values the axis never passes; `zero` makes it start at 0.
    """

    id: str
    title: str
    unit: str
    note: str = ""
    lines: tuple[Line, ...] = ()
    legend: tuple[Legend, ...] = field(default=())
    zero: bool = False
    floor: float | None = None
    ceiling: float | None = None
    empty: str = "Nothing recorded."

    @property
    def is_empty(self) -> bool:
        return not any(_finite(line.points) or line.band for line in self.lines)


def draw_chart(chart: Chart, x_range: tuple[float, float]) -> Markup:
    """The chart as one <svg>, with a title, a description in words, axes, curves, and a hover text per step.

    An empty chart is drawn as a frame with its `empty` sentence.
    """
    if chart.is_empty:
        return Markup(
            '<svg class="plot empty" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}-t {id}-d">'
            '<title id="{id}-t">{title}</title><desc id="{id}-d">{empty}</desc>'
            '<rect class="frame" x="1" y="1" width="{fw}" height="{fh}" rx="8"/>'
            '<text class="nothing" x="{cx}" y="{cy}">{empty}</text></svg>'
        ).format(
            w=WIDTH,
            h=HEIGHT,
            fw=WIDTH - 2,
            fh=HEIGHT - 2,
            cx=WIDTH // 2,
            cy=HEIGHT // 2,
            id=chart.id,
            title=chart.title,
            empty=chart.empty,
        )
    frame = _Frame.fit(chart, x_range)
    parts = [*_axes(chart, frame)]
    for line in chart.lines:
        parts += _band(line, frame)
    for line in chart.lines:
        parts += _curve(line, frame)
    parts += _hits(chart, frame)
    return svg_plot(chart.id, chart.title, _describe(chart), parts)


def svg_plot(id: str, title: str, description: str, parts: Iterable[Markup]) -> Markup:
    """One <svg> with a title and a description in words, around its parts."""
    return Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{id}-t {id}-d">'
        '<title id="{id}-t">{title}</title><desc id="{id}-d">{desc}</desc>{body}</svg>'
    ).format(w=WIDTH, h=HEIGHT, id=id, title=title, desc=description, body=Markup("").join(parts))


def draw_interval(
    before: tuple[float, float | None, float | None] | None,
    after: tuple[float, float | None, float | None] | None,
    top: float = 1.0,
) -> Markup:
    """Two (value, low, high) on one axis from 0 to `top`: hollow for before, filled for after."""
    width, height, pad = 180, 30, 8
    parts = [
        Markup('<line class="rail" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>').format(a=pad, b=width - pad, y=height // 2)
    ]
    for name, y, item in (("before", 9, before), ("after", 21, after)):
        if item is None:
            continue
        x, low, high = (
            None if v is None else round(pad + (width - 2 * pad) * min(max(v / top, 0), 1), 1) for v in item
        )
        if low is not None and high is not None:
            parts.append(
                Markup('<line class="reach {n}" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>').format(
                    n=name, a=low, b=high, y=y
                )
            )
        parts.append(Markup('<circle class="dot {n}" cx="{x}" cy="{y}" r="4"/>').format(n=name, x=x, y=y))
    return Markup(
        '<svg class="interval" viewBox="0 0 {w} {h}" width="{w}" height="{h}" aria-hidden="true">{body}</svg>'
    ).format(w=width, h=height, body=Markup("").join(parts))


def nice_ticks(low: float, high: float, count: int = 5, integers: bool = False) -> list[float]:
    """About `count` round values (steps of 1, 2, 2.5 or 5 times a power of ten) from `low` to `high`.

    >>> nice_ticks(0, 97)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    raw = max(high - low, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    if integers:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def format_number(value: float, digits: int = 3) -> str:
    """The value with about `digits` significant digits, a true minus sign and thin spaces between thousands.

    >>> format_number(0.04217), format_number(-143.2), format_number(51234)
    ('0.0422', '−143', '51\u202f234')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{_superscript(int(exponent))}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace(",", "\u202f").replace("-", "−")


@dataclass(frozen=True)
class _Frame:
    """Where data land: x and y ranges, y ticks, and the power of ten taken out of the y axis."""

    x0: float
    x1: float
    y0: float
    y1: float
    ticks: tuple[float, ...]
    exponent: int

    @classmethod
    def fit(cls, chart: Chart, x_range: tuple[float, float]) -> _Frame:
        values = [v for line in chart.lines for _, v in _finite(line.points)]
        values += [v for line in chart.lines for span in (*line.band, *line.whiskers) for v in span[1:]]
        low, high = min(values), max(values)
        if low == high == 0:  # nothing but zeros: any height does
            high = 1.0
        if chart.zero:
            low, high = min(low, 0.0), max(high, 0.0)
        span = max(high - low, 0.05 * max(abs(low), abs(high)), 1e-9)
        low -= 0.0 if chart.zero and low == 0 else 0.06 * span
        high += 0.08 * span
        if chart.floor is not None:
            low = max(low, chart.floor)
        if chart.ceiling is not None:
            high = min(high, chart.ceiling) if high > chart.ceiling else high
        if high <= low:
            low, high = low - 0.5 * span, high + 0.5 * span
        ticks = next((t for count in (5, 7, 9) if len(t := nice_ticks(low, high, count)) >= 4), nice_ticks(low, high))
        largest = max(abs(low), abs(high))
        exponent = math.floor(math.log10(largest)) if largest < 1e-3 else 0
        x0, x1 = x_range
        if x1 <= x0:
            x0, x1 = x0 - 0.5, x0 + 0.5
        return cls(x0, x1, low, high, tuple(ticks), exponent)

    def x(self, value: float) -> float:
        width = WIDTH - LEFT - RIGHT - 2 * _INSET
        return round(LEFT + _INSET + width * (value - self.x0) / (self.x1 - self.x0), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y0) / (self.y1 - self.y0), 1)


def _axes(chart: Chart, frame: _Frame) -> Iterable[Markup]:
    scale = 10.0**-frame.exponent
    step = (frame.ticks[1] - frame.ticks[0]) * scale if len(frame.ticks) > 1 else 1.0
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < 1e-6 * step), 6)
    for tick in frame.ticks:
        label = f"{tick * scale:,.{decimals}f}".replace(",", "\u202f").replace("-", "−")
        yield y_tick(frame.y(tick), label, "grid base" if tick == 0 else "grid")
    power = f" ×10{_superscript(frame.exponent)}" if frame.exponent else ""
    steps = nice_ticks(frame.x0, frame.x1, integers=True)
    yield from x_axis([(frame.x(tick), show_thousands(tick)) for tick in steps], chart.unit + power, "step")


def y_tick(y: float, label: str, kind: str = "grid") -> Markup:
    """A line across a plot at a height, and its label to the left."""
    return Markup(
        '<line class="{k}" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/><text class="ytick" x="{tx}" y="{ty}">{t}</text>'
    ).format(k=kind, a=LEFT, b=WIDTH - RIGHT, y=y, tx=LEFT - 8, ty=round(y + 4, 1), t=label)


def x_axis(ticks: Iterable[tuple[float, str]], y_unit: str, x_unit: str) -> Iterable[Markup]:
    """The line under a plot with its ticks (x, label), and the units of both axes."""
    bottom = HEIGHT - BOTTOM
    for x, label in ticks:
        yield Markup(
            '<line class="tick" x1="{x}" x2="{x}" y1="{a}" y2="{b}"/><text class="xtick" x="{x}" y="{t}">{v}</text>'
        ).format(x=x, a=bottom, b=bottom + 4, t=bottom + 18, v=label)
    yield Markup('<line class="axis" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>').format(a=LEFT, b=WIDTH - RIGHT, y=bottom)
    yield Markup(
        '<text class="unit" x="4" y="12">{y_unit}</text><text class="unit end" x="{x}" y="{y}">{x_unit}</text>'
    ).format(y_unit=y_unit, x_unit=x_unit, x=WIDTH - RIGHT, y=HEIGHT - 4)


def show_thousands(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def _band(line: Line, frame: _Frame) -> Iterable[Markup]:
    if not line.band:
        return
    upper = [f"{frame.x(x)},{frame.y(high)}" for x, _, high in line.band]
    lower = [f"{frame.x(x)},{frame.y(low)}" for x, low, _ in reversed(line.band)]
    yield Markup('<path class="band{a} {s}" data-name="{n}" d="M{d}Z"/>').format(
        a="" if line.points else " area", s=line.style, n=line.label, d="L".join(upper + lower)
    )


def _curve(line: Line, frame: _Frame) -> Iterable[Markup]:
    for x, low, high in line.whiskers:
        px, a, b = round(frame.x(x) + line.shift, 1), frame.y(low), frame.y(high)
        yield Markup('<path class="whisker {s}" d="M{l},{a}H{r}M{x},{a}V{b}M{l},{b}H{r}"/>').format(
            s=line.style, x=px, l=round(px - 4, 1), r=round(px + 4, 1), a=a, b=b
        )
    if not line.points:
        return
    points = _thinned(line.points)
    kind = "curve raw" if line.smoothed else "curve"
    if not (line.smoothed and line.band):  # a band says what the thin line would
        yield Markup('<path class="{k} {s}" data-name="{n}" d="{d}"/>').format(
            k=kind, s=line.style, n=line.label, d=_path(points, frame, line.shift)
        )
    if line.smoothed:
        yield Markup('<path class="curve mean {s}" d="{d}"/>').format(
            s=line.style, d=_path(_thinned(_moving_mean(line.points, line.window)), frame)
        )
    elif len(line.points) <= _MARKED_POINTS:
        for x, y in _finite(line.points):
            yield Markup('<circle class="mark {s}" cx="{x}" cy="{y}" r="3.2"/>').format(
                s=line.style, x=round(frame.x(x) + line.shift, 1), y=frame.y(y)
            )


def _hits(chart: Chart, frame: _Frame) -> Iterable[Markup]:
    """Invisible columns whose title is the hover text of their step; few enough to keep the page small."""
    most = 150 if len(chart.lines) <= 6 else 60
    values: dict[float, list[str]] = {}
    for line in chart.lines:
        for x, y in _finite(line.points):
            values.setdefault(x, []).append(f"{line.label}: {format_number(y)}")
        for x, low, high in (*line.band, *line.whiskers):
            values.setdefault(x, []).append(f"{line.label}: {format_number(low)} to {format_number(high)}")
    steps = sorted(values)
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    edges = [LEFT, *((frame.x(a) + frame.x(b)) / 2 for a, b in itertools.pairwise(steps)), WIDTH - RIGHT]
    yield Markup('<g class="hits">')
    for i, step in enumerate(steps):
        yield Markup('<rect x="{x}" y="{y}" width="{w}" height="{h}" data-x="{cx}"><title>{t}</title></rect>').format(
            x=round(edges[i], 1),
            y=TOP,
            w=round(max(edges[i + 1] - edges[i], 0.1), 1),
            h=HEIGHT - TOP - BOTTOM,
            cx=frame.x(step),
            t="\n".join([f"step {step:.0f}", *values[step]]),
        )
    yield Markup("</g>")


def _describe(chart: Chart) -> str:
    """The chart in words, for those who hear it."""
    said = []
    for line in chart.lines:
        points = _finite(line.points)
        if not points:
            continue
        (x0, y0), (x1, y1) = points[0], points[-1]
        low, high = min(y for _, y in points), max(y for _, y in points)
        if len(points) == 1:
            said.append(f"{line.label}: {format_number(y0)} at step {x0:.0f}.")
        else:
            said.append(
                f"{line.label}: from {format_number(y0)} at step {x0:.0f} to {format_number(y1)} "
                f"at step {x1:.0f}, "
                f"between {format_number(low)} and {format_number(high)}."
            )
    return f"{chart.unit} by step. " + " ".join(said)


def _path(points: Sequence[Point], frame: _Frame, shift: float = 0.0) -> Markup:
    """Path data with a gap wherever a value is missing; a single point becomes a dot."""
    out: list[str] = []
    run: list[str] = []
    for x, y in (*points, (0.0, None)):
        if y is not None:
            run.append(f"{round(frame.x(x) + shift, 1)},{frame.y(y)}")
        elif run:
            out.append("M" + "L".join(run) + ("h0" if len(run) == 1 else ""))
            run = []
    return escape("".join(out))


def _thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """At most about 400 points: the smallest and the largest of each stretch, in order."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / (_MOST_POINTS // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [(y, x) for x, y in stretch if y is not None]
        kept += sorted({(x, y) for y, x in (min(finite), max(finite))}) if finite else [stretch[0]]
    return tuple(kept)


def _moving_mean(points: tuple[Point, ...], window: int) -> tuple[Point, ...]:
    """Centred mean over `window` points, fewer at the ends; missing values are skipped."""
    half = window // 2
    result: list[Point] = []
    for i, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, i - half) : i + half + 1] if y is not None]
        result.append((x, sum(near) / len(near) if near else None))
    return tuple(result)


def _finite(points: Iterable[Point]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None]


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
