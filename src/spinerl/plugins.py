"""Functions by name: a row of a literal table, or `package.module:function` from the user's own code.

What such a function returns or raises is anybody's guess: the helpers here name it in one line.  No torch.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from contextlib import contextmanager
from typing import Any

from spinerl.errors import InputError, RunError, did_you_mean, short

__all__ = [
    "ReturnedError",
    "accepts",
    "check_name",
    "errors_of",
    "find",
    "is_plugin",
    "is_registered",
    "numbers",
    "reach_working_folder",
    "register",
    "shown",
]

_REGISTERED: dict[str, Callable[..., Any]] = {}
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_LARGEST = 1e30  # what is larger overflows where it is squared in single precision


class ReturnedError(InputError):
    """A function returned what cannot be used; the message begins with "it returned" or with what got it."""


def is_plugin(name: str) -> bool:
    """Whether a name is of a user's function, not of a row of a table."""
    return ":" in name


def is_registered(name: str) -> bool:
    """Whether a name is of a function that the running program gave (`register`)."""
    return name in _REGISTERED


def find(table: Mapping[str, Callable[..., Any]], name: str, key: str) -> Callable[..., Any]:
    """The function called `name` in `table`, or the one at `module:function` (the working folder is searched too).

    Raises InputError naming the configuration key, the name and what is allowed.

    >>> find({"all": sorted}, "all", "forks.selector") is sorted
    True
    """
    if name in table:
        return table[name]
    if name in _REGISTERED:
        return _REGISTERED[name]
    if not is_plugin(name):
        raise InputError(
            f"{key}={short(name)} is not known{did_you_mean(name, table)}; allowed: {', '.join(table)}, or "
            "module:function"
        )
    check_name(name, key)
    return _imported(name, key)


def check_name(name: str, key: str) -> None:
    """InputError if a plug-in's name is not `module:function`."""
    if not _NAME.fullmatch(name):
        raise InputError(f"{key}={short(name)} is not module:function (as mine:cautious or package.module:cautious)")


def _imported(name: str, key: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    gone = "" if reach_working_folder() else "; the working folder is gone"
    importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"{key}={name!r} cannot be imported: {_what(error, module_name)}{gone}") from None
    if inspect.isclass(function) or not callable(function):
        kind = "class" if inspect.isclass(function) else type(function).__name__
        raise InputError(f"{key}={name!r} is a {kind}, not a function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InputError(f"{key}={name!r} is an async function; it must be a plain one")
    return function


def register(function: Callable[..., Any]) -> str:
    """Make a function of the running program findable, and return its name: `module:function`, if that is importable.

    >>> find({}, register(sorted), "reward") is sorted
    True
    """
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    _REGISTERED[name] = function
    return name


def reach_working_folder() -> bool:
    """Let modules in the working folder be imported, after all others; False where there is no such folder any more."""
    try:
        here = os.getcwd()
    except OSError:
        return False
    if here not in sys.path:
        sys.path.append(here)
    return True


def accepts(function: Callable[..., Any], key: str, name: str, *arguments: str, **named: Any) -> None:
    """InputError if the function cannot be called with so many arguments by position and these by name."""
    try:
        signature = inspect.signature(function)
    except Exception:  # some built-in functions have none
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise InputError(f"{key}={name} must take ({', '.join(arguments)}): {error}") from None


@contextmanager
def errors_of(key: str, name: str, where: str = "") -> Iterator[None]:
    """Around a call of a function: what a plug-in raises, SystemExit too, is a RunError that names it, in one line.

    Nothing changes for Ctrl-C, nor for a row of a table, whose errors are our own.

    Args:
        where: what it was called for, as " on question 'a'".
    """
    try:
        yield
    except (KeyboardInterrupt, ReturnedError):
        raise
    except BaseException as error:
        if not is_plugin(name):
            raise
        raise RunError(f"{key}={name}{where} raised {_what(error, name.partition(':')[0])}") from error


def numbers(
    given: Any, count: int, least: float = -_LARGEST, label: Callable[[int], str] = "response {}".format
) -> tuple[float, ...]:
    """What a function returned, as `count` finite numbers in a tuple; ReturnedError saying what else it is.

    A list, tuple, array or tensor of one dimension, or anything else that gives its numbers in a fixed order, as a
    generator.  Truth values are 0 and 1.

    Args:
        label: what a number belongs to, for the message, by its place.

    >>> numbers([1, True, 0.5], 3)
    (1.0, 1.0, 0.5)
    """
    unordered = isinstance(given, str | bytes | bytearray | Mapping | Set)
    if unordered or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        raise ReturnedError(f"it returned {shown(given)}")
    found: list[float] = []
    for place, one in enumerate(given):
        if place >= count:  # a generator may never end
            num = f"{len(given)}" if isinstance(given, Sized) else f"more than {count}"
            raise ReturnedError(f"it returned {num} numbers")
        number = _number(one)
        if not least <= number <= _LARGEST:
            raise ReturnedError(f"{label(place)} got {shown(one)}")
        found.append(number)
    if len(found) != count:
        raise ReturnedError(f"it returned {len(found)} numbers")
    return tuple(found)


def _number(value: Any) -> float:
    """A real number as a float; nan for anything else."""
    if isinstance(value, str | bytes | bytearray | complex) or getattr(value, "ndim", 0) != 0:
        return math.nan
    if str(getattr(value, "dtype", "")).rpartition(".")[2].startswith("complex"):
        return math.nan
    value = value.detach() if hasattr(value, "detach") else value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def shown(value: Any) -> str:
    """A value and its type for a message, in one line."""
    return "None" if value is None else f"{short(value, 60)} ({type(value).__name__})"


def _what(error: BaseException, module: str) -> str:
    """An exception in one line: its type, its words, and the last line that it passed of the module's file, or else of
    a file that is not of this package."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = ""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        kind, words = "SystemExit", f"{error.code!r}: a plug-in must not end the program"
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(sys.modules.get(module), "__file__", None)
    foreign = [frame for frame in frames if not frame.filename.startswith(("<", os.path.dirname(__file__)))]
    own = [frame for frame in frames if frame.filename == file] or foreign
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{kind}{': ' if words else ''}{short(words, 200, bare=True)}{place}"
