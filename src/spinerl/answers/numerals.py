"""Numbers as prose writes them: "1 250 000", "2 1/2", "3.2 × 10^6", "₹1,20,000", "3,5", "$1.5 million", "36个".

The forms are those of docs/answers.md, "Numbers in prose".  Every pattern is bounded, so that reading is linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["SCALES", "Numeral", "first_numeral", "last_numeral", "numerals", "scale_of"]

SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
    "mille": 10**3,
    "tausend": 10**3,
    "millionen": 10**6,
    "milliarde": 10**9,
    "milliarden": 10**9,
    "milliard": 10**9,
    "millones": 10**6,
    "millón": 10**6,
    "mil": 10**3,
    "milhões": 10**6,
    "milhão": 10**6,
    "milioni": 10**6,
    "milione": 10**6,
    "miliardi": 10**9,
    "тысяч": 10**3,
    "миллион": 10**6,
    "миллиона": 10**6,
    "миллионов": 10**6,
    "миллиардов": 10**9,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
    "만": 10**4,
    "억": 10**8,
}
"""Words after a number that multiply it."""

_WESTERN = sorted((word for word in SCALES if word.isalpha() and ord(word[0]) < 0x3000), key=len, reverse=True)
_EASTERN = [word for word in SCALES if ord(word[0]) >= 0x3000]
_SCALE = rf"(?:[ \u00a0-]?(?:{'|'.join(_WESTERN)})s?(?![^\W\d_])|\s?(?:{'|'.join(_EASTERN)}))"
_DIGITS = str.maketrans("０１２３４５６７８９，．⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−–", "0123456789,.0123456789-+--")
_CURRENCY = r"(?:\\?[$€£¥₹₩₽]|US\$|Rs\.?|USD|EUR|INR)\s?"
_NUMERAL = re.compile(
    rf"(?<![A-Za-z0-9_.\\^])(?P<word_sign>(?:negative"
    rf"|minus)\s)?(?P<sign>[-+−]\s?)?(?P<currency>{_CURRENCY})?(?P<sign_after>[-−])?"
    r"(?:(?P<mixed>\d{1,6}(?:\s{1,2}and)?[ \u00a0\u202f]{1,2}\d{1,4}\s?/\s?\d{1,4}(?![\d/]))"
    r"|(?P<grouped>\d{1,3}(?:(?:,|\{,\}|,\\!)\d{3})+(?![\d])(?!,\d{2},)|[1-9]\d{0,2}(?:[ "
    r"\u00a0\u202f]\d{3})+(?![\d])|[1-9]\d{0,2}(?:['’]\d{3})+(?!\d)"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d))(?P<grouped_decimals>\.\d+)?"
    r"|(?P<european>[1-9]\d{0,2}(?:\.\d{3})+,\d{1,6}(?!\d)|[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.]))"
    r"|(?P<comma>(?<!\d,)\d+(?:,|\{,\})(?:\d{1,2}|\d{4,12})(?![\d,]))"
    r"|(?P<plain>\d+(?:\.\d+)?|\.\d+))"
    r"(?P<raised_to>\s?\^\s?[({]?(?P<raised_digits>\d{1,3})[)}]?)?"
    r"(?P<exponent>[eE][-+]?\d{1,4}(?![\dA-Za-z]))?"
    r"(?P<over>\s?/\s?\d+(?:\.\d+)?(?![\d/]))?"
    r"(?P<power>\s?(?:×|x|X|\*|·|⋅|\\times|\\cdot)\s?10\s?(?:(?:\^"
    r"|\*\*)\s?[({]?\s?(?P<power_digits>[-+−–]?\d{1,4})\s?[)}]?|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4})))?"
    rf"(?P<scale>{_SCALE}{{1,2}}|[kK](?![A-Za-z\d])|(?<=\d)(?:[MB]|mn|bn|tn)(?![A-Za-z\d]))?"
)
_BETWEEN = re.compile(r"[=;?<>](?=[^=;?<>]*\d)")  # no number holds these signs: another may follow
_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_REMAINDER = re.compile(r"\s*,?\s*(?:with |and )?(?:a )?(?:remainder|rest)\b|\s?[rR]\s?\d+\b|\s*余\s*\d|:\d")
_SHORT_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "mn": 10**6, "bn": 10**9, "tn": 10**12}
MAX_DIGITS = 400


@dataclass(frozen=True)
class Numeral:
    """A number in a text: where it stands, and its spelling without separators, currency and words.

    `has_remainder`: a remainder follows, so that the number is not the whole answer.
    """

    start: int
    end: int
    shown: str
    value: Fraction
    has_remainder: bool


def numerals(text: str) -> Iterator[Numeral]:
    """The numbers of a text, in order.

    >>> [n.shown for n in numerals("2 1/2 cups, 1 250 000 people, $1.5 million, 3.2 × 10^6, ₹1,20,000")]
    ['5/2', '1250000', '1500000', '3200000', '120000']
    """
    for match, end in _matches(text):
        if (numeral := _numeral(text, match, end)) is not None:
            yield numeral


def first_numeral(text: str) -> Numeral | None:
    """The first number of a text, or None."""
    return next(numerals(text), None)


def last_numeral(text: str) -> Numeral | None:
    """The last number of a text, or None."""
    starts = [match.end() for match in _BETWEEN.finditer(text)]
    for start in (*starts[-1:], 0):
        for match, end in reversed(list(_matches(text, start))):
            if (numeral := _numeral(text, match, end)) is not None:
                return numeral
    return None


def scale_of(words: str) -> int:
    """What scale words such as "hundred thousand" multiply by."""
    product = 1
    for word in re.findall(r"[^\W\d_]+", words):
        lower = word.casefold()
        product *= SCALES.get(lower) or SCALES.get(lower.removesuffix("s")) or _eastern(word)
    return product


def _eastern(word: str) -> int:
    product = 1
    for sign in word:
        product *= SCALES.get(sign, 1)
    return product


def _matches(text: str, position: int = 0) -> Iterator[tuple[re.Match[str], int]]:
    """What looks like a number, and where it ends: of two numbers side by side ("10 3/4 5/2") the first ends early."""
    while (match := _NUMERAL.search(text, position)) is not None:
        position = match.end()
        if match["mixed"] and not _is_proper(match["mixed"]):
            position = match.start("mixed") + len(match["mixed"].split()[0])
        yield match, position


def _numeral(text: str, match: re.Match[str], end: int) -> Numeral | None:
    if end < match.end():
        first = match["mixed"].split()[0]
        return Numeral(match.start(), end, first, Fraction(first), False)
    if match.end() - match.start() > MAX_DIGITS:
        return None
    part = match.groupdict()
    value, spelling = _magnitude(part)
    if part["raised_to"]:
        exponent = int(part["raised_digits"])
        if exponent * max(value.numerator.bit_length(), value.denominator.bit_length()) > 2000:
            return None
        value, spelling = value**exponent, ""
    if part["exponent"]:
        exponent = int(part["exponent"][1:])
        if abs(exponent) > 400:
            return None
        value, spelling = value * Fraction(10) ** exponent, ""
    if part["over"]:
        bottom = Fraction(part["over"].strip(" /\u00a0"))
        if bottom == 0:
            return None
        value, spelling = value / bottom, ""
    if part["power"]:
        digits = (part["power_digits"] or part["raised"]).translate(_DIGITS)
        if abs(int(digits)) > 400:
            return None
        value, spelling = value * Fraction(10) ** int(digits), ""
    if part["scale"]:
        scale = _SHORT_SCALES.get(part["scale"])
        if scale is None:
            value, spelling = value * scale_of(part["scale"]), ""
        elif part["currency"] or part["scale"] in "kK":
            value, spelling = value * scale, ""
    if _is_negative(text, match):
        value, spelling = -value, "-" + spelling if spelling else ""
    shown = spelling if _PLAIN.fullmatch(spelling) else str(value)
    return Numeral(match.start(), match.end(), shown, value, _REMAINDER.match(text, match.end()) is not None)


def _is_proper(mixed: str) -> bool:
    _, top, bottom = (int(digits) for digits in re.findall(r"\d+", mixed))
    return 0 < top < bottom


def _magnitude(part: dict[str, str | None]) -> tuple[Fraction, str]:
    """The unsigned number before exponent, denominator and scale, and its plain spelling ("" if it has none)."""
    if part["mixed"]:
        whole, top, bottom = (int(d) for d in re.findall(r"\d+", part["mixed"]))
        return Fraction(whole) + Fraction(top, bottom), ""
    if part["grouped"]:
        spelling = re.sub(r"\D", "", part["grouped"].translate(_DIGITS)) + (part["grouped_decimals"] or "")
    elif part["european"]:
        spelling = part["european"].replace(".", "").replace(",", ".")
    elif part["comma"]:
        spelling = re.sub(r"\{?,\}?", ".", part["comma"])
    else:
        spelling = (part["plain"] or "").translate(_DIGITS)
    return Fraction(spelling), spelling


def _is_negative(text: str, match: re.Match[str]) -> bool:
    """A sign counts where it cannot be a subtraction: not after a number or a bracket."""
    before = text[max(0, match.start() - 3) : match.start()].rstrip()
    after_operand = bool(before) and (before[-1].isdigit() or before[-1] in ")]}")
    if match["word_sign"]:
        return match["word_sign"].startswith("n") or not after_operand
    if match["sign_after"]:
        return True
    sign = match["sign"]
    return bool(sign) and sign[0] in "-−" and not after_operand
