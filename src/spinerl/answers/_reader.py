"""Reads one scalar expression (LaTeX or plain) and evaluates it: exactly when rational, else at sample
points.

The point of it is speed and safety: two expressions that this small reader understands are compared in
microseconds, without sympy and without a worker process, and no input makes it slow (tokens, depth, digits
and magnitudes are bounded).  What it does not understand raises `Unreadable`, and the caller asks the worker.

Irrational constants and expressions with variables are evaluated with 40 digits at three fixed points per
variable name (of mixed sign, so that |x| and x differ); two expressions are taken as equal when all three
values agree to 20 significant digits.  Source: ours; it is the polynomial identity test, done once per answer
instead of once per pair.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath.ctx_mp import MPContext
from mpmath.libmp import NoConvergence

__all__ = ["Unreadable", "Value", "equation_key", "evaluate", "from_digits", "sample_points", "value_key"]

Value = Fraction | tuple[Any, ...]  # a Fraction, or one mpmath number per sample point

NUM_POINTS = 3
MAX_TOKENS = 400
MAX_DEPTH = 24
MAX_BITS = 14000  # below the 4300 digits that Python converts to a string
MAX_MAGNITUDE = 10**300


class Unreadable(ValueError):
    """The expression is outside the reader's language or limits."""


_CTX: Any = MPContext()  # a context of our own, so that nobody else's precision changes reach us
_CTX.dps = 40
_LOCK = threading.Lock()  # mpmath contexts change their own precision while they work
_TINY = _CTX.mpf(10) ** -25
_EPS = _CTX.mpf(10) ** -30

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+|\\[{}|])"
    r"|(?P<word>arc(?:sin|cos|tan)|sqrt|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|exp|ln|pi|abs)(?![a-z])"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<op>\*\*|[-+*/^_(){}\[\]|!,]))"
)

_DERIVATIVE = re.compile(r"\\frac\s*\{d[^{}]*\}\s*\{d\s*[a-z]")
_CONSTANT_COMMANDS = {"\\pi", "\\e", "\\i", "\\imath"}
_GREEK_NAMES = """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar
"""
_GREEK = {"\\" + name for name in _GREEK_NAMES.split()}
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "ln", "log", "exp", "abs",
}  # fmt: skip
_TRIG = ("sin", "cos", "tan", "cot", "sec", "csc")
_IMPLICIT_START = {"number", "letter", "word", "command"}


def evaluate(text: str) -> Value:
    """The value of a tidied expression: a Fraction when it is rational, else one number per sample point.

    Raises `Unreadable` outside the language (relations, lists, unknown commands) or beyond the limits.

    >>> evaluate(r"\\frac{1}{2}+0.25")
    Fraction(3, 4)
    """
    if _DERIVATIVE.search(text):
        raise Unreadable("a derivative")
    tokens = _tokenise(text)
    with _LOCK:
        try:
            return _settle(_Parser(tokens).whole())
        except (ArithmeticError, ValueError, TypeError, NoConvergence, RecursionError) as error:
            raise Unreadable(str(error)) from error


def value_key(value: Value) -> str:
    """A string equal for equal values: `"3/4"` for rationals, the digits at the sample points otherwise."""
    if isinstance(value, Fraction):
        return str(value)
    with _LOCK:
        constant = _is_constant(value)
        return "~" + ";".join(_digits(v) for v in (value[:1] if constant else value))


def equation_key(difference: Value) -> str:
    """A string equal for equations `difference = 0` that differ by a constant factor.

    The values at the points are divided by the first one, so `2x - 4 = 0` and `x = 2` share a key.
    A constant difference is no equation in any variable: `Unreadable`.
    """
    if isinstance(difference, Fraction):
        raise Unreadable("no variable in the equation")
    with _LOCK:
        if _is_constant(difference):
            raise Unreadable("no variable in the equation")
        return "=" + ";".join(_digits(v / difference[0]) for v in difference[1:])


def sample_points(name: str) -> list[str]:
    """The values at which variable `name` is evaluated, as decimal strings of 40 digits."""
    with _LOCK:
        return [_CTX.nstr(v, 40) for v in _points(_variable(name))]


def from_digits(points: list[tuple[str, str]]) -> Value:
    """The value whose real and imaginary parts at the sample points are given as decimal strings.

    Raises `Unreadable` when they are not finite or too close to zero.
    """
    with _LOCK:
        try:
            return _settle(_check(tuple(_CTX.mpc(re, im) for re, im in points)))
        except (ValueError, ArithmeticError) as error:
            raise Unreadable(str(error)) from error


def _tokenise(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(tokens) >= MAX_TOKENS:
            raise Unreadable(text[position : position + 20])
        kind = match.lastgroup or ""
        tokens.append((kind, match[kind]))
        position = match.end()
    if not tokens:
        raise Unreadable("empty")
    return tokens


class _Parser:
    """Recursive descent over the tokens; the grammar's levels are its methods, lowest precedence first."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.has_trig = any(token.lstrip("\\") in _TRIG for _, token in tokens)

    def whole(self) -> Value:
        value = self.sum()
        if self.at != len(self.tokens):
            raise Unreadable(f"left over: {self.tokens[self.at][1]}")
        return value

    def peek(self, offset: int = 0) -> tuple[str, str]:
        index = self.at + offset
        return self.tokens[index] if index < len(self.tokens) else ("end", "")

    def take(self, expected: str | None = None) -> str:
        kind, token = self.peek()
        if kind == "end" or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected or 'more'}, found {token or 'the end'}")
        self.at += 1
        return token

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self.product()
        while self.peek()[1] in ("+", "-") and self.peek()[0] == "op":
            sign = self.take()
            other = self.product()
            value = _add(value, other if sign == "+" else _neg(other))
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.signed()
        while True:
            kind, token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                value = _mul(value, self.signed())
            elif token in ("/", "\\div"):
                self.take()
                value = _div(value, self.signed())
            elif self._starts_factor(kind, token):
                if kind == "number" and self.tokens[self.at - 1][0] == "number":
                    value = self._mixed(value)  # "1 1/2"; two bare numbers side by side are no product
                else:
                    value = _mul(value, self.power())
            else:
                return value

    def _starts_factor(self, kind: str, token: str) -> bool:
        if kind in _IMPLICIT_START:
            return token not in ("\\}", "\\|") and not (kind == "command" and token in ("\\rfloor", "\\rceil"))
        return token in ("(", "{", "[") or (token == "|" and self.bars == 0)

    def _mixed(self, whole: Value) -> Value:
        numerator = self.take()
        if self.peek()[1] != "/" or self.peek(1)[0] != "number" or not isinstance(whole, Fraction):
            raise Unreadable("two numbers side by side")
        self.take("/")
        part = _number(numerator) / _number(self.take())
        if whole.denominator != 1 or not 0 < part < 1:
            raise Unreadable("two numbers side by side")
        return whole + part

    def signed(self) -> Value:
        sign = 1
        while self.peek()[0] == "op" and self.peek()[1] in ("-", "+"):
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        return value if sign == 1 else _neg(value)

    def power(self) -> Value:
        base = self.postfix()
        if self.peek()[1] in ("^", "**"):
            self.take()
            value = _pow(base, self.exponent())
            while self.peek()[1] == "!":
                self.take()
                value = _factorial(value)
            return value
        return base

    def exponent(self) -> Value:
        """What follows ^.  "x^10" is read as x to the tenth, as a person writing it means."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        token = self.peek()[1]
        if token == "{":
            value = self.group()
        elif token == "-":
            self.take()
            value = _neg(self.exponent())
        else:
            value = self.power()
        self.depth -= 1
        return value

    def postfix(self) -> Value:
        value = self.atom()
        while True:
            token = self.peek()[1]
            if token == "!":
                self.take()
                value = _factorial(value)
            elif token == "\\degree":
                self.take()
                if self.has_trig:
                    value = _mul(value, _div(_const(_CTX.pi), Fraction(180)))
            else:
                return value

    def group(self) -> Value:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

    def argument(self) -> Value:
        """The argument of a LaTeX command: a group, or a single digit or letter."""
        kind, token = self.peek()
        if token == "{":
            return self.group()
        if kind == "number":
            return self.one_digit()
        if kind in ("letter", "command"):
            return self.atom()
        raise Unreadable(f"argument {token}")

    def one_digit(self) -> Fraction:
        """The first digit only: TeX reads \\frac12 as one half."""
        token = self.peek()[1]
        if not token.isdigit():
            raise Unreadable(token)
        if len(token) == 1:
            self.at += 1
        else:
            self.tokens[self.at] = ("number", token[1:])
        return Fraction(int(token[0]))

    def atom(self) -> Value:
        kind, token = self.peek()
        if kind == "number":
            self.take()
            return self._after_number(token)
        if kind == "letter":
            self.take()
            return self._letter(token)
        if kind == "word":
            self.take()
            return self._named(token)
        if kind == "command":
            self.take()
            return self._command(token)
        if token in ("(", "["):
            self.take()
            value = self.sum()
            self.take(")" if token == "(" else "]")
            return value
        if token == "{":
            return self.group()
        if token == "|":
            self.take()
            self.bars += 1
            value = self.sum()
            self.bars -= 1
            self.take("|")
            return _each(value, abs)
        raise Unreadable(token or "ends early")

    def _after_number(self, token: str) -> Value:
        if self.peek()[1] == "_":  # 204_5: a numeral in another base is a name, never the decimal number
            self.take()
            return _variable(f"{token}_{self._subscript()}")
        value = _number(token)
        if self.peek()[1] == "\\overline" and "." in token:  # 0.1\overline{6}
            self.take()
            return self._repeating(token, value)
        if self.peek()[1] == "\\frac" and value.denominator == 1 and "." not in token:  # 1\frac{4}{5} is 9/5
            texts = [t for _, t in self.tokens[self.at + 1 : self.at + 7]]
            if (
                len(texts) == 6 and texts[0] == texts[3] == "{" and texts[2] == texts[5] == "}"
                and texts[1].isdigit() and texts[4].isdigit() and 0 < int(texts[1]) < int(texts[4])
            ):  # fmt: skip
                self.at += 7
                return value + Fraction(int(texts[1]), int(texts[4]))
        return value

    def _repeating(self, token: str, value: Fraction) -> Fraction:
        self.take("{")
        digits = self.take()
        self.take("}")
        if not digits.isdigit():
            raise Unreadable(digits)
        places = len(token.split(".")[1])
        return value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)

    def _subscript(self) -> str:
        if self.peek()[1] != "{":
            return self.take()
        self.take("{")
        parts = []
        while self.peek()[1] != "}":
            parts.append(self.take())
        self.take("}")
        return "".join(parts)

    def _letter(self, token: str) -> Value:
        if self.peek()[1] == "_":
            self.take()
            return _variable(f"{token}_{self._subscript()}")
        if token == "e":
            return _const(_CTX.e)
        if token == "i":
            return _const(_CTX.mpc(0, 1))
        return _variable(token)

    def _named(self, name: str) -> Value:
        if name == "pi":
            return _const(_CTX.pi)
        if name == "sqrt":
            return _root(self._plain_argument(), 2)
        return self._function(name)

    def _plain_argument(self) -> Value:
        if self.peek()[1] in ("(", "{"):
            return self.atom()
        return self.postfix()

    def _command(self, token: str) -> Value:
        name = token[1:]
        if token in _CONSTANT_COMMANDS:
            return _const({"pi": _CTX.pi, "e": _CTX.e}.get(name, _CTX.mpc(0, 1)))
        if token in _GREEK:
            if self.peek()[1] == "_":
                self.take()
                return _variable(f"{token}_{self._subscript()}")
            return _variable(token)
        if name == "frac":
            numerator = self.argument()
            return _div(numerator, self.argument())
        if name == "sqrt":
            index = 2
            if self.peek()[1] == "[":
                self.take()
                index_value = self.sum()
                self.take("]")
                if not isinstance(index_value, Fraction) or not (1 < index_value <= 64):
                    raise Unreadable("root index")
                if index_value.denominator != 1:
                    raise Unreadable("root index")
                index = int(index_value)
            return _root(self.argument(), index)
        if name == "binom":
            n = self.argument()
            return _binomial(n, self.argument())
        if name in ("lfloor", "lceil"):
            value = self.sum()
            self.take("\\rfloor" if name == "lfloor" else "\\rceil")
            if not isinstance(value, Fraction):
                raise Unreadable("floor of an irrational value")
            return Fraction(value.__floor__() if name == "lfloor" else value.__ceil__())
        if name in _FUNCTIONS:
            return self._function(name)
        raise Unreadable(token)

    def _function(self, name: str) -> Value:
        base: Value | None = None
        if name == "log" and self.peek()[1] == "_":
            self.take()
            base = self.argument()
        exponent: Value | None = None
        if self.peek()[1] == "^":
            self.take()
            exponent = self.exponent()
            if exponent == -1:
                raise Unreadable("inverse function or reciprocal?")
        value = self._function_argument()
        if name == "log":
            # a bare "log" is the natural one nowhere and the decimal one nowhere: keep it apart from ln
            result = _log(value) if base is None else _div(_log(value), _log(base))
            result = _mul(result, _variable("log")) if base is None else result
        elif name == "ln":
            result = _log(value)
        else:
            result = _each(value, _MP_FUNCTIONS[name])
        return result if exponent is None else _pow(result, exponent)

    def _function_argument(self) -> Value:
        """`(...)`, `{...}` or the implicit product that follows, as in \\sin 2x."""
        if self.peek()[1] in ("(", "{", "|"):
            return self.atom()
        value = self.power()
        while True:
            kind, token = self.peek()
            is_function = token.lstrip("\\") in _FUNCTIONS
            if kind in ("letter", "number", "word", "command") and not is_function and token not in ("\\cdot",
                    "\\times", "\\div", "\\}", "\\|", "\\rfloor", "\\rceil", "\\ast"):  # fmt: skip
                value = _mul(value, self.power())
            else:
                return value


def _number(token: str) -> Fraction:
    token = token.replace(",", "")
    if len(token) > 400:
        raise Unreadable("too many digits")
    return Fraction(token if not token.endswith(".") else token[:-1])


def _points(value: Value) -> tuple[Any, ...]:
    if isinstance(value, Fraction):
        return (_CTX.mpf(value.numerator) / value.denominator,) * NUM_POINTS
    return value


def _check(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise Unreadable("number too long")
        return value
    for v in value:
        if not _CTX.isfinite(v) or abs(v) > MAX_MAGNITUDE:
            raise Unreadable("too large")
    return value


def _each(value: Value, function: Callable[[Any], Any]) -> Value:
    if isinstance(value, Fraction) and function is abs:
        return abs(value)
    if any(abs(v) > 10**6 for v in _points(value)):
        raise Unreadable("argument too large")
    return _check(tuple(function(v) for v in _points(value)))


def _const(value: Any) -> Value:
    return (+value,) * NUM_POINTS


def _variable(name: str) -> Value:
    """Fixed irrational-looking points of magnitude 0.5 to 2.5 and mixed sign, from the name's checksum."""
    values = []
    for index in range(NUM_POINTS):
        seed = int.from_bytes(hashlib.sha256(f"{index}:{name}".encode()).digest()[:8], "big")
        magnitude = _CTX.mpf(1) / 2 + 2 * _CTX.sqrt(_CTX.mpf(seed % 2**60 + 2) / 2**60)
        values.append(-magnitude if seed >> 63 else magnitude)
    if all(v < 0 for v in values) or all(v > 0 for v in values):
        values[1] = -values[1]
    return tuple(values)


def _add(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _check(a + b)
    return _check(tuple(x + y for x, y in zip(_points(a), _points(b), strict=True)))


def _neg(a: Value) -> Value:
    return -a if isinstance(a, Fraction) else tuple(-x for x in a)


def _mul(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _check(a * b)
    return _check(tuple(x * y for x, y in zip(_points(a), _points(b), strict=True)))


def _div(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _check(a / b)
    return _check(tuple(x / y for x, y in zip(_points(a), _points(b), strict=True)))


def _pow(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= MAX_BITS:
            return base**exponent.numerator
        raise Unreadable("power too large")
    if isinstance(exponent, Fraction):
        if abs(exponent) > 1000:
            raise Unreadable("power too large")
        if exponent.denominator == 1:
            return _check(tuple(v**exponent.numerator for v in _points(base)))
        root = _root(base, exponent.denominator) if exponent.denominator <= 64 else None
        if root is None:
            raise Unreadable("root index")
        return _pow(root, Fraction(exponent.numerator))
    pairs = list(zip(_points(base), _points(exponent), strict=True))
    if any(abs(y) > 1000 or abs(x) > 10**100 for x, y in pairs):
        raise Unreadable("power too large")
    return _check(tuple(_CTX.power(x, y) for x, y in pairs))


def _root(value: Value, index: int) -> Value:
    """The principal root; the real one for odd index and negative real numbers."""
    if isinstance(value, Fraction):
        top, bottom = _integer_root(abs(value.numerator), index), _integer_root(value.denominator, index)
        if top is not None and bottom is not None and (value >= 0 or index % 2):
            return Fraction(top if value >= 0 else -top, bottom)

    def root(v: Any) -> Any:
        real = _CTX.re(v)
        if _CTX.im(v) == 0 and real < 0 and index % 2:
            return -_CTX.root(-real, index)
        return _CTX.root(v, index)

    return _check(tuple(root(v) for v in _points(value)))


def _integer_root(n: int, index: int) -> int | None:
    if n < 2:
        return n
    low, high = 1, 1 << (n.bit_length() // index + 1)
    while low <= high:
        middle = (low + high) // 2
        power = middle**index
        if power == n:
            return middle
        low, high = (middle + 1, high) if power < n else (low, middle - 1)
    return None


def _log(value: Value) -> Value:
    if isinstance(value, Fraction) and value == 1:
        return Fraction(0)
    return _check(tuple(_CTX.log(v) for v in _points(value)))


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 400:
        raise Unreadable("factorial")
    result = 1
    for k in range(2, int(value) + 1):
        result *= k
    return _check(Fraction(result))


def _binomial(n: Value, k: Value) -> Value:
    if not (isinstance(n, Fraction) and isinstance(k, Fraction)) or n.denominator != 1 or k.denominator != 1:
        raise Unreadable("binomial of a non-integer")
    if not (0 <= k <= n <= 2000):
        raise Unreadable("binomial out of range")
    result = 1
    for step in range(1, min(int(k), int(n - k)) + 1):
        result = result * (int(n) - step + 1) // step
    return _check(Fraction(result))


_MP_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": _CTX.sin, "cos": _CTX.cos, "tan": _CTX.tan, "cot": _CTX.cot, "sec": _CTX.sec, "csc": _CTX.csc,
    "arcsin": _CTX.asin, "arccos": _CTX.acos, "arctan": _CTX.atan,
    "sinh": _CTX.sinh, "cosh": _CTX.cosh, "tanh": _CTX.tanh, "exp": _CTX.exp, "abs": abs,
}  # fmt: skip


def _is_constant(value: tuple[Any, ...]) -> bool:
    return all(abs(v - value[0]) <= _EPS * abs(value[0]) for v in value[1:])


def _settle(value: Value) -> Value:
    """Turns a value that is rational after all (\\sqrt{4}, x - x + 2, \\log_2 8) into its Fraction."""
    if isinstance(value, Fraction):
        return value
    if all(v == 0 for v in value):
        return Fraction(0)
    if any(abs(v) < _TINY for v in value):
        raise Unreadable("too close to zero to tell")
    if not _is_constant(value) or abs(_CTX.im(value[0])) > _EPS * abs(value[0]) or abs(value[0]) > 10**9:
        return value
    sign, mantissa, exponent, _ = _CTX.mpf(_CTX.re(value[0]))._mpf_
    exact = Fraction(int(mantissa)) * Fraction(2) ** int(exponent) * (-1 if sign else 1)
    simple = exact.limit_denominator(10**6)
    return simple if abs(exact - simple) < Fraction(1, 10**30) else value


def _digits(value: Any) -> str:
    """20 significant digits of the complex number, parts that are rounding noise dropped."""
    size = abs(value)
    parts = []
    for part in (_CTX.re(value), _CTX.im(value)):
        parts.append("0" if abs(part) < size * _TINY else _CTX.nstr(_CTX.mpf(part), 20))
    return ",".join(parts)
