"""Before anything is trained: how many pseudo-labels will be right, judged without labels.

Two votes on the same question, by different responses, agree with probability h.  If a model is as often right as
it agrees with itself (calibrated: "generalization disagreement equality", Jiang et al. 2022, arXiv 2106.13799), the
labels' accuracy is h.  If wrong labels are scattered, so that two votes agree only where both are right, it is
sqrt(h).  docs/guard.md compares both with the truth on the bundled suites.  A model that is wrong in the same way again
and again deceives both: no count of votes can see that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from spinerl.answers import vote_metrics
from spinerl.guard.signals import winner_of
from spinerl.stats import mean_interval
from spinerl.types import Vote

__all__ = ["Forecast", "forecast", "reproducibility"]

_SPLITS = 32  # random halvings of a question's votes


@dataclass(frozen=True)
class Forecast:
    """What one sampling pass says.  Shares are fractions over questions; `low`, `high` hold 95 % of resamplings."""

    num_questions: int
    num_votes: int
    reproducibility: float  # h: two halves of the votes have the same winner
    label_accuracy: float  # predicted: half way between h and sqrt(h)
    label_accuracy_low: float
    label_accuracy_high: float
    majority_frac: float
    margin: float  # votes of the largest class less those of the second, over all
    labelled_frac: float
    unanimous_frac: float
    answer_entropy: float  # nats
    abstained_frac: float
    verdict: str  # go, caution or no-go
    reason: str
    shared_frac: float = 0.0  # questions whose pseudo-label is one and the same, of those that should differ


def forecast(
    votes: Sequence[Vote],
    no_go: float,
    go: float,
    seed: int = 0,
    shared: tuple[float, str | None] = (0.0, None),
    max_shared: float = 1.0,
) -> Forecast:
    """The forecast from the initial model's votes, at least 2 responses to each of at least 2 questions.

    Args:
        no_go: predicted label accuracy under which adapting is advised against.
        go: from which on it is advised.
        shared: as `answers.shared.shared_share`, of the votes' pseudo-labels.
        max_shared: share of the questions with one pseudo-label above which adapting is advised against.
    """
    reproduced = [reproducibility(one, seed + i) for i, one in enumerate(votes)]
    h = sum(reproduced) / len(reproduced)
    h_low, h_high = mean_interval(reproduced, seed=seed)
    accuracy = (h + math.sqrt(h)) / 2
    metrics = vote_metrics(votes)
    verdict, reason = _verdict(accuracy, h_low, math.sqrt(h_high), metrics, no_go, go)
    if shared[0] > max_shared:
        verdict = "no-go"
        reason = (
            f"one answer, {shared[1]!r}, wins the votes on {100 * shared[0]:.0f} % of the questions, which should have "
            "different ones: look at the responses' last words, the prompt and answer.kind first"
        )
    return Forecast(
        num_questions=len(votes),
        num_votes=len(votes[0].classes),
        reproducibility=h,
        label_accuracy=accuracy,
        label_accuracy_low=h_low,
        label_accuracy_high=math.sqrt(h_high),
        majority_frac=metrics["label/majority_frac"],
        margin=sum(map(_margin, votes)) / len(votes),
        labelled_frac=metrics["label/labelled_frac"],
        unanimous_frac=metrics["label/unanimous_frac"],
        answer_entropy=metrics["label/answer_entropy"],
        abstained_frac=metrics["label/abstained_frac"],
        verdict=verdict,
        reason=reason,
        shared_frac=shared[0],
    )


def reproducibility(one: Vote, seed: int = 0) -> float:
    """How often two random halves of a question's votes have the same winner; a half that ties has none."""
    order = list(one.classes)
    rng = random.Random(seed)
    agreed = 0
    for _ in range(_SPLITS):
        rng.shuffle(order)
        half = len(order) // 2
        first, second = winner_of(order[:half]), winner_of(order[half : 2 * half])
        agreed += first is not None and first == second
    return agreed / _SPLITS


def _verdict(
    accuracy: float, low: float, high: float, metrics: dict[str, float], no_go: float, go: float
) -> tuple[str, str]:
    about = f"about {100 * accuracy:.0f} % of the pseudo-labels would be right ({100 * low:.0f} to {100 * high:.0f} %)"
    if metrics["label/abstained_frac"] > 0.5:
        return "no-go", (
            f"{100 * metrics['label/abstained_frac']:.0f} % of the responses hold no answer that can be read: look at "
            "answer.kind, the prompt's instruction and rollout.max_new_tokens first"
        )
    if accuracy < no_go:
        return "no-go", f"{about}: two votes on a question seldom agree, so that training would follow noise"
    if metrics["label/unanimous_frac"] > 0.9:
        return "caution", (
            f"{100 * metrics['label/unanimous_frac']:.0f} % of the questions are answered alike by all responses, "
            "which teaches nothing; harder questions or a higher temperature would"
        )
    if accuracy < go or metrics["label/abstained_frac"] > 0.2:
        return "caution", f"{about}; keep the guard on, and compare with majority voting only"
    return "go", about


def _margin(one: Vote) -> float:
    first, second = [*sorted(one.counts, reverse=True), 0.0, 0.0][:2]
    return (first - second) / max(1, len(one.classes))
