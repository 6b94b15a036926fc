"""Reading an option letter or an option's text (kind "choice")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from spinerl.answers.normalize import MAX_ANSWER_CHARS, canonical_key, normalize_text, read_letter
from spinerl.answers.sentences import trim

__all__ = ["LETTERS", "contained_option", "leading_letter", "opening_letter", "option_of", "option_text", "plain"]

LETTERS = "ABCDEFGHIJ"

_COMMANDS = re.compile(
    r"\\(?:textbf|textrm|textit|text|mathrm|mathbf|boldsymbol|fbox|boxed|bf|rm)(?![a-z])\s*\{?|\\[()\[\]]|\\ "
)
_MARKUP = re.compile(r"[*_`$\"“”]")
_IN_BRACKETS = re.compile(r"^\s*(?:(?:option|choice|letter|answer)\s+)?[(\[{<]\s*([A-Ja-j])\s*[)\]}>.:]")
_BARE = re.compile(
    r"^[\s'‘(]*(?:(?:the\s+)?(?:(?:first|second|third|fourth|fifth|last|correct)\s+)?(?:option|choice|letter|answer"
    r"|statement|letra|lettre|lettera|buchstabe|буква|opción|opção|opzione|alternativa|die|der|la|le|el|l['’]|o"
    r"|a(?=\s+(?:[B-J]\b|letra))|il|das|вариант|选项|選項|项)\s*[(\"'<{]*)*"
    r"([A-Ja-j])(?![A-Za-z0-9'’À-ÿ])",
    re.I,
)
_ENDS = re.compile(
    r"[\s}>'’)]*(?:$|[.,;:)\]\n–—-]|[^\x00-\x7f]|\((?!s\))|(?:because|since|as|is|for|which|with|not|but|rather|due"
    r"|correctly|instead|and not|over|here|from|based|given|by|est|ist|es|perché|porque|weil|car|donc)\b)"
)
_SECOND = re.compile(
    r"^[\s*)\]\"'}]*(?:,|and|or|/|&|和|与|或|、|und|oder|et|ou|y|o|e)\s*(?:also |option |both "
    r")?[(\[*]*([A-J])(?![A-Za-z0-9'’])"
)
_OPENS = re.compile(
    r"^\s*(?:\(([A-Ja-j])\)|\[([A-J])\]|\{([A-J])\}|<([A-J])>|([A-J])(?=[).:,;!。，、]|\s*$|\s+[-–—])|([b-hj])(?=[).:]"
    r"|\s*$)|(a)(?=\)))"
)


def plain(text: str) -> str:
    """Without markdown, LaTeX wrappers and quotes; full-width letters as plain ones."""
    text = text[: 2 * MAX_ANSWER_CHARS].translate(_FULL_WIDTH)
    return re.sub(r"^[\s:：=]+", "", _MARKUP.sub("", _COMMANDS.sub(" ", text))) if text else text


_FULL_WIDTH = str.maketrans("ＡＢＣＤＥＦＧＨＩＪ（）", "ABCDEFGHIJ()")


def leading_letter(text: str, *, certain: bool) -> str | None:
    """The letter at the start of an answer; never the article "a" nor the pronoun "I" of a sentence.

    `certain`: the text is all of the answer, as inside a box.

    >>> leading_letter("B, because of this", certain=False), leading_letter("a prime", certain=False)
    ('B', None)
    """
    text = plain(text)
    match = _IN_BRACKETS.match(text) or _BARE.match(text)
    if match is None or _SECOND.match(text[match.end() :]):
        return None
    letter, rest = match[1], text[match.end() :]
    if match.re is _BARE:
        ends = _ENDS.match(rest) is not None
        if letter.islower() and (not ends or re.match(r"\s+[a-z]", rest)):
            return None
        if letter in "AI" and not ends:
            return None
        if not ends and certain and rest.strip():
            return (
                letter.upper()
                if re.match(r"\s+[^\s=<>+*/^-]", rest) and letter not in "AI" and letter.isupper()
                else None
            )
    return letter.upper()


def opening_letter(line: str) -> str | None:
    """The letter that opens a line as an option's label does: "B)", "(c)", "D: because", "b"; a lone "a" is none."""
    text = plain(line)
    text = re.sub(r"^(?:[-•]\s+)", "", text.strip().strip("'‘’"))
    match = _OPENS.match(text)
    if match is None or _SECOND.match(text[match.end() :]):
        return None
    return next(group for group in match.groups() if group).upper()


def option_of(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option whose text, letter and text, or value the answer is."""
    if not choices or len(answer) > 4 * MAX_ANSWER_CHARS:
        return None
    normal = normalize_text(answer)
    if not normal:
        return None
    options = _normal_options(tuple(choices))
    found = {letter for letter, plain, labelled in options if normal in (plain, labelled)}
    if not found and len(answer) <= MAX_ANSWER_CHARS:
        key = canonical_key(answer, "math")
        if key is not None and not key.opaque:
            keys = [canonical_key(choice, "math") for choice in choices[:10]]
            found = {letter for letter, other in zip(LETTERS, keys, strict=False) if other and other.text == key.text}
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=64)
def _normal_options(choices: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """(letter, normal form, normal form with the letter before it) of each option: all candidates need them."""
    return tuple(
        (letter, normalize_text(choice), normalize_text(f"({letter}) {choice}"))
        for letter, choice in zip(LETTERS, choices, strict=False)
    )


def contained_option(sentence: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose whole text occurs in the sentence (longest first, so none hides
    another)."""
    padded = f" {normalize_text(sentence[: 8 * MAX_ANSWER_CHARS])} "
    found = []
    options = [(normal, letter) for letter, normal, _ in _normal_options(tuple(choices))]
    for normal, letter in sorted(options, key=lambda item: -len(item[0])):
        if normal and f" {normal} " in padded:
            found.append(letter)
            padded = padded.replace(f" {normal} ", " \x00 ")
    return found[0] if len(found) == 1 else None


def option_text(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of an answer that stands by itself, as in a box or tag."""
    answer = trim(answer)
    return (
        option_of(answer, choices)
        or read_letter(answer)
        or leading_letter(answer, certain=True)
        or contained_option(answer, choices)
    )
