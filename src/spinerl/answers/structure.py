"""Stage 5c: the structure of an answer: lists, sets, tuples, intervals, unions, matrices, relations, vectors.
docs/answers.md, "Stage 5"."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from spinerl.answers._reader import Unreadable, Value, domain_key, equation_key, evaluate, value_key
from spinerl.answers.limits import MAX_ANSWER_CHARS

__all__ = ["BUILDER", "PROSE", "also_equal", "compact", "scalar_key", "structure", "vector"]

PROSE = re.compile(
    r"(?<![A-Za-z\\])(?!(?:sqrt|sinh|cosh|tanh|arcsin|arccos|arctan|infinity)(?![A-Za-z]))[A-Za-z]{4,}"
    r"|(?<![A-Za-z\\])[A-Za-z]{2,}\s+[A-Za-z]{2,}"
)
"""Words, as opposed to the letters of an expression."""

_OPENING, _CLOSING = "([{", ")]}"
_ASSIGNED = re.compile(
    r"^(?:[A-Za-z]|\\[a-zA-Z]+|[A-Z]{1,4}|[a-z]{2}|\\angle\s*[A-Z]{1,3}|\|[A-Z]{2}\|)(?:_\{?\w+\}?)?'?"
    r"(?:\((?:[A-Za-z]|\\[a-z]+|\d+)(?:,[A-Za-z])*\))?$"
    r"|^[A-Za-z]{3,}$|^\([A-Za-z](?:_\{?\w+\}?)?(?:,[A-Za-z](?:_\{?\w+\}?)?)+\)$"
)
_MATRIX = re.compile(r"^\\begin\{([pbBv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}$", re.S)
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>=]|\\in(?![A-Za-z])")


def compact(text: str) -> str:
    """No spaces except where two letters or digits, or a command and a letter, would run together."""
    if _SPACE.search(text) is None:
        return text
    return _SPACES.sub("", _APART.sub("\x00", text)).replace("\x00", " ")


_APART = re.compile(r"(?<=\w)\s+(?=\w)")
_SPACES = re.compile(r"\s+")
_SPACE = re.compile(r"[\s\x00]")


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


def structure(text: str, level: int) -> tuple[str, str]:
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
    if text in ("\\mathbb{R}", "\\mathbb R"):
        return "tuple:(infinity:-,infinity:+)", "(-\\infty,\\infty)"
    if ":" in text and _RATIO.fullmatch(text) is not None:
        bare = _SPACES.sub("", text)
        return "ratio:" + bare, bare
    if text.startswith(("[\\begin", "(\\begin")) and text.endswith(("}]", "})")):
        text = text[1:-1].strip()  # \left[ \begin{array} ... \end{array} \right]
    matrix = _MATRIX.match(text)
    if matrix is not None:
        return _matrix(matrix, level)
    if "\\cup" in text:
        parts = _split(re.sub(r"\\cup(?![A-Za-z])", "\x01", text), "\x01")
        if len(parts) > 1:
            if all(part.startswith("\\{") and part.endswith("\\}") and _wraps(part) for part in parts):
                return _unordered([member for part in parts for member in _split(part[2:-2], ",;")], level)
            pairs = sorted(structure(part, level + 1) for part in parts)
            return "union:" + "|".join(p[0] for p in pairs), "\\cup".join(p[1] for p in pairs)
    is_set = text.startswith("\\{") and text.endswith("\\}") and _wraps(text)
    if is_set:
        builder = BUILDER.fullmatch(text)
        if builder is not None:
            return structure(builder["condition"], level + 1)
        return _unordered(_split(text[2:-2], ",;"), level)
    if text[0] in "([" and text[-1] in ")]" and _wraps(text):
        parts = _split(text[1:-1], ",;")
        if len(parts) > 1:
            named = _assigned(parts, level)
            if named is not None:
                return named
            pairs = [structure(part, level + 1) for part in parts]
            inner, shown = ",".join(p[0] for p in pairs), ",".join(p[1] for p in pairs)
            return f"tuple:{text[0]}{inner}{text[-1]}", f"{text[0]}{shown}{text[-1]}"
    if "\\\\" in text and "\\begin" not in text:
        text = text.replace("\\\\", " , ")  # lines
    if ("," in text or ";" in text) and not _is_grouped_number(text):
        parts = _split(text, ",;")
        if len(parts) > 1:
            named = _assigned(parts, level)
            if named is not None:
                return named
            return _unordered(parts, level)
    related = _relation(text, level)
    if related is not None:
        return related
    if "\\pm" in text or "\\mp" in text:
        return _unordered([text], level)
    return _scalar(text)


_RATIO = re.compile(r"\d{1,9}(?:\.\d+)?(?:\s*:\s*\d{1,9}(?:\.\d+)?){1,4}")
BUILDER = re.compile(
    r"\\\{\s*(?P<name>[a-z])\s*(?:\\in\s*(?:\\mathbb\{R\}|R)\s*)?(?:\\mid(?![A-Za-z])|:|\|)\s*(?P<condition>.+)\\\}"
)
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
            key, shown = structure(variant, level + 1)
            members[key] = shown
    keys = sorted(members)
    if len(keys) == 1:
        return keys[0], members[keys[0]]
    return "set:{" + ",".join(keys) + "}", ",".join(members[k] for k in keys)


def _assigned(parts: list[str], level: int) -> tuple[str, str] | None:
    """Values of different names, "x = 1, y = 2": each name with its value; None for other lists."""
    names: dict[str, tuple[str, str]] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.replace(" ", "")
        if not equals or "=" in value or not value.strip() or not _ASSIGNED.match(name) or name in names:
            return None
        names[name] = structure(value, level + 1)
    ordered = sorted(names)
    key = ",".join(f"{name}={names[name][0]}" for name in ordered)
    return f"assigned:{key}", ",".join(f"{name}={names[name][1]}" for name in ordered)


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
        pairs = [structure(cell, level + 1) for cell in row.split("&")]
        keys.append("&".join(p[0] for p in pairs))
        shown.append(" & ".join(p[1] for p in pairs))
    if len({row.count("&") for row in keys}) != 1:
        raise Unreadable("rows of different lengths")
    body = " \\\\ ".join(shown)
    if environment == "matrix" and len(rows) > 1 and all("&" not in row for row in rows):
        environment = "column"
    readable = f"\\begin{{pmatrix}} {body} \\end{{pmatrix}}"
    if environment == "column":
        return f"tuple:({','.join(keys)})", readable  # a column vector is the tuple of its entries
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
        return structure(right, level + 1)
    if signs != {"="}:
        return _inequality(text, marks)
    if _ASSIGNED.match(left.replace(" ", "")) and not (right == "0" and len(marks) == 1 and len(left) > 1):
        return structure(right, level + 1)
    if len(marks) > 1:
        raise Unreadable("a chain of equations")
    if PROSE.search(left) or PROSE.search(right):
        raise Unreadable("words")
    left_value, right_value = evaluate(left), evaluate(right)
    if isinstance(left_value, Fraction):
        if isinstance(right_value, Fraction):
            return structure(right, level + 1)  # 2 + 3 = 5
        if _ASSIGNED.match(right.replace(" ", "")):
            return structure(left, level + 1)  # 5 = x
    difference = evaluate(f"({left})-({right})")
    return "equation:" + equation_key(difference), f"{compact(left)}={compact(right)}"


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
    bare = text.replace(" ", "")
    if bare in _INFINITE:
        return _INFINITE[bare]
    if "," in text and _is_grouped_number(text):
        text = bare.replace(",", "")
    if " " in text and _SPACED.fullmatch(text) is not None:
        text = _SPACED_GAP.sub("", text)
    if "e" in text or "E" in text:
        text = _EXPONENT.sub(r"\\cdot 10^{\1}", text)
    if "," in text:
        text = _INTEGER_FUNCTION.sub(_integer_function, text)
    if "..." in text and (repeating := _REPEATING.fullmatch(text.replace(" ", ""))) is not None:
        text = _repeating(repeating)
    if PROSE.search(text):
        raise Unreadable("words")
    value = evaluate(text)
    digits = str(value) if isinstance(value, Fraction) else ""
    return scalar_key(value), digits if 0 < len(digits) <= MAX_ANSWER_CHARS // 2 else compact(text)


_INFINITE = {
    **dict.fromkeys(("\\infty", "+\\infty", "infinity", "inf", "oo"), ("infinity:+", "\\infty")),
    **dict.fromkeys(("-\\infty", "-infinity", "-inf", "-oo"), ("infinity:-", "-\\infty")),
}
_SPACED = re.compile(r"\d{1,3}(?: \d{3})+")
_SPACED_GAP = re.compile(r"(?<=\d)\s+(?=\d{3}\b)(?!\d{3}\s*/)")
_EXPONENT = re.compile(r"(?<=\d)[eE]([-+]?\d+)")
_INTEGER_FUNCTION = re.compile(
    r"\\?(?P<name>gcd|lcm|max|min)\s*[({]\s*(?P<numbers>-?\d{1,30}(?:\s*,\s*-?\d{1,30}){1,9})\s*[)}]"
)
_REPEATING = re.compile(
    r"(?P<sign>-?)(?P<whole>\d*)\.(?P<head>\d*?)(?P<block>\d{1,12}?)(?P=block)(?P<more>(?P=block)*)\.{3}"
)


def _integer_function(match: re.Match[str]) -> str:
    numbers = [int(number) for number in match["numbers"].split(",")]
    functions = {"gcd": math.gcd, "lcm": math.lcm, "max": max, "min": min}
    return f"({functions[match['name']](*numbers)})"


def _repeating(match: re.Match[str]) -> str:
    """0.333... is 1/3: a block of digits that stands there twice (one digit: three times) and then goes on."""
    block = match["block"]
    if len(block) == 1 and not match["more"]:
        raise Unreadable("digits that go on")
    places, size = len(match["head"]), len(block)
    value = Fraction(int((match["whole"] or "0") + match["head"]), 10**places)
    value += Fraction(int(block), (10**size - 1) * 10**places)
    return f"{match['sign']}({value})"


def scalar_key(value: Value) -> str:
    """The key of a scalar with this value."""
    return ("number:" if isinstance(value, Fraction) else "value:") + value_key(value)


# ------------------------------------------------------------------------- vectors, and what else a key equals

_BASIS = re.compile(
    r"\\(?:hat|widehat|vec|mathbf|boldsymbol|bm)\s*\{?\s*(?:\\(?:mathbf|boldsymbol|vec"
    r"|hat)\s*\{?\s*)?\\?(?P<name>[ijk])(?:math)?(?![A-Za-z])\s*\}{0,2}"
)


def vector(text: str) -> tuple[str, str] | None:
    """Key and readable form of a linear combination of \\mathbf{i}, \\mathbf{j}, \\mathbf{k}: a tuple; else None.

    >>> vector("\\\\hat{i}+2\\\\hat{j}")
    ('tuple:(number:1,number:2)', '(1,2)')
    """
    names = {match["name"] for match in _BASIS.finditer(text)}
    if "\\" not in text or len(names) < 2:
        return None

    def with_values(**values: int) -> str:
        return _BASIS.sub(lambda match: f"({values.get(match['name'], 0)})", text)

    try:
        if evaluate(with_values()) != 0:
            return None
        axes = "ijk" if "k" in names else "ij"
        pairs = [_scalar(with_values(**{axis: 1})) for axis in axes]
    except Unreadable:
        return None
    inner, shown = ",".join(pair[0] for pair in pairs), ",".join(pair[1] for pair in pairs)
    return f"tuple:({inner})", f"({shown})"


_ROOT = re.compile(r"sqrt|log|ln|\^\s*\{[^}]*[/.f]")
_NO_VARIABLES = re.compile(
    r"\\(?!alpha|beta|gamma|theta|lambda|mu|phi|rho|sigma|tau|omega)[A-Za-z]+|sqrt|log|ln|sin|cos|tan|pi|exp|[ei]"
)


def also_equal(body: str, key: str) -> tuple[str, ...]:
    """Further keys under which an answer is the same: the curve of "y = 2x + 1", a root's value where it is real.

    >>> also_equal("y=2x+1", "value:...") == (structure("2x-y+1=0", 0)[0],)
    True
    """
    if key.startswith("value:") and "=" in body:
        left, equals, right = body.partition("=")
        if equals and "=" not in right and re.fullmatch(r"\s*[a-z]\s*", left) and left.strip() not in "ei":
            try:
                return ("equation:" + equation_key(evaluate(f"({left})-({right})")),)
            except Unreadable:
                return ()
        return ()
    if key.startswith("value:") and _ROOT.search(body) and any(c.isalpha() for c in _NO_VARIABLES.sub("", body)):
        found = domain_key(body)
        return () if found is None else ("domain:" + found,)
    return ()
