"""Part sharing: a long prompt with many short responses, the prompt's work shared or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spinerl.bench.timing import figures, interleave, ratios
from spinerl.bench.work import Job, open_work

__all__ = ["measure_sharing", "sharing_figures"]

_OFF = ("engine.disable=[shared-prefix]",)


def measure_sharing(job: Job) -> dict[str, Any]:
    """Seconds of rollout and update without sharing over those with it: above 1, sharing pays."""
    sizes = job.settings
    settings = sizes.model_copy(
        update={
            "questions": sizes.sharing_questions,
            "prompt_tokens": sizes.sharing_prompt_tokens,
            "new_tokens": sizes.sharing_new_tokens,
        }
    )
    job = replace(job, settings=settings)
    sides = {name: open_work(job, overrides=overrides) for name, overrides in (("on", ()), ("off", _OFF))}
    learnt = sides["on"].targets(sides["on"].sample())
    tasks: dict[str, Any] = {f"rollout, sharing {name}": side.sample for name, side in sides.items()}
    tasks |= {f"update, sharing {name}": (lambda _, side=side: side.learn(*learnt)) for name, side in sides.items()}
    return sharing_figures(interleave(tasks, job.patience(), sides["on"].device, job.note))


def sharing_figures(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Of "rollout, sharing on", "rollout, sharing off" and the same of updates: seconds, and off over on."""
    rollout, update = (
        {name: seconds[f"{phase}, sharing {name}"] for name in ("on", "off")} for phase in ("rollout", "update")
    )
    both = {name: [a + b for a, b in zip(rollout[name], update[name], strict=True)] for name in ("on", "off")}
    return {
        **ratios("ratio", both["off"], both["on"]),
        **ratios("rollout_ratio", rollout["off"], rollout["on"]),
        **ratios("update_ratio", update["off"], update["on"]),
        **figures("seconds", both["on"]),
        **figures("seconds_off", both["off"]),
        **figures("rollout_seconds", rollout["on"]),
        **figures("rollout_seconds_off", rollout["off"]),
        **figures("update_seconds", update["on"]),
        **figures("update_seconds_off", update["off"]),
    }
