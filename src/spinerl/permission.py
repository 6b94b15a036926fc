"""Code that a configuration names, before any of it runs: permitted by the user, found, checked, and said in a line.

Words on the command line, and configurations made in Python, may name any function.  A file (a recipe, a study, the
config.yaml of a run folder) may have been written by somebody else: what it names runs only with `--allow-plugins`,
and only if it is a function of the module named, which is neither Python's own nor some other installed package's.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from typing import Any

from spinerl.answers import QUESTION_WEIGHTS
from spinerl.config import PLUGIN_KEYS, Config, named_code, value_of
from spinerl.errors import InputError, short
from spinerl.guard.signals import PERTURBATIONS
from spinerl.hooks import figures_of
from spinerl.maths import SELECTORS, VOTE_WEIGHTS
from spinerl.plugins import accepts, check_name, find, is_plugin, is_registered, reach_working_folder
from spinerl.rewards import check_reward, reward_named
from spinerl.views import VIEWS

__all__ = ["open_code"]

_TABLES: Mapping[str, tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]] = {
    "vote.weights": (VOTE_WEIGHTS, ("logprobs", "entropies", "mask")),
    "forks.selector": (SELECTORS, ("entropies", "mask", "fraction", "scope")),
    "guard.perturbation": (PERTURBATIONS, ("text",)),
    "advantage.question_weight": (QUESTION_WEIGHTS, ("vote",)),
    "vote.views": (VIEWS, ("question", "random")),
}
"""By key: its built-in functions, and what any function there is given."""


def open_code(config: Config, note: Callable[[str], None] | None = None) -> None:
    """Find every function that a configuration names, and say in a line which of them are not built in.

    Raises InputError, before anything is imported, for what a file names and the user has not allowed; then for a
    function that cannot be imported, or cannot be called with what it would be given.

    Args:
        note: called with a line for each plug-in: its key, its name, the file that names it, and the one it is in.
    """
    code, source = named_code(config), config.code_from
    plugins = {key: name for key, name in code.items() if key in PLUGIN_KEYS and not is_registered(name)}
    for key, name in plugins.items():
        check_name(name, key)
    found = {key: _locate(name) for key, name in plugins.items()}
    for key, file in source.items():
        if key in found:
            _check_place(key, code[key], found[key], file)
    refused = [f"{key}={code[key]}{_place(found.get(key))}" for key in source]
    if refused and not config.code_allowed:
        raise InputError(
            f"{', '.join(dict.fromkeys(source.values()))} names code to run: {'; '.join(refused)}; read it, then allow "
            "it with --allow-plugins"
        )
    for key, spec in found.items():
        if note is not None:
            by = f", named by {source[key]}" if key in source else ""
            note(f"plug-in {key}={code[key]}{by}: {_file(spec)}")
    check_reward(config.reward)
    for key, (table, arguments) in _TABLES.items():
        value = value_of(config, key)
        for name in [value] if isinstance(value, str) else value:
            function = find(table, name, key)
            if is_plugin(name):
                named = figures_of(name) if key == "vote.weights" else []
                accepts(function, key, name, *arguments, **dict.fromkeys(named))
    for key, file in source.items():
        if key in found:
            _check_home(key, code[key], file)


def _locate(name: str) -> ModuleSpec | None:
    """Where the module of `module:function` is, without running anything of it; None if it is nowhere."""
    reach_working_folder()
    module = name.partition(":")[0]
    spec, path = None, None
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        whole = ".".join(parts[:number])
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        try:
            spec = next((one for finder in finders if (one := finder.find_spec(whole, path, None)) is not None), None)
        except Exception:  # a name that is none
            return None
        path = None if spec is None else spec.submodule_search_locations
        if spec is None or (path is None and number < len(parts)):
            return None
    return spec


def _file(spec: ModuleSpec | None) -> str:
    if spec is None:
        return "no such module"
    return spec.origin or next(iter(spec.submodule_search_locations or ()), "no file")


def _place(spec: ModuleSpec | None) -> str:
    return "" if spec is None else f" ({_file(spec)})"


def _check_place(key: str, name: str, spec: ModuleSpec | None, file: str) -> None:
    """InputError for a module that a file may not name, whoever allows it."""
    module = name.partition(":")[0]
    top = module.partition(".")[0]
    if top == "spinerl":
        what = "is spinerl's own"
    elif top in sys.stdlib_module_names or _is_library(spec):
        what = "is Python's own"
    elif spec is not None and not spec.has_location:
        what = "has no file"
    elif _is_installed(spec) and not _requires_us(top):
        what = "is of an installed package that does not require spinerl"
    else:
        return
    raise InputError(
        f"{key}={short(name, bare=True)}, named by {file}: the module {short(module, bare=True)} {what}; a file names "
        "plug-ins only, any other function the command line"
    )


def _check_home(key: str, name: str, file: str) -> None:
    """InputError if the function was only imported into the module named."""
    table = {} if key == "reward" else _TABLES[key][0]
    function = reward_named(name) if key == "reward" else find(table, name, key)
    module, home = name.partition(":")[0], getattr(function, "__module__", None)
    if home != module:
        raise InputError(
            f"{key}={name}, named by {file}: the function is of {home}, not of {module}; a file names it where it is "
            "defined"
        )


def _is_installed(spec: ModuleSpec | None) -> bool:
    """Whether a module lies in a folder that packages are installed into."""
    return _is_in(spec, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_folders())


def _is_library(spec: ModuleSpec | None) -> bool:
    """Whether a module lies among those that come with Python."""
    folders = sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")
    return _is_in(spec, *folders) and not _is_installed(spec)  # packages are installed below it


def _is_in(spec: ModuleSpec | None, *folders: str) -> bool:
    if spec is None:
        return False
    file = os.path.realpath(_file(spec))
    return any(file.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def _site_folders() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]


def _requires_us(top: str) -> bool:
    """Whether the installed package with this module says that it needs spinerl, as a package of plug-ins does."""
    names = importlib.metadata.packages_distributions().get(top, ())
    needed = [one for name in names for one in importlib.metadata.requires(name) or ()]
    return any(re.split(r"[^\w.-]", one, maxsplit=1)[0].lower() == "spinerl" for one in needed)
