"""Entropies of tokens and fork words: drawn to scale, every token legible, absent where nothing was logged."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from spinerl.report import read_run
from spinerl.report.histogram import Histogram, Outline, draw_histogram
from spinerl.report.text import show_token
from tests.report.synthetic import write_run
from tests.report.test_report_page import HOSTILE, report


def written(folder: Path, *rows: dict) -> Path:
    (folder / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(step: int, tokens: list[int], forks: list[int], **words: tuple[int, int, float]) -> dict:
    listed = [
        {"token": token, "id": i, "seen": seen, "forks": times, "entropy": entropy}
        for i, (token, (seen, times, entropy)) in enumerate(words.items())
    ]
    return {"step": step, "edges": [0.0, 0.5, 1.0], "tokens": tokens, "forks": forks, "words": listed}


def test_first_and_last_logged_step_are_shown(tmp_path: Path):
    folder = written(
        write_run(tmp_path / "run", steps=3),
        row(1, [70, 20, 10], [0, 10, 10], wait=(8, 8, 2.1), so=(20, 2, 0.3)),
        row(2, [1, 1, 1], [0, 0, 1], never=(1, 1, 1.0)),
        row(3, [90, 10, 0], [5, 10, 0], wait=(4, 3, 1.0)),
    )
    page = report(tmp_path, folder)
    assert "Before, step 1: of 100 tokens, 70.0 % have less than 0.5 nats and 20.0 % are forks." in page.words
    assert "After, step 3: of 100 tokens, 90.0 % have less than 0.5 nats and 15.0 % are forks." in page.words
    tokens, forks = page.chart("chart-token-entropies-0"), page.chart("chart-fork-entropies-0")
    assert (
        "0 to 0.5 nats\nbefore, step 1: 70.0\u00a0%, forks 0\u00a0%\nafter, step 3: 90.0\u00a0%, forks 5.00" in tokens
    )
    assert "1 nats and more\nbefore, step 1: 50.0\u00a0%\nafter, step 3: 0\u00a0%" in forks
    assert "The last bin holds all from 1 nats on." in page.words
    words = re.findall(r'<mark class="(f\d) z(\d+)" title="([^"]*)"><bdi>(\w+)<', page.source)
    assert [(style, word) for style, _, _, word in words] == [("f5", "wait"), ("f0", "so"), ("f2", "wait")]
    assert words[0][2] == "token 0, a fork 8 of the 8 times it was seen, mean entropy 2.10 nats"
    # wait is 8 of 20 forks, then 3 of 15: half the share, so 1 / sqrt 2 of the size over the smallest (8 to 26)
    assert [int(size) for _, size, _, _ in words] == [round(8 + 18 * share**0.5) for share in (1, 0.25, 0.5)]
    assert "2 different tokens, 50.0 % of the step's forks" in page.words
    assert "never" not in page.words.split("Token entropies")[1].split("Example responses")[0]


def test_followers_have_their_own_scale(tmp_path: Path):
    one = row(1, [80, 20], [0, 20], wait=(8, 8, 2.1))
    one |= {"edges": [0.0, 0.5], "followers": [{"token": " is", "id": 7, "seen": 41, "followers": 40, "entropy": 0.04}]}
    page = report(tmp_path, written(write_run(tmp_path / "run", steps=3), one))
    words = re.findall(r'<mark class="(f\d) z(\d+)" title="([^"]*)">(?:<i>␣</i>)?<bdi>(\w+)<', page.source)
    assert words == [
        ("f5", "26", "token 0, a fork 8 of the 8 times it was seen, mean entropy 2.10 nats", "wait"),
        ("f0", "26", "token 7, a follower 40 of the 41 times it was seen, mean entropy 0.04 nats", "is"),
    ]
    assert "1 different tokens, 50.0 % of the step's followers" in page.words


def test_runs_without_the_stream_lack_the_section(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    assert "Token entropies and fork words" in report(tmp_path, folder).words
    (folder / "tokens.jsonl").unlink()
    assert "Token entropies and fork words" not in report(tmp_path, folder).words


def test_one_logged_step_has_no_before(tmp_path: Path):
    page = report(
        tmp_path, written(write_run(tmp_path / "run", steps=1), row(1, [7, 2, 1], [0, 1, 1], wait=(2, 2, 1.0)))
    )
    assert "Step 1: of 10 tokens" in page.words
    assert "before, step" not in page.words.lower()


def test_where_all_tokens_are_forks_they_are_not_marked(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", method="ttrl", steps=6))
    assert "the update acts on all of them" in page.words
    assert "chart-token-entropies-0" in page.ids
    assert "chart-fork-entropies-0" not in page.ids


def test_several_runs_each_have_their_own(tmp_path: Path):
    page = report(tmp_path, *[write_run(tmp_path / name, steps=6, method=name) for name in ("spine", "ttrl")])
    assert {"chart-token-entropies-0", "chart-token-entropies-1"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_hostile_tokens_are_escaped_and_nothing_hides(tmp_path: Path):
    names = [HOSTILE, '"><img src=x onerror=alert(1)>', "\u202eabc", "\n\n", "  ", "\t", "\xa0", "", "x" * 300]
    words = dict.fromkeys(names, (2, 1, 1.0))
    page = report(tmp_path, written(write_run(tmp_path / "run", steps=1), row(1, [7, 2, 1], [0, 1, 9], **words)))
    assert page.source.count("<script") == 1
    assert "<img" not in page.source
    shown = re.findall(r"<bdi>([^<]*)</bdi></mark>", page.source)
    assert shown[2:] == ["⟨U+202E⟩abc", "↵↵", "␣␣", "⇥", "⟨U+00A0⟩", "⟨nothing⟩", "x" * 24 + "…"]
    assert shown[0].startswith("&lt;/span&gt;&lt;script&gt;")


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" wait", "␣wait"), ("So ", "So␣"), ("\r\n", "⟨U+000D⟩↵"), ("\u3000", "⟨U+3000⟩"), ("<|im_end|>", "<|im_end|>")],
)
def test_single_tokens_are_legible(text: str, shown: str):
    assert show_token(text) == shown


def test_odd_rows_are_left_out_or_read_as_far_as_they_go(tmp_path: Path):
    good = row(4, [3, 2, 1], [0, 0, 1], wait=(2, 1, 0.5))
    folder = written(
        write_run(tmp_path / "run", steps=1),
        {"step": 1},
        {**good, "step": 2, "forks": [1]},
        {**good, "step": 3, "edges": [0, 0, 1]},
        {**good, "words": [3, {"token": None, "id": "x", "seen": "many", "entropy": float("nan")}]},
        {**good, "step": 5, "tokens": [0, 0, 0]},
        {**good, "step": 6, "tokens": [-1, 2, 3]},
        {**good, "step": 7, "words": None},
        {**good, "step": 8, "edges": [0.0, 1.0, 2.0]},
    )
    found = read_run(folder).token_counts
    assert [counts.step for counts in found] == [4, 7, 8]
    assert [dataclasses.astuple(word) for word in found[0].words] == [("None", None, 0, 0, None)]
    assert found[1].words == ()
    # the bins of step 8 are others: there is nothing to compare it with
    assert "Step 8: of 6 tokens" in report(tmp_path, folder).words


def histogram(*shares: float, logarithmic: bool = False, edges: tuple[float, ...] = (0.0, 1.0, 2.0)) -> Histogram:
    return Histogram("h", "Title", "%", edges, (Outline("a", "s0 d0", shares),), logarithmic=logarithmic)


def heights(svg: str) -> list[float]:
    path = re.search(r'class="curve[^>]* d="([^"]*)"', svg)
    assert path is not None
    return [float(y) for y in re.findall(r"V([\d.]+)", path[1])]


def test_bins_are_drawn_to_scale():
    tall, half, nothing, bottom = heights(draw_histogram(histogram(60.0, 30.0, 0.0)))
    assert nothing == bottom
    assert bottom - tall == pytest.approx(2 * (bottom - half), abs=0.2)
    svg = draw_histogram(histogram(10.0, 1.0, 0.0, logarithmic=True))
    ten, one, nothing, bottom = heights(svg)
    assert nothing == bottom > one  # the smallest share is still seen
    ticks = {float(t): float(y) - 4 for y, t in re.findall(r'class="ytick" x="44" y="([\d.]+)">([\d.]+)<', svg)}
    assert ticks == pytest.approx({100.0: ten - (one - ten), 10.0: ten, 1.0: one}, abs=0.2)


def test_empty_bins_at_the_end_are_cut_and_the_open_bin_is_drawn():
    edges = tuple(i / 10 for i in range(41))
    assert histogram(*[1.0] * 12, *[0.0] * 29, edges=edges).num_shown == 12
    assert histogram(1.0, *[0.0] * 40, edges=edges).num_shown == 10
    svg = draw_histogram(histogram(*[0.0] * 40, 1.0, edges=edges))
    assert svg.count("<rect") == 41
    assert "4 nats and more\na: 1.00" in svg
    assert draw_histogram(histogram(100.0, edges=(0.0,))).count("<rect") == 1


def test_a_histogram_of_nothing_has_axes():
    for logarithmic in (False, True):
        svg = draw_histogram(histogram(0.0, 0.0, 0.0, logarithmic=logarithmic))
        assert "nan" not in svg
        assert svg.count('class="ytick"') >= 2
