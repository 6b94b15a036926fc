"""A headless Chromium for the tests that look at pages; they are skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from spinerl.watch import LivePage, Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a profile of its own, which starts empty and is removed."""
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, **options) -> Iterator[Page]:
    """A page in a context of its own; that its scripts raise, or that its policy stops anything, fails the test."""
    faults: list[str] = []
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    try:
        page.goto(address)
        yield page
    finally:
        context.close()
    assert not faults


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's live page, which looks for changes more often than usual."""
    with Server(LivePage(folder, poll_s=0.3)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def findings(page: Page) -> list[str]:
    """What axe-core finds on the page that is serious or critical: with all parts open, in light and in dark."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    context = {"exclude": [[".text > :nth-child(n + 9)"]]}  # of thousands of tokens alike, some of each response
    options = {"resultTypes": ["violations"], "preload": False}
    found = []
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        for finding in Axe().run(page, context, options | rules).response["violations"]:
            if finding["impact"] in ("serious", "critical"):
                found += [f"{scheme}: {finding['id']}: {node['html'][:200]}" for node in finding["nodes"]]
    return found
