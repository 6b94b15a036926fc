"""The method's tensor maths: pure functions, no I/O, no configuration, no choice of device.

Shapes: P questions, G responses, B = P*G rows, T response tokens, N selected tokens, V vocabulary.
"""

from spinerl.maths.advantages import group_advantages
from spinerl.maths.band import band_edges, band_penalty, blend_edges
from spinerl.maths.confidence import VOTE_WEIGHTS, mean_certainty, mean_probability
from spinerl.maths.forks import SELECTORS, all_tokens_mask, top_entropy_mask
from spinerl.maths.logprobs import log_distribution, pick_logprobs, shannon_entropies
from spinerl.maths.losses import clipped_surrogate, exact_kl, sampled_kl
from spinerl.maths.reduce import masked_mean, term_weights

__all__ = [
    "SELECTORS",
    "VOTE_WEIGHTS",
    "all_tokens_mask",
    "band_edges",
    "band_penalty",
    "blend_edges",
    "clipped_surrogate",
    "exact_kl",
    "group_advantages",
    "log_distribution",
    "masked_mean",
    "mean_certainty",
    "mean_probability",
    "pick_logprobs",
    "sampled_kl",
    "shannon_entropies",
    "term_weights",
    "top_entropy_mask",
]
