"""Label-free test-time reinforcement learning: SPINE and its family, on one loop.

    import spinerl
    run = spinerl.adapt("tiny-reasoner", "tiny/shift-a", steps=40)

Importing this costs nothing: torch is read when a function needs it (docs/api.md).
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinerl.api import Run, adapt, compare, evaluate, preflight, vote
    from spinerl.config import Config, load_config
    from spinerl.types import Question, Vote

__all__ = [
    "Config",
    "Question",
    "Run",
    "Vote",
    "__version__",
    "adapt",
    "compare",
    "evaluate",
    "load_config",
    "preflight",
    "vote",
]

try:
    __version__ = version("spinerl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    **dict.fromkeys(("Run", "adapt", "compare", "evaluate", "preflight", "vote"), "spinerl.api"),
    **dict.fromkeys(("Config", "load_config"), "spinerl.config"),
    **dict.fromkeys(("Question", "Vote"), "spinerl.types"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
