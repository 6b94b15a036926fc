"""One spelling per answer: tidies a surface form and gives it a canonical key.

Answers with equal keys are equivalent, so most of a vote is settled by comparing strings.  The kinds and
every rule are listed in docs/answers.md.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from spinerl.answers._reader import Unreadable, Value, equation_key, evaluate, value_key
from spinerl.errors import InputError, did_you_mean

__all__ = [
    "KINDS",
    "MAX_ANSWER_CHARS",
    "Key",
    "canonical_key",
    "check_kind",
    "normalise_answer",
    "scalar_key",
    "tidy_math",
]

KINDS = ("auto", "math", "number", "choice", "yesno", "text")
"""How an answer may be read; `Question.answer_kind` is one of these."""

MAX_ANSWER_CHARS = 512
"""A longer answer abstains: no final answer is that long, and every later bound rests on it."""

MAX_NESTING = 32
"""An answer with more brackets open at once abstains."""

_ABSTAINING = {"none", "null", "nan", "n/a", "unknown", "?", "no answer", "not available"}


@dataclass(frozen=True)
class Key:
    """What an answer is compared by.

    `text` is equal for equivalent answers; `shown` is the readable normal form; `opaque` is True when the
    reader did not understand the expression, so that two different keys may still be equivalent and
    math-verify decides.
    """

    text: str
    shown: str
    opaque: bool = False


def check_kind(kind: str) -> None:
    """Raises `InputError` unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise InputError(
            f"answer kind {kind!r} is unknown{did_you_mean(str(kind), KINDS)}; allowed: {', '.join(KINDS)}"
        )


def normalise_answer(gold: str, kind: str = "auto") -> str:
    """The readable normal form of a bare answer, such as a gold answer of a data set.

    Equal normal forms mean equivalent answers; the converse holds only for `Equivalence.equivalent`, which
    also knows that "2\\sqrt{5}" is "\\sqrt{20}".

    Args: `gold`, an answer without box or sentence around it; `kind`, one of `KINDS`.
    Returns: a string that is never empty.
    Raises: `InputError` for an unknown kind, or when the answer cannot be read as that kind (empty, longer
    than `MAX_ANSWER_CHARS`, no number for "number", no single letter for "choice").
    Source: ours.

    >>> normalise_answer("142.0"), normalise_answer("\\\\left( 3, \\\\dfrac{\\\\pi}{2} \\\\right)")
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
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|boldsymbol|bm|operatorname|emph"
    r"|underline|boxed|fbox)\*?\s*\{([^{}]*)\}"
)


def read_letter(answer: str) -> str | None:
    """The option letter of a bare answer such as "B", "(b)", "\\text{(B)}", "Option B" or "B. because", or
    None.

    Only for text that is already known to be the answer; prose goes through `extract_answer`.
    """
    text = _unwrap(answer).replace("$", "").replace("*", "").replace("\\ ", " ").strip()
    match = _LETTER.match(text)
    if match is None:
        return None
    rest = text[match.end(1) :]
    if re.match(r"^\s*,\s*\(?[A-Ja-j]\b", rest) and len(rest.strip()) <= 12:
        return None  # "A, C": two letters are no choice
    return match[1].upper()


def _unwrap(text: str) -> str:
    """Removes \\text{...}, \\mathbf{...} and the like, innermost first; keeps what they hold."""
    for _ in range(8):
        text, count = _WRAPPER.subn(r"\1", text)
        if not count:
            break
    return text


def _text_key(text: str) -> Key | None:
    normal = normalise_text(text)
    if not normal or normal in _ABSTAINING:
        return None
    return Key(f"text:{normal}", normal)


def normalise_text(text: str) -> str:
    """Lower case, no accents on Latin letters, no articles, no punctuation except inside numbers, one space.

    Articles stay when nothing else is left; "" when there is no letter or digit at all.

    >>> normalise_text("The  Café, in PARIS.")
    'cafe in paris'
    """
    text = _unwrap(unicodedata.normalize("NFKC", text)).replace("$", "")
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


# -------------------------------------------------------------------------------------------------- tidying

_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "\\div ",
    "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "≤": "\\le ",
    "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∓": "\\mp ", "°": "\\degree ", "θ": "\\theta ",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "∅": "\\emptyset ", "⟨": "\\langle ",
    "⟩": "\\rangle ", "“": '"', "”": '"',
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⁄": "/", "％": "%", "，": ", ", "（": "(", "）": ")", "\u00a0": " ", "\u202f": " ",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")

_SPACING = re.compile(
    r"(?<!\\)\\[,;:!>]|\\(?:quad|qquad|thinspace|enspace|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])|~"
)
_SIZERS = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg|middle)(?![A-Za-z])\s*\.?")
_DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\(?:circ|degrees?)(?![A-Za-z])|\b(?<=\d) ?deg\b")
_RENAMED = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:langle)(?![A-Za-z])"), "("),
    (re.compile(r"\\(?:rangle)(?![A-Za-z])"), ")"),
    (re.compile(r"\{,\}"), ","),
)
_LATEX_SPACE = re.compile(r"(?<!\\)\\(?=\s)")
_CURRENCY = re.compile(r"\\?\$|[€£¥₹]|\bUSD\b|\bEUR\b")
_DOLLARS = re.compile(r"^\s*(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])\s*$", re.S)
_UNIT_WORDS = (
    "degrees? celsius fahrenheit radians? dollars? cents? percent(?:age)? pct usd euros? pounds? "
    "units? square cubic cm mm km ft inch(?:es)? feet foot yards? yd miles? mi meters? metres? "
    "centimeters? centimetres? kilometers? kilometres? millimeters? kg mg lbs? oz ounces? grams? kilograms? "
    "liters? litres? ml gallons? seconds? secs? minutes? mins? hours? hrs? days? weeks? months? years? "
    "mph kph hz people students? times points? ways sq kmh"
)
_UNIT = re.compile(
    r"(?<=[\d}.)a-z\s])\s*(?<![\\A-Za-z])(?:" + "|".join(_UNIT_WORDS.split())
    + r")(?:\s*/\s*[a-z]+)?(?:\s*\^\s*\{?\s*-?\d\s*\}?)?\s*\.?$"
)  # fmt: skip
_NO_UNITS = {"and", "or", "if", "when", "for", "is", "to", "e", "i"}
_NUMBER_THEN_WORDS = re.compile(
    r"^([-+]?\s*(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*/\s*\d+)?)"
    r"(?:\s+(?!(?:and|or|is|are|was|if|so|we|because|but|then|when|which|of|plus|minus|times|to|out)\b)[A-Za-z'-]{2,}){1,3}$"
)
_PROSE = re.compile(
    r"(?<![A-Za-z\\])(?!(?:sqrt|sinh|cosh|tanh|arcsin|arccos|arctan|infinity)(?![A-Za-z]))[A-Za-z]{4,}"
    r"|(?<![A-Za-z\\])[A-Za-z]{2,}\s+[A-Za-z]{2,}"
)
_TEXT_UNIT = re.compile(
    r"(?<=[\d}).a-zA-Z])\s*\\(?:text|mbox|mathrm|textrm|hbox)\s*\{([^{}]*)\}\s*(?:\^\s*\{?\s*-?\d\s*\}?)?\s*$"
)
_LIST_WORD = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\d}\s)$])(?:\band\b|\bor\b)(?=[\s\\(\d$-])"
)
_PURE_WORDS = re.compile(r"^[^\W\d_]+(?:(?:\s+|['’-]|[.,;:\"]+\s*)[^\W\d_]+)*[.!\"]?$")
_SHORT_WORDS = {
    "no", "on", "is", "in", "up", "or", "us", "we", "go", "so", "to", "at", "by", "as", "an", "am", "be",
    "do", "he", "me", "my", "it", "if", "of",
}  # fmt: skip


def tidy_math(text: str) -> str:
    """One spelling of the same LaTeX: unicode signs, sizes, spacing, dollars, fraction commands, wrappers."""
    for sign, latex in _UNICODE.items():
        if sign in text:
            text = text.replace(sign, latex)
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("\\$", "$").strip()
    for _ in range(2):
        wrapped = _DOLLARS.match(text)
        if wrapped is None or "$" in wrapped[1]:
            break
        text = wrapped[1].strip()
    text = _SIZERS.sub("", text)
    text = _SPACING.sub("", text)
    text = _LATEX_SPACE.sub(" ", text)
    for pattern, replacement in _RENAMED:
        text = pattern.sub(replacement, text)
    text = _DEGREE.sub(r"\\degree ", text)
    return re.sub(r"\s+", " ", text).strip()


def _drop_units(text: str) -> str:
    """Currency, percent, degrees and trailing units go: the question fixes them, and models write them or
    not."""
    text = _CURRENCY.sub("", text).strip()
    text = re.sub(r"\\?%", " ", text).strip()
    for _ in range(3):
        before = text
        match = _TEXT_UNIT.search(text)
        if match is not None and match[1].strip(" ,") not in _NO_UNITS:
            text = text[: match.start()].rstrip()
        unit = _UNIT.search(text)
        if unit is not None and _is_quantity(text[: unit.start()]):
            text = text[: unit.start()].rstrip()
        if text == before:
            break
    if text.endswith("\\degree") and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = text[: -len("\\degree")].rstrip()
    words = _NUMBER_THEN_WORDS.match(text)
    if words is not None:
        text = words[1]
    return text


def _is_quantity(text: str) -> bool:
    """A number, perhaps after "x =": what may carry a unit that is not in \\text{...}."""
    bare = re.sub(r"\\[A-Za-z]+|^\s*[A-Za-z]\w*\s*=", "", text)
    has_number = any(c.isdigit() for c in text) or "\\pi" in text
    return has_number and not any(c.isalpha() for c in bare)


# ------------------------------------------------------------------------------------------------ structure

_OPENING, _CLOSING = "([{", ")]}"
_ASSIGNED = re.compile(
    r"^(?:[A-Za-z]|\\[a-zA-Z]+|[A-Z]{1,4}|[a-z]{2}|\\angle\s*[A-Z]{1,3}|\|[A-Z]{2}\|)(?:_\{?\w+\}?)?'?"
    r"(?:\((?:[A-Za-z]|\\[a-z]+|\d+)(?:,[A-Za-z])*\))?$"
    r"|^[A-Za-z]{3,}$"
)
_LABELLED = re.compile(r"^\(([A-J])\)\s*(.*)$", re.S)
_ENVIRONMENT = re.compile(r"\\(?:begin|end|operatorname)\{[A-Za-z*]*\}")
_MATRIX = re.compile(r"^\\begin\{([pbBv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}$", re.S)
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>=]|\\in(?![A-Za-z])")


def _math_key(answer: str) -> Key | None:
    tidy = tidy_math(answer)
    tidy = _strip_end(tidy)
    labelled = _LABELLED.match(_unwrap(tidy))
    if labelled is not None:
        rest = labelled[2].strip()
        if not rest:
            return Key(f"text:{labelled[1]}", labelled[1])
        if not rest.startswith((",", "\\cup", "+", "-", "*", "^", "_", "=", "(")):
            tidy = rest
    plain = _unwrap(tidy).strip()
    if not plain or plain.casefold() in _ABSTAINING:
        return None
    if not any(c.isalnum() for c in plain) and plain.replace(" ", "") != "\\{\\}":
        return None
    if len(plain) == 1 and "A" <= plain <= "J":
        return Key(f"text:{plain}", plain)
    words = plain.casefold()
    if (_PURE_WORDS.match(plain) and _has_word(words) and not _is_name(plain)) or (
        re.fullmatch(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{[^{}]{2,}\}", tidy)
        and not any(c.isdigit() for c in plain)
    ):
        return _text_key(plain)
    body = _drop_units(tidy)
    body = _strip_end(_unwrap_words(body))
    if not body:
        return _text_key(plain)
    try:
        text, shown = _structure(body, 0)
        return Key(text, shown)
    except Unreadable:
        pass
    compact = _compact(body)
    if _PROSE.search(_ENVIRONMENT.sub("", _unwrap(body))) or not _looks_mathematical(body):
        return _text_key(plain)
    return Key(f"opaque:{compact}", compact, opaque=True)


def _strip_end(text: str) -> str:
    text = text.strip()
    while text.endswith((".", ",", ";", ":")) and not text.endswith("\\,"):
        text = text[:-1].rstrip()
    while text.startswith(("=", ":")):
        text = text[1:].lstrip()
    return text


def _has_word(words: str) -> bool:
    return any(len(word) > 2 or word in _SHORT_WORDS for word in re.findall(r"[^\W\d_]+", words))


def _is_name(plain: str) -> bool:
    return plain in ("sin", "cos", "tan", "log", "exp") or (plain.isupper() and len(plain) <= 2)


def _unwrap_words(text: str) -> str:
    """\\text{and} and \\text{or} become commas; other wrappers keep their content."""
    return _unwrap(_LIST_WORD.sub(" , ", text))


def _looks_mathematical(text: str) -> bool:
    return bool(re.search(r"[\d\\^_=<>+*/|]|^[A-Za-z]$", text))


def _compact(text: str) -> str:
    """No spaces except where two letters or digits, or a command and a letter, would run together."""
    text = re.sub(r"(?<=\w)\s+(?=\w)", "\x00", text)
    return re.sub(r"\s+", "", text).replace("\x00", " ")


def _split(text: str, separators: str) -> list[str]:
    """Splits at top-level separators (one character each)."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        c = text[index]
        if c == "\\" and text[index + 1 : index + 2] in ("{", "}"):
            depth += 1 if text[index + 1] == "{" else -1
            index += 2
            continue
        if c in _OPENING:
            depth += 1
        elif c in _CLOSING:
            depth -= 1
        elif c in separators and depth == 0:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def _wraps(text: str) -> bool:
    """True when the first bracket closes at the very end (any bracket closes any: intervals mix them)."""
    depth, index = 0, 0
    while index < len(text):
        c = text[index]
        step = 1
        if c == "\\" and text[index + 1 : index + 2] in ("{", "}"):
            depth += 1 if text[index + 1] == "{" else -1
            step = 2
        elif c in _OPENING:
            depth += 1
        elif c in _CLOSING:
            depth -= 1
        index += step
        if depth <= 0:
            return depth == 0 and index == len(text)
    return False


def _structure(text: str, level: int) -> tuple[str, str]:
    """Key and readable form of lists, sets, tuples, intervals, unions, matrices, relations and scalars."""
    text = text.strip()
    if level > 6 or not text:
        raise Unreadable(text)
    while text.startswith("{") and text.endswith("}") and _wraps(text):
        text = text[1:-1].strip()
    if "\\emptyset" in text or text in ("\\{\\}", "\\{ \\}"):
        if text.strip() not in ("\\emptyset", "\\{\\}", "\\{ \\}"):
            raise Unreadable(text)
        return "set:{}", "\\emptyset"
    if text.startswith(("[\\begin", "(\\begin")) and text.endswith(("}]", "})")):
        text = text[1:-1].strip()  # \left[ \begin{array} ... \end{array} \right]
    matrix = _MATRIX.match(text)
    if matrix is not None:
        return _matrix(matrix, level)
    if "\\cup" in text:
        parts = _split(re.sub(r"\\cup(?![A-Za-z])", "\x01", text), "\x01")
        if len(parts) > 1:
            pairs = sorted(_structure(part, level + 1) for part in parts)
            return "union:" + "|".join(p[0] for p in pairs), "\\cup".join(p[1] for p in pairs)
    is_set = text.startswith("\\{") and text.endswith("\\}") and _wraps(text)
    if is_set:
        return _unordered(_split(text[2:-2], ",;"), level)
    if text[0] in "([" and text[-1] in ")]" and _wraps(text):
        parts = _split(text[1:-1], ",;")
        if len(parts) > 1:
            pairs = [_structure(part, level + 1) for part in parts]
            inner, shown = ",".join(p[0] for p in pairs), ",".join(p[1] for p in pairs)
            return f"tuple:{text[0]}{inner}{text[-1]}", f"{text[0]}{shown}{text[-1]}"
    if not _is_grouped_number(text):
        parts = _split(text, ",;")
        if len(parts) > 1:
            return _unordered(parts, level)
    related = _relation(text, level)
    if related is not None:
        return related
    if "\\pm" in text or "\\mp" in text:
        return _unordered([text], level)
    return _scalar(text)


_GROUPED = re.compile(r"[-+]?\s*\d{1,3}(?:,\s*\d{3})+(?:\.\d+)?")


def _is_grouped_number(text: str) -> bool:
    return _GROUPED.fullmatch(text) is not None


def _unordered(parts: list[str], level: int) -> tuple[str, str]:
    """A set: its distinct members in the order of their keys.  A set of one is its member."""
    members: dict[str, str] = {}
    for part in parts:
        if not part:
            raise Unreadable("an empty member")
        for variant in _plus_minus(part):
            key, shown = _structure(variant, level + 1)
            members[key] = shown
    keys = sorted(members)
    if len(keys) == 1:
        return keys[0], members[keys[0]]
    return "set:{" + ",".join(keys) + "}", ",".join(members[k] for k in keys)


def _plus_minus(text: str) -> list[str]:
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    upper = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", text))
    lower = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", text))
    return [upper, lower]


def _matrix(match: re.Match[str], level: int) -> tuple[str, str]:
    environment = "matrix" if match[1] in ("pmatrix", "bmatrix", "matrix", "array", "Bmatrix") else match[1]
    rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
    keys, shown = [], []
    for row in rows:
        pairs = [_structure(cell, level + 1) for cell in row.split("&")]
        keys.append("&".join(p[0] for p in pairs))
        shown.append(" & ".join(p[1] for p in pairs))
    if len({row.count("&") for row in keys}) != 1:
        raise Unreadable("rows of different lengths")
    body = " \\\\ ".join(shown)
    readable = f"\\begin{{pmatrix}} {body} \\end{{pmatrix}}"
    return f"{environment}:" + "\\\\".join(keys), readable


def _relation(text: str, level: int) -> tuple[str, str] | None:
    """`x = 5` and `x \\in [1,2]` are what stands right; other equations are compared up to a constant
    factor."""
    marks = list(_RELATION.finditer(text))
    if not marks:
        return None
    left, right = text[: marks[0].start()].strip(), text[marks[-1].end() :].strip()
    signs = {m[0] for m in marks}
    if not left or not right:
        raise Unreadable("one side is missing")
    if signs == {"\\in"} and len(marks) == 1:
        return _structure(right, level + 1)
    if signs != {"="}:
        return _inequality(text, marks)
    if _ASSIGNED.match(left.replace(" ", "")) and not (right == "0" and len(marks) == 1 and len(left) > 1):
        return _structure(right, level + 1)
    if len(marks) > 1:
        raise Unreadable("a chain of equations")
    left_value, right_value = evaluate(left), evaluate(right)
    if isinstance(left_value, Fraction):
        if isinstance(right_value, Fraction):
            return _structure(right, level + 1)  # 2 + 3 = 5
        if _ASSIGNED.match(right.replace(" ", "")):
            return _structure(left, level + 1)  # 5 = x
    difference = evaluate(f"({left})-({right})")
    return "equation:" + equation_key(difference), f"{_compact(left)}={_compact(right)}"


_VARIABLE = re.compile(r"^(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?$")


def _inequality(text: str, marks: list[re.Match[str]]) -> tuple[str, str]:
    """`x < 2`, `2 > x` and `-1 \\le x < 2`, the bounds constant, are the intervals they describe."""
    sides = [text[: marks[0].start()]]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        sides.append(text[mark.end() : following.start() if following else len(text)])
    sides = [side.strip() for side in sides]
    signs = [mark[0] for mark in marks]
    if signs[0] in (">", "\\ge"):  # read it from right to left
        sides.reverse()
        signs = [{">": "<", "\\ge": "\\le"}.get(sign, "") for sign in reversed(signs)]
    if any(sign not in ("<", "\\le") for sign in signs):
        raise Unreadable("not an interval")
    if len(sides) == 2:
        if _VARIABLE.match(sides[0]):
            sides, signs = ["-\\infty", *sides], ["<", *signs]
        else:
            sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not _VARIABLE.match(sides[1]):
        raise Unreadable("not an interval")
    low, high = _scalar(sides[0]), _scalar(sides[2])
    if any(";" in bound[0] for bound in (low, high)):
        raise Unreadable("a bound with a variable")
    left, right = "[" if signs[0] == "\\le" else "(", "]" if signs[1] == "\\le" else ")"
    return f"tuple:{left}{low[0]},{high[0]}{right}", f"{left}{low[1]},{high[1]}{right}"


def _scalar(text: str) -> tuple[str, str]:
    if text.replace(" ", "") in ("\\infty", "+\\infty", "infinity", "inf", "oo"):
        return "infinity:+", "\\infty"
    if text.replace(" ", "") in ("-\\infty", "-infinity", "-inf", "-oo"):
        return "infinity:-", "-\\infty"
    if _is_grouped_number(text):
        text = text.replace(",", "").replace(" ", "")
    text = (
        re.sub(r"(?<=\d)\s+(?=\d{3}\b)(?!\d{3}\s*/)", "", text) if re.fullmatch(r"\d{1,3}(?: \d{3})+", text) else text
    )
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)", r"\\cdot 10^{\1}", text)
    if _PROSE.search(text):
        raise Unreadable("words")
    value = evaluate(text)
    digits = str(value) if isinstance(value, Fraction) else ""
    return scalar_key(value), digits if 0 < len(digits) <= MAX_ANSWER_CHARS // 2 else _compact(text)


def scalar_key(value: Value) -> str:
    """The key of a scalar with this value."""
    return ("number:" if isinstance(value, Fraction) else "value:") + value_key(value)
