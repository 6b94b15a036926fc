"""The process in which math-verify runs: `python -m spinerl.answers._worker`, an isolated one (`spinerl.isolated`).

Requests: {"op": "read", "a"} -> {"status": "ok", "value": can it be read at all, "points": its value at the reader's
sample points, if it has one}, and {"op": "same", "a", "b"} -> {"status": "ok", "value": verify(a, b) or
verify(b, a)}, each with the work it took, "work", and the processor time, "cpu_s".

No torch is imported here.  Only the LaTeX grammar of math-verify is used: its other one evaluates Python.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from spinerl.answers._reader import NUM_POINTS, sample_points
from spinerl.isolated import Work, serve

__all__ = ["main"]

# asked once before the fork, so that what sympy imports and builds on first use is there in every solver
_WARM_UP = (
    {"op": "same", "a": r"\frac{1}{2}+\sqrt{x}", "b": r"\sin{x}"},
    {"op": "same", "a": "x^2<4", "b": r"(-2,1]\cup[1,2)"},
    {"op": "same", "a": r"\{1,2\}", "b": r"\begin{pmatrix} 1 & 2 \end{pmatrix}"},
    {"op": "read", "a": r"\int_0^1 x dx+\sum_{k=1}^{n} k"},
)


def main() -> int:
    """Serves requests from standard input until it ends."""
    return serve(_prepare)


def _prepare() -> Work:
    _import_math_verify()
    for request in _WARM_UP:
        _reply(request)
    return _reply


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["op"] == "read":
            expressions = _parse(request["a"])
            return {"status": "ok", "value": bool(expressions), "points": _points_or_none(expressions)}
        elif request["op"] == "same":
            value = _same(request["a"], request["b"])
        else:
            return {"status": "crash"}
    except MemoryError:
        return {"status": "memory"}
    except Exception:
        value = False
    return {"status": "ok", "value": bool(value)}


_parsed: dict[str, list[Any]] = {}
_math_verify: Any = None
_config: list[Any] = []


def _import_math_verify() -> None:
    global _math_verify
    import math_verify

    _math_verify = math_verify
    _config.append(math_verify.LatexExtractionConfig())


def _parse(text: str) -> list[Any]:
    """The sympy expressions of an answer, without the raw string that math-verify adds."""
    if text not in _parsed:
        if len(_parsed) >= 4096:
            _parsed.clear()
        found = _math_verify.parse(
            f"${text}$", extraction_config=_config, fallback_mode="no_fallback", parsing_timeout=None
        )
        _parsed[text] = [item for item in found if not isinstance(item, str)]
    return _parsed[text]


def _points_or_none(expressions: list[Any]) -> list[tuple[str, str]] | None:
    try:
        return _points(expressions)
    except MemoryError:
        raise
    except Exception:  # sympy raises what it likes; a pairwise comparison is then the way
        return None


def _points(expressions: list[Any]) -> list[tuple[str, str]] | None:
    """The one expression's value at the reader's sample points (real and imaginary digits), or None.

    Evaluating here also makes an expression that explodes do so on its own, and take the blame itself.
    """
    from sympy import Expr, Float, I, Symbol

    values: list[tuple[str, str]] | None = []
    for expression in expressions:
        str(expression)
        done = expression.doit() if hasattr(expression, "doit") else expression
        if len(expressions) > 1 or not isinstance(done, Expr):
            values = None
            continue
        symbols = [s for s in done.free_symbols if isinstance(s, Symbol)]
        if any(len(s.name) != 1 or s.name in "eiI" for s in symbols):
            return None
        places = {s: sample_points(s.name) for s in symbols}
        for index in range(NUM_POINTS):
            value = done.subs({s: Float(digits[index], 40) for s, digits in places.items()}).evalf(40)
            real, imaginary = value.as_real_imag()
            if not (real.is_Number and imaginary.is_Number) or not value.is_finite or value.has(I) != (imaginary != 0):
                return None
            if value != 0 and min(_digits_known(real), _digits_known(imaginary)) < 30:
                return None  # terms cancelled: perhaps it is zero
            assert values is not None
            values.append((str(real), str(imaginary)))
    return values or None


def _digits_known(part: Any) -> int:
    """How many digits sympy vouches for; it gives an undecided zero one bit.  Exact numbers count as many."""
    precision = getattr(part, "_prec", None)
    return 40 if precision is None or part == 0 else int(precision * 0.30103)


def _differ_by_size(first: list[Any], second: list[Any]) -> bool:
    """Whether both are constants too small for the tolerance of math-verify, and differ."""
    from sympy import Expr

    if len(first) != 1 or len(second) != 1 or not all(isinstance(e, Expr) for e in (first[0], second[0])):
        return False
    x, y = (e.doit().evalf(30) for e in (first[0], second[0]))
    if not (x.is_Number and y.is_Number) or max(abs(x), abs(y)) > 1e-6 or x == y:
        return False
    return min(_digits_known(x), _digits_known(y)) >= 20 and abs(x - y) > 1e-15 * max(abs(x), abs(y))


def _same(a: str, b: str) -> bool:
    first, second = _parse(a), _parse(b)
    if not first or not second:
        return False
    verify = _math_verify.verify
    if not (verify(first, second, timeout_seconds=None) or verify(second, first, timeout_seconds=None)):
        return False
    return not _differ_by_size(first, second)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
