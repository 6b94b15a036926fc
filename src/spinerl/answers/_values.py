"""Values of expressions and their arithmetic: a Fraction where the value is rational, else one number of 40 digits per
sample point.  Used by `_reader`, under its lock."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath.ctx_mp import MPContext

__all__ = [
    "CTX",
    "FUNCTIONS",
    "LOCK",
    "NUM_POINTS",
    "STATE",
    "State",
    "Unreadable",
    "Value",
    "add",
    "binomial",
    "check",
    "const",
    "digits",
    "div",
    "each",
    "factorial",
    "is_constant",
    "log",
    "mul",
    "neg",
    "number",
    "points",
    "pow_",
    "root",
    "settle",
    "variable",
]

Value = Fraction | tuple[Any, ...]  # a Fraction, or one mpmath number per sample point

NUM_POINTS = 3
MAX_BITS = 14000  # below the 4300 digits that Python converts to a string


class Unreadable(ValueError):
    """The expression is outside the reader's language or limits."""


class State:
    """What one evaluation notices, and at which points it takes place.

    `cancelled`: two terms cancelled, or a function had a zero, so that a tiny value may be rounding.
    `has_bad_root`: an even root or logarithm of a negative number was taken.  `signs`: "mixed" points, "probe" points
    (two variables never have one sign at all of them) or "positive" ones.  `names`: the variables of a probe.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, signs: str = "mixed") -> None:
        """Begins an evaluation."""
        self.cancelled = False
        self.has_bad_root = False
        self.signs = signs
        self.names: dict[str, int] = {}


CTX: Any = MPContext()  # a context of our own, so that no other code's precision changes reach us
CTX.dps = 40
LOCK = threading.Lock()  # mpmath contexts change their own precision while they work; STATE is under it too
STATE = State()
TINY = CTX.mpf(10) ** -25
EPS = CTX.mpf(10) ** -30
NOISE = CTX.mpf(10) ** -10
MAX_MAGNITUDE = CTX.mpf(10) ** 300
_MILLION, _BILLION, _TRILLION, _MAX_BASE, _THOUSAND = (CTX.mpf(10) ** n for n in (6, 9, 12, 100, 3))
_PROBE_SIGNS = ((1, -1, -1), (-1, 1, -1), (-1, -1, 1))


def number(token: str) -> Fraction:
    token = token.replace(",", "")
    if len(token) > 400:
        raise Unreadable("too many digits")
    if token.isdecimal():
        return Fraction(int(token))
    return Fraction(token if not token.endswith(".") else token[:-1])


def points(value: Value) -> tuple[Any, ...]:
    if isinstance(value, Fraction):
        return (CTX.mpf(value.numerator) / value.denominator,) * NUM_POINTS
    return value


def check(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise Unreadable("number too long")
        return value
    for v in value:
        if not CTX.isfinite(v) or abs(v) > MAX_MAGNITUDE:
            raise Unreadable("too large")
    return value


def each(value: Value, function: Callable[[Any], Any]) -> Value:
    if isinstance(value, Fraction) and function is abs:
        return abs(value)
    if any(abs(v) > _MILLION for v in points(value)):
        raise Unreadable("argument too large")
    results = tuple(function(v) for v in points(value))
    if function is not CTX.exp and any(abs(r) < NOISE for r in results):
        STATE.cancelled = True
    return check(results)


def const(value: Any) -> Value:
    return (+value,) * NUM_POINTS


def variable(name: str) -> Value:
    """Fixed irrational-looking points of magnitude 0.5 to 2.5, by default of mixed sign, from the name's checksum."""
    values = _mixed_points(name)
    if STATE.signs == "positive":
        return tuple(abs(v) for v in values)
    if STATE.signs == "probe":
        signs = _PROBE_SIGNS[STATE.names.setdefault(name, len(STATE.names)) % len(_PROBE_SIGNS)]
        return tuple(sign * abs(v) for sign, v in zip(signs, values, strict=True))
    return values


@lru_cache(maxsize=4096)
def _mixed_points(name: str) -> tuple[Any, ...]:
    values = []
    for index in range(NUM_POINTS):
        seed = int.from_bytes(hashlib.sha256(f"{index}:{name}".encode()).digest()[:8], "big")
        magnitude = CTX.mpf(1) / 2 + 2 * CTX.sqrt(CTX.mpf(seed % 2**60 + 2) / 2**60)
        values.append(-magnitude if seed >> 63 else magnitude)
    if all(v < 0 for v in values) or all(v > 0 for v in values):
        values[1] = -values[1]
    return tuple(values)


def add(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return check(a + b)
    pairs = list(zip(points(a), points(b), strict=True))
    sums = tuple(x + y for x, y in pairs)
    if any(abs(s) < NOISE * abs(x) for s, (x, _) in zip(sums, pairs, strict=True)):
        STATE.cancelled = True
        if any(abs(x) > _TRILLION for x, _ in pairs):
            raise Unreadable("large terms that cancel")
    return check(sums)


def neg(a: Value) -> Value:
    return -a if isinstance(a, Fraction) else tuple(-x for x in a)


def mul(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return check(a * b)
    return check(tuple(x * y for x, y in zip(points(a), points(b), strict=True)))


def div(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return check(a / b)
    return check(tuple(x / y for x, y in zip(points(a), points(b), strict=True)))


def pow_(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= MAX_BITS:
            return base**exponent.numerator
        raise Unreadable("power too large")
    if isinstance(exponent, Fraction):
        if abs(exponent) > 1000:
            raise Unreadable("power too large")
        if exponent.denominator == 1:
            return check(tuple(v**exponent.numerator for v in points(base)))
        root_value = root(base, exponent.denominator) if exponent.denominator <= 64 else None
        if root_value is None:
            raise Unreadable("root index")
        return pow_(root_value, Fraction(exponent.numerator))
    pairs = list(zip(points(base), points(exponent), strict=True))
    if any(abs(y) > _THOUSAND or abs(x) > _MAX_BASE for x, y in pairs):
        raise Unreadable("power too large")
    return check(tuple(CTX.power(x, y) for x, y in pairs))


def root(value: Value, index: int) -> Value:
    """The principal root; the real one for odd index and negative real numbers."""
    if isinstance(value, Fraction):
        top, bottom = integer_root(abs(value.numerator), index), integer_root(value.denominator, index)
        if top is not None and bottom is not None and (value >= 0 or index % 2):
            return Fraction(top if value >= 0 else -top, bottom)

    def root(v: Any) -> Any:
        real = CTX.re(v)
        if index % 2 == 0 and real < 0:
            STATE.has_bad_root = True
        if CTX.im(v) == 0 and real < 0 and index % 2:
            return -CTX.root(-real, index)
        return CTX.root(v, index)

    return check(tuple(root(v) for v in points(value)))


def integer_root(n: int, index: int) -> int | None:
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


def log(value: Value) -> Value:
    if isinstance(value, Fraction) and value == 1:
        return Fraction(0)
    results = tuple(CTX.log(v) for v in points(value))
    if any(CTX.im(r) != 0 for r in results):
        STATE.has_bad_root = True
    if any(abs(r) < NOISE for r in results):
        STATE.cancelled = True
    return check(results)


def factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 400:
        raise Unreadable("factorial")
    result = 1
    for k in range(2, int(value) + 1):
        result *= k
    return check(Fraction(result))


def binomial(n: Value, k: Value) -> Value:
    if not (isinstance(n, Fraction) and isinstance(k, Fraction)) or n.denominator != 1 or k.denominator != 1:
        raise Unreadable("binomial of a non-integer")
    if not (0 <= k <= n <= 2000):
        raise Unreadable("binomial out of range")
    result = 1
    for step in range(1, min(int(k), int(n - k)) + 1):
        result = result * (int(n) - step + 1) // step
    return check(Fraction(result))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": CTX.sin,
    "cos": CTX.cos,
    "tan": CTX.tan,
    "cot": CTX.cot,
    "sec": CTX.sec,
    "csc": CTX.csc,
    "arcsin": CTX.asin,
    "arccos": CTX.acos,
    "arctan": CTX.atan,
    "sinh": CTX.sinh,
    "cosh": CTX.cosh,
    "tanh": CTX.tanh,
    "exp": CTX.exp,
    "abs": abs,
}


def is_constant(value: tuple[Any, ...]) -> bool:
    return all(abs(v - value[0]) <= EPS * abs(value[0]) for v in value[1:])


def settle(value: Value) -> Value:
    """Turns a value that is rational after all (\\sqrt{4}, x - x + 2, \\log_2 8) into its Fraction."""
    if isinstance(value, Fraction):
        return value
    if all(v == 0 for v in value):
        return Fraction(0)
    if STATE.cancelled and any(abs(v) < TINY for v in value):
        raise Unreadable("too close to zero to tell")
    if not is_constant(value) or abs(CTX.im(value[0])) > EPS * abs(value[0]) or abs(value[0]) > _BILLION:
        return value
    sign, mantissa, exponent, _ = CTX.mpf(CTX.re(value[0]))._mpf_
    exact = Fraction(int(mantissa)) * Fraction(2) ** int(exponent) * (-1 if sign else 1)
    simple = exact.limit_denominator(10**6)
    return simple if simple and abs(exact - simple) < abs(exact) / 10**30 else value


def digits(value: Any) -> str:
    """20 significant digits of the complex number, parts that are rounding noise dropped."""
    size = abs(value)
    parts = []
    for part in (CTX.re(value), CTX.im(value)):
        parts.append("0" if abs(part) < size * TINY else CTX.nstr(CTX.mpf(part), 20))
    return ",".join(parts)
