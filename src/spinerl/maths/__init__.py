"""The method's tensor maths: pure functions, no I/O, no configuration, no choice of device.

Shapes: P questions, G responses, B = P*G rows, T response tokens, N selected tokens, V vocabulary.
"""

from spinerl.maths.advantages import entropic_advantages, group_advantages, pass_k_advantages
from spinerl.maths.band import band_edges, band_penalty, blend_edges, median_mad_edges
from spinerl.maths.confidence import (
    TOKEN_FIGURES,
    VOTE_WEIGHTS,
    mean_certainty,
    mean_margin,
    mean_probability,
    stepwise_probability,
    top_margins,
)
from spinerl.maths.controls import SELECTORS, low_entropy_mask, random_mask
from spinerl.maths.credit import batch_advantages, bounded_advantages, entropy_advantages, prefix_tree_advantages
from spinerl.maths.forks import all_tokens_mask, first_tokens_mask, otsu_mask, top_entropy_mask
from spinerl.maths.histogram import ENTROPY_EDGES, entropy_histogram, frequent_tokens
from spinerl.maths.logprobs import kept_log_mass, log_distribution, pick_logprobs, shannon_entropies, token_figures
from spinerl.maths.losses import clipped_surrogate, exact_kl, sampled_kl
from spinerl.maths.mismatch import importance_weights, mismatch_figures
from spinerl.maths.novelty import consensus_scores, exploration_bonus, novelty_scores
from spinerl.maths.order import nearest_first, sift_order
from spinerl.maths.reduce import masked_mean, share_weights, term_weights
from spinerl.maths.responses import low_entropy_reward, response_means, row_means, self_certainty, self_certainty_reward
from spinerl.maths.variants import (
    budget_weights,
    calibration_surrogate,
    cispo_surrogate,
    nll_surrogate,
    preference_surrogate,
    sequence_surrogate,
)

__all__ = [
    "ENTROPY_EDGES",
    "SELECTORS",
    "TOKEN_FIGURES",
    "VOTE_WEIGHTS",
    "all_tokens_mask",
    "band_edges",
    "band_penalty",
    "batch_advantages",
    "blend_edges",
    "bounded_advantages",
    "budget_weights",
    "calibration_surrogate",
    "cispo_surrogate",
    "clipped_surrogate",
    "consensus_scores",
    "entropic_advantages",
    "entropy_advantages",
    "entropy_histogram",
    "exact_kl",
    "exploration_bonus",
    "first_tokens_mask",
    "frequent_tokens",
    "group_advantages",
    "importance_weights",
    "kept_log_mass",
    "log_distribution",
    "low_entropy_mask",
    "low_entropy_reward",
    "masked_mean",
    "mean_certainty",
    "mean_margin",
    "mean_probability",
    "median_mad_edges",
    "mismatch_figures",
    "nearest_first",
    "nll_surrogate",
    "novelty_scores",
    "otsu_mask",
    "pass_k_advantages",
    "pick_logprobs",
    "preference_surrogate",
    "prefix_tree_advantages",
    "random_mask",
    "response_means",
    "row_means",
    "sampled_kl",
    "self_certainty",
    "self_certainty_reward",
    "sequence_surrogate",
    "shannon_entropies",
    "share_weights",
    "sift_order",
    "stepwise_probability",
    "term_weights",
    "token_figures",
    "top_entropy_mask",
    "top_margins",
]
