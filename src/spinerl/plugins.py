"""Functions by name: a row of a literal table, or `package.module:function` from the user's own code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spinerl.errors import InputError, did_you_mean

__all__ = ["find", "register"]

_REGISTERED: dict[str, Callable[..., Any]] = {}


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
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(
            f"{key}={name!r} is not known{did_you_mean(name, table)}; allowed: {', '.join(table)}, or module:function"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}={name!r} cannot be imported: {error}") from None
    if not callable(function):
        raise InputError(f"{key}={name!r} is a {type(function).__name__}, not a function")
    return function


def register(function: Callable[..., Any]) -> str:
    """Make a function of the running program findable, and return its name: `module:function`, if that is importable.

    >>> find({}, register(sorted), "reward") is sorted
    True
    """
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    _REGISTERED[name] = function
    return name
