"""When a run's reward stopped rising: early, and it was memorized rather than learned from.  No torch."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["EARLY", "saturation_note", "saturation_step"]

_SHARE = 0.99  # of the highest mean reward
_WINDOW = 5  # steps over which the reward is averaged: that of one step is of a few questions
EARLY = 0.25
"""Share of a run's steps up to which saturation is called early."""


def saturation_step(rewards: Sequence[float], share: float = _SHARE, window: int = _WINDOW) -> int | None:
    """t_sat: the first step at which the mean reward is `share` of the highest that it reaches; None where none is.

    The mean at step t is that of the steps t - window + 1 to t; it is known from step `window` on.  None for a run of
    less than twice as many steps, and for one whose mean reward is never positive.

    Args: `rewards`, the mean reward of each step, from step 1 on.

    Source: "When can LLMs learn with weak supervision" (arXiv 2604.18574); the window is ours.

    >>> saturation_step([0.0, 0.5, 1.0, 1.0, 0.9, 1.0], window=2)  # means 0.25, 0.75, 1.0 (step 4), 0.95, 0.95
    4
    """
    if window < 1 or len(rewards) < 2 * window:
        return None
    means = [sum(rewards[end - window : end]) / window for end in range(window, len(rewards) + 1)]
    highest = max(means)
    if highest <= 0:
        return None
    return window + next(i for i, mean in enumerate(means) if mean >= share * highest)


def saturation_note(step: int, num_steps: int) -> str | None:
    """What is said of a run whose reward saturated at a step of so many; None where that was not early.

    >>> saturation_note(10, 40)
    'the mean reward saturated at step 10 of 40: so early, it may have been memorized (arXiv 2604.18574)'
    """
    if step > EARLY * num_steps:
        return None
    where = f"step {step} of {num_steps}"
    return f"the mean reward saturated at {where}: so early, it may have been memorized (arXiv 2604.18574)"
