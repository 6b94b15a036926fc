"""The searches by name, and how one runs: some questions at a time, so that one that was interrupted goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from spinerl.comparison.search.carbon import calibrated
from spinerl.comparison.search.chain import chained
from spinerl.comparison.search.deepening import deepened
from spinerl.comparison.search.latents import sought
from spinerl.comparison.search.records import Found, Searched
from spinerl.engine.backend import backend_of
from spinerl.errors import RunError
from spinerl.streams import append_rows, read_lines

__all__ = ["SEARCHES", "run_search"]

SEARCHES: Mapping[str, Callable[..., list[Found]]] = {
    "deepening": deepened,
    "qalign": chained,
    "carbon": calibrated,
    "latentseek": sought,
    "latentevolve": partial(sought, evolve=True),
}
"""What each does with a `Searched` and the keys of its request."""

_AT_ONCE = 64  # questions whose results are written together
_WHOLE = ("latentevolve",)  # what it does for a question depends on those before it


def run_search(
    name: str, search: Searched, request: Mapping[str, Any], file: Path, fingerprint: str
) -> tuple[list[Found], float]:
    """(what was found of each question, the seconds that it took), by the search of this name.

    `file` keeps what is done: a line that says what is asked on which questions, then a line per part.  Parts that are
    there of the same request, questions and machine are read, not searched again.
    """
    head = {"request": dict(request), "questions": fingerprint, "machine": backend_of(search.loaded).machine()}
    parts = _known_parts(file, head)
    if not parts:
        file.unlink(missing_ok=True)
        append_rows(file, [head])
    found = [Found(**one) for part in parts for one in part["found"]]
    seconds = sum(part["seconds"] for part in parts)
    while len(found) < len(search.questions):
        start = time.perf_counter()
        size = len(search.questions) if name in _WHOLE else _AT_ONCE
        mine = slice(len(found), len(found) + size)
        some = {key: getattr(search, key)[mine] for key in ("questions", "prompts", "answers", "lengths")}
        new = SEARCHES[name](replace(search, **some), **request)
        took = time.perf_counter() - start
        append_rows(file, [{"found": [asdict(one) for one in new], "seconds": took}])
        found += new
        seconds += took
    return found, seconds


def _known_parts(file: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a file with this first line, up to one that is damaged; [] for another one."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(RunError):
        for row in read_lines(file):
            rows.append(row)
    if not rows or rows[0] != head:
        return []
    sound = (set(part) == {"found", "seconds"} for part in rows[1:])
    return rows[1:] if all(sound) else []
