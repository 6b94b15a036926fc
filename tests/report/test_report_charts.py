"""Charts: points land where the axes say, missing values are gaps, extremes survive thinning."""

from __future__ import annotations

import math
import re

import pytest

from spinerl.report.charts import Chart, Line, draw_chart, draw_interval, format_number, nice_ticks


def chart(*lines: Line, **fields) -> Chart:
    return Chart("c", "Title", "tokens", lines=lines, **fields)


def vertices(svg: str, name: str) -> list[tuple[float, float]]:
    match = re.search(rf'data-name="{name}" d="([^"]*)"', svg)
    assert match is not None
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", match[1])]


def test_points_are_drawn_to_scale():
    svg = draw_chart(chart(Line("a", ((0, 0.0), (5, 5.0), (10, 20.0))), zero=True), (0, 10))
    (x0, y0), (x1, y1), (x2, y2) = vertices(svg, "a")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.5)  # up is smaller y; 20 is four times as high as 5
    ticks = {float(t): float(y) - 4 for y, t in re.findall(r'class="ytick" x="44" y="([\d.]+)">([\d.]+)<', svg)}
    assert ticks[20.0] == pytest.approx(y2, abs=0.2)  # the curve meets its own tick


def test_missing_values_are_gaps_and_a_lone_point_is_a_dot():
    svg = draw_chart(chart(Line("a", ((1, 1.0), (2, 2.0), (3, None), (4, 3.0), (5, None)))), (1, 5))
    data = re.search(r'data-name="a" d="([^"]*)"', svg)
    assert data is not None
    assert data[1].count("M") == 2
    assert data[1].endswith("h0")


def test_a_chart_without_points_says_so():
    svg = draw_chart(chart(Line("a", ((1, None),)), empty="Nothing here."), (0, 1))
    assert svg.count("Nothing here.") == 2  # drawn, and described
    assert "<path" not in svg


def test_one_step_and_constant_values_have_a_readable_axis():
    for value in (0.0, 1.0, -3.0, 1e-9, 1e9):
        svg = draw_chart(chart(Line("a", ((4, value),)), floor=None), (4, 4))
        assert svg.count('class="ytick"') >= 2
        assert "nan" not in svg
        assert "inf" not in svg


def test_tiny_values_take_a_power_of_ten_out_of_the_axis():
    svg = draw_chart(chart(Line("a", ((1, 2e-6), (2, 5e-6)))), (1, 2))
    assert "tokens ×10⁻⁶" in svg


def test_long_series_are_thinned_and_keep_their_extremes():
    points = tuple((float(i), 100.0 if i == 3777 else math.sin(i / 50)) for i in range(10_000))
    svg = draw_chart(chart(Line("a", points)), (0, 10_000))
    drawn = vertices(svg, "a")
    assert len(drawn) <= 402
    assert min(y for _, y in drawn) < 60  # the spike is still there
    assert len(svg) < 60_000


def test_long_noisy_series_get_a_moving_mean():
    line = Line("a", tuple((float(i), float(i % 2)) for i in range(64)), smooth=True)
    assert line.window == 9  # 64 // 8 = 8, made odd
    svg = draw_chart(chart(line), (0, 64))
    assert svg.count('class="curve mean') == 1
    assert svg.count('class="curve raw') == 1
    assert "curve mean" not in draw_chart(chart(Line("a", line.points[:20], smooth=True)), (0, 64))


def test_hover_texts_hold_the_values():
    svg = draw_chart(chart(Line("a", ((1, 0.25), (2, None)), whiskers=((1, 0.2, 0.3),))), (1, 2))
    assert "<title>step 1\na: 0.250\na: 0.200 to 0.300</title>" in svg
    assert "step 2" not in svg.split("hits")[1]


def test_labels_are_escaped():
    svg = draw_chart(chart(Line('<b>"x"&', ((1, 0.25), (2, 0.5)))), (1, 2))
    assert "<b>" not in svg
    assert "&lt;b&gt;&#34;x&#34;&amp;" in svg


def test_intervals_are_drawn_within_the_axis():
    svg = draw_interval((0.4, 0.3, 0.5), (1.2, None, None))
    assert svg.count("<circle") == 2
    assert svg.count('class="reach') == 1
    assert all(8 <= float(x) <= 172 for x in re.findall(r'cx="([\d.]+)"', svg))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.41, 0.63), (-0.004, 0.021), (0, 12_345), (1e-7, 3e-7), (5, 5.0001)]
)
def test_ticks_are_round_and_inside(low: float, high: float):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)


def test_numbers():
    assert [format_number(v) for v in (0, 0.04217, 1.0, 143.2, -143.2, 51234, 2.5e-6)] == [
        "0",
        "0.0422",
        "1.00",
        "143",
        "−143",
        "51\u202f234",
        "2.5·10⁻⁶",
    ]
