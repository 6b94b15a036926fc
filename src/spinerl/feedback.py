"""Yes or no to a step's least certain labels (feedback.questions): what a user could say, here from gold answers.

No gold answer can reach this module: it is given a function that says yes or no to one answer, counts how often it is
asked, and remembers what it said.  Runs that have it announce it as those of grpo-gold do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from spinerl.answers import Equivalence
from spinerl.answers.votes import break_tie, by_question, choose_class, spelling_of
from spinerl.config import Config
from spinerl.errors import CheckpointError
from spinerl.types import Question, Rollout, Vote

__all__ = ["Feedback", "Known"]

_FILE = "feedback.json"


@dataclass(frozen=True)
class Known:
    """What was said about a question: the answer to which it was yes, and those to which it was no."""

    right: str | None = None
    wrong: tuple[str, ...] = ()


class Feedback:
    """Asks about the labels of the `feedback.questions` questions of a step whose two leading answers are closest.

    Yes: the answer is the question's label from now on.  No: the answer never is its label again, and the next one is
    now.  Source: BiTTA (arXiv 2505.18514), which asks about the least certain samples; that certainty is a vote's
    margin, and that an answer stays ruled out, is ours.
    """

    def __init__(self, config: Config, ask: Callable[[Question, str], bool]) -> None:
        """`ask`: whether this is the right answer to the question."""
        self._config, self._ask = config, ask
        self._of: dict[str, Known] = {}
        self._num_asked = 0

    def vote(
        self,
        rollout: Rollout,
        fresh: Sequence[Vote],
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
    ) -> tuple[tuple[Vote, ...], dict[str, float]]:
        """(the votes after what was said; feedback/asked and feedback/yes of this step, feedback/total of all so far).

        Args: as `spinerl.memory.Memories.vote`.
        """
        questions = rollout.questions
        own = by_question(weights, fresh)
        votes = [self._decided(*one, sampled, equivalence) for one in zip(questions, fresh, own, strict=True)]
        open_places = [
            place
            for place, (question, one) in enumerate(zip(questions, votes, strict=True))
            if self._known(question).right is None and max(one.counts, default=0.0) > 0
        ]
        closest = sorted(open_places, key=lambda place: (_margin(votes[place]), place))
        yes = 0
        asked = closest[: self._config.feedback.questions]
        for place in asked:
            question, one = questions[place], votes[place]
            leader = one.counts.index(max(one.counts)) if one.winner is None else one.winner
            answer = one.class_answers[leader] if one.pseudo_label is None else one.pseudo_label
            known = self._known(question)
            if self._ask(question, answer):
                yes += 1
                known = replace(known, right=answer)
            else:
                known = replace(known, wrong=(*known.wrong, answer))
            self._of[question.id] = known
            votes[place] = self._decided(question, fresh[place], own[place], sampled, equivalence)
        self._num_asked += len(asked)
        return tuple(votes), {
            "label/labelled_frac": fmean(one.winner is not None for one in votes),
            "feedback/asked": float(len(asked)),
            "feedback/yes": float(yes),
            "feedback/total": float(self._num_asked),
        }

    def _known(self, question: Question) -> Known:
        return self._of.get(question.id, Known())

    def _decided(
        self, question: Question, fresh: Vote, weights: Sequence[float], sampled: int, equivalence: Equivalence
    ) -> Vote:
        """The vote with the answer that is known to be right as its label, or without those known to be wrong."""
        known = self._known(question)
        if known == Known():
            return fresh
        kind = self._config.answer.kind_of(question.answer_kind)
        said = [*known.wrong, *([known.right] if known.right is not None else [])]
        numbers = equivalence.classes([*fresh.class_answers, *said], kind)
        classes, others = numbers[: len(fresh.counts)], numbers[len(fresh.counts) :]
        total = sum(weights)
        if known.right is not None:
            winner = classes.index(others[-1]) if others[-1] in classes else None
            share = 0.0 if winner is None or total <= 0 else fresh.counts[winner] / total
            return replace(fresh, winner=winner, pseudo_label=known.right, majority_frac=share)
        counts = tuple(0.0 if c in others else count for c, count in zip(classes, fresh.counts, strict=True))

        def label_of(number: int) -> str:
            return spelling_of([i for i, c in enumerate(fresh.classes) if c == number], fresh.answers, weights)

        rules = self._config.vote.rules
        seed, tie = self._config.seed + sampled, rules.pop("tie")
        winner = choose_class(counts, total, lambda tied: break_tie(tied, label_of, tie, seed), **rules)
        label = None if winner is None else label_of(winner)
        share = max(counts, default=0.0) / total if total > 0 else 0.0
        return replace(fresh, counts=counts, winner=winner, pseudo_label=label, majority_frac=share)

    def save(self, folder: Path) -> None:
        """Write what was said into a checkpoint's folder."""
        rows = {name: asdict(known) for name, known in self._of.items()}
        state = {"num_asked": self._num_asked, "known": rows}
        (folder / _FILE).write_text(json.dumps(state, ensure_ascii=True), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take it from there; CheckpointError if the checkpoint has none."""
        try:
            state = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} holds no answers: the run began without feedback.questions") from None
        self._num_asked = state["num_asked"]
        self._of = {name: Known(row["right"], tuple(row["wrong"])) for name, row in state["known"].items()}


def _margin(one: Vote) -> float:
    """How far the leading answer is ahead of the next, as a share of all counts."""
    first, second = [*sorted(one.counts, reverse=True), 0.0][:2]
    return (first - second) / sum(one.counts)
