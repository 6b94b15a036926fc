"""Decisions without updates that weigh responses by confidence, or sample as many as a question needs.

As in `spinerl.answers.baselines`: each takes one question's vote, in the order its responses were sampled, and says
which answer it would have given and how many tokens it would have spent.  None reads a label.
"""

from __future__ import annotations

from collections.abc import Sequence

from spinerl.answers.baselines import Decision, best_of, check_sizes, elect
from spinerl.errors import InputError
from spinerl.types import Vote

__all__ = ["early_exit", "rank_weights", "routed_sizes", "share_stopped_majority", "weighted_majority"]


def weighted_majority(
    vote: Vote, weights: Sequence[float], lengths: Sequence[int], *, tie: str = "abstain", seed: int = 0
) -> Decision:
    """Confidence-weighted self-consistency: argmax_c sum_i w_i [class_i = c] over all N responses.

    Args: `weights`, one per response, finite and not negative: its mean token probability, or its self-certainty in
    nats; `lengths` in tokens; `tie` and `seed` as in `spinerl.answers.vote`.
    Returns: the decision; no answer if none was given, all weigh 0, or a tie abstained.
    Raises: `InputError` for other numbers of weights or lengths, or a weight that is negative or not finite.
    Source: weighted self-consistency (arXiv 2203.11171, section 3.1); by confidence: Self-Calibration (2503.00031).

    >>> weighted_majority(Vote(("4", "5", "5"), (0, 1, 1), (1.0, 2.0), 1, "5", 0.67), [0.9, 0.4, 0.4], [9, 9, 9])
    Decision(answer='4', winner=0, num_responses=3, num_tokens=27)
    """
    check_sizes(vote, weights=weights, lengths=lengths)
    answer, winner = elect(vote, range(len(lengths)), tie, seed, weights)
    return Decision(answer, winner, len(lengths), sum(lengths))


def rank_weights(scores: Sequence[float], power: float) -> list[float]:
    """Borda voting: (N - rank_i + 1)^power for `weighted_majority`, the highest of N scores having rank 1.

    Equal scores: the earlier response ranks higher.  Raises `InputError` for a power under 0.
    Source: Borda voting by self-certainty (arXiv 2502.18581); its powers depend on N, so none is a default here.

    >>> rank_weights([0.2, 0.9, 0.5], 1.0)
    [1.0, 3.0, 2.0]
    """
    if power < 0:
        raise InputError(f"power is {power}; it must be 0 or more")
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    weights = [0.0] * len(scores)
    for rank, i in enumerate(order, start=1):
        weights[i] = float((len(scores) - rank + 1) ** power)
    return weights


def share_stopped_majority(
    vote: Vote,
    lengths: Sequence[int],
    *,
    share: float = 0.8,
    weights: Sequence[float] | None = None,
    least: int = 3,
    tie: str = "abstain",
    seed: int = 0,
) -> Decision:
    """ASC: responses sampled one after the other, stopped once the leading answer has a large share of them.

    After n >= `least` responses it stops when max_c sum_i w_i [class_i = c] / sum_i w_i >= `share`, i up to n; the
    leader is the answer.  Responses without an answer are in the denominator only.  After all N the majority decides.

    Args: `lengths` in tokens; `share` in (0.5, 1]; `weights` as in `weighted_majority` (ASC-conf), None for 1 each;
    `least`, 1 or more: a first response has a share of 1 by itself; `tie` and `seed` as in `spinerl.answers.vote`.
    Raises: `InputError` for other numbers of lengths or weights, a weight that is negative or not finite, a share
    outside (0.5, 1], or `least` under 1.
    Source: the share and its weighted form as in Self-Calibration (arXiv 2503.00031); `least` is ours.

    >>> share_stopped_majority(Vote(("4",) * 6, (0,) * 6, (6.0,), 0, "4", 1.0), [10] * 6)
    Decision(answer='4', winner=0, num_responses=3, num_tokens=30)
    """
    check_sizes(vote, lengths=lengths, **({} if weights is None else {"weights": weights}))
    if not 0.5 < share <= 1.0:
        raise InputError(f"share is {share}; it must be above 0.5 and at most 1")
    if least < 1:
        raise InputError(f"least is {least}; it must be 1 or more")
    weight = [1.0] * len(lengths) if weights is None else list(weights)
    sums: dict[int, float] = {}
    total, num = 0.0, 0
    for num, (own, one) in enumerate(zip(vote.classes, weight, strict=True), start=1):
        total += one
        if own is not None:
            sums[own] = sums.get(own, 0.0) + one
        if num >= least and total > 0 and max(sums.values(), default=0.0) >= share * total * (1 - 1e-12):
            break
    answer, winner = elect(vote, range(num), tie, seed, weights)
    return Decision(answer, winner, num, sum(lengths[:num]))


def early_exit(vote: Vote, confidences: Sequence[float], lengths: Sequence[int], threshold: float) -> Decision:
    """The answer of the first response that is confident enough; nothing after it is sampled.

    The first response with an answer and a confidence of at least `threshold`.  Where none is, all N are paid for,
    and the most confident one that answered counts (`best_of`).

    Args: `confidences`, one finite number per response, higher is surer; `lengths` in tokens; `threshold` in the same
    unit, chosen without labels: say, a quantile of the confidences of the first response to every question.
    Raises: `InputError` for other numbers of confidences or lengths, or one that is not finite.
    Source: early stopping by confidence as in Self-Calibration (arXiv 2503.00031), there with a trained confidence.

    >>> early_exit(Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5), [0.6, 0.9], [30, 40], 0.5)
    Decision(answer='4', winner=0, num_responses=1, num_tokens=30)
    """
    last = best_of(vote, confidences, lengths)  # checks the sizes and that all are finite
    for i, (own, confidence) in enumerate(zip(vote.classes, confidences, strict=True)):
        if own is not None and confidence >= threshold:
            return Decision(vote.answers[i], own, i + 1, sum(lengths[: i + 1]))
    return last


def routed_sizes(agreements: Sequence[float], lengths: Sequence[Sequence[int]], few: int, tokens: float) -> list[int]:
    """Routing by agreement: how many responses every question gets out of one budget of tokens for all of them.

    Every question gets its first `few`.  Those whose agreement is under 1 then get one more each, round after round,
    the least agreement first (equal: the earlier question), until `tokens` are spent, by the response that reaches
    them, or no responses are left.  Questions whose first `few` agree get no more.

    Args: `agreements`, per question, the share that the leading answer has of its first `few` responses; `lengths`,
    per question, of its responses in tokens in the order of sampling; `few`, 1 or more; `tokens` in total.
    Returns: a size per question, at most as many as it has lengths.
    Raises: `InputError` for other numbers of agreements than of questions, or `few` under 1.
    Source: ours; the idea of more samples for harder questions is that of arXiv 2408.03314.

    >>> routed_sizes([1.0, 0.5], [[10] * 8, [10] * 8], 2, 80)
    [2, 6]
    """
    if len(agreements) != len(lengths):
        raise InputError(f"{len(lengths)} questions but {len(agreements)} agreements; give one per question")
    if few < 1:
        raise InputError(f"few is {few}; it must be 1 or more")
    sizes = [min(few, len(own)) for own in lengths]
    spent = sum(sum(own[:size]) for own, size in zip(lengths, sizes, strict=True))
    order = sorted((i for i, agreed in enumerate(agreements) if agreed < 1), key=lambda i: (agreements[i], i))
    for _ in range(max(map(len, lengths), default=0)):
        for i in order:
            if spent < tokens and sizes[i] < len(lengths[i]):
                spent += lengths[i][sizes[i]]
                sizes[i] += 1
    return sizes
