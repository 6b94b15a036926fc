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

import re
from fractions import Fraction

from mpmath.libmp import NoConvergence

from spinerl.answers._values import (
    CTX,
    FUNCTIONS,
    LOCK,
    NUM_POINTS,
    STATE,
    Unreadable,
    Value,
    add,
    binomial,
    check,
    const,
    digits,
    div,
    each,
    factorial,
    is_constant,
    log,
    mul,
    neg,
    number,
    points,
    pow_,
    root,
    settle,
    variable,
)

__all__ = [
    "NUM_POINTS",
    "Unreadable",
    "Value",
    "domain_key",
    "equation_key",
    "evaluate",
    "from_digits",
    "sample_points",
    "value_key",
]

MAX_TOKENS = 400
MAX_DEPTH = 24

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
    return _evaluate(text, "mixed")


def domain_key(text: str) -> str | None:
    """A key of the expression's values where its roots and logarithms are real, or None where they are everywhere.

    `\\sqrt{1/m}` and `1/\\sqrt{m}` share it.  Raises nothing: an unreadable expression has none.

    >>> domain_key("\\\\sqrt{ab}") == domain_key("\\\\sqrt{a}\\\\sqrt{b}"), domain_key("\\\\sqrt{x^2}")
    (True, None)
    """
    try:
        tokens = _tokenise(text)
        with LOCK:
            has_bad_root = False
            for signs in ("mixed", "probe"):
                STATE.reset(signs)
                _Parser(list(tokens)).whole()
                has_bad_root = has_bad_root or STATE.has_bad_root
        return value_key(_evaluate(text, "positive")) if has_bad_root else None
    except (Unreadable, ArithmeticError, ValueError, TypeError, NoConvergence, RecursionError):
        return None


def _evaluate(text: str, signs: str) -> Value:
    if _DERIVATIVE.search(text):
        raise Unreadable("a derivative")
    tokens = _tokenise(text)
    with LOCK:
        STATE.reset(signs)
        try:
            return settle(_Parser(tokens).whole())
        except (ArithmeticError, ValueError, TypeError, NoConvergence, RecursionError) as error:
            raise Unreadable(str(error)) from error
        finally:
            STATE.signs = "mixed"


def value_key(value: Value) -> str:
    """A string equal for equal values: `"3/4"` for rationals, the digits at the sample points otherwise."""
    if isinstance(value, Fraction):
        return str(value)
    with LOCK:
        constant = is_constant(value)
        return "~" + ";".join(digits(v) for v in (value[:1] if constant else value))


def equation_key(difference: Value) -> str:
    """A string equal for equations `difference = 0` that differ by a constant factor.

    The values at the points are divided by the first one, so `2x - 4 = 0` and `x = 2` share a key.
    A constant difference is no equation in any variable: `Unreadable`.
    """
    if isinstance(difference, Fraction):
        raise Unreadable("no variable in the equation")
    with LOCK:
        if is_constant(difference):
            raise Unreadable("no variable in the equation")
        return "=" + ";".join(digits(v / difference[0]) for v in difference[1:])


def sample_points(name: str) -> list[str]:
    """The values at which variable `name` is evaluated, as decimal strings of 40 digits."""
    with LOCK:
        return [CTX.nstr(v, 40) for v in points(variable(name))]


def from_digits(points: list[tuple[str, str]]) -> Value:
    """The value whose real and imaginary parts at the sample points are given as decimal strings.

    Raises `Unreadable` when they are not finite or too close to zero.
    """
    with LOCK:
        STATE.reset()
        try:
            return settle(check(tuple(CTX.mpc(re, im) for re, im in points)))
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
            value = add(value, other if sign == "+" else neg(other))
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.signed()
        while True:
            kind, token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                value = mul(value, self.signed())
            elif token in ("/", "\\div"):
                self.take()
                value = div(value, self.signed())
            elif self._starts_factor(kind, token):
                if kind == "number" and self.tokens[self.at - 1][0] == "number":
                    raise Unreadable("two numbers side by side")
                value = mul(value, self.power())
            else:
                return value

    def _starts_factor(self, kind: str, token: str) -> bool:
        if kind in _IMPLICIT_START:
            return token not in ("\\}", "\\|") and not (kind == "command" and token in ("\\rfloor", "\\rceil"))
        return token in ("(", "{", "[") or (token == "|" and self.bars == 0)

    def signed(self) -> Value:
        sign = 1
        while self.peek()[0] == "op" and self.peek()[1] in ("-", "+"):
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        return value if sign == 1 else neg(value)

    def power(self) -> Value:
        base = self.postfix()
        if self.peek()[1] in ("^", "**"):
            self.take()
            value = pow_(base, self.exponent())
            while self.peek()[1] == "!":
                self.take()
                value = factorial(value)
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
            value = neg(self.exponent())
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
                value = factorial(value)
            elif token == "\\degree":
                self.take()
                if self.has_trig:
                    value = mul(value, div(const(CTX.pi), Fraction(180)))
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
            return each(value, abs)
        raise Unreadable(token or "ends early")

    def _after_number(self, token: str) -> Value:
        if self.peek()[1] == "_":  # 204_5: a numeral in another base is a name, never the decimal number
            self.take()
            return variable(f"{token}_{self._subscript()}")
        value = number(token)
        if self.peek()[1] == "\\overline" and "." in token:  # 0.1\overline{6}
            self.take()
            return self._repeating(token, value)
        if value.denominator == 1 and "." not in token:
            return self._mixed_numeral(value)
        return value

    def _mixed_numeral(self, whole: Fraction) -> Fraction:
        """1\\frac{4}{5}, 1\\frac45 and 1 4/5 are 9/5: an integer before a proper fraction; else only the integer."""
        if self.peek()[0] == "number" and self.peek(1)[1] == "/" and self.peek(2)[0] == "number":
            top, bottom = self.peek()[1], self.peek(2)[1]
            if not (top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom)):
                raise Unreadable("two numbers side by side")
            self.at += 3
            return whole + Fraction(int(top), int(bottom))
        if self.peek()[1] != "\\frac":
            return whole
        parts, offset = [], 1
        for _ in range(2):
            braced = self.peek(offset)[1] == "{"
            token = self.peek(offset + braced)[1]
            if not token.isdigit() or (braced and self.peek(offset + 2)[1] != "}"):
                return whole
            if not braced and not parts and len(token) == 2:  # \\frac12
                parts, offset = [int(token[0]), int(token[1])], offset + 1
                break
            if not braced and len(token) > 1:
                return whole
            parts.append(int(token))
            offset += 3 if braced else 1
        if len(parts) != 2 or not 0 < parts[0] < parts[1]:
            return whole
        self.at += offset
        return whole + Fraction(parts[0], parts[1])

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
            return variable(f"{token}_{self._subscript()}")
        if token == "e":
            return const(CTX.e)
        if token == "i":
            return const(CTX.mpc(0, 1))
        return variable(token)

    def _named(self, name: str) -> Value:
        if name == "pi":
            return const(CTX.pi)
        if name == "sqrt":
            return root(self._plain_argument(), 2)
        return self._function(name)

    def _plain_argument(self) -> Value:
        if self.peek()[1] in ("(", "{"):
            return self.atom()
        return self.postfix()

    def _command(self, token: str) -> Value:
        name = token[1:]
        if token in _CONSTANT_COMMANDS:
            return const({"pi": CTX.pi, "e": CTX.e}.get(name, CTX.mpc(0, 1)))
        if token in _GREEK:
            if self.peek()[1] == "_":
                self.take()
                return variable(f"{token}_{self._subscript()}")
            return variable(token)
        if name == "frac":
            numerator = self.argument()
            return div(numerator, self.argument())
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
            return root(self.atom() if self.peek()[1] == "(" else self.argument(), index)
        if name == "binom":
            n = self.argument()
            return binomial(n, self.argument())
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
            result = log(value) if base is None else div(log(value), log(base))
            result = mul(result, variable("log")) if base is None else result
        elif name == "ln":
            result = log(value)
        else:
            result = each(value, FUNCTIONS[name])
        return result if exponent is None else pow_(result, exponent)

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
                value = mul(value, self.power())
            else:
                return value
