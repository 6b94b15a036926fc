"""What is remembered of one question's votes from visit to visit.  Plain functions, none of which sees a gold answer.

Votes are kept by spelling, and sorted into classes again at every visit together with the fresh answers: the vote of
a memory that only adds up is the vote over all responses there ever were, pooled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from spinerl.answers.equivalence import Equivalence
from spinerl.answers.votes import spelling_of, vote
from spinerl.errors import InputError
from spinerl.types import Remembered, Vote

__all__ = ["MEMORIES", "VoteMemory", "add_votes", "vote_from_memory"]

MEMORIES = ("fixed", "sum", "ema")
"""What becomes of a memory when new votes come: nothing, once it has any; they are added; the old ones fade first."""

_FORGOTTEN = 1e-6  # a spelling with a smaller share of the votes is dropped


@dataclass(frozen=True)
class VoteMemory:
    """The votes one question has received: weights by spelling, that of responses without an answer, the last label.

    `sampled`: the step whose responses were added last, 0 for votes of the unadapted model, None for none at all.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    abstained: float = 0.0
    label: str | None = None
    sampled: int | None = None

    @property
    def total(self) -> float:
        """The weight of all votes, abstentions included."""
        return math.fsum(self.weights.values()) + self.abstained


def add_votes(
    memory: VoteMemory, fresh: Vote, weights: Sequence[float], sampled: int, kind: str, decay: float = 1.0
) -> VoteMemory:
    """The memory after a visit.

    sum: m + v.  ema: decay m + v, whose shares are the average of all visits' with weights decay^age, the first visits
    not favoured.  fixed: v if m holds no answer, else m.  Responses of a step that was added last (rollout.reuse) count
    once.

    Args:
        fresh: the vote of only the new responses; its counts are not read.
        weights: of the new responses, in their order; at least 0.
        kind: one of `MEMORIES`.
        decay: in (0, 1], for ema.
    Raises: InputError for an unknown kind.

    >>> one = Vote(("4", "4", None), (0, 0, None), (2.0,), 0, "4", 2 / 3)
    >>> add_votes(add_votes(VoteMemory(), one, [1.0] * 3, 1, "ema", 0.5), one, [1.0] * 3, 2, "ema", 0.5).weights
    {'4': 3.0}
    """
    if kind not in MEMORIES:
        raise InputError(f"vote.memory={kind!r} is unknown; allowed: {', '.join(MEMORIES)}")
    if not _takes(memory, sampled, kind):
        return memory
    kept = decay if kind == "ema" else 1.0
    counts = {spelling: kept * weight for spelling, weight in memory.weights.items()}
    abstained = kept * memory.abstained
    for answer, number, weight in zip(fresh.answers, fresh.classes, weights, strict=True):
        if answer is None or number is None:
            abstained += weight
        else:
            counts[answer] = counts.get(answer, 0.0) + weight
    least = _FORGOTTEN * (math.fsum(counts.values()) + abstained)
    counts = {spelling: weight for spelling, weight in counts.items() if weight > least}
    return VoteMemory(counts, abstained, memory.label, sampled)


def vote_from_memory(
    memory: VoteMemory,
    fresh: Vote,
    weights: Sequence[float],
    sampled: int,
    kind: str,
    equivalence: Equivalence,
    answer_kind: str,
    *,
    decay: float = 1.0,
    tie: str = "abstain",
    min_majority_frac: float = 0.0,
    min_margin: float = 0.0,
    flip_margin: float = 0.0,
    seed: int = 0,
) -> tuple[Vote, VoteMemory]:
    """(the vote over all that is remembered, fresh votes included where the memory takes them; the memory after it).

    The pseudo-label is the winner in the memory.  The label the question had stays unless another answer leads it by
    more than `flip_margin` of the memory's weight, so a tie never changes a label.  The other options are those of
    `spinerl.answers.vote`, over the memory's weight.

    Args:
        fresh, weights, sampled, kind, decay: as for `add_votes`.
        answer_kind: how answers are compared, one of `KINDS`.
    Returns: a vote whose classes are numbered from the fresh responses on; classes that only the memory holds follow.

    >>> one = Vote(("4", "4", "5"), (0, 0, 1), (2.0, 1.0), 0, "4", 2 / 3)
    >>> with Equivalence() as equivalence:
    ...     _, memory = vote_from_memory(VoteMemory(), one, [1.0] * 3, 1, "sum", equivalence, "math")
    ...     other = Vote(("5.0",), (0,), (1.0,), 0, "5.0", 1.0)
    ...     now, _ = vote_from_memory(memory, other, [1.0], 2, "sum", equivalence, "math")
    >>> now.classes, now.counts, now.pseudo_label
    ((0,), (2.0, 2.0), '4')
    """
    counted = _takes(memory, sampled, kind) or sampled == memory.sampled
    own = tuple(float(weight) if counted else 0.0 for weight in weights)
    after = add_votes(memory, fresh, weights, sampled, kind, decay)
    said = [answer if number is not None else None for answer, number in zip(fresh.answers, fresh.classes, strict=True)]
    pool = [*said, *after.weights]
    *classes, held = equivalence.classes([*pool, memory.label], answer_kind)
    answers = [answer if number is not None else None for answer, number in zip(pool, classes, strict=True)]
    # The memory already holds the fresh votes it took: here the responses only number the classes.
    heard = [*(0.0 for _ in said), *after.weights.values(), after.abstained]
    one = vote(
        [*answers, None],
        [*classes, None],
        weights=heard,
        tie=tie,
        min_majority_frac=min_majority_frac,
        min_margin=min_margin,
        seed=seed,
        held=held,
        flip_margin=flip_margin,
    )
    size = len(said)
    members = [[i for i, c in enumerate(one.classes) if c == number] for number in range(len(one.counts))]
    labels = tuple(spelling_of(group, one.answers, heard) for group in members)
    before = None if held not in classes else one.classes[classes.index(held)]
    kept = Remembered(own, after.abstained, after.total, before, labels)
    if one.pseudo_label is not None:
        after = replace(after, label=one.pseudo_label)
    return replace(one, answers=one.answers[:size], classes=one.classes[:size], memory=kept), after


def _takes(memory: VoteMemory, sampled: int, kind: str) -> bool:
    """Whether new responses are added."""
    return sampled != memory.sampled and (kind != "fixed" or not memory.weights)
