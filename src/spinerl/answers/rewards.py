"""From a vote to the rewards of its responses.  Plain functions, none of which sees a gold answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from spinerl.answers.votes import break_tie, check_options, choose_class, spelling_of
from spinerl.errors import InputError
from spinerl.types import Vote

__all__ = [
    "QUESTION_WEIGHTS",
    "REWARDS",
    "certain_weight",
    "compass_reward",
    "dare_reward",
    "empo_reward",
    "evol_reward",
    "evol_sides",
    "frequency_reward",
    "leave_one_out_reward",
    "majority_reward",
    "pair_reward",
    "reference_reward",
    "scope_reward",
    "scrl_reward",
    "ttrv_reward",
]

_ROUNDING = 1e-9  # the entropy of N answers that all differ is log N but for the last bits


def majority_reward(vote: Vote) -> tuple[float, ...]:
    """1.0 for the responses of the winning class, else 0.0; all 0.0 without a winner.  Source: TTRL.

    >>> majority_reward(Vote(("4", "4", "5"), (0, 0, 1), (2.0, 1.0), 0, "4", 2 / 3))
    (1.0, 1.0, 0.0)
    """
    return tuple(float(vote.winner is not None and c == vote.winner) for c in vote.classes)


def leave_one_out_reward(
    vote: Vote,
    *,
    tie: str = "abstain",
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    flip_margin: float = 0.0,
    seed: int = 0,
) -> tuple[float, ...]:
    """1.0 for a response whose class wins the vote among the *other* responses, else 0.0.

    r_i = [class_i = winner(classes without i)]: a response never votes for itself, so a lone answer earns
    nothing.  Votes count 1 each here; with a memory, what they weigh in it, and the others are all that is remembered.
    The options mean what they mean in `vote`, applied to the others ("first" is the first appearance among those).
    Returns: one reward per response; 0.0 for abstainers, for ties that abstain and when N = 1.
    Raises: `InputError` for an unknown tie rule.  Source: docs/method.md, y*_{-i}; ours where the rule is
    open.

    >>> leave_one_out_reward(Vote(("4", "4", "5"), (0, 0, 1), (2.0, 1.0), 0, "4", 2 / 3))
    (0.0, 0.0, 0.0)
    """
    check_options(tie, min_majority_frac, min_margin, flip_margin)
    memory, classes = vote.memory, vote.classes
    weights = (1.0,) * len(classes) if memory is None else memory.weights
    counts = [float(classes.count(number)) for number in range(len(vote.counts))] if memory is None else vote.counts
    total = float(len(classes)) if memory is None else memory.total

    def wins_without(index: int, own: int) -> bool:
        others = [i for i in range(len(classes)) if i != index]

        def label_of(number: int) -> str:
            if memory is not None:
                return memory.labels[number]
            return spelling_of([i for i in others if classes[i] == number], vote.answers, weights)

        left = [count - weights[index] * (number == own) for number, count in enumerate(counts)]
        if left[own] <= 0 or total <= weights[index]:
            return False
        order = [*(classes[i] for i in others), *range(len(left))]  # "first" is the first appearance among the others
        elected = choose_class(
            left,
            total - weights[index],
            lambda tied: break_tie(sorted(tied, key=order.index), label_of, tie, seed),
            min_majority_frac=min_majority_frac,
            min_margin=min_margin,
            held=None if memory is None else memory.held,
            flip_margin=flip_margin,
        )
        return elected == own

    return tuple(float(own is not None and wins_without(index, own)) for index, own in enumerate(classes))


def frequency_reward(vote: Vote) -> tuple[float, ...]:
    """The share of all responses' votes that went to the response's own class; 0.0 for abstainers.

    r_i = counts[class_i] / (weight of all N responses).  No winner is needed, so ties pay both sides.
    Source: the soft rewards of SRT and EMPO.

    >>> frequency_reward(Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5))
    (0.5, 0.5, 0.25, 0.0)
    """
    total = _total_weight(vote)
    if total <= 0:
        return (0.0,) * len(vote.classes)
    return tuple(0.0 if c is None else vote.counts[c] / total for c in vote.classes)


def empo_reward(vote: Vote, *, min_entropy_frac: float = 0.0, max_entropy_frac: float = 1.0) -> tuple[float, ...]:
    """The share of the votes that went to the response's own class, on questions whose answers agree enough.

    r_i = p(class_i) if min_entropy_frac <= H / log N < max_entropy_frac, else 0 for the whole question, with
    H = - sum_c p_c log p_c over the N responses' answers; an abstainer counts as a class of its own there.
    The default refuses only the maximal entropy: N responses of which no two agree tell nothing.  A lower
    `max_entropy_frac` also refuses questions that are nearly as scattered; a higher `min_entropy_frac` those
    that are already settled.

    Args: both thresholds in [0, 1].
    Returns: one reward per response, in [0, 1]; 0.0 for abstainers, and for N = 1, which cannot agree with anyone.
    Under weighted votes H reaches log N only where all weigh the same.
    Raises: `InputError` for thresholds outside 0 <= min <= max <= 1.
    Source: EMPO (arXiv 2504.05812); that thresholds are shares of log N, and how abstainers count, is ours.

    >>> empo_reward(Vote(("4", "4", "5"), (0, 0, 1), (2.0, 1.0), 0, "4", 2 / 3))[2]
    0.3333333333333333
    >>> empo_reward(Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5))
    (0.0, 0.0)
    """
    if not 0.0 <= min_entropy_frac <= max_entropy_frac <= 1.0:
        raise InputError(
            f"EMPO's thresholds are {min_entropy_frac} and {max_entropy_frac}; allowed is 0 <= min <= max <= 1"
        )
    most = math.log(max(1, len(vote.classes) if vote.memory is None else vote.memory.total))
    frac = _entropy(_shares(vote)) / most if most > 0 else 1.0
    if frac < min_entropy_frac - _ROUNDING or frac >= max_entropy_frac - _ROUNDING:
        return (0.0,) * len(vote.classes)
    return frequency_reward(vote)


def ttrv_reward(vote: Vote, *, entropy_weight: float = 0.75) -> tuple[float, ...]:
    """The share of the votes for the response's own class, less how scattered the question's answers are.

    r_i = p(class_i) - entropy_weight * H(p) / log M, with H(p) = - sum_c p_c log p_c over the M different
    answers of the N responses; an abstainer counts as a class of its own there, and its p(class_i) is 0.
    The entropy part is the same for all responses to a question: advantages centred in the group are those of
    `frequency_reward`.  It acts only where advantages are taken over the whole step
    (`spinerl.maths.batch_advantages` of all questions' rewards): there a settled question's responses are
    pushed up and a scattered one's down.

    Args: `entropy_weight`, 0 or more.
    Returns: one reward per response, in [-entropy_weight, 1]; 1.0 for a unanimous question, whose entropy is 0.
    Raises: `InputError` for a negative weight.
    Source: TTRV (arXiv 2510.06783); how abstainers count is ours.

    >>> ttrv_reward(Vote(("4", "5"), (0, 1), (1.0, 1.0), None, None, 0.5))
    (-0.25, -0.25)
    """
    if not entropy_weight >= 0.0:
        raise InputError(f"TTRV's entropy weight is {entropy_weight}; it must be 0 or more")
    shares = _shares(vote)
    scatter = _entropy(shares) / math.log(len(shares)) if len(shares) > 1 else 0.0
    return tuple(p - entropy_weight * scatter for p in frequency_reward(vote))


def evol_sides(vote: Vote) -> tuple[int, ...]:
    """Each response's side in EVOL-RL: 1 voted with the majority, 0 against it, -1 gave no answer.

    The groups inside which `spinerl.maths.novelty_scores` compares.  Without a winner all that answered are 0.

    >>> evol_sides(Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5))
    (1, 1, 0, -1)
    """
    return tuple(-1 if c is None else int(c == vote.winner) for c in vote.classes)


def evol_reward(vote: Vote, novelty: Sequence[float]) -> tuple[float, ...]:
    """Majority for selection, novelty for variation: agreeing decides the sign, being different the size.

    With u_i the novelty scaled to [0, 1] inside the response's side (majority or others), (x - min) / (max - min):
    r_i = 0.5 + 0.5 u_i for the majority, in [0.5, 1]; r_i = -1 + 0.5 u_i for the others, in [-1, -0.5]; -1 for a
    response without an answer.  On a side of equals u = 0.5; a response that is the only one on its side has u = 1.

    Args: `novelty`, one finite number per response, higher is more different; only the order and the gaps inside
    a side matter, and those of responses without an answer are ignored.
    Returns: one reward per response; 0.0 for all when there is no winner: no label, no reward.
    Raises: `InputError` for another number of scores, or one that is not finite.
    Source: EVOL-RL (arXiv 2509.15194); a question without a winner does not occur there and is ours.

    >>> evol_reward(Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5), [0.1, 0.3, 0.2, 0.0])
    (0.5, 1.0, -0.5, -1.0)
    """
    scores = _finite(novelty, len(vote.classes), "novelty score")
    if vote.winner is None:
        return (0.0,) * len(vote.classes)
    rewards = [-1.0] * len(vote.classes)
    sides = evol_sides(vote)
    for side, floor in ((1, 0.5), (0, -1.0)):
        members = [index for index, own in enumerate(sides) if own == side]
        for index, scaled in zip(members, _scaled([scores[i] for i in members]), strict=True):
            rewards[index] = floor + 0.5 * scaled
    return tuple(rewards)


def reference_reward(vote: Vote, reference: int | None) -> tuple[float, ...]:
    """1.0 for the responses whose answer is equivalent to a reference answer, else 0.0.

    `reference` is the reference's class in `vote.classes`; None where it gave no answer, which rewards no response, as
    does a class that no response is in.
    Source: Compute as Teacher (arXiv 2509.14234), whose reference the frozen initial model writes from the group.

    >>> reference_reward(Vote(("4", "4", "5"), (0, 0, 1), (2.0, 1.0), 0, "4", 2 / 3), 1)
    (0.0, 0.0, 1.0)
    """
    return tuple(float(reference is not None and c == reference) for c in vote.classes)


def scrl_reward(
    vote: Vote, entropies: Sequence[float], *, negative_share: float = 0.125, entropy_weight: float = 0.1
) -> tuple[float, ...]:
    """The winner's share for its responses, less than 0 for rare and uncertain answers, and certainty for all.

    r_i = p(c) [c wins] + (p(c) - negative_share) [c is negative] - entropy_weight (H(c) - H), c the response's class,
    p its share of the votes, H(c) the mean of `entropies` over the class, H over all responses.  Negative is a class
    with p < negative_share and H(c) >= H, unless it wins.  0.0 for a response without an answer.

    A vote without a winner has no positive label: how strict that is, the vote's rules say.  The source asks for a
    share of at least 0.375 and a lead of more than 0.125 (`vote.min_majority_frac`, `vote.min_margin`).

    Args: `entropies`, the mean token entropy of each response, nats.
    Raises: `InputError` for another number of entropies, or one that is not finite.
    Source: SCRL (arXiv 2603.19880); that abstainers get 0 is ours.

    >>> one = Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5)
    >>> [round(r, 3) for r in scrl_reward(one, [1.0, 1.0, 2.0, 2.0], negative_share=0.3)]
    [0.55, 0.55, -0.1, 0.0]
    """
    given = _finite(entropies, len(vote.classes), "entropy")
    if not given:
        return ()
    mean = sum(given) / len(given)
    of_class = _class_means(vote, given)
    rewards = []
    for own, share in zip(vote.classes, frequency_reward(vote), strict=True):
        if own is None:
            rewards.append(0.0)
            continue
        reward = share if own == vote.winner else 0.0
        if own != vote.winner and share < negative_share and of_class[own] >= mean:
            reward = share - negative_share
        rewards.append(reward - entropy_weight * (of_class[own] - mean))
    return tuple(rewards)


def dare_reward(
    vote: Vote, entropies: Sequence[float], *, bonus: float = 0.1, prune: float = 0.05, eps: float = 1e-6
) -> tuple[float, ...]:
    """The answer's share of votes over its uncertainty, and a bonus for answers that are rare but certain.

    With n_c votes for class c of N and u_c the mean of `entropies` over its responses, q_c is n_c / (u_c + eps) made to
    add up to 1.  Classes with q_c < prune get 0 and leave the sum; r_i = q_c + bonus (1 - n_c / N) (1 - u_c) for the
    others, 0.0 for a response without an answer.

    Args: `entropies`, the mean token entropy of each response, nats.
    Raises: `InputError` for another number of entropies, or one that is not finite.
    Source: DARE (arXiv 2601.21804); `bonus`, `prune` and `eps` are open there as far as we know, and ours.

    >>> one = Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5)
    >>> [round(r, 3) for r in dare_reward(one, [0.5, 0.5, 0.25, 2.0])]
    [0.525, 0.525, 0.556, 0.0]
    """
    given = _finite(entropies, len(vote.classes), "entropy")
    of_class = _class_means(vote, given)
    certain = {c: vote.counts[c] / (u + eps) for c, u in of_class.items()}
    total = sum(certain.values())
    kept = {c: q for c, q in certain.items() if total > 0 and q / total >= prune}
    total = sum(kept.values())
    rewards = []
    for own, share in zip(vote.classes, frequency_reward(vote), strict=True):
        if own not in kept:
            rewards.append(0.0)
            continue
        rewards.append(kept[own] / total + bonus * (1.0 - share) * (1.0 - of_class[own]))
    return tuple(rewards)


def compass_reward(vote: Vote, confidences: Sequence[float]) -> tuple[float, ...]:
    """The majority's reward times how confident its surest response is: max_{i wins} c_i / max_i c_i.

    A majority whose best response is less confident than another answer's teaches less.

    Args: `confidences`, one finite number of at least 0 per response.
    Returns: one reward per response, in [0, 1].
    Raises: `InputError` for another number of confidences, or one that is not finite.
    Source: COMPASS (arXiv 2510.17923), whose votes weigh the same confidences.

    >>> compass_reward(Vote(("4", "4", "5"), (0, 0, 1), (0.7, 0.5), 0, "4", 0.58), [0.3, 0.4, 0.5])
    (0.8, 0.8, 0.0)
    """
    given = _finite(confidences, len(vote.classes), "confidence")
    best = max(given, default=0.0)
    won = [c for c, own in zip(given, vote.classes, strict=True) if own is not None and own == vote.winner]
    scale = max(won) / best if won and best > 0 else 0.0
    return tuple(scale * reward for reward in majority_reward(vote))


def scope_reward(vote: Vote, weights: Sequence[float], *, num_subgroups: int = 4, seed: int = 0) -> tuple[float, ...]:
    """1.0 for a response whose answer is the label of its own subgroup, else 0.0.

    Response i is in subgroup i mod k, k = `num_subgroups`.  A subgroup's label is the answer with most weight in a
    bootstrap sample of the vote, as many responses as there are, drawn with replacement: subgroups of a close vote
    differ, those of a clear one agree.  Of equals the class that appeared first.  Without votes in its sample a
    subgroup has no label.

    Args: `weights`, what each response's vote weighs, at least 0; `seed` names the samples.
    Raises: `InputError` for another number of weights, or one that is not finite.
    Source: SCOPE (arXiv 2512.15146), labels per bootstrap subgroup; how subgroups are made and their number are ours.

    >>> scope_reward(Vote(("4", "4", "4", None), (0, 0, 0, None), (3.0,), 0, "4", 0.75), [1.0] * 4)
    (1.0, 1.0, 1.0, 0.0)
    """
    given = _finite(weights, len(vote.classes), "vote weight")
    size = len(given)
    labels: list[int | None] = []
    for group in range(min(num_subgroups, size)):
        random = Random(f"{seed}/{group}")
        held: dict[int, float] = {}
        for place in (random.randrange(size) for _ in range(size)):
            own = vote.classes[place]
            if own is not None:
                held[own] = held.get(own, 0.0) + given[place]
        best = max(held.values(), default=0.0)
        labels.append(min((c for c, weight in held.items() if weight == best), default=None) if best > 0 else None)
    return tuple(float(c is not None and c == labels[i % len(labels)]) for i, c in enumerate(vote.classes))


def pair_reward(vote: Vote) -> tuple[float, ...]:
    """w for the first response of the winner, -w for the first of the answer with the fewest votes, 0.0 for the others.

    w is the difference of their shares of all responses' weight.  Without a winner, or another answer, all are 0.0.  Of
    equals the answer that appeared first; abstainers have no answer.  What share a winner needs, the vote's rules say
    (`vote.min_majority_frac`, 0.5 in the source).
    Source: ScPO (arXiv 2411.04109); which response of an answer stands for it is ours.

    >>> pair_reward(Vote(("4", "4", "5", None), (0, 0, 1, None), (2.0, 1.0), 0, "4", 0.5))
    (0.25, 0.0, -0.25, 0.0)
    """
    rewards = [0.0] * len(vote.classes)
    others = [c for c in dict.fromkeys(vote.classes) if c is not None and c != vote.winner]
    if vote.winner in vote.classes and vote.winner is not None and others:
        least = min(others, key=lambda c: vote.counts[c])
        margin = (vote.counts[vote.winner] - vote.counts[least]) / _total_weight(vote)
        rewards[vote.classes.index(vote.winner)] = margin
        rewards[vote.classes.index(least)] = -margin
    return tuple(rewards)


REWARDS: dict[str, Callable[[Vote], tuple[float, ...]]] = {
    "majority": majority_reward,
    "leave-one-out": leave_one_out_reward,
    "frequency": frequency_reward,
    "empo": empo_reward,
    "ttrv": ttrv_reward,
    "pairs": pair_reward,
}
"""Reward functions by the name configurations use: Vote -> one float per response."""


def certain_weight(vote: Vote, *, most: float = 0.4) -> float:
    """exp(most - h) for a question whose vote is certain enough (h < most), else 0.0.

    h = H / log N in [0, 1], H = - sum_c p_c log p_c over the N responses' answers, each abstainer an answer of its own.
    Returns: 0.0, or between 1 and exp(most).  Of one response h is 0.
    Source: EATA (arXiv 2204.02610) weighs samples so by their prediction's entropy, most = 0.4; that of a vote is ours.

    >>> round(certain_weight(Vote(("4",) * 4, (0,) * 4, (4.0,), 0, "4", 1.0)), 3)
    1.492
    >>> certain_weight(Vote(("4", "4", "5", "6"), (0, 0, 1, 2), (2.0, 1.0, 1.0), 0, "4", 0.5))
    0.0
    """
    largest = math.log(max(1, len(vote.classes) if vote.memory is None else vote.memory.total))
    scatter = _entropy(_shares(vote)) / largest if largest > 0 else 0.0
    return math.exp(most - scatter) if scatter < most else 0.0


def _equal_weight(vote: Vote) -> float:  # noqa: ARG001 - every weighting has the same shape
    return 1.0


QUESTION_WEIGHTS: dict[str, Callable[[Vote], float]] = {"equal": _equal_weight, "certain": certain_weight}
"""What a question's advantages are multiplied by, by the name configurations use: Vote -> a number, 0 or more."""


def _class_means(vote: Vote, values: Sequence[float]) -> dict[int, float]:
    """The mean of the values over each class that a response of the vote is in."""
    held: dict[int, list[float]] = {}
    for own, value in zip(vote.classes, values, strict=True):
        if own is not None:
            held.setdefault(own, []).append(value)
    return {own: sum(members) / len(members) for own, members in held.items()}


def _total_weight(vote: Vote) -> float:
    """The weight of all responses, abstainers included; 0.0 when no vote weighs anything."""
    if vote.memory is not None:
        return vote.memory.total
    best = max(vote.counts, default=0.0)
    if best <= 0:
        return 0.0
    shown = vote.counts[vote.winner] if vote.winner is not None else best
    return shown / vote.majority_frac


def _shares(vote: Vote) -> list[float]:
    """How the responses' weight is spread over different answers, an abstainer being one of its own; no zeros."""
    total = _total_weight(vote)
    abstainers = vote.classes.count(None) if vote.memory is None else math.ceil(vote.memory.abstained)
    if total <= 0:  # no votes: no two agree
        return [1 / max(1, len(vote.classes))] * len(vote.classes)
    shares = [count / total for count in vote.counts]
    if abstainers:
        shares += [max(0.0, 1.0 - math.fsum(shares)) / abstainers] * abstainers
    return [share for share in shares if share > _ROUNDING]


def _entropy(shares: Sequence[float]) -> float:
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))


def _scaled(values: Sequence[float]) -> list[float]:
    """The values on a scale from 0 (the lowest) to 1 (the highest); 0.5 among equals, 1 for a single one."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high > low:
        return [(value - low) / (high - low) for value in values]
    return [1.0 if len(values) == 1 else 0.5] * len(values)


def _finite(values: Sequence[float], size: int, what: str) -> list[float]:
    if len(values) != size:
        raise InputError(f"{size} responses but {len(values)} {what}s; give one {what} per response")
    numbers = [float(value) for value in values]
    for number in numbers:
        if not math.isfinite(number):
            raise InputError(f"{what} {number} is refused; it must be finite")
    return numbers
