"""Prompts that begin with the same tokens: a system prompt, an instruction, worked examples."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LEAST_START", "common_start"]

LEAST_START = 16  # tokens: a shorter start is not worth a pass of its own
_WORTH_SHARING = 0.1  # of all tokens: so many have to be saved


def common_start(prompts: Sequence[tuple[int, ...]], least: int = LEAST_START) -> int:
    """How many tokens all prompts begin with; 0 where computing them once would not pay.  Each keeps one of its own.

    Args:
        least: a shorter start is left to each prompt.

    >>> common_start([(1, 2, 3), (1, 2), (1, 2, 4)], 1), common_start([(1, 2), (3, 4)], 1)
    (1, 0)
    """
    low, high = min(prompts), max(prompts)  # in the order of words in a dictionary: what these share, all do
    most = min(map(len, prompts)) - 1
    start = next((i for i in range(most) if low[i] != high[i]), most)
    saved = (len(prompts) - 1) * start
    return start if start >= least and saved >= _WORTH_SHARING * sum(map(len, prompts)) else 0
