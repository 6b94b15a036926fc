"""Who hears what happens while a run, an evaluation or a preflight works: the terminal, trackers, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Observer"]


class Observer(Protocol):
    """Called for what happens; changes nothing.  `spinerl.display` and `spinerl.events` have those of the commands."""

    def phase(self, name: str, total_tokens: int, num_responses: int = 0) -> None:
        """A phase that samples so many responses, and at most this many tokens, begins; 0 where it is not known.

        "plan", "evaluate", "step", "start votes", "guard votes", "guard" (a look at its probe), "preflight", or of
        `compare` what a model is asked afterwards.
        """
        ...

    def tokens(self, count: int, finished: int = 0) -> None:
        """So many tokens were sampled, and so many responses finished."""
        ...

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        """A line of metrics.jsonl was written."""
        ...

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """A line of eval.jsonl was written."""
        ...

    def look(self, row: Mapping[str, Any]) -> None:
        """A line of guard.jsonl was written."""
        ...

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint was written to this folder."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...
