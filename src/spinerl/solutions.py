"""The final answer inside a worked solution that a data set gives as its gold answer.  Plain text functions."""

from __future__ import annotations

import re
from typing import Literal, get_args

from spinerl.errors import InputError

__all__ = ["EXTRACTS", "GoldExtract", "final_answer"]

GoldExtract = Literal["auto", "none", "hash", "boxed"]
"""How a gold answer is found in its cell: `hash` after the last "####", `boxed` in the last box, `auto` either."""
EXTRACTS: tuple[str, ...] = get_args(GoldExtract)

HASH = "####"
BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)|\\boxed\s+(?=[^\s{])")
BARE = re.compile(r"\\boxed\s+(\S+?)[.,;]?(?=[\s$]|$)")
_BRACE = re.compile(r"(?<!\\)[{}]")
MOST_CHARS = 300  # a longer gold answer of a kind that is computed is a text with the answer somewhere in it
READ_AS_VALUES = ("auto", "math", "number", "yesno", "choice")


def final_answer(text: str, how: str = "auto", kind: str = "auto", key: str = "data.columns.gold") -> str:
    r"""The answer in a gold text; the text itself where it is an answer already, or with `how="none"`.

    `auto` takes what follows the last "####" of the text (GSM8K), else what the last `\boxed{...}` holds (MATH), else
    the text.  Raises InputError in one line, naming data.gold_extract: where the mark is not there (`hash`, `boxed`),
    nothing follows it, or (`auto`) a text of several lines or over 300 characters has no mark, except for kind `text`.

    Args:
        kind: the question's answer kind.
        key: the configuration key or the field that the text comes from, for the message.

    >>> final_answer("3 + 2 = 5 apples.\n#### 5"), final_answer(r"So $x = \boxed{\frac{1}{2}}$."), final_answer("7")
    ('5', '\\frac{1}{2}', '7')
    """
    if how == "none":
        return text.strip()
    found = None
    if how != "boxed" and HASH in text:
        found = text.rpartition(HASH)[2].strip()
        found = None if how == "auto" and "\n" in found else found  # a heading, and no final answer
    if found is None and how != "hash":
        found = _last_box(text)
    if found:
        return found
    if found == "":
        raise InputError(f"gold {_shown(text)} has nothing in its last mark; data.gold_extract=none takes it as it is")
    if how == "auto":
        if kind in READ_AS_VALUES and _is_solution(text):
            raise InputError(
                f"gold {_shown(text)} is a worked solution without #### or \\boxed{{}}; no response equals it; "
                f"name the column of final answers ({key}), leave gold out ({key}=null), or set data.gold_extract=none"
            )
        return text.strip()
    mark = HASH if how == "hash" else "\\boxed{}"
    allowed = ", ".join(EXTRACTS)
    raise InputError(f"gold {_shown(text)} has no {mark}, which data.gold_extract={how} looks for; allowed: {allowed}")


def _last_box(text: str) -> str | None:
    """What the last whole box holds; None without one."""
    marks = list(BOX.finditer(text))
    ends = _closing_braces(text, marks[0].end()) if marks else {}
    for mark in reversed(marks):
        start = mark.end()
        if text[start] != "{":
            bare = BARE.match(text, mark.start())
            return bare[1] if bare else None
        if start in ends:
            return text[start + 1 : ends[start]].strip()
    return None


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Where each brace that is opened from `start` on is closed; a brace behind a backslash is none."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif opened:
            ends[opened.pop()] = match.start()
    return ends


def _is_solution(text: str) -> bool:
    """Whether a text is too long for an answer: over 300 characters, or several lines that are no LaTeX environment."""
    text = text.strip()
    return len(text) > MOST_CHARS or ("\n" in text and "\\begin{" not in text)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
