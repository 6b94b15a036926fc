"""YAML that somebody else may have written: plain values only, within limits, each fault in one line.  No torch.

Every recipe, study, definition of a data set, run's config.yaml and value of a `key=value` override is read here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from spinerl.errors import InputError, cause_of

__all__ = ["parse_yaml", "read_recipe", "read_yaml", "split_args"]

_MAX_BYTES = 256 * 1024
_MAX_VALUES = 10_000
_MAX_DEPTH = 32
_MAX_DIGITS = 400
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file, {} for an empty one.

    InputError if it is missing, no regular file, over 256 KiB, no UTF-8 or YAML, no mapping, repeats a key, or holds
    what `parse_yaml` refuses.
    """
    try:
        value = read_yaml(path)
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {cause_of(error)}") from None
    except ValueError as error:  # no UTF-8; a path with a NUL
        raise InputError(f"cannot read recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {_one_line(error)}") from None
    except InputError as error:
        raise InputError(f"recipe {path}: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"recipe {path} must hold `key: value` lines, found {type(value).__name__}")
    return value


def read_yaml(path: Path | str) -> Any:
    """The value in a YAML file, which must be a regular one of at most 256 KiB.

    Raises OSError, ValueError (no UTF-8), and as `parse_yaml`.
    """
    mode = os.stat(path).st_mode  # opening a pipe or a device would wait
    if stat.S_ISDIR(mode):
        raise InputError("it is a folder; give a YAML file")
    if not stat.S_ISREG(mode):
        raise InputError("it is a pipe or a device; give a YAML file")
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"it is over {_MAX_BYTES // 1024} KiB, which no recipe is")
    return parse_yaml(data.decode("utf-8"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text: texts, numbers, true, false, null, lists and mappings, nothing else.

    A date is a text.  Aliases count as what they stand for.  Raises yaml.YAMLError for what is no YAML, for other tags
    (`!!python/...`, `!!binary`) and for a key given twice; InputError for more than 10,000 values, 32 levels, or 400
    digits of a number, and for an alias inside of what it stands for.

    >>> parse_yaml("{begun: 2026-01-31, base: &b {lr: 1.0e-6}, mine: {<<: *b, steps: 20}}")
    {'begun': '2026-01-31', 'base': {'lr': 1e-06}, 'mine': {'lr': 1e-06, 'steps': 20}}
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def split_args(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """(recipe, overrides) of `[RECIPE.yaml] [KEY=VALUE]...`: the first argument without '=' names the recipe.

    InputError if there is no such file.
    """
    rest = list(args or [])
    recipe = rest.pop(0) if rest and "=" not in rest[0] else None
    if recipe is not None and not os.path.exists(recipe):
        raise InputError(f"recipe {recipe} does not exist; give a YAML file first, then key=value overrides")
    return recipe, rest


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """Counts while it reads, so that nothing grows or takes long before it is refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._size = 0
        self._size_of: dict[int, int] = {}  # by node: the values it stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        line = f"line {self.peek_event().start_mark.line + 1}"  # pyright: ignore
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._size, self._depth + 1
        if self._depth > _MAX_DEPTH:
            raise InputError(f"{line}: more than {_MAX_DEPTH} levels of nesting")
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._size_of:
                raise InputError(f"{line}: an alias inside of what it stands for")
            self._size += self._size_of[id(node)]
        else:
            self._size += 1
            self._size_of[id(node)] = self._size - before
        if self._size > _MAX_VALUES:
            raise InputError(f"{line}: more than {_MAX_VALUES:,} values, where an alias counts as what it stands for")
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a mapping that gives the same key twice, where YAML would silently keep the last."""
        mapping = super().compose_mapping_node(anchor)
        seen = set()
        for node, _ in mapping.value:
            if node.tag == f"{_TAG}merge":
                continue
            if not isinstance(node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", node.start_mark)
            key = self.construct_object(node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
            seen.add(key)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number, none so long that reading it takes long."""
        if len(node.value) > _MAX_DIGITS:
            raise InputError(f"line {node.start_mark.line + 1}: a number of {len(node.value):,} digits")
        try:
            return self.construct_yaml_int(node) if node.tag == f"{_TAG}int" else self.construct_yaml_float(node)
        except ValueError:
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no number", node.start_mark
            ) from None

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text that can be written to a file again."""
        text = self.construct_yaml_str(node)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise yaml.constructor.ConstructorError(None, None, "half of a surrogate pair", node.start_mark) from None
        return text


_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _PLAIN
}
for _kind, _construct in (
    ("int", _Loader.construct_number),
    ("float", _Loader.construct_number),
    ("str", _Loader.construct_text),
):
    _Loader.add_constructor(f"{_TAG}{_kind}", _construct)
# Dates and a lone "=" are texts.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in (*_PLAIN, "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
