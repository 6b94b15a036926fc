"""Commands in this process, as a user gives them."""

from __future__ import annotations

from collections.abc import Iterable

from spinerl.cli import main


def exit_code(arguments: Iterable[object]) -> int:
    """How a command ends; a traceback would be an exception here."""
    try:
        main([str(one) for one in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0
