"""Comparing methods: every method on every data set with every seed, as run folders side by side, and one table.

from spinerl.comparison import compare
compare(["methods=ttrl,spine", "data=tiny/shift-a", "seeds=0,1,2"])
"""

from __future__ import annotations

from spinerl.comparison.command import compare
from spinerl.comparison.plan import Comparison, plan

__all__ = ["Comparison", "compare", "plan"]
