"""What was found out about a model: which faster paths give its numbers, and how much memory to use.

The verdicts of the engine's self-checks (`spinerl.engine.self_check`) and their reasons are kept with the model, logged
(`spinerl.engine`, level INFO) and written to a run's manifest.  A run that is resumed takes over the verdicts and the
memory budgets of its first session (`restore`), so that it rounds as that did.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["STRICT", "Capabilities", "Unsupported", "Verdict"]

STRICT = "SPINERL_STRICT"
"""With this environment variable set to 1, an unexpected error in a self-check is raised, not taken for a no."""

_log = logging.getLogger("spinerl.engine")


class Unsupported(Exception):
    """A path is not made for this model or this machine; its text says why."""


class Verdict(NamedTuple):
    """Whether a path is used, and why."""

    used: bool
    reason: str


class Capabilities:
    """Verdicts by the name of the path, and memory budgets in tokens; both are settled once for a model."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.budgets: dict[str, int] = {}

    def allows(self, name: str, check: Callable[[], str | None]) -> bool:
        """Whether the path of this name may be used; `check` runs only the first time.

        Args:
            check: returns None where the path gives the plain path's numbers, else what differs; raises Unsupported
                where it is not made for the model.  Any other error counts as a no too, for an architecture may break a
                path in ways that cannot be listed; with SPINERL_STRICT=1 it is raised.
        """
        if name not in self.verdicts:
            try:
                with torch.enable_grad():
                    found = check()
                verdict = Verdict(found is None, found or "same numbers as the plain path")
            except Unsupported as error:
                verdict = Verdict(False, str(error))
            except Exception as error:
                if os.environ.get(STRICT, "") == "1":
                    raise
                verdict = Verdict(False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self.verdicts[name] = verdict
            _log.info("%s: %s (%s)", name, "on" if verdict.used else "off", verdict.reason)
        return self.verdicts[name].used

    def uses(self, name: str) -> bool:
        """Whether the path of this name was checked and may be used."""
        return name in self.verdicts and self.verdicts[name].used

    def budget(self, name: str, measure: Callable[[], int]) -> int:
        """A number of tokens that fit into memory, measured only the first time."""
        if name not in self.budgets:
            self.budgets[name] = measure()
            _log.info("%s: %d tokens", name, self.budgets[name])
        return self.budgets[name]

    def clear(self, keep: str = "") -> None:
        """Forget everything, after the model's layers were exchanged, but the verdict of this name."""
        self.verdicts = {name: verdict for name, verdict in self.verdicts.items() if name == keep}
        self.budgets.clear()

    def facts(self) -> dict[str, Any]:
        """For a manifest: {"paths": {name: {"used": bool, "reason": str}}, "tokens": {name: int}}."""
        return {
            "paths": {name: verdict._asdict() for name, verdict in sorted(self.verdicts.items())},
            "tokens": dict(sorted(self.budgets.items())),
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take over what `facts` says."""
        for name, verdict in facts.get("paths", {}).items():
            self.verdicts[name] = Verdict(bool(verdict["used"]), str(verdict["reason"]))
        self.budgets |= {name: int(tokens) for name, tokens in facts.get("tokens", {}).items()}
