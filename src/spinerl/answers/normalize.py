"""One spelling per answer: tidies a surface form and gives it a canonical key.

Answers with equal keys are equivalent, so most of a vote is settled by comparing strings.  The kinds and
every rule are listed in docs/answers.md.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from spinerl.answers._reader import Unreadable
from spinerl.answers.limits import MAX_ANSWER_CHARS, MAX_NESTING
from spinerl.answers.structure import BUILDER, PROSE, also_equal, compact, scalar_key, structure, vector
from spinerl.answers.tidy import tidy_math, unwrap
from spinerl.answers.units import compound_quantity, drop_units, has_meaning, scaled, strip_hedge, time_of_day
from spinerl.errors import InputError, did_you_mean

__all__ = [
    "KINDS",
    "MAX_ANSWER_CHARS",
    "Key",
    "canonical_key",
    "check_kind",
    "normalize_answer",
    "scalar_key",
    "tidy_math",
]

KINDS = ("auto", "math", "number", "choice", "yesno", "text")
"""How an answer may be read; `Question.answer_kind` is one of these."""

_ABSTAINING = {"none", "null", "nan", "n/a", "unknown", "?", "no answer", "not available"}


@dataclass(frozen=True)
class Key:
    """What an answer is compared by.

    `text` is equal for equivalent answers; `shown` is the readable normal form; `opaque` is True when the
    reader did not understand the expression, so that two different keys may still be equivalent and
    math-verify decides; `also` are further keys, of which one in common makes two answers equivalent too.
    """

    text: str
    shown: str
    opaque: bool = False
    also: tuple[str, ...] = ()


def check_kind(kind: str) -> None:
    """Raises `InputError` unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise InputError(
            f"answer kind {kind!r} is unknown{did_you_mean(str(kind), KINDS)}; allowed: {', '.join(KINDS)}"
        )


def normalize_answer(gold: str, kind: str = "auto") -> str:
    """The readable normal form of a bare answer, such as a gold answer of a data set.

    Equal normal forms mean equivalent answers; the converse holds only for `Equivalence.equivalent`, which
    also knows that "2\\sqrt{5}" is "\\sqrt{20}".

    Args: `gold`, an answer without box or sentence around it; `kind`, one of `KINDS`.
    Returns: a string that is never empty.
    Raises: `InputError` for an unknown kind, or when the answer cannot be read as that kind (empty, longer
    than `MAX_ANSWER_CHARS`, no number for "number", no single letter for "choice").
    Source: ours.

    >>> normalize_answer("142.0"), normalize_answer("\\\\left( 3, \\\\dfrac{\\\\pi}{2} \\\\right)")
    ('142', '(3,\\\\frac{\\\\pi}{2})')
    """
    check_kind(kind)
    key = canonical_key(gold, kind)
    if key is None:
        raise InputError(f"the answer {gold[:80]!r} cannot be read as kind {kind!r}; correct it or change answer_kind")
    return key.shown


def canonical_key(answer: str | None, kind: str = "auto") -> Key | None:
    """The key of an answer, or None when it abstains (None, empty, too long, not readable as `kind`)."""
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    return _canonical_key(answer, kind)


@lru_cache(maxsize=16384)
def _canonical_key(answer: str, kind: str) -> Key | None:
    stripped = answer.strip()
    if not stripped or stripped.casefold() in _ABSTAINING or _nesting(stripped) > MAX_NESTING:
        return None
    if kind == "choice":
        letter = read_letter(stripped)
        return None if letter is None else Key(f"choice:{letter}", letter)
    if kind == "yesno":
        word = re.sub(r"[^a-z]", "", tidy_math(stripped).casefold())
        return Key(f"yesno:{word}", word) if word in ("yes", "no", "maybe") else None
    if kind == "text":
        return _text_key(stripped)
    key = _math_key(stripped)
    if kind == "number" and key is not None:
        return key if key.text.startswith("number:") else None
    return key


def _nesting(text: str) -> int:
    deepest = depth = 0
    for c in text:
        if c in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in ")]}":
            depth = max(0, depth - 1)
    return deepest


# ----------------------------------------------------------------------------------------- text and letters

_LETTER = re.compile(r"^[\s(\[{]*(?:(?:option|choice|answer)\s+)?[(\[]?\s*([A-Ja-j])\s*(?:[)\]}.:,]+.*|$)", re.I | re.S)


def read_letter(answer: str) -> str | None:
    """The option letter of a bare answer such as "B", "(b)", "\\text{(B)}", "Option B" or "B. because", or
    None.

    Only for text that is already known to be the answer; prose goes through `extract_answer`.
    """
    text = unwrap(answer).replace("$", "").replace("*", "").replace("\\ ", " ").strip()
    match = _LETTER.match(text)
    if match is None:
        return None
    rest = text[match.end(1) :]
    if re.match(r"^\s*,\s*\(?[A-Ja-j]\b", rest) and len(rest.strip()) <= 12:
        return None  # "A, C": two letters are no choice
    return match[1].upper()


def _text_key(text: str) -> Key | None:
    normal = normalize_text(text)
    if not normal or normal in _ABSTAINING:
        return None
    return Key(f"text:{normal}", normal)


def normalize_text(text: str) -> str:
    """Lower case, no accents on Latin letters, no articles, no punctuation except inside numbers, one space.

    Articles stay when nothing else is left; "" when there is no letter or digit at all.

    >>> normalize_text("The  Café, in PARIS.")
    'cafe in paris'
    """
    text = unwrap(unicodedata.normalize("NFKC", text)).replace("\\$", "").replace("$", "")
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})", "", text)
    text = re.sub(
        r"(?<![^\W\d_])[^\W\d_](?:\.[^\W\d_])+(?![^\W\d_])\.?", lambda m: m[0].replace(".", "") + " ", text
    )  # U.S.A.
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not "\u0300" <= c <= "\u036f").casefold()
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = "".join(c if c in ".%+" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = text.split()
    kept = [w for w in words if w not in ("a", "an", "the")] or words
    normal = " ".join(kept)
    return normal if any(c.isalnum() for c in normal) else ""


# --------------------------------------------------------------------------------------------- expressions

_OR = re.compile(r"\s*,?\s*(?:\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*or\s*,?\s*\}|\bor\b)\s*")
_LIST_WORD = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\d}\s)$])(?:\band\b|\bor\b)(?=[\s\\(\d$-]"
    r"|[A-Za-z]\s*=)"
)
_PURE_WORDS = re.compile(r"^[^\W\d_]+(?:(?:\s+|['’-]|[.,;:\"]+\s*)[^\W\d_]+)*[.!\"]?$")
_SHORT_WORDS = {
    "no", "on", "is", "in", "up", "or", "us", "we", "go", "so", "to", "at", "by", "as", "an", "am", "be",
    "do", "he", "me", "my", "it", "if", "of",
}  # fmt: skip
_LABELLED = re.compile(r"^\(([A-J])\)\s*(.*)$", re.S)
_ENVIRONMENT = re.compile(r"\\(?:begin|end|operatorname)\{[A-Za-z*]*\}")
_ONLY_WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{[^{}]{2,}\}")
_TO = re.compile(r"(?<=\d)\s*(?:\\(?:text|mbox|mathrm|textrm)\s*\{\s*to\s*\}|\bto\b)\s*(?=\d)")
_INEQUALITY = re.compile(r"\\(?:le|ge)(?![A-Za-z])|[<>]")

# answers in words that are one answer, as a regular expression of their normal form and their key
_SAYINGS = (
    (
        re.compile(r"(?:there (?:is|are|exists?) )?no (?:(?:real|valid|possible|integer|such|complex|positive"
            r"|rational|feasible|common) )*(?:solutions?|roots?|real numbers?|values?)"
                   r"(?: exists?)?(?: for x)?|empty set|null set|has no (?:real )?solutions?"),
        "set:{}", "\\emptyset",
    ),
    (
        re.compile(r"(?:x is |x can be )?(?:all|any|every|set of(?: all)?) (?:of )?reals?(?: numbers?| values?| x)*"
            r"|all of r|for all real x"),
        "tuple:(infinity:-,infinity:+)", "(-\\infty,\\infty)",
    ),
    (re.compile(r"(?:it |limit )?does not exist|doesnt exist|dne"), "text:does not exist", "does not exist"),
    (re.compile(r"infinitely many(?: solutions?)?|infinite(?: number of)? solutions?|an infinite number"),
     "text:infinitely many", "infinitely many"),
)  # fmt: skip

_DECLARED = re.compile(
    r"\s*[,;(]?\s*(?:\\(?:text|mbox)\s*\{\s*,?\s*(?:where|for|with)?\s*(?:any |all |some )?(?:integers?)?\s*\}\s*"
    r"|\b(?:where|for|with)\s+(?:any |all |some )?(?:integers?\s+)?)?"
    r"(?P<name>[knmlj])\s*(?:\\in\s*(?:\\mathbb\s*\{?\s*Z\s*\}?|Z|\\mathbf\s*\{?Z\}?)(?:\^[+*])?|(?:\\(?:text"
    r"|mbox)\s*\{\s*)?(?:is|being)?\s*(?:an(?:y)?\s+)?integer\s*\}?)\s*\)?\s*\.?$"
)
_VARIABLES = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")


_BASIS = re.compile(r"\\(?:hat|widehat|vec|mathbf|boldsymbol|bm)(?![A-Za-z])")
_INTEGER = re.compile(r"[1-9]\d{0,300}")


def _math_key(answer: str) -> Key | None:
    if answer.isascii() and _INTEGER.fullmatch(answer):  # the common case
        return Key(f"number:{answer}", answer)
    tidy = _strip_end(strip_hedge(tidy_math(answer)))
    labelled = _LABELLED.match(unwrap(tidy))
    if labelled is not None:
        rest = labelled[2].strip()
        if not rest:
            return Key(f"text:{labelled[1]}", labelled[1])
        if not rest.startswith((",", "\\cup", "+", "-", "*", "^", "_", "=", "(")):
            tidy = rest
    plain = unwrap(tidy).strip()
    if not plain or plain.casefold() in _ABSTAINING:
        return None
    if not any(c.isalnum() for c in plain) and plain.replace(" ", "") not in ("\\{\\}", "\\emptyset"):
        return None
    if len(plain) == 1 and "A" <= plain <= "J":
        return Key(f"text:{plain}", plain)
    if _is_words(plain, tidy):
        return _words_key(plain)
    if _ONLY_WORDS.fullmatch(tidy):
        tidy = plain  # \text{5 apples}
    found = _around_number(tidy, plain)
    if found is not None:
        return found
    body = _strip_end(_unwrap_words(drop_units(_one_parameter(tidy))))
    if not body:
        return _text_key(plain)
    builder = BUILDER.fullmatch(body)
    body = body if builder is None else builder["condition"].strip()
    try:
        text, shown = (
            (vector(drop_units(tidy)) if _BASIS.search(tidy) else None) or _alternatives(tidy) or structure(body, 0)
        )
        return Key(text, shown, also=also_equal(body, text) if text.startswith("value:") else ())
    except Unreadable:
        pass
    if PROSE.search(_ENVIRONMENT.sub("", unwrap(body))) or not _looks_mathematical(body):
        return _words_key(plain)
    short = compact(body)
    return Key(f"opaque:{short}", short, opaque=True)


def _is_words(plain: str, tidy: str) -> bool:
    if _PURE_WORDS.match(plain) and _has_word(plain.casefold()) and not _is_name(plain):
        return True
    return _ONLY_WORDS.fullmatch(tidy) is not None and not any(c.isdigit() for c in plain)


def _words_key(plain: str) -> Key | None:
    """The key of an answer in words; several ways to say "no solution" are one."""
    normal = normalize_text(plain)
    for pattern, text, shown in _SAYINGS:
        if pattern.fullmatch(normal):
            return Key(text, shown)
    return _text_key(plain)


def _around_number(tidy: str, plain: str) -> Key | None:
    """The key of a number with words that change its value or its meaning."""
    if not any(c.isalpha() for c in plain):
        return None
    if not plain[:1].isdigit() and not re.match(r"[-+$.]?\s*\$?\s*[\d.]", plain):
        return None
    number = scaled(tidy)
    if number is not None:
        return Key(f"number:{number}", number)
    time = time_of_day(tidy)
    if time is not None:
        return Key(time, time.partition(":")[2])
    quantity = compound_quantity(tidy)
    if quantity is not None:
        return Key(quantity, plain)
    if has_meaning(tidy) and not re.search(r"\\(?:frac|sqrt|cdot|times)|[=<>^]", tidy):
        return _text_key(
            re.sub(
                r"(?i)\b(bc|ad|b\.c|a\.d|c\.?e|bce)\b\.?", lambda m: _ERAS[re.sub(r"\W", "", m[1]).casefold()], plain
            )
        )
    return None


_ERAS = {"bc": "BC", "bce": "BC", "ad": "AD", "ce": "AD"}


def _one_parameter(text: str) -> str:
    """An integer parameter is called k, and its declaration goes: "n\\pi, n \\in \\mathbb{Z}" is "k\\pi"."""
    declared = _DECLARED.search(text) if "Z" in text or "integer" in text else None
    if declared is not None:
        text, name = text[: declared.start()].rstrip(" ,;("), declared["name"]
    elif "\\pi" in text:
        right = text.rpartition("=")[2]
        names = set(_VARIABLES.findall(re.sub(r"\\[A-Za-z]+", " ", right)))
        if len(names) != 1 or not names <= {"k", "n", "m"}:
            return text
        name = names.pop()
    else:
        return text
    return text if name == "k" else re.sub(rf"(?<![\\A-Za-z_]){name}(?![A-Za-z_(])", "k", text)


def _alternatives(tidy: str) -> tuple[str, str] | None:
    """Inequalities joined by "or" are the union of their intervals."""
    if "or" not in tidy or not _INEQUALITY.search(tidy):
        return None
    parts = [part for part in _OR.split(tidy) if part]
    if len(parts) < 2 or not all(_INEQUALITY.search(part) for part in parts):
        return None
    pairs = sorted(structure(unwrap(part), 1) for part in parts)
    if not all(key.startswith("tuple:") for key, _ in pairs):
        return None
    return "union:" + "|".join(key for key, _ in pairs), "\\cup".join(shown for _, shown in pairs)


def _strip_end(text: str) -> str:
    text = text.strip()
    while text.endswith((".", ",", ";", ":")) and not text.endswith("\\,") and not re.search(r"\d\.{3}$", text):
        text = text[:-1].rstrip()
    while text.startswith(("=", ":")):
        text = text[1:].lstrip()
    return text


def _has_word(words: str) -> bool:
    return any(len(word) > 2 or word in _SHORT_WORDS for word in re.findall(r"[^\W\d_]+", words))


def _is_name(plain: str) -> bool:
    return plain in ("sin", "cos", "tan", "log", "exp") or (plain.isupper() and len(plain) <= 2)


def _unwrap_words(text: str) -> str:
    """\\text{and} and \\text{or} become commas, "3 to 2" a ratio; other wrappers keep their content."""
    return unwrap(_LIST_WORD.sub(" , ", _TO.sub(":", text)))


def _looks_mathematical(text: str) -> bool:
    return bool(re.search(r"[\d\\^_=<>+*/|]|^[A-Za-z]$", text))
