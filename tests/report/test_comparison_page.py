"""The page of a comparison: complete in itself, every row on it, nothing loaded, hostile names shown as text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spinerl.comparison.page import write_page as comparison_page
from spinerl.comparison.plan import plan
from spinerl.report import read_run
from spinerl.report.comparison import PageCell, PageLine, PageSection, Range, draw_range, dynamics, write_comparison
from tests.report.synthetic import write_run


def line(name: str, style: str = "", kind: str = "adapted", mark: str = "", warn: bool = False) -> PageLine:
    cells = (PageCell("61.0", "[55.0, 67.0]"), PageCell("+3.1", "[+1.0, +5.2]", "rose"), PageCell("–"))
    return PageLine(name, mark, "", warn, style, kind, Range(0.61, 0.55, 0.67, (0.6, 0.62), 0.5), cells)


def write_page(folder: Path) -> Path:
    """A comparison of two methods with two seeds each, and rows without an update."""
    rows = {
        name: [read_run(write_run(folder / f"{name}-{s}", method=name, seed=s, steps=20, every=5)) for s in (0, 1)]
        for name in ("ttrl", "spine")
    }
    curves = dynamics(0, rows, 0.41)
    heads = (("Pass@1", "%"), ("against none", "points"), ("time", "s"))
    lines = (
        line("none", kind="none", mark="no update"), line("ttrl", "s0"), line("spine", "s1"),
        line("gold<b>", "s2", mark="USES GOLD", warn=True), line("majority of 16", kind="no update", mark="no update"),
    )  # fmt: skip
    said = (("", "", "NONE beats voting."), ("spine", "s1", "61.0 % at the end."))
    sections = [
        PageSection("All 2 data sets together", said, heads, lines, None),
        PageSection("tiny/shift-a", said, heads, lines, curves),
    ]
    return write_comparison(folder / "c.html", "ttrl & spine", [("Seeds", "0, 1")], ["FAILED: x"], sections)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write_page(tmp_path_factory.mktemp("page")).read_text()


def test_every_row_and_section_is_there(page):
    for text in ("none", "ttrl", "spine", "majority of 16", "All 2 data sets together", "tiny/shift-a", "no update"):
        assert text in page
    assert page.count('<tr class="ruled">') == 4, "a rule under `none` and above the rows without an update, twice"
    assert page.count("<table") == 2
    assert "ttrl &amp; spine" in page
    assert '<li class="warning">FAILED: x</li>' in page


def planned_page(tmp_path, methods) -> str:
    planned = plan([f"methods={methods}", "data=tiny/shift-a", f"out={tmp_path}"])
    return comparison_page(tmp_path / "c.html", planned, [], {}, []).read_text()


def test_every_method_that_reads_gold_answers_says_so(tmp_path):
    text = planned_page(tmp_path, "ttrl,bitta,grpo-gold")
    assert "<h1>ttrl, bitta (uses gold) and grpo-gold (uses gold) on tiny/shift-a" in text


def test_a_title_does_not_name_a_field(tmp_path):
    text = planned_page(tmp_path, "none,ttrl,spine,lmsi,roirl,empo,evol,scrl,dare,compass")
    assert "<h1>9 methods on tiny/shift-a" in text


def test_nothing_is_loaded_and_names_are_text(page):
    assert "gold&lt;b&gt;" in page
    assert not re.search(r'(src|href)\s*=\s*"(?!data:text/csv)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("Content-Security-Policy") == 1


def test_the_dynamics_are_those_of_the_paper(page):
    for title in ("Greedy Pass@1", "Majority fraction", "Majority-vote reward", "Response length", "Mean token entropy",
                  "Pseudo-labels right"):  # fmt: skip
        assert f"<h3>{title}" in page
    assert page.count("no adaptation: 41") >= 1, "hover text and description name the unadapted model"
    assert len(re.findall(r'id="chart-[a-z0-9]+-0"', page)) == 6
    assert page.count('<path class="band') >= 10, "a band over seeds for both rows"
    assert len(set(re.findall(r'<svg class="plot" [^>]*aria-labelledby="([^"]+)"', page))) == 6


def test_a_row_keeps_its_colour_where_another_is_missing(tmp_path):
    runs = [read_run(write_run(tmp_path / f"s{s}", method="spine", seed=s, steps=6, every=3)) for s in (0, 1)]
    curves = dynamics(3, {"ttrl": [], "spine": runs}, None)
    assert curves is not None
    assert curves.charts[0].lines[0].colour == 1
    assert dynamics(0, {"ttrl": []}, None) is None


def test_a_range_stays_on_its_axis():
    svg = str(draw_range(Range(1.0, 0.9, 1.2, (1.0,), -0.5), "s1"))
    numbers = [float(x) for x in re.findall(r'(?:cx|x1|x2)="([-\d.]+)"', svg)]
    assert numbers
    assert all(8 <= x <= 172 for x in numbers)
    assert draw_range(None, "") == ""
