"""The pages in a browser: by keyboard, by screen reader, without scripts, on paper, and live while a run goes on."""

from __future__ import annotations

import csv
import json
import threading

import pytest
from playwright.sync_api import expect

from spinerl.config import load_config
from spinerl.report import write_report
from spinerl.train import adapt
from tests.browser import chromium, findings, needs_browser, opened, served
from tests.e2e.test_guarded_runs import Quiet
from tests.report.synthetic import write_run
from tests.report.test_comparison_page import write_page

pytestmark = needs_browser

STEPS = 8
POINTS = "#chart-reward circle.mark.s0"


class Gated(Quiet):
    """Holds a run after step 3 until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def step(self, metrics, _last):
        if metrics["step"] == 3:
            assert self.gate.wait(120)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory, browser):
    """A real run, watched from before it began: its folder, and two screenshots of its first chart on the way."""
    folder = tmp_path_factory.mktemp("live") / "run"
    keys = [
        f"run={folder}", f"steps={STEPS}", "data.max_questions=4", "questions_per_step=2", "group_size=4",
        "rollout.max_new_tokens=32", "answer.truncated=count", "eval.samples=0", "eval.every=4", "guard=off",
        "log.sample_every=1", "checkpoint.every=0",
    ]  # fmt: skip
    observer, shots = Gated(), []
    thread = threading.Thread(target=adapt, args=(load_config(overrides=keys), observer))
    try:
        with served(folder) as address, opened(browser, address) as page:
            assert "there is no such folder" in page.inner_text("main")
            thread.start()
            try:
                page.wait_for_selector("#chart-reward")
                expect(page.locator(POINTS)).to_have_count(3, timeout=60_000)
                page.locator(".response >> nth=2").locator("summary").click()
                opened_key = page.locator(".response >> nth=2").get_attribute("data-key")
                page.locator("#chart-reward").scroll_into_view_if_needed()
                assert page.evaluate("scrollY") > 100
                before = page.evaluate("document.querySelector('#chart-reward').getBoundingClientRect().top")
                shots.append(page.locator("#chart-reward").screenshot())
            finally:
                observer.gate.set()
            expect(page.locator(POINTS)).to_have_count(STEPS, timeout=60_000)
            shots.append(page.locator("#chart-reward").screenshot())
            after = page.evaluate("document.querySelector('#chart-reward').getBoundingClientRect().top")
            assert abs(before - after) < 2, "what the reader looks at stays where it is"
            assert page.get_attribute(f'details[data-key="{opened_key}"]', "open") == ""
            thread.join(120)
            assert findings(page) == []
    finally:
        observer.gate.set()
        if thread.is_alive():
            thread.join(120)
    return folder, shots


def test_a_live_page_follows_a_run(run):
    _, (first, second) = run
    assert first != second
    assert first.startswith(b"\x89PNG")


def test_no_finding_is_serious(run, browser, tmp_path):
    """Light and dark: a real run, several runs side by side, and a comparison."""
    several = [
        write_run(tmp_path / "runs" / f"{m}-{s}", method=m, seed=s, steps=10, every=10)
        for m in ("spine", "ttrl")
        for s in (0, 1)
    ]
    for page in (
        write_report([run[0]], tmp_path / "one.html"),
        write_report(several, tmp_path / "several.html"),
        write_page(tmp_path),
    ):
        with opened(browser, page.as_uri()) as tab:
            assert findings(tab) == [], page.name
    with served(tmp_path / "nothing") as address, opened(browser, address) as tab:
        assert findings(tab) == []
        tab.evaluate("document.querySelector('h1').style.opacity = 0.2")
        assert [one.split(": ")[:2] for one in findings(tab)] == [[s, "color-contrast"] for s in ("light", "dark")]


def test_the_keyboard_reaches_steps_and_values(run, browser, tmp_path):
    page = write_report([run[0]], tmp_path / "report.html")
    with opened(browser, page.as_uri()) as tab:
        box = tab.locator(".moments").first
        steps = box.locator("summary").filter(has_text="Step").all_text_contents()
        assert len(steps) > 1
        slider = box.locator("input")
        assert slider.get_attribute("aria-valuetext") == steps[-1]
        assert box.locator(".moment:visible").count() == 1
        slider.focus()
        tab.keyboard.press("Home")
        assert slider.get_attribute("aria-valuetext") == steps[0]
        assert steps[0] in box.locator(".moment:visible .card header").inner_text()
        tab.keyboard.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == steps[1]
        tab.locator("#chart-reward svg.plot").focus()
        tab.keyboard.press("Home")
        row = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[0])
        assert tab.inner_text("#tip").startswith(f"step 1\nreward: {row['reward/mean']:.3f}"[:14])
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text("#tip").startswith("step 2\n")
        tab.keyboard.press("Escape")
        assert tab.locator("#tip").is_hidden()


def test_a_charts_data_can_be_saved_without_a_network(run, browser, tmp_path):
    page = write_report([run[0]], tmp_path / "report.html")
    with opened(browser, page.as_uri(), offline=True) as tab:
        with tab.expect_download() as saving:
            tab.click("#chart-length .data a")
        assert saving.value.suggested_filename == "spinerl-length.csv"
        heads, *rows = csv.reader(saving.value.path().read_text().splitlines())
    assert heads == ["step", "response length"]
    metrics = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert [int(step) for step, _ in rows] == [row["step"] for row in metrics]
    assert [float(value) for _, value in rows] == pytest.approx(
        [row["rollout/response_length"] for row in metrics], 1e-5
    )


def test_without_scripts_all_is_there(run, browser, tmp_path):
    page = write_report([run[0]], tmp_path / "report.html")
    with opened(browser, page.as_uri(), java_script_enabled=False) as tab:
        parts = tab.locator(".moments > details")
        assert parts.count() > 1
        assert parts.first.locator("summary").first.is_visible()
        assert tab.locator(".moments input").count() == 0
    with served(run[0]) as address, opened(browser, address, java_script_enabled=False) as tab:
        assert '<meta http-equiv="refresh" content="10">' in tab.content()
        assert tab.locator(POINTS).count() == STEPS


def test_on_paper_nothing_is_cut(run, browser, tmp_path):
    """A4, with the margins of the style: 186 mm upright, 273 mm across."""
    for page, width in ((write_report([run[0]], tmp_path / "report.html"), 703), (write_page(tmp_path), 1032)):
        with opened(browser, page.as_uri(), color_scheme="dark", viewport={"width": width, "height": 900}) as tab:
            tab.emulate_media(media="print")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            wide = (
                "[...document.querySelectorAll('table, svg, .card')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
            )
            assert tab.evaluate(f"{wide}.map((e) => e.outerHTML.slice(0, 200))") == []
            styles = "(name, key) => [...document.querySelectorAll(name)].map((e) => getComputedStyle(e)[key])"
            assert set(tab.evaluate(f"({styles})('.chart', 'breakInside')")) == {"avoid"}
            assert tab.evaluate(f"({styles})('body', 'color')") == ["rgb(29, 35, 39)"], "dark ink, whatever the screen"
            assert set(tab.evaluate(f"({styles})('mark', 'printColorAdjust')")) <= {"exact"}
            assert tab.pdf().startswith(b"%PDF")
