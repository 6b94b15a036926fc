"""What can be seen of a run without labels: plain functions over votes, responses and answers.

docs/guard.md says what each figure means and how well it separates a run that helps from one that destroys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from spinerl.answers import Equivalence
from spinerl.answers.refusals import declines
from spinerl.answers.shared import shared_share
from spinerl.hooks import blank_around, read_again
from spinerl.maths import response_means
from spinerl.stats import roc_area
from spinerl.types import StepRecord, Vote

__all__ = [
    "PERTURBATIONS",
    "certainty_auc",
    "concentration",
    "halves_agree",
    "kept_labels",
    "refused_share",
    "same_answers",
    "step_signals",
    "winner_of",
]


PERTURBATIONS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "blank": blank_around,
    "reread": read_again,
}
"""Ways to ask the same question differently; a model that knows the answer gives the same one."""


def concentration(classes: Sequence[int | None]) -> float:
    """The chance that two different questions have the same answer; questions without one stand by themselves.

    Different questions have different answers as a rule.  A model whose training has lost the question says the
    same to all: this goes to 1 while the votes agree better and better.

    >>> concentration([0, 0, 1, None])  # one pair of six
    0.16666666666666666
    """
    counts = Counter(c for c in classes if c is not None)
    pairs = len(classes) * (len(classes) - 1)
    return sum(n * (n - 1) for n in counts.values()) / pairs if pairs else 0.0


def halves_agree(one: Vote) -> bool:
    """Whether the votes of every second response and of the others have the same winner; a tie has none."""
    winners = [winner_of(one.classes[start::2]) for start in (0, 1)]
    return winners[0] is not None and winners[0] == winners[1]


def kept_labels(
    ids: Sequence[str], labels: Sequence[str | None], first: Mapping[str, str | None], equivalence: Equivalence
) -> float | None:
    """The share of questions, of those met before, whose pseudo-label is the one they had first; None if none was."""
    again = [(first[i], label) for i, label in zip(ids, labels, strict=True) if i in first]
    if not again:
        return None
    return sum(same_answers(a, b, equivalence) for a, b in again) / len(again)


def certainty_auc(one: Vote, likelihoods: Sequence[float]) -> float | None:
    """The chance that a response that voted for the winner has the higher mean token log-probability.

    It is compared with one that did not; 0.5 says nothing, ties count half; None where all or none voted for it.
    High: the model is surer of what it says more often.
    """
    ayes = [x for x, c in zip(likelihoods, one.classes, strict=True) if c is not None and c == one.winner]
    noes = [x for x, c in zip(likelihoods, one.classes, strict=True) if c is None or c != one.winner]
    return roc_area(ayes, noes)


def refused_share(texts: Sequence[str], answers: Sequence[str | None]) -> float:
    """The share of responses that decline to answer: by the answer that was read, or by the text where none was.

    >>> refused_share(["The answer is 4.", "I cannot answer that.", "3 + 1"], ["4", None, None])
    0.3333333333333333
    """
    refused = [declines(text if answer is None else answer) for text, answer in zip(texts, answers, strict=True)]
    return sum(refused) / max(1, len(refused))


def same_answers(a: str | None, b: str | None, equivalence: Equivalence) -> bool:
    """Whether both are answers, and the same."""
    if a is None or b is None:
        return False
    first, second = equivalence.classes([a, b])
    return first is not None and first == second


def step_signals(
    record: StepRecord, first: Mapping[str, str | None], equivalence: Equivalence, kinds: Sequence[str] | None = None
) -> dict[str, float]:
    """The signals of one step, besides those that its metrics hold already.

    Args:
        first: the pseudo-label that each question had when the run met it for the first time, by its id.
        kinds: how each question's answers are read; None: by the questions' own kinds.
    """
    rollout, votes = record.rollout, record.fresh_votes
    labels = [one.pseudo_label for one in votes]
    n = rollout.num_responses
    likelihoods = response_means(rollout.logprobs, rollout.mask).view(-1, n).tolist()
    aucs = [certainty_auc(one, own) for one, own in zip(votes, likelihoods, strict=True)]
    known = [auc for auc in aucs if auc is not None]
    signals = {
        "label/concentration": concentration(equivalence.classes(labels)),
        "label/halves_agree": sum(map(halves_agree, votes)) / len(votes),
        "label/shared_frac": shared_share(
            rollout.questions, labels, kinds or [q.answer_kind for q in rollout.questions], equivalence
        )[0],
        "label/refused_frac": refused_share(rollout.texts, [answer for one in votes for answer in one.answers]),
    }
    kept = kept_labels([q.id for q in rollout.questions], labels, first, equivalence)
    if kept is not None:
        signals["label/kept_frac"] = kept
    if known:
        signals["label/certainty_auc"] = sum(known) / len(known)
    return signals


def winner_of(classes: Sequence[int | None]) -> int | None:
    """The class with the most votes; None for a tie or where no response voted."""
    ranked = Counter(c for c in classes if c is not None).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
