"""The guard's part in a run: what it remembers, what it writes down, and when it steps in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spinerl.answers import Equivalence
from spinerl.answers.shared import shared_share
from spinerl.config import Config
from spinerl.errors import InputError, RunError
from spinerl.files import quoted
from spinerl.guard.forecast import forecast
from spinerl.guard.probe import open_probe, pick_probe
from spinerl.guard.rules import best_look, judge, look_score
from spinerl.guard.signals import PERTURBATIONS, step_signals
from spinerl.hooks import ask_differently
from spinerl.lines import read_text
from spinerl.models.loading import LoadedModel
from spinerl.observer import Observer
from spinerl.plugins import find
from spinerl.runs import RunFolder, is_intact, load_learned, save_learned, write_json
from spinerl.templates import TOKEN_CHARS
from spinerl.types import OnTokens, Question, StepRecord

__all__ = ["Guard", "GuardOutcome"]

_BEST = "best"  # folder with the weights of the best look so far


@dataclass(frozen=True)
class GuardOutcome:
    """What the guard did in the end: the step whose weights the run ends with, and why in a sentence."""

    kept_step: int
    rule: str | None
    text: str


class Guard:
    """Watches one run, and says where it ends.

    `loaded` is the initial model when this is made, and the adapted one later; `render` makes a question's prompt;
    `note` gets what is worth a line, `observer` the rest; `open_again` reads the initial model once more, should its
    kept weights be lost.
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
        note: Callable[[str], None],
        open_again: Callable[[], LoadedModel] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._open_again = open_again
        self._observer = observer
        self._run = run
        self._loaded = loaded
        self._config = config
        self._keys = config.guard
        self._equivalence = equivalence
        self._note = note
        asked = pick_probe(len(questions), self._keys.holdout or self._keys.questions)
        self.held_out = frozenset(asked if self._keys.holdout else ())
        probed = self._probed = [questions[i] for i in asked]
        perturb = find(PERTURBATIONS, self._keys.perturbation, "guard.perturbation")
        others = []
        if self._keys.perturbation != "none":
            others = [_ask_differently(question, perturb, render, config) for question in probed]
        own_prompts = [prompts[i] for i in asked]
        on_tokens = self._begin("guard votes", len(own_prompts) * self._keys.samples)
        self._probe = open_probe(loaded, probed, own_prompts, config, equivalence, others, on_tokens)
        self._first: dict[str, str | None] = {}  # the label each question had when it was first met
        self._kept: list[float] = []  # since the last look
        self._looks: list[dict[str, Any]] = []
        self._diverged: str | None = None  # why the run ended where its numbers were finite no more

    def begin(self, done: int, last: int) -> int:
        """Look at the probe questions before step 1; or remember what the files say of the steps up to `done`.

        Returns the run's last step: `last`, or `done` if a rule is broken and the guard may stop the run.
        """
        self._looks = [row for row in self._run.rows("guard.jsonl") if row["step"] <= done]
        for row in self._run.rows("labels.jsonl"):
            if row["step"] <= done:
                self._first.setdefault(row["id"], row.get("vote", row["label"]))
        since = self._looks[-1]["step"] if self._looks else 0
        for row in self._run.rows("metrics.jsonl"):
            if since < row["step"] <= done and "label/kept_frac" in row:
                self._kept.append(row["label/kept_frac"])
        if done and not (self._looks and self._looks[0]["step"] == 0):
            raise RunError(
                f"{self._run.path / 'guard.jsonl'} has lost the look before step 1, which the guard compares with; "
                f"to begin again, delete {self._run.path / 'checkpoints'}, then `spinerl adapt --resume "
                f"{quoted(self._run.path)}`"
            )
        if not self._looks:
            self._look_first()
        return self._last_step(done, last)

    def step(self, record: StepRecord) -> dict[str, float]:
        """The signals of a step, for its metrics."""
        kinds = [self._config.answer.kind_of(question.answer_kind) for question in record.rollout.questions]
        signals = step_signals(record, self._first, self._equivalence, kinds)
        for question, one in zip(record.rollout.questions, record.fresh_votes, strict=True):
            self._first.setdefault(question.id, one.pseudo_label)
        if "label/kept_frac" in signals:
            self._kept.append(signals["label/kept_frac"])
        return signals

    def look(self, step: int, last: int) -> int:
        """After a step: ask the probe questions if it is time.

        Returns the run's last step: `last`, or `step` if a rule is now broken and the guard may stop the run.
        """
        if step % self._keys.every and step != last:
            return last
        known = self._broken is not None
        kept = {"label/kept_frac": sum(self._kept) / len(self._kept)} if self._kept else {}
        self._look(step, kept)
        self._kept.clear()
        if self._config.rolls_back and best_look(self._looks, self._keys.tolerance)["step"] == step:
            self._save(step)
        return last if known else self._last_step(step, last)

    def rescues(self, why: str) -> bool:
        """Whether a run whose numbers are finite no more may end with the weights of the best look (mode rollback)."""
        if not self._config.rolls_back or not self._looks:
            return False
        self._diverged = why
        return True

    def end(self, step: int) -> GuardOutcome:
        """Bring the best weights back (mode rollback); `step` is the last one that was made.

        Raises RunError where the present weights cannot be kept and those of the best look are damaged.
        """
        kept, broken = step, self._broken
        rule = None if broken is None else broken["rule"]
        if self._config.rolls_back:
            kept = 0 if rule == "no-go" else best_look(self._looks, self._keys.tolerance)["step"]
        wanted = kept
        lost = (wanted < step or self._diverged is not None) and not self._restore(wanted)
        if lost and self._diverged is not None:
            raise RunError(f"{self._diverged}; the best weights (step {wanted}) are damaged, so no model is written")
        kept = step if lost else wanted
        sentences = []
        if self._diverged is not None:
            rule = "diverged"
            sentences.append(f"guard: stopped after step {step} (diverged): {self._diverged}.")
        elif broken is not None:
            did = "stopped" if self._stops else "would have stopped"
            sentences.append(f"guard: {did} after step {broken['step']} ({rule}): {broken['why']}.")
        if lost:
            sentences.append(
                f"The weights of the best look (step {wanted}) are damaged or of another course of an interrupted"
                " run: those of the last step were kept."
            )
        elif kept < step or self._diverged is not None or (kept == 0 and self._config.rolls_back):
            sentences.append(self._restored(kept))
        return GuardOutcome(kept, rule, " ".join(sentences) or "guard: nothing to object to.")

    @property
    def _stops(self) -> bool:
        """Whether a run is to end when a rule is broken."""
        return self._keys.mode in ("stop", "rollback")

    @property
    def _broken(self) -> dict[str, Any] | None:
        """The look at which the first rule was broken."""
        return next((look for look in self._looks if look["rule"]), None)

    def _last_step(self, step: int, last: int) -> int:
        """Where a run ends that has come to `step`; a broken rule that may not stop it is said."""
        broken = self._broken
        if broken is None:
            return last
        if self._stops:
            return step
        self._note(f"guard ({broken['rule']}): {broken['why']}")
        return last

    def _restored(self, kept: int) -> str:
        """Which weights were brought back, and why."""
        now, best = self._looks[-1], best_look(self._looks, self._keys.tolerance)
        what = f"weights after step {kept} were brought back" if kept else "unadapted model was kept"
        if best["step"] != kept or now is best:
            return f"The {what}."
        return (
            f"The {what}: its label-free score is {best['score']:.2f}, that of step {now['step']} {now['score']:.2f}."
        )

    def _look_first(self) -> None:
        """The look before step 1, with the forecast."""
        if self._config.rolls_back:
            self._save(0)
        probe, keys = self._probe, self._keys
        kinds = [self._config.answer.kind_of(question.answer_kind) for question in self._probed]
        labels = [one.pseudo_label for one in probe.votes]
        shared = shared_share(self._probed, labels, kinds, self._equivalence)
        expected = forecast(probe.votes, keys.no_go, keys.go, self._config.seed, shared, keys.max_shared)
        self._look(
            0,
            {
                "predicted/label_accuracy": expected.label_accuracy,
                "predicted/label_accuracy_low": expected.label_accuracy_low,
                "predicted/label_accuracy_high": expected.label_accuracy_high,
                "verdict": expected.verdict,
                "reason": expected.reason,
            },
        )

    def _look(self, step: int, figures: dict[str, Any]) -> None:
        started = time.perf_counter()
        on_tokens = self._begin("guard", self._probe.num_asked)
        seen = self._probe.ask(self._loaded, self._config, self._equivalence, on_tokens)
        score = look_score(seen | figures, self._looks)
        row = {"step": step, "score": score, **seen, **figures, "time/look_s": time.perf_counter() - started}
        self._looks.append(row)
        verdict = judge(self._looks, self._keys)
        row |= {"rule": verdict.rule, "why": verdict.reason} if verdict else {"rule": None}
        self._run.append("guard.jsonl", row)
        if self._observer is not None:
            self._observer.look(row)

    def _begin(self, name: str, num_responses: int) -> OnTokens | None:
        """Say that so many responses are about to be sampled; what hears how far they are."""
        if self._observer is None:
            return None
        self._observer.phase(name, num_responses * self._config.rollout.max_new_tokens, num_responses)
        return self._observer.tokens

    def _save(self, step: int) -> None:
        """Keep the present weights as the best."""

        def fill(folder: Path) -> None:
            save_learned(self._loaded.model, folder / "model.safetensors")
            write_json(folder / "step.json", {"step": step})

        self._run.write_folder(_BEST, fill, checksums=True)

    def _restore(self, step: int) -> bool:
        """Bring the best weights back; False if those that were kept are damaged or not of this step."""
        folder = self._run.path / _BEST
        if not is_intact(folder) or json.loads(read_text(folder / "step.json"))["step"] != step:
            return self._restore_initial() if step == 0 else False
        load_learned(self._loaded.model, folder / "model.safetensors")
        return True

    def _restore_initial(self) -> bool:
        """The initial weights without those that were kept; False where they cannot be had."""
        model = self._loaded.model
        if self._config.lora.rank:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".lora_B" in name:
                        parameter.zero_()
            return True
        if self._open_again is None:
            return False
        model.load_state_dict(self._open_again().model.state_dict())
        return True


def _ask_differently(
    question: Question,
    perturb: Callable[[str], str],
    render: Callable[[Question], tuple[int, ...]],
    config: Config,
) -> tuple[int, ...]:
    """The prompt of a question asked differently; InputError for one over twice as long as a prompt may be."""
    most = 2 * config.prompt.max_tokens + 64
    text = ask_differently(question, perturb, config.guard.perturbation)
    size, unit = len(text), "characters"
    if size <= TOKEN_CHARS * most:
        prompt = render(replace(question, text=text))
        size, unit = len(prompt), "tokens"
        if size <= most:
            return prompt
    raise InputError(
        f"guard.perturbation={config.guard.perturbation} makes a prompt of {size:,} {unit} of question {question.id!r}"
        f", over twice prompt.max_tokens={config.prompt.max_tokens}; use another one, or guard.perturbation=none"
    )
