"""What is shown of a folder: one run's report, that of several runs, a comparison's dynamics, or what is waited for.

A page is made when it is asked for, only if files have changed, and seldom enough to leave the processor to the run.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spinerl.errors import InputError, cause_of
from spinerl.report.page import Live, fill, render
from spinerl.report.read import RunData, read_run
from spinerl.streams import STREAMS
from spinerl.watch.progress import render_progress

__all__ = ["LivePage", "Page"]

_RELOAD_S = 10  # of a page in a browser without scripts
_PAUSE_S = 2.0  # at least, between two pages made
_IDLE = 10  # times as long as making a page took, between two pages made
_LOOK_S = 0.5  # between two looks at the files

_READ = ("config.yaml", "manifest.json", *(name for name in STREAMS if name != "stream.jsonl"))
"""The files of a run that a page shows."""

_State = tuple[tuple[str, int, int, int], ...]
"""Of each file that is there: its path, when it was written (ns), its size (bytes), its number in the file system."""


@dataclass(frozen=True)
class Page:
    """A page as it is sent: its tag, which differs from that of every other state, and its bytes, plain and packed."""

    tag: str
    html: bytes
    packed: bytes


class LivePage:
    """The page of a folder that something may be writing to.  Reads only; may be asked by several threads.

    Args:
        poll_s: seconds between two questions of an open page.
    """

    def __init__(self, folder: Path, poll_s: float = 3.0) -> None:
        self.folder = folder
        self.poll_s = poll_s
        self._lock = threading.Lock()
        self._page: Page | None = None
        self._state: _State = ()
        self._not_before = 0.0  # when the files are looked at again
        self._runs: dict[Path, tuple[_State, RunData | InputError]] = {}
        self._begun = time.time_ns()
        self._number = 0

    def current(self) -> Page:
        """The page of now, or one that is some seconds old (`_IDLE` times as long as making it took)."""
        with self._lock:
            if self._page is not None and time.monotonic() < self._not_before:
                return self._page
            depth, folders = self._folders()
            states = {folder: _state_of(folder) for folder in folders}
            state = (("", depth, len(folders), 0), *(entry for one in states.values() for entry in one))
            if depth == 2:
                state += _state_of(self.folder, ("comparison.html",))
            begun = time.monotonic()
            pause = _LOOK_S
            if self._page is None or state != self._state:
                self._page, self._state = self._make(states, is_comparison=depth == 2), state
                pause = max(_PAUSE_S, _IDLE * (time.monotonic() - begun))
            self._not_before = time.monotonic() + pause
            return self._page

    def _folders(self) -> tuple[int, list[Path]]:
        """(how far down, the run folders): this one, those in it, or those of a comparison, DATA/ROW-seedN in it."""
        for depth, pattern in enumerate(("config.yaml", "*/config.yaml", "*/*/config.yaml")):
            found = sorted(file.parent for file in self.folder.glob(pattern))
            if found:
                return depth, found
        return 0, []

    def _make(self, states: dict[Path, _State], is_comparison: bool) -> Page:
        self._runs = {folder: self._read(folder, state) for folder, state in states.items()}
        read = {folder: found for folder, (_, found) in self._runs.items()}
        runs = [found for found in read.values() if isinstance(found, RunData)]
        waiting = [str(found) for found in read.values() if isinstance(found, InputError)]
        self._number += 1
        tag = f"{self._begun:x}-{self._number}"
        live = Live(tag, self._said(states), self.poll_s, _RELOAD_S)
        if not runs:
            html = self._waiting(waiting, live)
        elif is_comparison:
            html = render_progress(self.folder, runs, waiting, live)
        else:
            html = render(runs, live)
        raw = html.encode("utf-8", "replace")
        return Page(tag, raw, gzip.compress(raw, 5))

    def _waiting(self, faults: Sequence[str], live: Live) -> str:
        """The page of a folder without a run that can be read."""
        missing = "there is no run in it" if self.folder.is_dir() else "there is no such folder"
        text = f"Nothing to show of {self.folder} yet: {faults[0] if faults else missing}"
        return fill("waiting.html.j2", self.folder.name or str(self.folder), "Waiting", "folder", live, text=text)

    def _read(self, folder: Path, state: _State) -> tuple[_State, RunData | InputError]:
        """What a run folder holds, or why it cannot be read; read again only if its files have changed."""
        known = self._runs.get(folder)
        if known is not None and known[0] == state:
            return known
        try:
            return state, read_run(folder)
        except InputError as error:
            return state, error
        except OSError as error:
            return state, InputError(f"{folder} cannot be read: {cause_of(error)}")

    def _said(self, states: dict[Path, _State]) -> str:
        """The folder, and when something in it was last written."""
        written = max((entry[1] for state in states.values() for entry in state), default=None)
        if written is None:
            return f"{self.folder}: nothing written yet."
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written / 1e9))
        return f"{self.folder}, last written {when}."


def _state_of(folder: Path, names: Sequence[str] = _READ) -> _State:
    found = []
    for name in names:
        try:
            status = (folder / name).stat()
        except (OSError, ValueError):
            continue
        found.append((name, status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
