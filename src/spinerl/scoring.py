"""From saved texts to figures, without a model: what `spinerl score`, `eval` and the comparison of two share.

A *prediction row* is one question's responses: `{"id", "responses": [text, ...]}`, and where known `kind`,
`choices`, `gold`, `subject`, `truncated` (a flag per response) and `greedy` ({"text", "truncated"}).  Judging adds
what was read from the texts.  No torch; gold is read here and in `spinerl.evaluation` only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spinerl.answers import KINDS, Equivalence, count_vote, normalise_answer, read_answer, vote_metrics
from spinerl.config import AnswerConfig, VoteConfig
from spinerl.errors import InputError, did_you_mean
from spinerl.stats import Difference, mean_interval, paired_difference, pass_at_k, share_interval
from spinerl.types import Vote

__all__ = [
    "class_correct",
    "compare",
    "correctness",
    "explain_row",
    "judge",
    "read_predictions",
    "score_row",
    "summarise",
]


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """The prediction rows of a JSONL file; InputError naming the line that is none."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}") from None
    rows = [_checked(line, f"{file} line {i}") for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise InputError(f"{file} holds no rows; each line is {{id, responses: [text, ...]}}")
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"{file}: id {twice!r} is given twice")
    return rows


def judge(
    row: Mapping[str, Any], equivalence: Equivalence, answer: AnswerConfig, voting: VoteConfig, seed: int = 0
) -> dict[str, Any]:
    """The row with its answers, classes, vote and (where it has gold) correctness.

    Adds `answers`, `classes` (a number per response, None for abstainers), `counts`, `pseudo_label`,
    `majority_frac`, `responses_correct` (a flag per response), `correct` (whether the pseudo-label is right; without
    one it is not); inside `greedy`: `answer`, `correct`.  Correctness is None without gold.
    """
    kind = answer.kind_of(row.get("kind") or "auto")
    gold, choices = row.get("gold"), tuple(row.get("choices") or ())
    judged = dict(row)

    def read(texts: Sequence[str], truncated: Sequence[bool]) -> Vote:
        cut = truncated if answer.truncated == "abstain" else [False] * len(texts)
        return count_vote(
            texts,
            cut,
            kind,
            equivalence,
            choices=choices,
            **voting.rules,
            seed=seed,
        )

    if greedy := row.get("greedy"):
        found = read([greedy["text"]], [bool(greedy.get("truncated"))]).answers[0]
        judged["greedy"] = {**greedy, "answer": found, "correct": correctness(found, gold, kind, equivalence)}
    if "responses" in row:
        one = read(row["responses"], row.get("truncated") or [False] * len(row["responses"]))
        right = class_correct(one, gold, kind, equivalence) if gold is not None else None
        judged |= {
            "answers": list(one.answers),
            "classes": list(one.classes),
            "counts": list(one.counts),
            "pseudo_label": one.pseudo_label,
            "majority_frac": one.majority_frac,
            "responses_correct": None if right is None else [c is not None and right[c] for c in one.classes],
            "correct": None if right is None else one.winner is not None and right[one.winner],
        }
    return judged


def score_row(judged: Mapping[str, Any]) -> dict[str, Any]:
    """What `spinerl score` prints of a judged row."""
    keys = ("id", "answers", "classes", "pseudo_label", "majority_frac", "correct", "responses_correct")
    return {key: judged[key] for key in keys}


def explain_row(row: Mapping[str, Any], answer: AnswerConfig) -> list[str]:
    """How each response of a row is read, a line each: its answer, the rule and cue, and what was refused."""
    kind = answer.kind_of(row.get("kind") or "auto")
    cut = row.get("truncated") if answer.truncated == "abstain" else None
    flags = cut or [False] * len(row["responses"])
    choices = tuple(row.get("choices") or ())
    return [
        read_answer(text, kind, choices=choices, truncated=bool(flag)).explain()
        for text, flag in zip(row["responses"], flags, strict=True)
    ]


def summarise(rows: Sequence[Mapping[str, Any]], confidence: float = 0.95, seed: int = 0) -> dict[str, float]:
    """Figures over judged rows, as fractions with `_low` and `_high`; those without gold or samples are absent.

    `eval/pass@1`: of the greedy responses, exact interval.  `eval/avg@k` and the unbiased `eval/pass@j` for j = 2..k:
    of the k samples, bootstrap over questions.  `eval/maj@k`: of the pseudo-labels, exact interval.
    """
    figures: dict[str, float] = {}
    greedy = [row["greedy"]["correct"] for row in rows if row.get("greedy")]
    figures |= _share("eval/pass@1", [c for c in greedy if c is not None], confidence)
    sampled = [row for row in rows if row.get("responses")]
    known = [row for row in sampled if row.get("responses_correct") is not None]
    sizes = {len(row["responses"]) for row in known}
    if len(sizes) == 1:
        (k,) = sizes
        rights = [sum(row["responses_correct"]) for row in known]
        figures |= _mean(f"eval/avg@{k}", [right / k for right in rights], confidence, seed)
        figures |= _share(f"eval/maj@{k}", [row["correct"] for row in known], confidence)
        for j in range(2, k + 1):
            figures |= _mean(f"eval/pass@{j}", [pass_at_k(k, right, j) for right in rights], confidence, seed)
    if sampled:
        labels = vote_metrics([_as_vote(row) for row in sampled])
        figures |= {f"eval/{name}": labels[f"label/{name}"] for name in ("majority_frac", "abstained_frac")}
        figures["eval/answer_entropy"] = labels["label/answer_entropy"]
    elif rows:
        figures["eval/abstained_frac"] = sum(row["greedy"]["answer"] is None for row in rows) / len(rows)
    return figures


def compare(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """Paired differences b - a of greedy Pass@1, avg@k and maj@k over the questions that both rows hold with gold.

    Raises InputError if there is no such question.
    """
    other = {row["id"]: row for row in b}
    pairs = [(row, other[row["id"]]) for row in a if row["id"] in other]
    found: dict[str, Difference] = {}
    values = {
        "greedy Pass@1": lambda row: (row.get("greedy") or {}).get("correct"),
        "avg@k": lambda row: _share_right(row),
        "maj@k": lambda row: row.get("correct"),
    }
    for name, value in values.items():
        both = [(value(x), value(y)) for x, y in pairs]
        both = [(x, y) for x, y in both if x is not None and y is not None]
        if both:
            found[name] = paired_difference([float(x) for x, _ in both], [float(y) for _, y in both], confidence, seed)
    if not found:
        raise InputError(f"no question with gold is in both: {len(a)} and {len(b)} rows, {len(pairs)} ids in common")
    return found


def correctness(answer: str | None, gold: str | None, kind: str, equivalence: Equivalence) -> bool | None:
    """Whether an answer is equivalent to gold; an abstention is wrong; None without gold.

    Gold that does not read as an answer equals nothing (`spinerl data check` finds such rows).
    """
    if gold is None:
        return None
    if answer is None:
        return False
    try:
        return equivalence.equivalent(answer, normalise_answer(gold, kind), kind)
    except InputError:
        return False


def class_correct(one: Vote, gold: str, kind: str, equivalence: Equivalence) -> list[bool]:
    """Whether each answer class of a vote is the gold one."""
    return [bool(correctness(answer, gold, kind, equivalence)) for answer in one.class_answers]


def _as_vote(row: Mapping[str, Any]) -> Vote:
    winner = None if row["pseudo_label"] is None else row["counts"].index(max(row["counts"]))
    return Vote(
        tuple(row["answers"]),
        tuple(row["classes"]),
        tuple(row["counts"]),
        winner,
        row["pseudo_label"],
        row["majority_frac"],
    )


def _share_right(row: Mapping[str, Any]) -> float | None:
    flags = row.get("responses_correct")
    return sum(flags) / len(flags) if flags else None


def _checked(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or "id" not in row or not ("responses" in row or "greedy" in row):
        raise InputError(f"{where} is no prediction row; needed are id and responses (a list of texts)")
    texts = row.get("responses", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: responses must be a list of texts")
    if "responses" in row and not texts:
        raise InputError(f"{where}: responses is empty; at least one text is needed")
    kind = row.get("kind") or "auto"
    if kind not in KINDS:
        raise InputError(
            f"{where}: kind={kind!r} is not known{did_you_mean(str(kind), KINDS)}; allowed: {', '.join(KINDS)}"
        )
    for key in ("gold", "subject"):
        if row.get(key) is not None:
            row[key] = str(row[key])
    flags = row.get("truncated")
    if flags is not None and len(flags) != len(texts):
        raise InputError(f"{where}: truncated has {len(flags)} flags for {len(texts)} responses")
    return row


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


def by_subject(
    rows: Sequence[Mapping[str, Any]], confidence: float = 0.95, seed: int = 0
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(subject, number of questions, figures) for each subject, in alphabetical order; nothing without subjects."""
    for subject in sorted({row["subject"] for row in rows if row.get("subject")}):
        of_it = [row for row in rows if row.get("subject") == subject]
        yield subject, len(of_it), summarise(of_it, confidence, seed)
