"""How good a model is on some questions: the only reader of gold answers.

One greedy response and k sampled ones per question.  Without gold answers the label-free figures remain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest, bootstrap

from spinerl.answers import Equivalence, normalise_answer, vote_metrics
from spinerl.config import Config
from spinerl.engine.loading import LoadedModel
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.step import count_votes, rollout_metrics
from spinerl.types import GoldTable, Question, StepRecord, Vote

__all__ = ["Evaluation", "correctness", "evaluate", "gold_metrics", "mean_interval", "share_interval"]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is one line of eval.jsonl; `predictions` has a row per question, enough to score it again."""

    metrics: dict[str, Any]
    predictions: tuple[dict[str, Any], ...]


def evaluate(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    gold: GoldTable,
    config: Config,
    equivalence: Equivalence,
    on_tokens: Callable[[int], None] | None = None,
) -> Evaluation:
    """Greedy Pass@1, and over k = `eval.samples` draws avg@k and maj@k, with intervals; lengths and entropies.

    Accuracy figures are fractions over the questions that have a gold answer and absent when none has.  The
    samples' random streams depend on the seed and the question alone: before and after are drawn alike.
    """
    start = time.perf_counter()
    if config.eval.max_questions:
        questions, prompts = questions[: config.eval.max_questions], prompts[: config.eval.max_questions]
    greedy = greedy_responses(loaded, questions, prompts, config.rollout, on_tokens)
    greedy_votes = count_votes(greedy, config.answer, config.vote, equivalence, config.seed)
    correct = [
        correctness(vote.answers[0], gold.get(question.id), _kind(question, config), equivalence)
        for question, vote in zip(questions, greedy_votes, strict=True)
    ]
    figures: dict[str, Any] = {
        "num_questions": len(questions),
        "num_gold": sum(c is not None for c in correct),
    }
    figures |= _share("eval/pass@1", [c for c in correct if c is not None], config.eval.confidence)
    figures["eval/greedy_length"] = rollout_metrics(greedy)["rollout/response_length"]
    rows: list[dict[str, Any]] = [
        {
            "id": question.id,
            "greedy": {"text": text, "answer": vote.answers[0], "correct": c},
        }
        for question, text, vote, c in zip(questions, greedy.texts, greedy_votes, correct, strict=True)
    ]
    shown = greedy
    k = config.eval_samples
    if k:
        shown = sample_responses(loaded, questions, prompts, k, config.rollout, (config.seed, "eval"), on_tokens)
        votes = count_votes(shown, config.answer, config.vote, equivalence, config.seed)
        means: list[float] = []
        majorities: list[bool] = []
        for i, (question, one) in enumerate(zip(questions, votes, strict=True)):
            row = rows[i]
            row["responses"] = list(shown.texts[i * k : (i + 1) * k])
            row["answers"], row["classes"] = list(one.answers), list(one.classes)
            row["pseudo_label"], row["majority_frac"] = one.pseudo_label, one.majority_frac
            answer = gold.get(question.id)
            if answer is None:
                continue
            right = _class_correct(one, answer, _kind(question, config), equivalence)
            row["num_correct"] = sum(right[c] for c in one.classes if c is not None)
            means.append(row["num_correct"] / k)
            majorities.append(one.winner is not None and right[one.winner])
        figures |= _mean(f"eval/avg@{k}", means, config.eval.confidence, config.seed)
        figures |= _share(f"eval/maj@{k}", majorities, config.eval.confidence)
        labels = vote_metrics(votes)
        figures |= {
            f"eval/{key}": labels[f"label/{key}"] for key in ("majority_frac", "abstained_frac", "answer_entropy")
        }
    else:
        figures["eval/abstained_frac"] = sum(v.answers[0] is None for v in greedy_votes) / max(1, len(greedy_votes))
    sampled = rollout_metrics(shown)
    figures |= {f"eval/{key}": sampled[f"rollout/{key}"] for key in ("response_length", "entropy", "truncated_frac")}
    seconds = time.perf_counter() - start
    figures |= {"time/eval_s": seconds}
    return Evaluation(figures, tuple(rows))


def gold_metrics(record: StepRecord, gold: GoldTable, config: Config, equivalence: Equivalence) -> dict[str, float]:
    """What a step's labels and rewards were worth, for the log alone; {} when no question of it has gold.

    label_accuracy: share of questions whose pseudo-label is right (a question without one counts as wrong).
    response_accuracy: share of responses that are right.  reward_accuracy: share of trained responses whose
    pseudo-reward is what gold would have given; it counts true negatives, so a wrong label whose class is small
    still scores high: read it beside label_accuracy.
    """
    labels: list[float] = []
    responses: list[float] = []
    rewards: list[float] = []
    for question, one, given in zip(record.rollout.questions, record.votes, record.rewards, strict=True):
        answer = gold.get(question.id)
        if answer is None:
            continue
        right = _class_correct(one, answer, _kind(question, config), equivalence)
        truth = [1.0 if c is not None and right[c] else 0.0 for c in one.classes]
        labels.append(1.0 if one.winner is not None and right[one.winner] else 0.0)
        responses.append(sum(truth) / len(truth))
        rewards.append(sum(float(a == b) for a, b in zip(given, truth, strict=False)) / len(given))
    if not labels:
        return {}
    return {
        "gold/label_accuracy": sum(labels) / len(labels),
        "gold/response_accuracy": sum(responses) / len(responses),
        "gold/reward_accuracy": sum(rewards) / len(rewards),
    }


def correctness(answer: str | None, gold: str | None, kind: str, equivalence: Equivalence) -> bool | None:
    """Whether an answer is equivalent to gold; an abstention is wrong; None without gold."""
    if gold is None:
        return None
    return answer is not None and equivalence.equivalent(answer, normalise_answer(gold, kind), kind)


def share_interval(num_right: int, num: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share; (0, 1) for nothing seen.

    >>> [round(edge, 3) for edge in share_interval(5, 10)]
    [0.187, 0.813]
    """
    if num == 0:
        return 0.0, 1.0
    interval = binomtest(num_right, num).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over questions, for values in [0, 1].

    Where all values are equal resampling shows no spread, which is no certainty: then the exact interval of so
    many questions all agreeing is given, as for a share.
    """
    if len(set(values)) < 2:
        return share_interval(round(sum(values)), len(values), confidence)
    interval = bootstrap(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        confidence_level=confidence,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _kind(question: Question, config: Config) -> str:
    return question.answer_kind if config.answer.kind == "auto" else config.answer.kind


def _class_correct(one: Vote, gold: str, kind: str, equivalence: Equivalence) -> list[bool]:
    """Whether each answer class of a vote is the gold one."""
    first = {c: answer for answer, c in reversed(list(zip(one.answers, one.classes, strict=True))) if c is not None}
    return [bool(correctness(first[c], gold, kind, equivalence)) for c in range(len(one.counts))]


def _share(name: str, flags: Sequence[bool], confidence: float) -> dict[str, float]:
    if not flags:
        return {}
    low, high = share_interval(sum(flags), len(flags), confidence)
    return {name: sum(flags) / len(flags), f"{name}_low": low, f"{name}_high": high}


def _mean(name: str, values: Sequence[float], confidence: float, seed: int) -> dict[str, float]:
    if not values:
        return {}
    low, high = mean_interval(values, confidence, seed)
    return {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}
