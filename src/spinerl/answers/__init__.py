"""From a response's text to its answer, to equivalence classes, to a vote and its rewards.  Never imports
torch."""

from spinerl.answers.counting import count_vote
from spinerl.answers.equivalence import Equivalence, default_equivalence
from spinerl.answers.extract import extract_answer
from spinerl.answers.normalise import KINDS, MAX_ANSWER_CHARS, normalise_answer
from spinerl.answers.votes import (
    REWARDS,
    TIES,
    frequency_reward,
    leave_one_out_reward,
    majority_reward,
    vote,
    vote_metrics,
)

__all__ = [
    "KINDS",
    "MAX_ANSWER_CHARS",
    "REWARDS",
    "TIES",
    "Equivalence",
    "count_vote",
    "default_equivalence",
    "extract_answer",
    "frequency_reward",
    "leave_one_out_reward",
    "majority_reward",
    "normalise_answer",
    "vote",
    "vote_metrics",
]
