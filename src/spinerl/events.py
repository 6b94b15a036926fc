"""`--log-format json`: all that happens, as lines of JSON on standard output.  docs/commands.md lists the events."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spinerl.config import Config
from spinerl.progress import Meter, RunClock
from spinerl.streams import json_line

__all__ = ["JsonLines", "say_event"]

_SECONDS_BETWEEN = 10.0  # events about a phase under way


def say_event(event: str, **fields: Any) -> None:
    """One line: the event, the time in seconds since 1970, and what there is to say; no number that is not finite."""
    sys.stdout.write(json_line({"event": event, "time": round(time.time(), 3), **fields}))
    sys.stdout.flush()


class JsonLines:
    """The commands' observer with `--log-format json`.  `took`: as for `RunClock`."""

    def __init__(self, config: Config | None = None, took: Mapping[str, float] | None = None) -> None:
        self._clock = None if config is None else RunClock(config, took)
        self._meter: Meter | None = None
        self._said = 0.0

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None:
        now = time.monotonic()
        self._meter, self._said = Meter(name, total_tokens, num_responses, now), now
        if self._clock is not None:
            self._clock.begin(name, now)
        say_event("phase", phase=name, num_responses=num_responses, max_tokens=total_tokens)

    def tokens(self, count: int, finished: int = 0) -> None:
        meter, now = self._meter, time.monotonic()
        if meter is None:
            return
        meter.add(count, finished, now)
        if now - self._said >= _SECONDS_BETWEEN:
            self._said = now
            say_event("progress", phase=meter.name, **meter.figures(), run_seconds_left=self._left(now))

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        now = time.monotonic()
        self._end(now)
        if self._clock is not None:
            self._clock.step(metrics["step"], num_steps, now)
        say_event("step", num_steps=num_steps, run_seconds_left=self._left(now), metrics=dict(metrics))

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        self._end(time.monotonic())
        say_event("evaluation", metrics=dict(metrics))

    def look(self, row: Mapping[str, Any]) -> None:
        self._end(time.monotonic())
        say_event("guard", look=dict(row))

    def checkpoint(self, folder: Path) -> None:
        say_event("checkpoint", folder=str(folder))

    def note(self, text: str) -> None:
        say_event("note", text=text)

    def _end(self, now: float) -> None:
        self._meter = None
        if self._clock is not None:
            self._clock.end(now)

    def _left(self, now: float) -> float | None:
        return None if self._clock is None else self._clock.seconds_left(now)
