"""From saved texts to figures, without a model: what `spinerl score`, `eval` and the comparison of two share.

A *prediction row* is one question's responses: `{"id", "responses": [text, ...]}`, and where known `kind`,
`choices`, `gold`, `subject`, `truncated` (a flag per response) and `greedy` ({"text", "truncated"}).  Judging adds
what was read from the texts.  No torch; gold is read here and in `spinerl.evaluation` only.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spinerl.answers import KINDS, Equivalence, count_vote, normalize_answer, read_answer, vote_metrics
from spinerl.config import AnswerConfig, VoteConfig
from spinerl.errors import InputError, did_you_mean
from spinerl.lines import lines_of, read_text
from spinerl.solutions import final_answer
from spinerl.stats import Difference, mean_interval, paired_difference, pass_at_k, share_interval
from spinerl.types import Vote

__all__ = [
    "class_correct",
    "compare",
    "correctness",
    "explain_row",
    "judge",
    "over_limit_line",
    "read_predictions",
    "score_row",
    "stream_figures",
    "summarise",
    "why_no_accuracy",
]


def read_predictions(file: Path, gold_extract: str = "auto") -> list[dict[str, Any]]:
    """The prediction rows of a JSONL file; InputError naming the line that is none, its field and what it must be.

    A gold text that is a worked solution is read as by data.gold_extract (`spinerl.solutions.final_answer`).
    """
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file}: {error}; it must be UTF-8 text") from None
    rows = [
        _checked(line, f"{file} line {i}", gold_extract) for i, line in enumerate(lines_of(text), 1) if line.strip()
    ]
    if not rows:
        raise InputError(f"{file} holds no rows; each line is {{id, responses: [text, ...]}}")
    twice = next((one for one, count in Counter(row["id"] for row in rows).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{file}: id {twice!r} is given twice; ids must differ")
    return rows


def stream_figures(rows: Sequence[Mapping[str, Any]], confidence: float = 0.95) -> dict[str, Any]:
    """What the rows of stream.jsonl say about accuracy: how many came, and with gold answers the shares right.

    `before`, `vote`, `after`: the share of greedy answers before adapting, of votes, of greedy answers after adapting
    that are right, with `_low` and `_high` the exact interval and `_num` the questions; `change`: the mean over the
    questions answered both times of after less before, with a paired interval (`stats.paired_difference`).

    >>> rows = [{"id": str(i), "greedy_correct": i > 1, "majority_correct": True} for i in range(4)]
    >>> rows += [{"id": str(i), "greedy_correct": i > 0, "when": "after"} for i in range(4)]
    >>> figures = stream_figures(rows)
    >>> figures["num_questions"], figures["before"], figures["vote"], figures["after"], figures["change"]
    (4, 0.5, 1.0, 0.75, 0.25)
    """
    after = {row.get("id"): row for row in rows if row.get("when") == "after"}
    before = {row.get("id"): row for row in rows if row.get("when") != "after"}
    figures: dict[str, Any] = {"num_questions": len({*before, *after})}
    for name, of, key in (
        ("before", before, "greedy_correct"), ("vote", before, "majority_correct"), ("after", after, "greedy_correct")
    ):  # fmt: skip
        known = [bool(row[key]) for row in of.values() if row.get(key) is not None]
        if known:
            low, high = share_interval(sum(known), len(known), confidence)
            figures |= {name: sum(known) / len(known), f"{name}_low": low, f"{name}_high": high}
            figures[f"{name}_num"] = len(known)
    pairs = [
        (float(before[name]["greedy_correct"]), float(row["greedy_correct"]))
        for name, row in after.items()
        if row["greedy_correct"] is not None and before.get(name, {}).get("greedy_correct") is not None
    ]
    if pairs:
        found = paired_difference([one for one, _ in pairs], [other for _, other in pairs], confidence)
        figures |= {"change": found.difference, "change_low": found.low, "change_high": found.high}
        figures |= {"change_num": found.num, "change_p": found.p_value}
    return figures


def why_no_accuracy(rows: Sequence[Mapping[str, Any]], answer: AnswerConfig) -> list[str]:
    """In a line each: why judged rows have no accuracy, one over some rows only, or one that no response can raise."""
    notes = []
    gold = [row for row in rows if row.get("gold") is not None]
    if not gold:
        return ["accuracy unknown: no row has gold; add a field `gold` with the right answer"]
    if len(gold) < len(rows):
        notes.append(f"accuracy is over {len(gold)} of {len(rows)} rows: the others have no gold")
    sizes = sorted({len(row["responses"]) for row in gold if row.get("responses")})
    if len(sizes) > 1:
        notes.append(
            f"avg@k, maj@k and pass@k left out: rows have from {sizes[0]} to {sizes[-1]} responses, and k is one number"
        )
    unread = [row for row in gold if _unreadable(row["gold"], answer.kind_of(row.get("kind") or "auto"))]
    if unread:
        shown = f"{unread[0]['gold']!r} of row {unread[0]['id']!r}"
        notes.append(
            f"{len(unread)} gold answers cannot be read, so that no response equals them: the first is {shown}; see "
            "answer.kind and data.gold_extract"
        )
    return notes


def over_limit_line(count: float) -> str:
    """What to say of answers and pairs that a limit left uncompared; "" for none.

    >>> over_limit_line(0), over_limit_line(2)[:28]
    ('', '2 answers or pairs of answer')
    """
    if not count:
        return ""
    return (
        f"{count:.0f} answer{'s' * (count != 1)} or pairs of answers took too long to compare: they count as "
        "unreadable, or as different (docs/answers.md#limits)"
    )


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
            in_thought=bool(row.get("in_thought")),
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
        read_answer(text, kind, choices=choices, truncated=bool(flag), in_thought=bool(row.get("in_thought"))).explain()
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
        return equivalence.equivalent(answer, normalize_answer(gold, kind), kind)
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


def _checked(line: str, where: str, gold_extract: str) -> dict[str, Any]:
    """One line as a prediction row whose every field has the type that judging expects."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or "id" not in row or not ("responses" in row or "greedy" in row):
        raise InputError(f"{where} is no prediction row; needed are id and responses (a list of texts)")
    if isinstance(row["id"], bool) or not isinstance(row["id"], str | int):
        raise InputError(f"{where}: id must be a text or a whole number, found {_type(row['id'])}")
    texts = row.get("responses", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        odd = next((text for text in texts if not isinstance(text, str)), None) if isinstance(texts, list) else texts
        what = "a list with " if isinstance(texts, list) else ""
        raise InputError(f"{where}: responses must be a list of texts, found {what}{_type(odd)}")
    if "responses" in row and not texts:
        raise InputError(f"{where}: responses is empty; at least one text is needed")
    kind = row.get("kind") or "auto"
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(
            f"{where}: kind={kind!r} is not known{did_you_mean(str(kind), KINDS)}; allowed: {', '.join(KINDS)}"
        )
    _check_lists(row, where, len(texts))
    for key in ("gold", "subject"):
        if row.get(key) is not None:
            row[key] = _plain(row[key], f"{where}: {key}")
    if row.get("gold") is not None:
        has_options = kind == "choice" and row.get("choices")
        try:
            row["gold"] = final_answer(row["gold"], gold_extract, "text" if has_options else kind, "gold") or None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return row


def _check_lists(row: Mapping[str, Any], where: str, num_responses: int) -> None:
    """InputError for choices, truncation flags or a greedy response of another type than judging expects."""
    choices = row.get("choices")
    if choices is not None and not (isinstance(choices, list) and all(isinstance(one, str) for one in choices)):
        raise InputError(f"{where}: choices must be a list of texts, found {_type(choices)}")
    flags = row.get("truncated")
    if flags is not None:
        if not isinstance(flags, list) or not all(isinstance(flag, bool) for flag in flags):
            raise InputError(f"{where}: truncated must be a list of true and false, found {_type(flags)}")
        if len(flags) != num_responses:
            raise InputError(f"{where}: truncated has {len(flags)} flags for {num_responses} responses")
    greedy = row.get("greedy")
    if greedy is not None and not (isinstance(greedy, dict) and isinstance(greedy.get("text"), str)):
        raise InputError(f'{where}: greedy must be {{"text": ..., "truncated": true or false}}, found {_type(greedy)}')
    if greedy is None and "responses" not in row:
        raise InputError(f"{where} is no prediction row; needed are id and responses (a list of texts)")


def _plain(value: Any, what: str) -> str:
    """A text or a number as text: 142.0 is "142"; InputError for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    raise InputError(f"{what} must be a text or a number, found {_type(value)}")


def _type(value: Any) -> str:
    """What JSON calls the type of a value, with the value where it is short."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    shown = json.dumps(value, ensure_ascii=False)
    return f"{names.get(type(value), 'a number')}{f' ({shown})' if len(shown) <= 40 else ''}"


def _unreadable(gold: str, kind: str) -> bool:
    try:
        normalize_answer(gold, kind)
    except InputError:
        return True
    return False


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
