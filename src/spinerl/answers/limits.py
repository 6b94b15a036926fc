"""The limits that bound every stage of reading."""

from __future__ import annotations

__all__ = ["MAX_ANSWER_CHARS", "MAX_NESTING"]

MAX_ANSWER_CHARS = 512
"""A longer answer abstains: no final answer is that long, and every later bound rests on it."""

MAX_NESTING = 32
"""An answer with more brackets open at once abstains."""
