"""Responses that never end by themselves: often the end token that the model writes is not the one that is known."""

from __future__ import annotations

from collections.abc import Callable

from spinerl.config import Config
from spinerl.models.loading import LoadedModel

__all__ = ["EndWatch"]


class EndWatch:
    """Says once, in a line, that no response of a batch ended, and which tokens would have ended one.

    Args:
        note: called with the line.
    """

    def __init__(self, loaded: LoadedModel, config: Config, note: Callable[[str], None]) -> None:
        self._loaded, self._config, self._note = loaded, config, note
        self._said = False

    def see(self, truncated_frac: float) -> None:
        """Look at the share of a batch's responses that were cut off at rollout.max_new_tokens."""
        if self._said or truncated_frac < 1.0:
            return
        self._said = True
        tokenizer, ids = self._loaded.tokenizer, self._loaded.end_ids
        known = ", ".join(f"{i} ({tokenizer.convert_ids_to_tokens(i)!r})" for i in ids)
        what = f"responses end at token {known}" if ids else "the model names no end token"
        self._note(
            f"no response ended by itself within rollout.max_new_tokens={self._config.rollout.max_new_tokens}; {what} "
            "(eos_token_id in generation_config.json, and the tokenizer's): is that how this model ends an answer? "
            "Else name its ending in rollout.stop, or raise rollout.max_new_tokens"
        )
