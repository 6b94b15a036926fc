"""How text and numbers are written on the page: nothing hidden, true signs, units."""

from __future__ import annotations

import unicodedata

from spinerl.report.charts import format_number

__all__ = ["NBSP", "show_duration", "show_percent", "show_sign", "show_token", "visible"]

NBSP = "\u00a0"


def visible(text: str) -> str:
    """The text with everything that hides or reorders text shown as a sign; line ends and tabs stay.

    >>> visible("a\\x00b"), visible("12\\u200b")
    ('a⟨U+0000⟩b', '12⟨U+200B⟩')
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character.isprintable():
        return character
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    nothing = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return f"⟨U+{code:04X}⟩" if hidden or nothing else character


_WHITE_SPACE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})
_TOKEN_SHOWN = 24  # characters of a token that stands by itself


def show_token(text: str) -> str:
    """A token that stands by itself: with its white space as signs, nothing in it hidden, and cut where it is long.

    >>> show_token(" wait"), show_token("\\n\\n"), show_token(""), show_token("\xa0")
    ('␣wait', '↵↵', '⟨nothing⟩', '⟨U+00A0⟩')
    """
    cut = text if len(text) <= _TOKEN_SHOWN else f"{text[:_TOKEN_SHOWN]}…"
    shown = visible(cut.translate(_WHITE_SPACE))
    return "".join(f"⟨U+{ord(c):04X}⟩" if c.isspace() else c for c in shown) or "⟨nothing⟩"


def show_percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}{NBSP}%"


def show_sign(value: float) -> str:
    """The sign to write before an absolute value."""
    return "+" if value > 0 else "−" if value < 0 else "±"


def show_duration(seconds: float) -> str:
    """ "42.1 s", "4 min 07 s" or "2 h 42 min"."""
    if seconds < 120:
        return f"{format_number(seconds)}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"
