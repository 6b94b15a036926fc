"""Streams (stream.on): when each batch of questions is answered, and when the initial weights come back.

A batch has `stream.steps_each` steps.  It is answered greedily before its first, after its last, or both
(`stream.answer`).  With `stream.reset_every` the weights that learn and the optimizer return to where they were before
step 1; with -1 so does the run as a whole when it ends, for what it learned of one batch is of no use to another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.engine.snapshot import Snapshot
from spinerl.evaluation import evaluate
from spinerl.models.loading import LoadedModel
from spinerl.workload import Workload

__all__ = ["Answers", "Episodes"]


@dataclass(frozen=True)
class Answers:
    """A batch's greedy answers, a row of predictions each, and the tokens sampled for them."""

    rows: tuple[Mapping[str, Any], ...]
    num_tokens: int


class Episodes:
    """Holds the initial weights of a run, where they come back, and answers the batches of a stream."""

    def __init__(self, loaded: LoadedModel, config: Config, equivalence: Equivalence) -> None:
        """`loaded`: the unadapted model, which will learn."""
        self._config, self._equivalence = config, equivalence
        self._initial = Snapshot(loaded.model) if config.stream.reset_every and config.steps else None

    def resets_before(self, step: int) -> bool:
        """Whether a step starts from the initial weights again."""
        span = self._config.stream.steps_between_resets
        return self._initial is not None and step > 1 and (step - 1) % span == 0

    def reset(self) -> None:
        """Bring the initial weights back, in place."""
        if self._initial is not None:
            self._initial.restore()

    def before(self, step: int, batch: Workload) -> Answers | None:
        """The answers of the model as it is before a step, if that is the first of a batch and they are asked for."""
        stream = self._config.stream
        first = (step - 1) % stream.steps_each == 0
        return self._answers(batch) if stream.on and first and stream.answer in ("before", "both") else None

    def after(self, step: int, last: int, batch: Workload) -> Answers | None:
        """Those of the model after a step, if that is the last of a batch, or of the run (`last`)."""
        stream = self._config.stream
        ends = step % stream.steps_each == 0 or step == last
        return self._answers(batch) if stream.on and ends and stream.answer in ("after", "both") else None

    def _answers(self, batch: Workload) -> Answers:
        greedy = self._config.eval.model_copy(update={"samples": 0, "max_questions": 0})
        config = self._config.model_copy(update={"eval": greedy})
        found = evaluate(batch.loaded, batch.questions, batch.prompts, batch.gold, config, self._equivalence)
        return Answers(found.predictions, int(found.metrics["eval/num_tokens"]))
