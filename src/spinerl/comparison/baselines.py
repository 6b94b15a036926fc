"""The ways of spending test-time compute without an update, from the unadapted model's saved responses.

All read the same responses, so they differ only in their rule.  Rules and sources: `spinerl.answers.baselines` and
`spinerl.answers.adaptive`.
Others have responses of their own: `spinerl.comparison.synthesis` and `.refine`, which read those, `.forcing`, and the
searches in `spinerl.comparison.search`.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from spinerl.answers import (
    Decision,
    best_of,
    early_exit,
    early_stopped_majority,
    first_finish,
    rank_weights,
    routed_sizes,
    share_stopped_majority,
    weighted_majority,
)
from spinerl.comparison.collect import MethodResult, Rows, Values, first_vote, first_votes
from spinerl.types import Vote

__all__ = ["EQUAL_TOKEN_RULES", "EqualTokens", "at_equal_tokens", "baselines"]

_CONFIDENCE = 0.95  # of early stopping: that of its source
_SHARE = 0.8  # of ASC (arXiv 2503.00031)
_QUANTILE = 0.75  # of the confidences of first responses: over it, a question's first responses end the search
_POWER = 0.5  # of ranks in self-certainty
_SHORT = 3  # responses that vote in short-m@k, its source's m
_FEW = 4  # responses that say whether a question's answers agree, before others are routed to it

EQUAL_TOKEN_RULES = {
    "majority": "classes",
    "likeliest": "probabilities",
    "by probability": "probabilities",
    "by self-certainty": "certainties",
    "by rank of self-certainty": "certainties",
    "routed": "lengths",
}
"""What `at_equal_tokens` decides by, and the key of a row that it reads."""


class _Rule(NamedTuple):
    """How a judged row's first responses, their vote and lengths decide; `needs` is the key of the row that is read."""

    note: str
    decide: Callable[[Mapping[str, Any], Vote, list[int]], Decision]
    needs: str = "lengths"


def baselines(none: MethodResult, k: int) -> list[MethodResult]:
    """A "no update" outcome per rule, over the first k responses; those the saved rows cannot give are left out."""
    by_name: dict[str, MethodResult] = {}
    for seed, rows in none.votes.items() if k else ():
        for name, rule in _rules(none, seed, k).items():
            known = [row for row in _known(rows) if rule.needs in row]
            if known and all(len(row["classes"]) >= k for row in known):
                outcome = by_name.setdefault(name, MethodResult(name, "no update", none.data, rule.note))
                outcome.right[seed], outcome.tokens[seed] = _apply(rule.decide, known, k, none, seed)
                _add_seconds(outcome, none, seed)
        if _known(rows) and _first_look(k) < k < min(len(row["classes"]) for row in rows):  # others have none to route
            name, note = f"majority of {k}, routed", f"{_first_look(k)} first, more where they differ; {k} on average"
            outcome = by_name.setdefault(name, MethodResult(name, "no update", none.data, note))
            budget = sum(sum(row["lengths"][:k]) for row in rows)
            outcome.right[seed], sizes = _routed(none, seed, k, budget)
            outcome.tokens[seed] = _tokens(rows, sizes)
            _add_seconds(outcome, none, seed)
    found = list(by_name.values())
    drafts = [row["num_read"] for rows in none.synthesized.values() for row in rows]
    read = f"reads {fmean(drafts or [0]):.3g} of {k}, writes one more"
    written = {
        f"synthesis of {k}": (read, none.synthesized, "synthesis", k, lambda row: row["correct"]),
        "budget forcing": ("greedy, sent on (s1)", none.forced, "forced", 0, lambda row: row["greedy"]["correct"]),
    }
    for name, (note, by_seed, file, num_read, correct) in written.items():
        outcome = MethodResult(name, "no update", none.data, note)
        for seed, rows in by_seed.items():
            right = {row["id"]: float(correct(row)) for row in rows if correct(row) is not None}
            if right:
                outcome.right[seed] = right
                outcome.tokens[seed] = sum(row["num_tokens"] for row in rows) / len(rows)
                _add_written_seconds(outcome, none, seed, file, num_read)
        if outcome.right:
            found.append(outcome)
    found += _searched(none)
    for seed, rows in none.refined.items():
        num = len(rows[0]["responses"])
        corrected = fmean(row["num_corrections"] for row in rows)
        note = f"corrects {corrected:.3g} of {num}, then votes (SETS)"
        if right := first_votes(rows, num, none.voting, seed):
            spent = fmean(row["num_tokens"] for row in rows)
            name = f"verified majority of {num}"
            outcome = MethodResult(name, "no update", none.data, note, {seed: right}, tokens={seed: spent})
            _add_written_seconds(outcome, none, seed, "refined", num)
            found.append(outcome)
    return found


_SEARCHES: Mapping[str, tuple[str, str]] = {  # how a search's rows decide, and where it is from
    "deepening": ("vote", "ID-sampling"),
    "qalign": ("vote", "QAlign"),
    "carbon": ("likeliest", "CarBoN"),
    "latentseek": ("only", "LatentSeek"),
    "latentevolve": ("only", "LatentEvolve"),
    "testnuc": ("testnuc", "TestNUC"),
    "lame": ("lame", "LAME"),
}


def _searched(none: MethodResult) -> Iterator[MethodResult]:
    """A "no update" outcome per search of `spinerl.comparison.search`; two of the neighbors'."""
    for name, (how, source) in _SEARCHES.items():
        file = "neighbors" if how == name else name
        for seed, rows in none.searched.get(file, {}).items():
            known = [
                row for row in rows if (row[how]["correct"] if file == "neighbors" else row["correct"]) is not None
            ]
            if not known:
                continue
            num = len(known[0].get("responses", ()))
            title, note = _said_of(name, num, known)
            if how == "vote":
                right = first_votes(known, num, none.voting, seed)
            elif how == "likeliest":
                right = _apply(_likeliest, known, num, none, seed)[0]
            else:
                right = {row["id"]: float((row[how] if file == "neighbors" else row)["correct"]) for row in known}
            spent = {seed: fmean(row["num_tokens"] for row in rows)}
            outcome = MethodResult(title, "no update", none.data, f"{note} ({source})", {seed: right}, tokens=spent)
            read = len(none.votes[seed][0]["lengths"]) if seed in none.votes else 0
            seen = none.num_seen.get(file, 0) if how not in ("vote", "likeliest") else 0
            _add_written_seconds(outcome, none, seed, file, min(seen, read))
            yield outcome


def _said_of(name: str, num: int, rows: Rows) -> tuple[str, str]:
    """(a search's name in the table, what is said of it), from its rows of `num` responses."""

    def mean(key: str) -> float:
        return fmean(row[key] for row in rows)

    if name == "deepening":
        return f"majority of {num}, deepened", "sent on at growing budgets, then votes"
    if name == "qalign":
        accepted = f"{mean('num_accepted') / max(1, num - 1):.0%}"
        return f"chain of {num}", f"half of each written again, {accepted} accepted, then votes"
    if name == "carbon":
        return (
            f"best of {num}, calibrated",
            f"half of them calibrated, temperature {mean('temperature'):.3g}, likeliest",
        )
    if name in ("latentseek", "latentevolve"):
        also = ", begun near similar questions" if name == "latentevolve" else ""
        return {"latentseek": "latents sought", "latentevolve": "latents evolved"}[name], (
            f"first states learned{also}, {mean('changed'):.0%} of responses changed"
        )
    titles = {"testnuc": "neighbors' votes", "lame": "neighbors' labels"}
    return titles[
        name
    ], "of similar questions, weighted" if name == "testnuc" else "near the votes and their neighbors'"


@dataclass(frozen=True)
class EqualTokens:
    """What as many responses per question as some tokens per question buy elect.

    `num_votes` is that number, a fraction: between two whole ones the outcome is weighed linearly.  `capped`: fewer
    responses than that were saved, and `num_votes` is their number.
    """

    outcome: MethodResult
    num_votes: float
    capped: bool


def at_equal_tokens(none: MethodResult, tokens: float, rule: str = "majority") -> EqualTokens | None:
    """What the unadapted model's responses elect at `tokens` per question; None if it has no saved responses.

    `rule`, one of `EQUAL_TOKEN_RULES`: "majority"; "likeliest", the answer of the response with the highest mean token
    probability; majorities weighted "by probability" (the same one), "by self-certainty" or "by rank of
    self-certainty"; "routed", the majority of as many responses per question as `spinerl.answers.routed_sizes` gives
    it.

    num_votes = tokens / mean length of a response, at least 1 and at most as many as were saved.  A question's value
    is (1 - w) right(floor) + w right(ceil) with w the fraction: what a share w of the votes' last one would add.
    "routed" needs no fractions: its sizes differ by question, and `num_votes` is their mean.
    The seeds with the most saved responses are used.
    """
    key = EQUAL_TOKEN_RULES[rule]
    known = {seed: rows for seed, rows in none.votes.items() if rows and all(key in row for row in rows)}
    sizes = {seed: min(len(row["classes"]) for row in rows) for seed, rows in known.items()}
    if not sizes:
        return None
    most = max(sizes.values())
    right: Values = {}
    spent: dict[int, float] = {}
    used: list[float] = []
    capped = False
    for seed in (seed for seed, size in sizes.items() if size == most):
        rows = none.votes[seed]
        length = sum(sum(row["lengths"]) for row in rows) / sum(len(row["lengths"]) for row in rows)
        capped |= tokens / length > most
        num = min(max(tokens / length, 1.0), float(most))
        if rule == "routed":
            right[seed], sizes = _routed(none, seed, math.floor(num), num * length * len(rows))
            spent[seed] = _tokens(rows, sizes)
            used.append(fmean(sizes))
            continue
        low, high = math.floor(num), math.ceil(num)
        few, many = (_right(rule, n, none, seed) for n in (low, high))
        right[seed] = {id_: (1 - (num - low)) * few[id_] + (num - low) * many[id_] for id_ in few}
        spent[seed] = num * length
        used.append(num)
    if not any(right.values()):
        return None
    num_votes = sum(used) / len(used)
    name = {"majority": "equal-token vote", "likeliest": "equal-token likeliest"}.get(rule, f"equal-token vote, {rule}")
    outcome = MethodResult(name, "no update", none.data, right=right, tokens=spent)
    for seed in right:
        _add_seconds(outcome, none, seed)
    what = "likeliest" if rule == "likeliest" else "majority"
    note = f"{what} of {num_votes:.3g}" + (", all that were sampled" if capped else "")
    return EqualTokens(replace(outcome, note=note), num_votes, capped)


def _rules(none: MethodResult, seed: int, k: int) -> dict[str, _Rule]:
    """The rules by name.  What they know of other questions than a row's own are confidences: no labels."""
    ties: dict[str, Any] = {"tie": none.voting.tie, "seed": seed}

    def early(confidence: float | None) -> Callable[..., Decision]:
        return lambda _, one, lengths: early_stopped_majority(one, lengths, confidence=confidence, **ties)

    def led(row: Mapping[str, Any], one: Vote, lengths: list[int], key: str | None = None) -> Decision:
        weights = None if key is None else _weights(row, key, k)
        return share_stopped_majority(one, lengths, share=_SHARE, weights=weights, **ties)

    rules = {
        f"majority of {k}": _Rule("the vote", lambda _, one, lengths: Decision(None, one.winner, k, sum(lengths))),
        f"majority of {k}, by probability": _Rule(
            "weighted by mean token probability", _weighted("probabilities", none, seed), "probabilities"
        ),
        f"majority of {k}, by self-certainty": _Rule(
            "weighted by mean KL from uniform", _weighted("certainties", none, seed), "certainties"
        ),
        f"majority of {k}, by rank of self-certainty": _Rule(
            "weighted by its rank among them",
            lambda row, one, lengths: _by_rank(row, one, lengths, ties),
            "certainties",
        ),
        f"best of {k}, likeliest": _Rule("mean token probability", _likeliest, "probabilities"),
        f"best of {k}, self-certain": _Rule(
            "mean KL from uniform",
            lambda row, one, lengths: best_of(one, row["certainties"][:k], lengths),
            "certainties",
        ),
        f"first of {k} done": _Rule(
            "the shortest",
            lambda row, one, lengths: first_finish(one, lengths, [not cut for cut in row["truncated"][:k]]),
        ),
        f"first {_SHORT} of {k} done": _Rule(
            f"the {_SHORT} shortest vote (short-m@k)",
            lambda row, one, lengths: first_finish(
                one, lengths, [not cut for cut in row["truncated"][:k]], min(_SHORT, k)
            ),
        ),
        "stopped when decided": _Rule("the vote, ended once settled", early(None)),
        "stopped when likely": _Rule(f"the vote, ended at {_CONFIDENCE:.0%} lead", early(_CONFIDENCE)),
        f"stopped at {_SHARE:.0%}": _Rule("the vote, ended at this share (ASC)", led),
        f"stopped at {_SHARE:.0%}, by probability": _Rule(
            "the same, weighted by mean token probability",
            lambda row, one, lengths: led(row, one, lengths, "probabilities"),
            "probabilities",
        ),
    }
    if first := [row["probabilities"][0] for row in none.votes[seed] if row.get("probabilities")]:
        threshold = float(np.quantile(first, _QUANTILE))
        rules[f"first confident of {k}"] = _Rule(
            f"mean token probability of the top {1 - _QUANTILE:.0%} of first responses",
            lambda row, one, lengths: early_exit(one, row["probabilities"][:k], lengths, threshold),
            "probabilities",
        )
    return rules


def _right(rule: str, num: int, none: MethodResult, seed: int) -> dict[str, float]:
    """Whether what `num` responses per question decide by a rule of `EQUAL_TOKEN_RULES` is right, by id."""
    key = (rule, num, seed)
    if key not in none.decided:
        rows = none.votes[seed]
        if rule == "majority":
            none.decided[key] = first_votes(rows, num, none.voting, seed)
        else:
            ties = {"tie": none.voting.tie, "seed": seed}
            decide: Callable[..., Decision] = {
                "likeliest": _likeliest,
                "by rank of self-certainty": lambda row, one, lengths: _by_rank(row, one, lengths, ties),
            }.get(rule) or _weighted(EQUAL_TOKEN_RULES[rule], none, seed)
            none.decided[key] = _apply(decide, _known(rows), num, none, seed)[0]
    return none.decided[key]


def _routed(none: MethodResult, seed: int, num: int, budget: float) -> tuple[dict[str, float], list[int]]:
    """(right by question, responses by question) of majorities that share `budget` tokens, `num` responses each or so.

    All questions, those without a gold answer too, compete for the tokens.
    """
    rows, few = none.votes[seed], _first_look(num)
    agreements = [first_vote(row, few, none.voting, seed).majority_frac for row in rows]
    sizes = routed_sizes(agreements, [row["lengths"] for row in rows], few, budget)
    right: dict[str, float] = {}
    for row, size in zip(rows, sizes, strict=True):
        right |= first_votes([row], size, none.voting, seed)
    return right, sizes


def _first_look(num: int) -> int:
    """How many of `num` responses say whether a question's answers agree: half of them, at least 2 and at most 4."""
    return min(num, max(2, min(_FEW, num // 2)))


def _add_seconds(outcome: MethodResult, none: MethodResult, seed: int, num: int | None = None) -> None:
    """Add what the saved responses that an outcome reads took to sample, were they sampled as they were, many at once.

    Seconds of all that were saved x the share of their tokens that it reads: `outcome.tokens`, or the first `num`.
    Nothing where the seconds were not noted.
    """
    seconds, rows = none.asking_s.get("votes", {}).get(seed), none.votes.get(seed)
    if seconds is None or not rows:
        return
    read = outcome.tokens[seed] if num is None else _tokens(rows, [num] * len(rows))
    share = read / max(_tokens(rows, [len(row["lengths"]) for row in rows]), 1e-9)
    outcome.seconds[seed] = outcome.seconds.get(seed, 0.0) + seconds * share


def _add_written_seconds(outcome: MethodResult, none: MethodResult, seed: int, file: str, num: int) -> None:
    """Add the seconds of what was asked under a name, and of the first `num` responses that it reads."""
    own = none.asking_s.get(file, {}).get(seed)
    if own is not None:
        outcome.seconds[seed] = own
        _add_seconds(outcome, none, seed, num)


def _tokens(rows: Rows, sizes: Sequence[int]) -> float:
    """Mean tokens per question of its first responses."""
    return sum(sum(row["lengths"][:size]) for row, size in zip(rows, sizes, strict=True)) / len(rows)


def _weighted(key: str, none: MethodResult, seed: int) -> Callable[..., Decision]:
    def decide(row: Mapping[str, Any], one: Vote, lengths: list[int]) -> Decision:
        return weighted_majority(one, _weights(row, key, len(lengths)), lengths, tie=none.voting.tie, seed=seed)

    return decide


def _weights(row: Mapping[str, Any], key: str, num: int) -> list[float]:
    """The first `num` confidences; a KL divergence rounded to below 0 is 0."""
    return [max(0.0, value) for value in row[key][:num]]


def _by_rank(row: Mapping[str, Any], one: Vote, lengths: list[int], ties: Mapping[str, Any]) -> Decision:
    return weighted_majority(one, rank_weights(row["certainties"][: len(lengths)], _POWER), lengths, **ties)


def _likeliest(row: Mapping[str, Any], one: Vote, lengths: list[int]) -> Decision:
    return best_of(one, row["probabilities"][: len(lengths)], lengths)


def _known(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of questions with a gold answer."""
    return [row for row in rows if row.get("responses_correct") is not None]


def _apply(
    rule: Callable[..., Decision], rows: list[dict[str, Any]], k: int, none: MethodResult, seed: int
) -> tuple[dict[str, float], float]:
    """(right by question, mean tokens spent) of a rule over every row's first k responses."""
    right, spent = {}, 0
    for row in rows:
        one = first_vote(row, k, none.voting, seed)
        decision = rule(row, one, row["lengths"][:k])
        spent += decision.num_tokens
        won = decision.winner is not None and row["responses_correct"][one.classes.index(decision.winner)]
        right[row["id"]] = float(won)
    return right, spent / len(rows)
