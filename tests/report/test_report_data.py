"""The CSV behind each chart: the run's own numbers, in a link that is text only."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

from spinerl.report import write_report
from spinerl.report.charts import Chart, Line
from spinerl.report.data import data_of_chart
from spinerl.report.histogram import Histogram, Outline
from tests.report.synthetic import write_run


def rows_of(uri: str) -> list[list[str]]:
    assert re.fullmatch("data:text/csv;charset=utf-8,[A-Za-z0-9%,._~-]*", uri)
    return list(csv.reader(unquote(uri).partition(",")[2].splitlines()))


def chart(*lines: Line) -> Chart:
    return Chart("x", "X", "nats", lines=lines)


def test_curves_with_gaps_bands_and_whiskers():
    first = Line("a", ((1.0, 0.5), (2.0, None), (4.0, -0.123456789)))
    second = Line("b", ((2.0, 7.0),), whiskers=((2.0, 6.0, 8.5),))
    band = Line("c", band=((1.0, 0.0, 1.0),))
    data = data_of_chart(chart(first, second, band))
    assert rows_of(data.uri) == [
        ["step", "a", "b", "b, low", "b, high", "c, low", "c, high"],
        ["1", "0.5", "", "", "", "0", "1"],
        ["2", "", "7", "6", "8.5", "", ""],
        ["4", "-0.123457", "", "", "", "", ""],
    ]
    assert data.note == ""


def test_names_are_no_formulas():
    names = ["=1+1", "@x", "-a,b", 'say "x"\nand\u202e', "plain"]
    heads = rows_of(data_of_chart(chart(*(Line(name, ((1.0, 1.0),)) for name in names))).uri)
    assert "\n".join(heads[0] + heads[1]).startswith("step\n'=1+1\n'@x\n'-a,b\nsay \"x\"")
    assert "\u202e" not in str(heads)


def test_long_curves_leave_steps_out_and_say_so():
    data = data_of_chart(chart(*(Line(str(i), tuple((float(x), x / 7) for x in range(1, 10_001))) for i in range(3))))
    rows = rows_of(data.uri)
    assert 1000 < len(rows) <= 2001
    assert rows[-1][0] == "10000"
    assert data.note == "every 5 of 10000 steps; metrics.jsonl has them all"
    assert len(data.uri) < 100_000


def test_histograms_by_bin():
    outlines = (Outline("before", "s0", (75.0, 25.0), (5.0, 20.0)), Outline("after", "s1", (100.0, 0.0), (10.0, 0.0)))
    found = rows_of(data_of_chart(Histogram("h", "H", "% of tokens", (0.0, 0.5), outlines, part="forks")).uri)
    assert found == [
        ["from nats", "to nats", "before, % of tokens", "before, forks", "after, % of tokens", "after, forks"],
        ["0", "0.5", "75", "5", "100", "10"],
        ["0.5", "", "25", "20", "0", "0"],
    ]


def links(page: str) -> dict[str, str]:
    return dict(re.findall('download="spinerl-([a-z0-9-]+)[.]csv" href="([^"]*)"', page))


def test_every_chart_that_shows_something_has_its_link(tmp_path: Path):
    run = write_run(tmp_path / "run", steps=9, every=3)
    labels = [(1, "q", "7", True), (3, "q", "7", True), (5, "q", "=8", False), (2, "r", None, None)]
    rows = [
        dict(zip(("step", "id", "label", "correct"), one, strict=True)) for one in sorted(labels, key=lambda r: r[0])
    ]
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report([run], tmp_path / "r.html").read_text()
    found = {name: rows_of(unescape(uri)) for name, uri in links(page).items()}
    assert set(found) == set(re.findall('<figure class="chart" id="chart-([^"]*)"', page))
    assert {"reward", "pass1", "token-entropies-0", "label-history-0"} <= set(found)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row[1]) for row in found["reward"][1:]] == pytest.approx(
        [m["reward/mean"] for m in metrics], rel=1e-5
    )
    assert found["label-history-0"] == [
        ["question", "from step", "to step", "label", "state"],
        ["q", "1", "4", "7", "right"],
        ["q", "5", "5", "'=8", "wrong"],
        ["r", "2", "5", "", "no label"],
    ]
