"""How good a model is on some questions.  With `spinerl.scoring`, the only reader of gold answers.

One greedy response and k sampled ones per question.  Without gold answers the label-free figures remain.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from spinerl.answers import Equivalence
from spinerl.config import Config
from spinerl.endings import EndWatch
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.memory import is_flip
from spinerl.models.loading import LoadedModel
from spinerl.observer import Observer
from spinerl.scoring import class_correct, judge, over_limit_line, summarise
from spinerl.types import GoldTable, OnTokens, Question, Rollout, StepRecord, Vote
from spinerl.views import answered_over_views
from spinerl.workload import Workload, open_workload, renderer

__all__ = [
    "Evaluation",
    "Part",
    "Record",
    "adapted_rows",
    "begin_evaluation",
    "evaluate",
    "evaluate_model",
    "gold_agrees",
    "gold_metrics",
    "gold_rewards",
    "label_rows",
    "stream_rows",
]

_MOST_TOKENS = 2**26  # sampled before their texts are judged and the rest is forgotten: about a gigabyte
_TOKENS_PER_PART = 2**18  # what an interrupted evaluation loses, at most: some minutes on a CPU
_AS_FAST = 16  # times as much on a device on which this takes less long, and where small batches waste more


@dataclass(frozen=True)
class Evaluation:
    """`metrics` is one line of eval.jsonl; `predictions` has a judged row per question (`spinerl.scoring`)."""

    metrics: dict[str, Any]
    predictions: tuple[dict[str, Any], ...]


class Part(NamedTuple):
    """Some of an evaluation's questions: a judged row each, and sums over their responses (`_sums`)."""

    rows: tuple[dict[str, Any], ...]
    sums: dict[str, Any]


class Record(Protocol):
    """Where an evaluation is written to, part by part; `spinerl.saved` has the one that `spinerl eval` uses.

    `parts`: those that are there already, in the order of the questions.
    """

    parts: list[Part]

    def open(self, work: Workload, config: Config, per_part: int) -> int:
        """Before the first question: take note of what is asked; how many questions make a part."""
        ...

    def add(self, part: Part) -> None:
        """The next part was answered."""
        ...


def evaluate(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    gold: GoldTable,
    config: Config,
    equivalence: Equivalence,
    on_tokens: OnTokens | None = None,
    *,
    per_part: int = 0,
    record: Record | None = None,
) -> Evaluation:
    """Greedy Pass@1, and over k = `eval.samples` responses avg@k, maj@k and pass@j, with intervals; lengths, entropies.

    Accuracy figures are fractions over the questions that have a gold answer and absent when none has.  The
    samples' random streams depend on the seed and the question only: before and after are sampled alike.

    Args:
        per_part: questions answered at a time; 0: as many as memory allows.
        record: gets each part when it is answered, and has those that need not be answered any more.
    """
    questions, prompts = _asked(config, questions), _asked(config, prompts)
    per_part = per_part or _questions_of(_MOST_TOKENS, config)
    parts = [] if record is None else list(record.parts)
    for first in range(per_part * len(parts), len(questions), per_part):
        chosen = slice(first, first + per_part)
        part = _answered(loaded, questions[chosen], prompts[chosen], gold, config, equivalence, on_tokens)
        parts.append(part)
        if record is not None:
            record.add(part)
    rows = [row for part in parts for row in part.rows]
    figures: dict[str, Any] = {
        "num_questions": len(questions),
        "num_gold": sum(row["gold"] is not None for row in rows),
        **summarise(rows, config.eval.confidence, config.seed),
        **_described([part.sums for part in parts]),
    }
    return Evaluation(figures, tuple(rows))


def begin_evaluation(observer: Observer, num_questions: int, config: Config, name: str = "evaluate") -> None:
    """Say that an evaluation of so many questions begins, of which eval.max_questions may leave out some."""
    num_responses = min(config.eval.max_questions or num_questions, num_questions) * config.eval_responses
    observer.phase(name, num_responses * config.rollout.max_new_tokens, num_responses)


def _asked(config: Config, items: Sequence[Any]) -> Sequence[Any]:
    return items[: config.eval.max_questions] if config.eval.max_questions else items


def _questions_of(num_tokens: int, config: Config) -> int:
    """How many questions have at most so many tokens of responses; one at least."""
    return max(1, num_tokens // (config.eval_responses * config.rollout.max_new_tokens))


def _answered(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    gold: GoldTable,
    config: Config,
    equivalence: Equivalence,
    on_tokens: OnTokens | None,
) -> Part:
    """The questions with their responses, judged."""
    start = time.perf_counter()
    over_views = None
    if config.eval.views:
        render = renderer(loaded, config)
        greedy, over_views = answered_over_views(loaded, questions, prompts, config, render, equivalence, on_tokens)
    else:
        greedy = greedy_responses(loaded, questions, prompts, config.rollout, on_tokens)
    k = config.eval_samples
    sampled = None
    if k:
        sampled = sample_responses(loaded, questions, prompts, k, config.rollout, (config.seed, "eval"), on_tokens)
    over_limit = equivalence.stats["num_over_limit"]
    rows = tuple(
        judge(_row(i, question, gold, greedy, sampled), equivalence, config.answer, config.vote, config.seed)
        for i, question in enumerate(questions)
    )
    of_greedy = _sums(greedy) | ({} if over_views is None else {"over_views": over_views})
    sums = {"greedy": of_greedy, **({} if sampled is None else {"sampled": _sums(sampled)})}
    over_limit = equivalence.stats["num_over_limit"] - over_limit
    return Part(rows, {**sums, "over_limit": over_limit, "seconds": time.perf_counter() - start})


def _sums(rollout: Rollout) -> dict[str, float]:
    return {
        "responses": len(rollout.mask),
        "tokens": int(rollout.mask.sum()),
        "truncated": int((~rollout.finished_mask).sum()),
        "entropy": float(rollout.entropies.double().masked_fill(~rollout.mask, 0.0).sum()),
    }


def _described(sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Lengths (tokens), entropy (nats) and truncation of all parts: of the sampled responses, else of the greedy."""

    def total(kind: str, key: str) -> float:
        return sum(one[kind][key] for one in sums)

    kind = "sampled" if "sampled" in sums[0] else "greedy"
    tokens = total(kind, "tokens")
    over_limit = sum(one["over_limit"] for one in sums)
    over_views = total("greedy", "over_views") if "over_views" in sums[0]["greedy"] else None
    return {
        "eval/response_length": tokens / total(kind, "responses"),
        "eval/entropy": total(kind, "entropy") / tokens if tokens else 0.0,
        "eval/truncated_frac": total(kind, "truncated") / total(kind, "responses"),
        "eval/greedy_length": total("greedy", "tokens") / total("greedy", "responses"),
        **({} if over_views is None else {"eval/greedy_tokens": over_views / total("greedy", "responses")}),
        "eval/num_tokens": (tokens if kind == "sampled" else 0) + (over_views or total("greedy", "tokens")),
        **({"eval/over_limit": over_limit} if over_limit else {}),
        "time/eval_s": sum(one["seconds"] for one in sums),
    }


def evaluate_model(
    config: Config,
    observer: Observer | None = None,
    *,
    given: LoadedModel | None = None,
    record: Record | None = None,
) -> Evaluation:
    """Open the configuration's model (or take the one given) and questions, and evaluate.

    Questions are answered in parts, whose size depends on the configuration and the device only; `record` gets each.
    `config` has been through `spinerl.data.resolve`.  Raises InputError.
    """
    work = open_workload(config, observer, given)
    fast = work.loaded.device.type != "cpu" or work.loaded.sampler is not None
    per_part = _questions_of(_TOKENS_PER_PART * (_AS_FAST if fast else 1), config)
    if record is not None:
        per_part = record.open(work, config, per_part)
    if observer is not None:
        begin_evaluation(observer, len(work.questions), config)
    on_tokens = None if observer is None else observer.tokens
    with Equivalence() as equivalence:
        found = evaluate(
            work.loaded,
            work.questions,
            work.prompts,
            work.gold,
            config,
            equivalence,
            on_tokens,
            per_part=per_part,
            record=record,
        )
    if observer is not None:
        if said := over_limit_line(found.metrics.get("eval/over_limit", 0)):
            observer.note(said)
        EndWatch(work.loaded, config, observer.note).see(found.metrics["eval/truncated_frac"])
    return found


def _row(i: int, question: Question, gold: GoldTable, greedy: Rollout, sampled: Rollout | None) -> dict[str, Any]:
    """One question's prediction row, not yet judged."""
    row: dict[str, Any] = {
        "id": question.id,
        "kind": question.answer_kind,
        "choices": list(question.choices),
        "subject": question.subject,
        "gold": gold.get(question.id),
        "greedy": {"text": greedy.texts[i], "truncated": not greedy.finished_mask[i].item()},
    }
    if question.in_thought:
        row["in_thought"] = True
    if sampled is not None:
        rows = slice(i * sampled.num_responses, (i + 1) * sampled.num_responses)
        row["responses"] = list(sampled.texts[rows])
        row["truncated"] = (~sampled.finished_mask[rows]).tolist()
        row["lengths"] = sampled.mask[rows].sum(dim=1).tolist()
    return row


def gold_metrics(
    record: StepRecord, labels: Sequence[Mapping[str, Any]], gold: GoldTable, config: Config, equivalence: Equivalence
) -> dict[str, float]:
    """What a step's labels and rewards were worth, for the log only; {} when no question of it has gold.

    label_accuracy: share of questions whose pseudo-label is right (a question without one counts as wrong).
    response_accuracy: share of responses that are right.  reward_accuracy: share of trained responses whose
    pseudo-reward is what gold would have given; it counts true negatives, so a wrong label whose class is small
    still scores high: read it next to label_accuracy.

    Args: `labels`, the step's `label_rows`.
    """
    right: list[float] = []
    responses: list[float] = []
    rewards: list[float] = []
    for row, question, one, fresh, given in zip(
        labels, record.rollout.questions, record.votes, record.fresh_votes, record.rewards, strict=True
    ):
        if row["correct"] is None:
            continue
        # In a void vote no response has a class; what its responses said is in the vote before.
        said = one if one.counts else fresh
        (truth,) = gold_rewards([question], [said], gold=gold, config=config, equivalence=equivalence)
        right.append(float(row["correct"]))
        responses.append(sum(truth) / len(truth))
        rewards.append(sum(float(a == b) for a, b in zip(given, truth, strict=False)) / len(given))
    if not right:
        return {}
    return {
        "gold/label_accuracy": sum(right) / len(right),
        "gold/response_accuracy": sum(responses) / len(responses),
        "gold/reward_accuracy": sum(rewards) / len(rewards),
    }


def label_rows(record: StepRecord, gold: GoldTable, config: Config, equivalence: Equivalence) -> list[dict[str, Any]]:
    """Rows of labels.jsonl: each question's pseudo-label, and with a memory the fresh vote's and whether it changed.

    A void vote (vote.max_shared) has no label, and `vote` is the one it would have had.

    `correct` is whether the label is right, None without gold: for reports only.
    """
    rows = []
    for question, one, fresh in zip(record.rollout.questions, record.votes, record.fresh_votes, strict=True):
        answer, right = gold.get(question.id), None
        if answer is not None:
            kind = config.answer.kind_of(question.answer_kind)
            right = one.winner is not None and class_correct(one, answer, kind, equivalence)[one.winner]
        row = {
            "step": record.step,
            "id": question.id,
            "label": one.pseudo_label,
            "majority_frac": one.majority_frac,
            "correct": right,
        }
        if one.memory is not None:
            row |= {"vote": fresh.pseudo_label, "flipped": is_flip(one), "votes": one.memory.total}
        elif one.pseudo_label != fresh.pseudo_label:
            row |= {"vote": fresh.pseudo_label, **({} if one.counts else {"void": True})}
        rows.append(row)
    return rows


def gold_rewards(
    questions: Sequence[Question], votes: Sequence[Vote], *, gold: GoldTable, config: Config, equivalence: Equivalence
) -> tuple[tuple[float, ...], ...]:
    """1.0 for right answers: what labels would give.  Only method=grpo-gold learns from this, as an upper bound."""
    rewards = []
    for question, one in zip(questions, votes, strict=True):
        kind = config.answer.kind_of(question.answer_kind)
        right = class_correct(one, gold[question.id], kind, equivalence)
        rewards.append(tuple(1.0 if c is not None and right[c] else 0.0 for c in one.classes))
    return tuple(rewards)


def gold_agrees(question: Question, answer: str, *, gold: GoldTable, config: Config, equivalence: Equivalence) -> bool:
    """Whether an answer to a question is right.  Only method=bitta asks, about a few labels in each step."""
    one = Vote((answer,), (0,), (1.0,), 0, answer, 1.0)
    return class_correct(one, gold[question.id], config.answer.kind_of(question.answer_kind), equivalence)[0]


def stream_rows(
    step: int,
    asked: Sequence[Mapping[str, Any]],
    record: StepRecord,
    gold: GoldTable,
    config: Config,
    equivalence: Equivalence,
) -> list[dict[str, Any]]:
    """What a stream's model said to each question before it adapted on it: greedily, and by its vote.

    `greedy_correct` and `majority_correct` are None without gold; their means over a run are its prequential accuracy.
    """
    rows = []
    for row, one in zip(asked, record.votes, strict=True):
        answer = gold.get(row["id"])
        right = None
        if answer is not None:
            flags = class_correct(one, answer, config.answer.kind_of(row["kind"]), equivalence)
            right = one.winner is not None and flags[one.winner]
        rows.append(
            {
                **_greedy_row(step, row),
                "majority": one.pseudo_label,
                "majority_frac": one.majority_frac,
                "majority_correct": right,
            }
        )
    return rows


def adapted_rows(step: int, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What it said, greedily, after it adapted on it; there is no vote afterwards."""
    return [{**_greedy_row(step, row), "majority_correct": None, "when": "after"} for row in asked]


def _greedy_row(step: int, row: Mapping[str, Any]) -> dict[str, Any]:
    greedy = row["greedy"]
    return {"step": step, "id": row["id"], "greedy": greedy["answer"], "greedy_correct": greedy["correct"]}
