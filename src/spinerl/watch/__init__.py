"""A run in progress in a browser: its report over loopback, which refreshes itself.  No torch, no engine.

from spinerl.watch import watch
watch(Path("runs/spine-tiny-seed0"))   # until Ctrl-C
"""

from __future__ import annotations

from spinerl.watch.pages import LivePage
from spinerl.watch.server import Server, watch

__all__ = ["LivePage", "Server", "watch"]
