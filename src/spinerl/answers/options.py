"""The options of a choice question: as lines of its text, in another order, and the way back.  Plain functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from spinerl.answers.letters import LETTERS

__all__ = ["choice_lines", "option_spans", "original_letter", "permute_options", "permuted_places", "shows_choices"]

_LETTER = r"(?<![\w])\(?[A-J]\)?"
_NAMES_LETTERS = re.compile(
    rf"{_LETTER}\s*(?:,|&|/|\+|and|or|nor|to|through)\s*\(?[A-J]\)?(?!\w)"
    rf"|(?i:options?|choices?|answers?|statements?)\s+\(?[A-J]\)?(?!\w)"
    rf"|(?i:only|both|neither|either)\s+\(?[A-J]\)?(?!\w)|{_LETTER}\s+(?i:only)\b"
)
_OWN_MARK = re.compile(r"\W*[A-Z]\s*[).:]\s*$")  # of the option that follows
_NAMES_PLACES = re.compile(
    r"\b(?:all|none|both|neither|either|any|some|each|two|three|one|more than one)\s+of\s+(?:the\s+)?"
    r"(?:above|preceding|following|previous|foregoing|others?|these|those|them|options|choices|answers|listed)\b"
    r"|\b(?:the|all|none)\s+(?:of\s+)?(?:the\s+)?(?:above|below|preceding|previous|foregoing)\b",
    re.I,
)


def choice_lines(options: Sequence[str]) -> list[str]:
    """The options as "A. text" lines; one that is only its letter (it is in the picture) is not said twice.

    >>> choice_lines(["red", "blue"])
    ['A. red', 'B. blue']
    """
    pairs = zip(ascii_uppercase, options, strict=False)
    return [letter if text == letter else f"{letter}. {text}" for letter, text in pairs]


def shows_choices(text: str, options: Sequence[str]) -> bool:
    """Whether a question's text shows all options behind their letters already.

    >>> shows_choices("Which? (A) red (B) blue", ["red", "blue"]), shows_choices("Is red blue?", ["red", "blue"])
    (True, False)
    """
    marks = [
        rf"(?<!\w){letter}\s*[).:]\s*{re.escape(option)}"
        for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return all(re.search(mark, text) for mark in marks)


def option_spans(text: str, options: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where in a question's text each option stands behind its letter; None where that is not certain.

    Certain are the lines "A. text" at its end, and else options each of which stands behind its letter exactly once, in
    the order of the letters.

    >>> option_spans("Which? (A) red (B) blue", ["red", "blue"])
    [(11, 14), (19, 23)]
    """
    lines = "".join(f"\n{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    if text.endswith(lines):
        place, spans = len(text) - len(lines), []
        for option in options:
            place += len("\nA. ")
            spans.append((place, place + len(option)))
            place += len(option)
        return spans
    spans = []
    for letter, option in zip(ascii_uppercase, options, strict=False):
        found = list(re.finditer(rf"(?<!\w){letter}\s*[).:]\s*({re.escape(option)})(?!\w)", text))
        if len(found) != 1 or not option or (spans and found[0].start() < spans[-1][1]):
            return None
        spans.append(found[0].span(1))
    return spans


def permuted_places(text: str, options: Sequence[str], random: Random) -> list[int] | None:
    """For each letter the place of the option that it gets, in another order than the given one; None if none is safe.

    A last option that speaks of the others' places ("none of the above") keeps its own.  Not permuted are questions of
    fewer than two other options or of more than ten (letters are read up to J); those whose text or options name
    letters ("A and C only") or, elsewhere, places; options that are images, or shown by their letter only; and those
    that `option_spans` does not find.

    >>> permuted_places("Which?\\nA. red\\nB. blue\\nC. all of them", ["red", "blue", "all of them"], Random(0))
    [1, 0, 2]
    """
    spans = option_spans(text, options)
    num = len(options)
    if spans is None or num > len(LETTERS):
        return None
    movable = num
    while movable and _NAMES_PLACES.search(options[movable - 1]):
        movable -= 1
    edges = pairwise([(0, 0), *spans, (len(text), 0)])
    pieces = [text[end:start] for (_, end), (start, _) in edges]
    around = [*(_OWN_MARK.sub("", piece) for piece in pieces[:-1]), pieces[-1]]
    unsafe = (
        movable < 2
        or any(_NAMES_PLACES.search(option) for option in options[:movable])
        or any(_NAMES_LETTERS.search(part) for part in (*options, *around))
        or any("<image" in option or option.strip() in ascii_uppercase for option in options)
    )
    if unsafe:
        return None
    order = list(range(movable))
    while order == list(range(movable)):
        random.shuffle(order)
    return [*order, *range(movable, num)]


def permute_options(text: str, options: Sequence[str], order: Sequence[int]) -> tuple[str, tuple[str, ...], str]:
    """(the text, the options, the letter each had) with option `order[k]` behind the k-th letter.

    >>> permute_options("Which?\\nA. red\\nB. blue", ["red", "blue"], [1, 0])
    ('Which?\\nA. blue\\nB. red', ('blue', 'red'), 'BA')
    """
    spans = option_spans(text, options)
    assert spans is not None, "only options that were found are permuted"
    parts, end = [], 0
    for (start, stop), place in zip(spans, order, strict=True):
        parts += [text[end:start], options[place]]
        end = stop
    letters = "".join(ascii_uppercase[place] for place in order)
    return "".join([*parts, text[end:]]), tuple(options[place] for place in order), letters


def original_letter(answer: str | None, letters: str) -> str | None:
    """The letter that an answer's option had before its question's options were permuted.

    Args:
        letters: that of each option in the order shown; "" where none was permuted.  An answer that is none of their
            letters stays as it is.

    >>> original_letter("A", "BCA"), original_letter("D", "BCA"), original_letter(None, "BCA")
    ('B', 'D', None)
    """
    if answer is None or len(answer) != 1 or answer not in ascii_uppercase[: len(letters)]:
        return answer
    return letters[ascii_uppercase.index(answer)]
