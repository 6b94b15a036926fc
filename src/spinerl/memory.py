"""The votes that a run remembers (vote.memory): per question, from visit to visit, and in its checkpoints.

The pseudo-label is the winner of the memory in place of the fresh vote's.  docs/memory.md has the idea, the formulas
and what it is worth; the arithmetic is in `spinerl.answers.memory`.  No gold answer can reach this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from spinerl.answers import Equivalence, VoteMemory, add_votes, vote_from_memory
from spinerl.answers.votes import by_question
from spinerl.config import Config
from spinerl.errors import CheckpointError
from spinerl.types import Question, Rollout, Vote

__all__ = ["Memories", "is_flip"]

_FILE = "memory.json"


Voter = Callable[[Sequence[Question], Sequence[tuple[int, ...]], int], tuple[Sequence[Vote], Sequence[float], int]]
"""(questions, prompts, step) -> (a vote per question, the weight of each of its responses, tokens sampled)."""


class Memories:
    """What is remembered of every question's votes; `voter` votes in place of the responses that are learned from."""

    def __init__(self, config: Config, voter: Voter | None = None) -> None:
        self._config = config
        self._voter = voter
        self._of: dict[str, VoteMemory] = {}
        self._num_tokens = 0  # sampled only for votes since the last step

    def start(
        self,
        questions: Sequence[Question],
        votes: Sequence[Vote],
        weights: Sequence[float],
        num_tokens: int,
        equivalence: Equivalence,
    ) -> None:
        """Remember the unadapted model's votes on questions that have none yet.

        Args:
            weights: what each response's vote weighs, question-major.
            num_tokens: tokens that were sampled for them.
        """
        for question, one, own in zip(questions, votes, by_question(weights, votes), strict=True):
            self._visit(question, one, own, 0, equivalence, None)
        self._num_tokens += num_tokens

    def vote(
        self,
        rollout: Rollout,
        fresh: Sequence[Vote],
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
    ) -> tuple[tuple[Vote, ...], dict[str, float]]:
        """(the votes over what is remembered, this step's included; their metrics), and remember them.

        memory/votes: weight remembered per question, in votes.  memory/share: the label's share of it, mean.
        memory/agreement: questions whose fresh vote has the memory's winner, of those where both have one.
        memory/flipped_frac: labels that changed with this visit, of those that were there before and are now.
        memory/tokens: tokens sampled only for votes: the voter's, and in the first step those of the start votes.

        Args:
            fresh: a vote per question over its own responses.
            weights: what each response's vote weighs, question-major.
            sampled: the step at which the responses were sampled.
        """
        heard: Sequence[tuple[Vote, Sequence[float]] | None] = [None] * len(fresh)
        if self._voter is not None:
            said, own, num_tokens = self._voter(rollout.questions, rollout.prompts, sampled)
            heard = list(zip(said, by_question(own, said), strict=True))
            self._num_tokens += num_tokens
        groups = by_question(weights, fresh)
        votes = tuple(
            self._visit(question, one, group, sampled, equivalence, other)
            for question, one, group, other in zip(rollout.questions, fresh, groups, heard, strict=True)
        )
        both = [(new, old) for new, old in zip(votes, fresh, strict=True) if None not in (new.winner, old.winner)]
        again = [one for one in votes if one.winner is not None and one.memory and one.memory.held is not None]
        figures = {
            "label/labelled_frac": fmean(one.winner is not None for one in votes),
            "memory/votes": fmean(one.memory.total for one in votes if one.memory),
            "memory/share": fmean(one.majority_frac for one in votes),
        }
        if both:
            agree = [new.classes[old.classes.index(old.winner)] == new.winner for new, old in both]
            figures["memory/agreement"] = fmean(agree)
        if again:
            figures["memory/flipped_frac"] = fmean(is_flip(one) for one in again)
        if self._num_tokens:
            figures["memory/tokens"], self._num_tokens = float(self._num_tokens), 0
        return votes, figures

    def _visit(
        self,
        question: Question,
        fresh: Vote,
        weights: Sequence[float],
        sampled: int,
        equivalence: Equivalence,
        heard: tuple[Vote, Sequence[float]] | None,
    ) -> Vote:
        config, kind = self._config, self._config.vote.memory
        memory = self._of.get(question.id, VoteMemory())
        if heard is not None:  # the others' votes are remembered, and the responses only compared with them
            if kind == "off":
                memory, kind = VoteMemory(), "sum"
            memory = add_votes(memory, *heard, sampled, kind, config.vote.memory_decay)
            weights, kind = [0.0] * len(weights), "fixed"
        found, self._of[question.id] = vote_from_memory(
            memory,
            fresh,
            weights,
            sampled,
            kind,
            equivalence,
            config.answer.kind_of(question.answer_kind),
            decay=config.vote.memory_decay,
            flip_margin=config.vote.flip_margin,
            seed=config.seed + sampled,
            **config.vote.rules,
        )
        return found

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        rows = {name: asdict(memory) for name, memory in self._of.items()}
        (folder / _FILE).write_text(json.dumps(rows, ensure_ascii=True), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take it from there; CheckpointError if the checkpoint has none."""
        try:
            rows = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} holds no memory of votes: the run began without vote.memory") from None
        self._of = {name: VoteMemory(**row) for name, row in rows.items()}


def is_flip(one: Vote) -> bool:
    """Whether this vote changed the label that its question had."""
    return one.memory is not None and None not in (one.winner, one.memory.held) and one.winner != one.memory.held
