"""What the searches take and return, and what several of them do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from spinerl.answers import Equivalence, count_vote
from spinerl.config import Config
from spinerl.models.context import limits_within
from spinerl.models.loading import LoadedModel
from spinerl.types import OnTokens, Question

__all__ = ["Found", "Searched", "likelihood", "vote_share"]


@dataclass(frozen=True)
class Searched:
    """The unadapted model and P questions, with the answers and lengths (tokens) of its saved responses to each.

    No gold answer is among them.
    """

    loaded: LoadedModel
    config: Config
    questions: Sequence[Question]
    prompts: Sequence[tuple[int, ...]]
    answers: Sequence[Sequence[str | None]]
    lengths: Sequence[Sequence[int]]
    equivalence: Equivalence
    on_tokens: OnTokens

    def limits(self, margin: int = 0) -> list[int]:
        """The most tokens of a response to each question, where `margin` tokens of the context are for other things."""
        most = [self.config.rollout.max_new_tokens] * len(self.prompts)
        context = self.loaded.context
        return list(limits_within(None if context is None else context - margin, self.prompts, most))

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """A response's tokens without the one that ended it."""
        return list(ids[:-1] if ids and ids[-1] in self.loaded.end_ids else ids)


@dataclass
class Found:
    """The responses that a search has of one question, in order; `num_tokens` were sampled on the way.

    `probabilities`: the mean token probability of each, for a search that chooses by it.  `figures`: what a table may
    say of the search.
    """

    responses: list[str]
    truncated: list[bool]
    lengths: list[int]
    num_tokens: int
    probabilities: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def likelihood(logprobs: Sequence[float]) -> float:
    """exp(mean log-probability) of a response's tokens, in (0, 1]: the score that stands for a reward model.

    0 for a response without tokens.

    >>> round(likelihood([math.log(0.5), math.log(0.125)]), 4)
    0.25
    """
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def vote_share(search: Searched, i: int, text: str, truncated: bool) -> float:
    """The share of a question's saved responses whose answer is this text's, in [0, 1]; 0 for a text without one."""
    question, answers = search.questions[i], search.answers[i]
    config = search.config.answer
    kind = config.kind_of(question.answer_kind)
    cut = truncated and config.truncated == "abstain"
    read = count_vote(
        [text], [cut], kind, search.equivalence, choices=question.choices, in_thought=question.in_thought
    ).answers[0]
    if read is None or not answers:
        return 0.0
    *classes, own = search.equivalence.classes([*answers, read], kind)
    return sum(one == own for one in classes) / len(classes)
