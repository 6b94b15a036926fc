"""Hostile text in every field of a run: in a browser no script of it runs, and nothing is asked for."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from pathlib import Path

import pytest
import yaml

from spinerl.report import read_run, write_report
from spinerl.report.comparison import PageCell, PageLine, PageSection, Range, dynamics, write_comparison
from tests.browser import chromium, needs_browser, served
from tests.report.synthetic import write_run

# Each marks the page if it runs, or asks the server.
RUN = "document.documentElement.setAttribute('data-ran','1')"
PAYLOADS = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</title></style></textarea><script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"' onmouseover='{RUN}' autofocus onfocus='{RUN}' x='",
    '"><img src="SERVER/img"><link rel=stylesheet href="SERVER/css"><iframe src="SERVER/frame"></iframe>',
    f'<svg onload="{RUN}"><script>{RUN}</script><image href="SERVER/svg"/></svg>',
    f'<svg><style><img src=x onerror="{RUN}"></style></svg>]]>',
    f'<a href="javascript:{RUN}">x</a> javascript:{RUN}',
    '<meta http-equiv=refresh content="0;url=SERVER/refresh"><base href="SERVER/">',
    '<object data="SERVER/object"></object><embed src="SERVER/embed"><video src="SERVER/video"></video>',
    "<style>@import url(SERVER/import); * { background: url(SERVER/background) }</style>",
    'x" style="background:url(SERVER/style)" y="',
    f"]]><!--><script>{RUN}</script>-->",
    f"\u2028\u2029{{{{ {RUN} }}}}${{{RUN}}}",
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # pyright: ignore[reportAttributeAccessIssue]
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with _Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def shown(browser, page: Path) -> str:
    """The page as a browser has it after all that runs in it has run."""
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(page.as_uri())
    tab.wait_for_timeout(500)
    source = tab.content()
    context.close()
    return source


def hostile_run(folder: Path, payloads: list[str]) -> Path:
    """A run with the payloads in all that it holds of texts from models, data, plug-ins and users."""
    write_run(folder, steps=4, every=2)
    everything = "".join(payloads)

    def spoiled(value):
        """Every text in a value, and every key that is no name of ours, spoiled."""
        if isinstance(value, str):
            return value + everything
        if isinstance(value, list):
            return [spoiled(item) for item in value]
        return {key: spoiled(item) for key, item in value.items()} if isinstance(value, dict) else value

    for name in ("samples.jsonl", "tokens.jsonl", "metrics.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        rows = [spoiled(row) for row in rows]
        for row in rows:
            if "votes" in row:
                row["votes"] = dict.fromkeys(payloads, 2)
                row["responses"] = row["responses"][:2]
                for response in row["responses"]:
                    response["tokens"], response["text"] = list(payloads), everything
                    response["entropies"], response["forks"] = [1.0] * len(payloads), [True] * len(payloads)
                row["images"] = payloads
            row[everything] = 1.0
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [{"step": s, "id": p, "label": p, "correct": None} for s in (1, 2) for p in payloads]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    manifest = spoiled(json.loads((folder / "manifest.json").read_text()))
    manifest["guard"] = {"kept_step": 4, "rule": everything, "text": everything}
    manifest["data"]["skipped"] = {everything: 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = {"method": everything, "reward": everything, "model": {"name": everything}, "data": {"name": everything},
              "seed": everything, everything: everything}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "eval.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, f"eval/{everything}": everything}) + "\n")
    return folder


@needs_browser
def test_the_payloads_run_where_nothing_stops_them(tmp_path, server, browser):
    """Otherwise the tests below would pass whatever the pages held."""
    page = tmp_path / "bare.html"
    page.write_text("<html><body>" + "".join(PAYLOADS[i].replace("SERVER", server.address) for i in (0, 3, 5)))
    assert 'data-ran="1"' in shown(browser, page)
    assert {"/img", "/css", "/frame"} <= set(server.asked)


@needs_browser
@pytest.mark.parametrize("kind", ["report", "comparison", "report without its policy"])
def test_no_script_of_a_run_runs_and_nothing_is_asked_for(tmp_path, server, browser, kind):
    payloads = [payload.replace("SERVER", server.address) for payload in PAYLOADS]
    name = re.sub("[/\0]", "\\\\", payloads[0])[:200]
    run = hostile_run(tmp_path / "runs" / name, payloads)
    page = tmp_path / "page.html"
    if kind == "comparison":
        everything = "".join(payloads)
        cells = (PageCell(everything, everything, "rose"),)
        lines = (PageLine(everything, everything, everything, True, "s0", "adapted", Range(0.5, 0.4, 0.6), cells),)
        section = PageSection(
            everything, (("x", "s0", everything),), ((everything, everything),), lines,
            dynamics(0, {everything: [read_run(run)]}, 0.4),
        )  # fmt: skip
        write_comparison(page, everything, [(everything, everything)], [everything], [section])
    else:
        write_report([run, write_run(tmp_path / "runs" / "other", steps=4)], page)
    source = page.read_text()
    assert source.count("Content-Security-Policy") == 1
    if kind == "report without its policy":  # what is escaped needs no policy
        page.write_text(re.sub("<meta http-equiv=.Content-Security-Policy[^>]*>", "", source))
    found = shown(browser, page)
    assert 'data-ran="1"' not in found
    assert server.asked == []
    assert 'id="tip"' in found, "the page is whole, and its own script ran"
    assert "<title>" not in found.partition('<g class="hits">')[2].partition("</g>")[0], "hover texts are the script's"


@needs_browser
def test_no_script_of_a_run_runs_when_a_live_page_refreshes(tmp_path, server, browser):
    payloads = [payload.replace("SERVER", server.address) for payload in PAYLOADS]
    run = hostile_run(tmp_path / "run", payloads)
    with served(run) as address:
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        written = page.inner_text("#live-written")
        for name in ("metrics.jsonl", "manifest.json"):
            os.utime(run / name, (2e9, 2e9))
        page.wait_for_selector(f"#live-written:not(:text-is({json.dumps(written)}))", timeout=60_000)
        assert page.locator(".card").count() > 1
        page.wait_for_timeout(300)
        assert page.get_attribute("html", "data-ran") is None
        context.close()
    assert server.asked == []


def test_nothing_but_our_own_style_and_script_is_allowed(tmp_path):
    page = write_report([write_run(tmp_path / "run", steps=2)], tmp_path / "r.html").read_text()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert all(re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", rules[key]) for key in ("script-src", "style-src"))
    assert not re.search(r"<[^>]* (style|on\w+)=", page)
