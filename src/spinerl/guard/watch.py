"""The guard's part in a run: what it remembers, what it writes down, and when it steps in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.guard.forecast import forecast
from spinerl.guard.probe import open_probe, pick_probe
from spinerl.guard.rules import Verdict, best_look, judge, look_score
from spinerl.guard.signals import PERTURBATIONS, step_signals
from spinerl.plugins import find
from spinerl.runs import RunFolder
from spinerl.types import Question, StepRecord

__all__ = ["Guard", "Outcome"]

_BEST = "best"  # folder with the weights of the best look so far


@dataclass(frozen=True)
class Outcome:
    """What the guard did in the end: the step whose weights the run ends with, and why in a sentence."""

    kept_step: int
    rule: str | None
    text: str


class Guard:
    """Watches one run.

    `loaded` is the initial model when this is made, and the adapted one later; `render` makes a question's prompt.
    """

    def __init__(
        self,
        run: RunFolder,
        loaded: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        config: Config,
        equivalence: Equivalence,
        render: Callable[[Question], tuple[int, ...]],
    ) -> None:
        self._run = run
        self._loaded = loaded
        self._config = config
        self._keys = config.guard
        self._equivalence = equivalence
        asked = pick_probe(len(questions), self._keys.holdout or self._keys.questions)
        self.held_out = frozenset(asked if self._keys.holdout else ())
        probed = [questions[i] for i in asked]
        perturb = find(PERTURBATIONS, self._keys.perturbation, "guard.perturbation")
        changed = [render(replace(question, text=perturb(question.text))) for question in probed]
        others = changed if self._keys.perturbation != "none" else ()
        self._probe = open_probe(loaded, probed, [prompts[i] for i in asked], config, equivalence, others)
        self._first: dict[str, str | None] = {}  # the label each question had when it was first met
        self._kept: list[float] = []  # since the last look
        self._looks: list[dict[str, Any]] = []

    @property
    def stops(self) -> bool:
        """Whether a run is to end when a rule is broken."""
        return self._keys.mode in ("stop", "rollback")

    def begin(self, done: int) -> Verdict | None:
        """Look at the probe questions before step 1; or remember what the files say of the steps up to `done`."""
        self._looks = [row for row in self._run.rows("guard.jsonl") if row["step"] <= done]
        for row in self._run.rows("labels.jsonl"):
            if row["step"] <= done:
                self._first.setdefault(row["id"], row["label"])
        since = self._looks[-1]["step"] if self._looks else 0
        for row in self._run.rows("metrics.jsonl"):
            if since < row["step"] <= done and "label/kept_frac" in row:
                self._kept.append(row["label/kept_frac"])
        if not self._looks and self._keys.mode == "rollback":
            self._run.write_folder(_BEST, self._save)
        if self._looks:
            return judge(self._looks, self._keys)
        expected = forecast(self._probe.votes, self._keys.no_go, self._keys.go, self._config.seed)
        return self._look(
            0,
            {
                "predicted/label_accuracy": expected.label_accuracy,
                "predicted/label_accuracy_low": expected.label_accuracy_low,
                "predicted/label_accuracy_high": expected.label_accuracy_high,
                "verdict": expected.verdict,
                "reason": expected.reason,
            },
        )

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
        if "label/kept_frac" in signals:
            self._kept.append(signals["label/kept_frac"])
        return signals

    def look(self, step: int, last: int) -> Verdict | None:
        """After a step: ask the probe questions if it is time; the rule that the run now breaks."""
        if step % self._keys.every and step != last:
            return None
        kept = {"label/kept_frac": sum(self._kept) / len(self._kept)} if self._kept else {}
        verdict = self._look(step, kept)
        self._kept.clear()
        if self._keys.mode == "rollback" and best_look(self._looks)["step"] == step:
            self._run.write_folder(_BEST, self._save)
        return verdict

    def end(self, step: int, verdict: Verdict | None) -> Outcome:
        """Bring the best weights back (mode rollback); `step` is the last one that was made."""
        best = best_look(self._looks)
        kept = step
        if self._keys.mode == "rollback":
            kept = 0 if verdict is not None and verdict.rule == "no-go" else best["step"]
        if kept < step:
            from safetensors.torch import load_model

            load_model(self._loaded.model, str(self._run.path / _BEST / "model.safetensors"))
        return Outcome(kept, verdict.rule if verdict else None, self._text(step, kept, verdict))

    def _look(self, step: int, figures: dict[str, Any]) -> Verdict | None:
        started = time.perf_counter()
        seen = self._probe.ask(self._loaded, self._config, self._equivalence)
        score = look_score(seen | figures, self._looks)
        row = {"step": step, "score": score, **seen, **figures, "time/look_s": time.perf_counter() - started}
        self._looks.append(row)
        verdict = judge(self._looks, self._keys)
        self._run.append("guard.jsonl", {**row, "rule": verdict.rule if verdict else None})
        return verdict

    def _save(self, folder: Path) -> None:
        from safetensors.torch import save_model

        save_model(self._loaded.model, str(folder / "model.safetensors"))

    def _text(self, step: int, kept: int, verdict: Verdict | None) -> str:
        """What was done and why, in one or two sentences."""
        ended = (
            f"guard: {'stopped' if self.stops else 'would have stopped'} after step {step} ({verdict.rule}): "
            if (verdict)
            else ""
        )
        why = f"{ended}{verdict.reason}. " if verdict else ""
        if self._keys.mode != "rollback":
            return why + ("" if verdict else "guard: nothing to object to")
        best = best_look(self._looks)
        if kept == 0 and verdict is not None and verdict.rule == "no-go":
            return why + "The unadapted model was kept."
        if kept == 0:
            return why + "The unadapted model was kept: it has the best label-free score."
        if kept == step:
            return why or "guard: nothing to object to; the last step has the best label-free score"
        return (
            f"{why or 'guard: '}{'T' if why else 't'}he weights after step {kept} were brought back: label-free score "
            f"{best['score']:.2f} there, {self._looks[-1]['score']:.2f} after step {step}."
        )
