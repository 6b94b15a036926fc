"""Test-time scaling without updates: what any adaptation must beat at the same number of tokens.

Each takes one question's vote, in the order its responses were drawn, and says which answer it would have given and
how many tokens it would have spent.  The plain majority over all N responses is the `Vote` itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spinerl.answers.votes import vote as count
from spinerl.errors import InputError
from spinerl.types import Vote

__all__ = [
    "Decision",
    "best_of",
    "check_sizes",
    "early_stopped_majority",
    "elect",
    "first_finish",
    "lead_probability",
]


@dataclass(frozen=True)
class Decision:
    """The answer that a way of spending test-time compute gives to one question, and its price.

    `Decision("12", winner=0, num_responses=5, num_tokens=310)`: 5 responses of 310 tokens in all were begun.
    `winner` is the answer's class in the vote; it and `answer` are None where none was given.
    """

    answer: str | None
    winner: int | None
    num_responses: int
    num_tokens: int


def best_of(vote: Vote, scores: Sequence[float], lengths: Sequence[int]) -> Decision:
    """Best of N: the answer of the response with the highest score among those that answered.

    Equal scores go to the response drawn first.  All N responses are paid for.

    Args: `scores`, one finite number per response, higher is better: its mean self-certainty or its mean
    log-probability, both in nats; `lengths` of the responses in tokens.
    Raises: `InputError` for other numbers of scores or lengths, or a score that is not finite.
    Source: best-of-N by self-certainty (arXiv 2502.18581).

    >>> best_of(Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5), [1.5, 2.5], [30, 40]).answer
    '5'
    """
    check_sizes(vote, scores=scores, lengths=lengths)
    for score in scores:
        if not math.isfinite(score):
            raise InputError(f"score {score} is refused; scores must be finite")
    answered = [index for index, own in enumerate(vote.classes) if own is not None]
    spent = sum(lengths)
    if not answered:
        return Decision(None, None, len(lengths), spent)
    best = max(answered, key=lambda index: (scores[index], -index))
    return Decision(vote.answers[best], vote.classes[best], len(lengths), spent)


def first_finish(vote: Vote, lengths: Sequence[int], finished: Sequence[bool], num_voters: int = 1) -> Decision:
    """All N responses are written side by side until `num_voters` have finished; those vote.

    The voters are the shortest finished responses (equal lengths: the one drawn first).  A tie among them goes to
    the answer that came first.  Where fewer finish, those vote and all are paid for in full.

    Args: `lengths` in tokens; `finished`, False for a response cut off by the token limit; `num_voters`, 1 or more.
    Returns: the decision; `num_tokens` is sum_i min(length_i, L) with L the length of the last voter.  No answer if
    none finished, or no voter gave one.
    Raises: `InputError` for other numbers of lengths or flags, or `num_voters` under 1.
    Source: First Finish Search (arXiv 2505.18149) for one voter, short-m@k (arXiv 2505.17813) for m.

    >>> first_finish(Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5), [30, 20], [True, True])
    Decision(answer='5', winner=1, num_responses=2, num_tokens=40)
    """
    check_sizes(vote, lengths=lengths, flags=finished)
    if num_voters < 1:
        raise InputError(f"num_voters is {num_voters}; it must be 1 or more")
    order = sorted((i for i in range(len(lengths)) if finished[i]), key=lambda i: (lengths[i], i))[:num_voters]
    limit = lengths[order[-1]] if len(order) == num_voters else max(lengths, default=0)
    answer, winner = elect(vote, order, "first", 0)
    return Decision(answer, winner, len(lengths), sum(min(length, limit) for length in lengths))


def early_stopped_majority(
    vote: Vote,
    lengths: Sequence[int],
    *,
    confidence: float | None = None,
    tie: str = "abstain",
    seed: int = 0,
) -> Decision:
    """The majority of responses sampled one after the other, stopped as soon as it is decided.

    After each response, with c1 and c2 the votes of the two largest classes and R responses left of N, it stops
    when c1 > c2 + R: nothing that is left can change the winner.  With `confidence` it also stops when
    P(p1 > p2 | c1, c2) >= confidence (`lead_probability`): the leader is likely to be the likelier answer.
    Votes count 1 each; responses without an answer are drawn and paid for, and vote for nothing.

    Args: `lengths` in tokens, in the order of drawing; `confidence` in (0.5, 1), the source's is 0.95, or None for
    the rule that is never wrong; `tie` and `seed` as in `spinerl.answers.vote`, for a vote that is tied at the end.
    Returns: the decision; without `confidence` its winner is that of all N votes.
    Raises: `InputError` for another number of lengths, an unknown tie rule, or a confidence outside (0.5, 1).
    Source: Adaptive-Consistency (arXiv 2305.11860) for the probability; the certain rule is ours.

    >>> unanimous = Vote(("4",) * 4, (0,) * 4, (4.0,), 0, "4", 1.0)
    >>> early_stopped_majority(unanimous, [10, 10, 10, 10])
    Decision(answer='4', winner=0, num_responses=3, num_tokens=30)
    """
    check_sizes(vote, lengths=lengths)
    if confidence is not None and not 0.5 < confidence < 1.0:
        raise InputError(f"confidence is {confidence}; it must lie between 0.5 and 1, or be None")
    votes: Counter[int] = Counter()
    drawn = 0
    for drawn, own in enumerate(vote.classes, start=1):
        if own is not None:
            votes[own] += 1
        first, second = ([number for _, number in votes.most_common(2)] + [0, 0])[:2]
        if first > second + len(lengths) - drawn:
            break
        if confidence is not None and lead_probability(first, second) >= confidence:
            break
    answer, winner = elect(vote, range(drawn), tie, seed)
    return Decision(answer, winner, drawn, sum(lengths[:drawn]))


def lead_probability(first: int, second: int) -> float:
    """P(p1 > p2 | c1, c2): how likely the leader in votes is the likelier answer, looking only at the two largest.

    With a uniform prior on the leader's share of the two, p1 / (p1 + p2) ~ Beta(c1 + 1, c2 + 1), and
    P = integral of that from 1/2 to 1 = sum_{j=0..c1} C(c1 + c2 + 1, j) / 2^(c1 + c2 + 1), exactly.
    1/2 without votes or at a tie.  Source: Adaptive-Consistency (arXiv 2305.11860), its Beta criterion.

    >>> lead_probability(3, 0)
    0.9375
    """
    if first < 0 or second < 0:
        raise InputError(f"{first} and {second} votes; votes must be 0 or more")
    trials = first + second + 1
    return sum(math.comb(trials, j) for j in range(first + 1)) / 2**trials


def elect(
    vote: Vote, voters: Sequence[int], tie: str, seed: int, weights: Sequence[float] | None = None
) -> tuple[str | None, int | None]:
    """The answer and class that some of the responses elect, in the order given; `weights`: of all responses."""
    classes = [vote.classes[i] for i in voters]
    weight = None if weights is None else [weights[i] for i in voters]
    elected = count([vote.answers[i] for i in voters], classes, tie=tie, weights=weight, seed=seed)
    if elected.winner is None:
        return None, None
    return elected.pseudo_label, classes[elected.classes.index(elected.winner)]


def check_sizes(vote: Vote, **given: Sequence[object]) -> None:
    """Raises InputError where something is not given once per response."""
    for what, values in given.items():
        if len(values) != len(vote.classes):
            raise InputError(f"{len(vote.classes)} responses but {len(values)} {what}; give one per response")
