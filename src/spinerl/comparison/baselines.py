"""The ways of spending test-time compute without an update, from the unadapted model's saved responses.

All read the same responses, so they differ only in their rule.  Rules and sources: `spinerl.answers.baselines`.
Two have responses of their own: `spinerl.comparison.synthesis`, which reads those, and `spinerl.comparison.forcing`.
No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from spinerl.answers import Decision, best_of, early_stopped_majority, first_finish
from spinerl.comparison.collect import MethodResult, Values, first_vote, first_votes
from spinerl.types import Vote

__all__ = ["EqualTokens", "at_equal_tokens", "baselines"]

_CONFIDENCE = 0.95  # of early stopping: that of its source


def baselines(none: MethodResult, k: int) -> list[MethodResult]:
    """A "no update" outcome per rule, over the first k responses; those the saved rows cannot give are left out."""

    def early(confidence: float | None) -> Callable[..., Decision]:
        def rule(row: Mapping[str, Any], one: Vote, lengths: list[int]) -> Decision:  # noqa: ARG001
            tie = none.voting.tie
            return early_stopped_majority(one, lengths, confidence=confidence, tie=tie)

        return rule

    rules: dict[str, tuple[str, Callable[..., Decision]]] = {
        f"majority of {k}": ("the vote", lambda _, one, lengths: Decision(None, one.winner, k, sum(lengths))),
        f"best of {k}, likeliest": ("mean token probability", _likeliest),
        f"best of {k}, self-certain": (
            "mean KL from uniform",
            lambda row, one, lengths: best_of(one, row["certainties"][:k], lengths),
        ),
        f"first of {k} done": (
            "the shortest",
            lambda row, one, lengths: first_finish(one, lengths, [not cut for cut in row["truncated"][:k]]),
        ),
        "stopped when decided": ("the vote, ended once settled", early(None)),
        "stopped when likely": (f"the vote, ended at {_CONFIDENCE:.0%} lead", early(_CONFIDENCE)),
    }
    found = []
    for name, (note, rule) in rules.items():
        needs = "certainties" if "certain" in name else "lengths"
        outcome = MethodResult(name, "no update", none.data, note)
        for seed, rows in none.votes.items():
            known = [row for row in _known(rows) if needs in row]
            if k and known and all(len(row["classes"]) >= k for row in known):
                outcome.right[seed], outcome.tokens[seed] = _apply(rule, known, k, none, seed)
        if outcome.right:
            found.append(outcome)
    num_read = [row["num_read"] for rows in none.synthesized.values() for row in rows]
    read = f"reads {fmean(num_read or [0]):.3g} of {k}, writes one more"
    written = {
        f"synthesis of {k}": (read, none.synthesized, lambda row: row["correct"]),
        "budget forcing": ("greedy, sent on (s1)", none.forced, lambda row: row["greedy"]["correct"]),
    }
    for name, (note, by_seed, correct) in written.items():
        outcome = MethodResult(name, "no update", none.data, note)
        for seed, rows in by_seed.items():
            right = {row["id"]: float(correct(row)) for row in rows if correct(row) is not None}
            if right:
                outcome.right[seed] = right
                outcome.tokens[seed] = sum(row["num_tokens"] for row in rows) / len(rows)
        if outcome.right:
            found.append(outcome)
    return found


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

    `rule`: "majority", or "likeliest", the answer of the response with the highest mean token probability.

    num_votes = tokens / mean length of a response, at least 1 and at most as many as were saved.  A question's value
    is (1 - w) right(floor) + w right(ceil) with w the fraction: what a share w of the votes' last one would add.
    The seeds with the most saved responses are used.
    """
    sizes = {seed: min(len(row["classes"]) for row in rows) for seed, rows in none.votes.items() if rows}
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
        low, high = math.floor(num), math.ceil(num)
        if rule == "likeliest":
            few, many = (_apply(_likeliest, _known(rows), n, none, seed)[0] for n in (low, high))
        else:
            few, many = (first_votes(rows, n, none.voting, seed) for n in (low, high))
        right[seed] = {id_: (1 - (num - low)) * few[id_] + (num - low) * many[id_] for id_ in few}
        spent[seed] = num * length
        used.append(num)
    if not any(right.values()):
        return None
    num_votes = sum(used) / len(used)
    name = "equal-token vote" if rule == "majority" else f"equal-token {rule}"
    outcome = MethodResult(name, "no update", none.data, right=right, tokens=spent)
    note = f"{rule} of {num_votes:.3g}" + (", all that were sampled" if capped else "")
    return EqualTokens(replace(outcome, note=note), num_votes, capped)


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
