"""From a response's text to its answer, to equivalence classes, to a vote and its rewards.  Never imports
torch."""

from spinerl.answers.adaptive import early_exit, rank_weights, routed_sizes, share_stopped_majority, weighted_majority
from spinerl.answers.baselines import Decision, best_of, early_stopped_majority, first_finish, lead_probability
from spinerl.answers.counting import count_vote
from spinerl.answers.equivalence import Equivalence, default_equivalence
from spinerl.answers.extract import Reading, Refused, extract_answer, read_answer
from spinerl.answers.memory import MEMORIES, VoteMemory, add_votes, vote_from_memory
from spinerl.answers.neighbors import lame_labels, nearest, neighbor_labels
from spinerl.answers.normalize import KINDS, MAX_ANSWER_CHARS, normalize_answer
from spinerl.answers.options import original_letter
from spinerl.answers.pooling import harmonic_shares, pool_votes
from spinerl.answers.rewards import (
    QUESTION_WEIGHTS,
    REWARDS,
    certain_weight,
    compass_reward,
    dare_reward,
    empo_reward,
    evol_reward,
    evol_sides,
    frequency_reward,
    leave_one_out_reward,
    majority_reward,
    pair_reward,
    reference_reward,
    scope_reward,
    scrl_reward,
    ttrv_reward,
)
from spinerl.answers.votes import TIES, vote, vote_metrics

__all__ = [
    "KINDS",
    "MAX_ANSWER_CHARS",
    "MEMORIES",
    "QUESTION_WEIGHTS",
    "REWARDS",
    "TIES",
    "Decision",
    "Equivalence",
    "Reading",
    "Refused",
    "VoteMemory",
    "add_votes",
    "best_of",
    "certain_weight",
    "compass_reward",
    "count_vote",
    "dare_reward",
    "default_equivalence",
    "early_exit",
    "early_stopped_majority",
    "empo_reward",
    "evol_reward",
    "evol_sides",
    "extract_answer",
    "first_finish",
    "frequency_reward",
    "harmonic_shares",
    "lame_labels",
    "lead_probability",
    "leave_one_out_reward",
    "majority_reward",
    "nearest",
    "neighbor_labels",
    "normalize_answer",
    "original_letter",
    "pair_reward",
    "pool_votes",
    "rank_weights",
    "read_answer",
    "reference_reward",
    "routed_sizes",
    "scope_reward",
    "scrl_reward",
    "share_stopped_majority",
    "ttrv_reward",
    "vote",
    "vote_from_memory",
    "vote_metrics",
    "weighted_majority",
]
