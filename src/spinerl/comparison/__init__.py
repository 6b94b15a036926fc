"""Comparing methods: every method on every data set with every seed, as run folders side by side, and one table.

from spinerl.comparison import compare
compare(["methods=ttrl,spine", "data=tiny/shift-a", "seeds=0,1,2"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinerl.comparison.command import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:  # `spinerl.comparison.keys` needs nothing of what `compare` imports
    if name != "compare":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spinerl.comparison.command import compare

    return compare
