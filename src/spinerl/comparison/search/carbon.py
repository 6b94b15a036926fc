"""CarBoN: the best of a question's first responses calibrate its logits, from which the others are sampled.

Source: calibrated best-of-N (arXiv 2510.15674): a temperature and a shift of the last hidden state per question,
learned on the first half of the budget.  Its score is a process reward model's; here the mean token probability
stands for it.  Ours: how many of the responses are learned from, the number of steps, their size, and the decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from spinerl.comparison.search.records import Found, Searched
from spinerl.engine.forward import logits
from spinerl.engine.sampler import Calibration, sample_responses
from spinerl.engine.update import predicting_states, score
from spinerl.errors import InputError
from spinerl.maths import mean_probability
from spinerl.types import Batch, Rollout

__all__ = ["Fit", "calibrated", "fit_calibration"]

_COLDEST = 0.05  # temperatures below are not tried


class Fit(NamedTuple):
    """What was learned of one question: a shift (d,) of the last hidden state, and a temperature."""

    shift: torch.Tensor
    temperature: float


def fit_calibration(
    head: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float,
    *,
    steps: int,
    lr: float,
    decay: float,
) -> Fit:
    """Minimize - mean_n log softmax(head(h_n + delta) / T)[y_n] + decay |delta|^2 by Adam, from delta = 0 and this T.

    Learned are delta (d,) and log T, T at least 0.05.

    Args: `head`, (n, d) to logits (n, V); `states` (n, d) that predict `tokens` (n,); `steps`, `lr` of Adam.
    """
    shift = torch.zeros_like(states[0]).requires_grad_()
    log_temperature = torch.tensor(math.log(temperature), dtype=states.dtype, device=states.device).requires_grad_()
    optimizer = torch.optim.Adam([shift, log_temperature], lr=lr)
    for _ in range(steps):
        scores = head(states + shift) / log_temperature.exp()
        loss = torch.nn.functional.cross_entropy(scores, tokens) + decay * shift.square().sum()
        shift.grad, log_temperature.grad = torch.autograd.grad(loss, [shift, log_temperature])
        optimizer.step()
        with torch.no_grad():
            log_temperature.clamp_(min=math.log(_COLDEST))
    return Fit(shift.detach(), math.exp(log_temperature.item()))


def calibrated(search: Searched, *, responses: int, keep: int, steps: int, lr: float, decay: float) -> list[Found]:
    """`responses` per question: the first half as they were saved, the second from logits that the `keep` most probable
    of those calibrate.  `Found.probabilities` of both are the unadapted model's.

    The first half is sampled again, with the evaluation's streams, for its tokens: what it costs is counted once.  The
    streams of the second are (config.seed, "carbon").  InputError where the model's head is not linear.
    """
    config, loaded, num = search.config, search.loaded, responses // 2
    asked = (loaded, search.questions, search.prompts)
    first = sample_responses(*asked, num, config.rollout, (config.seed, "eval"), search.on_tokens)
    scores = mean_probability(first.logprobs, first.entropies, first.mask)
    fits = _fits(search, first, scores.view(-1, num), keep, steps, lr, decay)
    bias = _bias(search, torch.stack([fit.shift for fit in fits]))
    scale = torch.tensor([config.rollout.temperature / fit.temperature for fit in fits], dtype=bias.dtype)
    second = sample_responses(
        *asked,
        responses - num,
        config.rollout,
        (config.seed, "carbon"),
        search.on_tokens,
        calibration=Calibration(bias, scale.to(bias.device)),
    )
    batch = _batch(search, second, list(range(len(second.tokens))))
    logprobs, entropies = score(loaded, batch, batch.mask, config.optim)
    later = mean_probability(logprobs, entropies, batch.mask)
    found = []
    for i, fit in enumerate(fits):
        one = Found([], [], [], 0, figures={"temperature": fit.temperature, "shift": float(fit.shift.norm())})
        for rollout, probabilities in ((first, scores), (second, later)):
            n = rollout.num_responses
            mine = slice(i * n, (i + 1) * n)
            one.responses += rollout.texts[mine]
            one.truncated += (~rollout.finished_mask[mine]).tolist()
            one.lengths += rollout.mask[mine].sum(dim=1).tolist()
            one.probabilities += [round(float(p), 6) for p in probabilities[mine]]
        one.num_tokens = sum(one.lengths)
        found.append(one)
    return found


def _fits(
    search: Searched, first: Rollout, scores: torch.Tensor, keep: int, steps: int, lr: float, decay: float
) -> list[Fit]:
    num = first.num_responses
    best = scores.topk(min(keep, num), dim=1).indices.sort(dim=1).values
    chosen = [i * num + j for i, own in enumerate(best.tolist()) for j in own]
    batch = _batch(search, first, chosen)
    states, rows, columns = predicting_states(search.loaded, batch, batch.mask, search.config.optim)
    tokens = batch.tokens[rows, columns].to(states.device)
    question = rows // best.shape[1]

    def head(own: torch.Tensor) -> torch.Tensor:
        return logits(search.loaded, own).float()

    fits = []
    for i in range(len(search.questions)):
        mine = (question == i).to(states.device)
        settings = {"steps": steps, "lr": lr, "decay": decay}
        with torch.enable_grad():
            fits.append(fit_calibration(head, states[mine], tokens[mine], batch.temperature, **settings))
    return fits


def _bias(search: Searched, shifts: torch.Tensor) -> torch.Tensor:
    """(P, V): what these shifts (P, d) of the last hidden state add to the logits."""
    with torch.no_grad():
        none = logits(search.loaded, torch.zeros_like(shifts[:1]))
        bias, twice = (logits(search.loaded, by * shifts) - none for by in (1, 2))
    if not torch.allclose(twice, 2 * bias, rtol=1e-3, atol=1e-3 * float(bias.abs().max() + 1)):
        raise InputError(
            f"model={search.config.model.name}: its logits are not linear in the last hidden state, which "
            "carbon.responses needs; set carbon.responses=0"
        )
    return bias.float()


def _batch(search: Searched, rollout: Rollout, rows: list[int]) -> Batch:
    num = rollout.num_responses
    prompts = tuple(rollout.prompts[row // num] for row in rows)
    return Batch(prompts, rollout.tokens[rows], rollout.mask[rows], search.config.rollout.temperature)
