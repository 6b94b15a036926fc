"""The guard's part in a run: what it remembers, what it writes down, and when it steps in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.guard.probe import Probe, open_probe, pick_probe
from spinerl.guard.signals import step_signals
from spinerl.runs import RunFolder
from spinerl.types import Question, StepRecord

__all__ = ["Guard"]


class Guard:
    """Watches one run.  `loaded` is the initial model when this is made."""

    def __init__(
        self,
        run: RunFolder,
        loaded: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        config: Config,
        equivalence: Equivalence,
    ) -> None:
        self._run = run
        self._loaded = loaded
        self._config = config
        self._equivalence = equivalence
        keys = config.guard
        asked = pick_probe(len(questions), keys.holdout or keys.questions, config.seed)
        self.held_out = frozenset(asked if keys.holdout else ())
        self._probe: Probe = open_probe(
            loaded, [questions[i] for i in asked], [prompts[i] for i in asked], config, equivalence
        )
        self._first: dict[str, str | None] = {}  # the label each question had when it was first met

    def resume(self, done: int) -> None:
        """Remember what the run's files say of the steps up to `done`."""
        for row in self._run.rows("labels.jsonl"):
            if row["step"] <= done:
                self._first.setdefault(row["id"], row["label"])

    def begin(self) -> None:
        """Look at the probe questions before step 1."""
        if not self._run.rows("guard.jsonl"):
            self._look(0)

    def step(self, record: StepRecord) -> dict[str, float]:
        """The signals of a step, for its metrics."""
        signals = step_signals(record, self._first, self._equivalence)
        rows = [
            {"step": record.step, "id": q.id, "label": one.pseudo_label, "majority_frac": one.majority_frac}
            for q, one in zip(record.rollout.questions, record.votes, strict=True)
        ]
        self._run.append("labels.jsonl", *rows)
        for row in rows:
            self._first.setdefault(row["id"], row["label"])
        return signals

    def due(self, step: int, last: int) -> bool:
        """Whether the probe questions are asked after this step."""
        return step % self._config.guard.every == 0 or step == last

    def look(self, step: int) -> None:
        """Ask the probe questions after a step."""
        self._look(step)

    def _look(self, step: int) -> dict[str, Any]:
        row = {"step": step, **self._probe.ask(self._loaded, self._config, self._equivalence)}
        self._run.append("guard.jsonl", row)
        return row
