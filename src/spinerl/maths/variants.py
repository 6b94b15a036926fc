"""Policy terms and weights next to GRPO's own (`clipped_surrogate`, `term_weights`).

GRPO is the clipped surrogate with weights per response, DAPO with weights per token and a higher upper edge,
Dr. GRPO with `budget_weights` and advantages that are only centred.  GSPO and CISPO have terms of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spinerl.maths.losses import MAX_LOG_RATIO

__all__ = [
    "budget_weights",
    "calibration_surrogate",
    "cispo_surrogate",
    "nll_surrogate",
    "preference_surrogate",
    "sequence_surrogate",
]


def budget_weights(mask: Bool[Tensor, "B T"], max_tokens: int, num_responses: int) -> Float[Tensor, "B T"]:
    """Dr. GRPO's weights: every selected token weighs 1 / (max_tokens * num_responses); float64.

    A constant instead of the number of tokens: a long response is not pulled at less per token than a short one,
    and the step does not grow when responses get shorter.  The weights add up to the used share of the budget, not
    to 1; like all weights they are fixed before the batch is cut.

    Args:
        max_tokens: the most tokens of a response that can be selected: `rollout.max_new_tokens`, times the fork
            fraction where only forks are; else the fraction would scale the gradient down.
        num_responses: those of this optimizer update, with and without selected tokens.

    Raises ValueError for a budget under 1.  Source: Dr. GRPO (arXiv 2503.20783).

    >>> budget_weights(torch.tensor([[True, True], [True, False]]), 4, 2).tolist()
    [[0.125, 0.125], [0.125, 0.0]]
    """
    if max_tokens < 1 or num_responses < 1:
        raise ValueError(f"max_tokens={max_tokens}, num_responses={num_responses}: both must be 1 or more")
    return mask.to(torch.float64) / (max_tokens * num_responses)


def calibration_surrogate(
    logprobs: Float[Tensor, " N"], targets: Float[Tensor, " N"], beta: float = 0.25
) -> Float[Tensor, " N"]:
    """- smooth L1 of p - c, p = exp(logp) and c the target in [0, 1]: to be *maximized*.

    Smooth L1 of d is d^2 / (2 beta) for |d| < beta and |d| - beta / 2 beyond.  Source: Self-Calibration (arXiv
    2503.00031); beta as in its code.

    >>> calibration_surrogate(torch.tensor([0.5, 1.0]).log(), torch.tensor([0.25, 0.0]).double()).tolist()
    [-0.125, -0.875]
    """
    return -torch.nn.functional.smooth_l1_loss(logprobs.exp(), targets.to(logprobs.dtype), reduction="none", beta=beta)


def cispo_surrogate(
    logprobs: Float[Tensor, " N"],
    old_logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_low: float = 1.0,
    clip_high: float = 0.2,
) -> Float[Tensor, " N"]:
    """sg[clip(w, 1 - clip_low, 1 + clip_high)] A log pi with w = exp(logp - old_logp): to be *maximised*.

    The ratio is clipped, not the update: every token keeps a gradient, clip(w) A d(logp), where the clipped surrogate
    drops it.  sg has no gradient.  The value is that of a score function and means nothing by itself; at
    logp = old_logp the gradient is the clipped surrogate's.  clip_low = 1 leaves the ratio without a lower edge.
    Source: CISPO (arXiv 2506.13585), which bounds only from above.

    >>> logprobs = torch.tensor([0.5]).log().requires_grad_()
    >>> cispo_surrogate(logprobs, torch.tensor([0.25]).log(), torch.tensor([1.0])).backward()
    >>> logprobs.grad.item()
    1.2000000476837158
    """
    ratio = (logprobs - old_logprobs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages * logprobs


def nll_surrogate(logprobs: Float[Tensor, " N"], advantages: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """A log pi: to be *maximized*.  Fine-tuning on what was sampled, each response counting by its advantage.

    No ratio and nothing clipped: whatever weights sampled the tokens, their likelihood rises.  With advantages of 1 for
    the responses kept and 0 for the others, and weights over the kept ones, it is supervised fine-tuning:
    L = - (1 / sum_i len_i) sum_i sum_t log pi(y_it), i over the kept responses.
    Sources: LMSI (arXiv 2210.11610); weighted, RoiRL (arXiv 2510.02892).

    >>> nll_surrogate(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 0.0])).tolist()
    [-1.0, -0.0]
    """
    return advantages * logprobs


def preference_surrogate(
    logprobs: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    gaps: Float[Tensor, " N"],
    lengths: Float[Tensor, " N"],
    beta: float = 0.5,
) -> Float[Tensor, " N"]:
    """w log sigmoid(beta gap) + (w / len+) log pi(y+) of a pair, spread over the tokens of both: to be *maximized*.

    gap = log pi(y+)/ref(y+) - log pi(y-)/ref(y-), sums over tokens.  Value and gradient of the sum over both responses'
    tokens are those of the pair: a token of y+ has the gradient w (beta sigmoid(-beta gap) + 1 / len+), one of y- has
    -w beta sigmoid(-beta gap).

    Args:
        advantages: w > 0 on the tokens of y+, -w on those of y-, 0 elsewhere.
        gaps: the pair's, as it is now, without a gradient.
        lengths: tokens of the response that a token is in.

    Source: ScPO (arXiv 2411.04109), DPO and NLL both weighted by w; the weight of NLL against DPO, 1, is ours.

    >>> logprobs = torch.tensor([-1.0, -2.0]).requires_grad_()
    >>> pair = preference_surrogate(logprobs, torch.tensor([1.0, -1.0]), torch.zeros(2), torch.ones(2))
    >>> pair.sum().backward()
    >>> round(pair.sum().item(), 4), logprobs.grad.tolist()  # log(1/2) - 1
    (-1.6931, [1.25, -0.25])
    """
    gaps = gaps.detach() * beta
    chosen = (advantages > 0).to(logprobs.dtype)
    pull = advantages * (beta * torch.sigmoid(-gaps) + chosen / lengths)
    value = chosen * advantages * (torch.nn.functional.logsigmoid(gaps) + logprobs.detach()) / lengths
    return pull * (logprobs - logprobs.detach()) + value


def sequence_surrogate(
    logprobs: Float[Tensor, " N"],
    log_ratios: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Tensor, " N"]:
    """GSPO: min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) per token, s the ratio of the token's whole response.

    s_i = exp(mean_t (logp_{i,t} - old_logp_{i,t})), the geometric mean of the tokens' ratios; at token t it is
    sg[s_i] * pi_t / sg[pi_t], whose value is s_i and whose gradient s_i d(logp_t).  To be *maximised*.  Under weights
    per response (`term_weights(mask, "response")`) and one advantage per response it is GSPO, in value and gradient;
    a response outside the edges is dropped whole.

    The mean must be over the same tokens wherever they are computed: a micro-batch or a chunk of the head may hold
    some of them only.  Since s_i has no gradient it is taken beforehand, as
    `response_means(logprobs - old_logprobs, policy_mask)` of a pass over the rows of the update with the weights
    they are about to learn from; in the first update after a rollout it is exactly 0 and needs no pass.

    Args:
        log_ratios: log s of each token's response, in nats.
        clip_low, clip_high: far narrower than a token's, since a mean over tokens moves less.

    Source: GSPO (arXiv 2507.18071), its token form, and its edges.  That the mean is over the selected tokens is
    ours; with every token selected it is the source's.

    >>> logprobs = torch.tensor([-1.0, -2.0]).requires_grad_()
    >>> sequence_surrogate(logprobs, torch.zeros(2), torch.tensor([0.5, 0.5])).sum().backward()
    >>> logprobs.grad.tolist()
    [0.5, 0.5]
    """
    frozen = log_ratios.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    ratio = frozen * (logprobs - logprobs.detach()).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return (ratio * advantages).minimum(clipped * advantages)
