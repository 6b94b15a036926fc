"""Part rollout: our sampler against `model.generate` on the same model, prompts and number of responses.

Ours also returns the log-probability and the entropy of every token; `generate` returns tokens only.
"""

from __future__ import annotations

from typing import Any

import torch

from spinerl.bench.timing import Patience, figures, interleave, ratios
from spinerl.bench.work import Job, Work, open_work

__all__ = ["generate", "measure_rollout"]


def measure_rollout(job: Job) -> dict[str, Any]:
    """Ratios above 1: ours is faster, in tokens a second, each side counting the tokens it really sampled."""
    result = _compare(job, "equal", job.patience())
    half = _compare(job, "half", job.patience(most=2))
    return {
        **result,
        **{
            f"{name.removesuffix('_repeats')}_half{'_repeats' * name.endswith('_repeats')}": half[name] for name in half
        },
    }


def generate(work: Work, stops: bool) -> torch.Tensor:
    """The responses of `model.generate`, (rows, tokens), padded after their end."""
    model: Any = work.loaded.model
    rows = [prompt for prompt in work.prompts for _ in range(work.config.group_size)]
    ids = torch.tensor(rows, device=work.loaded.device)
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=work.config.rollout.max_new_tokens,
            eos_token_id=list(work.loaded.end_ids) if stops else model.config.vocab_size,  # one that is never sampled
            pad_token_id=work.loaded.pad_id,
        )
    return out[:, ids.shape[1] :]


def _compare(job: Job, lengths: str, patience: Patience) -> dict[str, Any]:
    work = open_work(job, lengths)
    sampled: dict[str, list[int]] = {"ours": [], "generate": []}

    def ours(repeat: int) -> None:
        sampled["ours"].append(int(work.sample(repeat).mask.sum()))

    def theirs(_: int) -> None:
        sampled["generate"].append(_num_tokens(generate(work, lengths == "half"), work.loaded.end_ids))

    seconds = interleave(
        {"ours": ours, "generate": theirs}, patience, work.device, lambda text: job.note(f"{lengths} lengths: {text}")
    )
    rates = {
        name: [n / s for n, s in zip(sampled[name][1:], seconds[name], strict=True)]  # the first was the warm-up
        for name in sampled
    }
    return {
        **ratios("ratio_vs_generate", rates["ours"], rates["generate"]),
        **figures("tokens_per_s", rates["ours"]),
        **figures("tokens_per_s_generate", rates["generate"]),
        **figures("seconds", seconds["ours"]),
        **figures("seconds_generate", seconds["generate"]),
        "tokens": sampled["ours"][1:],
        "tokens_generate": sampled["generate"][1:],
    }


def _num_tokens(responses: torch.Tensor, end_ids: tuple[int, ...]) -> int:
    """Tokens up to and with each row's first end token."""
    ended = torch.isin(responses, torch.tensor(end_ids, dtype=responses.dtype, device=responses.device))
    before = ended.cumsum(1) - ended.long()
    return int((before == 0).sum())
