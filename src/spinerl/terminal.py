"""What reaches the terminal.  Texts of others (data, names of models and runs, error messages) are shown, not obeyed.

Every console of the package is a `PlainConsole`.  It takes no markup and no emoji codes from a text, and characters
that would steer a terminal or reorder a line are shown as their escapes (`spinerl.lines.visible`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from spinerl.lines import visible

__all__ = ["PlainConsole", "SafeFormatter"]


class PlainConsole(Console):
    """A console to which a text is only a text.  Styles are given apart from it (`print(text, style="bold")`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def on_broken_pipe(self) -> None:
        """The error goes on: `spinerl.exits` says how the command ends, and the console's own way is silent."""
        raise  # called while the error is handled

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A text that is printed, or stands in a table, as what it shows here."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is printed comes through here, also what was made into a `Text` elsewhere."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class SafeFormatter(logging.Formatter):
    """Log lines whose texts cannot steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter`."""
        return visible(super().format(record))
