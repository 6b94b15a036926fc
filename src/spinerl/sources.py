"""Where each value of a configuration comes from: a recipe's comments, a method's row, a default.  No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spinerl.config import (
    PROFILES,
    RENAMED,
    SWITCHES,
    Config,
    describe_keys,
    expand_layer,
    load_config,
    parse_override,
    profile_of,
    read_recipe,
    sets_key,
    value_of,
)
from spinerl.methods import METHODS

__all__ = ["list_sources", "shown_value", "source_lines", "trailing_comments"]

_COMMENT = re.compile(r"[,\]}\s]*\s#+\s*(.*)")
_VALUE_COLUMN = 32  # longer values push their own source to the right, and no other line's


def trailing_comments(text: str) -> dict[str, str]:
    """Dotted keys of a YAML text -> the comments that end their lines.  Keys without a comment are left out.

    Keys inside `{...}` that have no comment of their own share the one after the closing brace.  A comment on a
    section's line stands under the section's name.  A list of lines has its own comment, or those of its items.

    >>> trailing_comments("steps: 8  # ours\\nband: {low: 0.1, high: 0.5}  # eq. (7)\\nname: 'a # b'\\n")
    {'steps': 'ours', 'band': 'eq. (7)', 'band.low': 'eq. (7)', 'band.high': 'eq. (7)'}
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return dict(_comments(root, "", text, None)) if isinstance(root, yaml.MappingNode) else {}


def list_sources(
    config: Config, recipe: Path | str | None = None, overrides: Sequence[str] = ()
) -> list[tuple[str, Any, str]]:
    """(key, value, source) of every key, in the order of `describe_keys`.

    A source is the recipe's comment on the key's line, or on its section's; without one the recipe's name; for keys
    that the recipe does not set "command line", "method row NAME", "profile NAME", "data set NAME" or "default".

    Args:
        config: what the recipe and the overrides resolve to, with or without what the data set brings.
    """
    given = expand_layer(read_recipe(recipe)) if recipe else {}
    comments = trailing_comments(Path(recipe).read_text(encoding="utf-8")) if recipe else {}
    layers = [expand_layer(parse_override(one)) for one in overrides]
    before_data = load_config(recipe, overrides)
    profile = profile_of(config.model.name)
    old_names = {new: [old] for old, new in RENAMED.items()} | {"engine.disable": list(SWITCHES)}

    def source(key: str) -> str:
        names = [key, *old_names.get(key, ())]
        if value_of(config, key) != value_of(before_data, key):  # only what the layers below left open
            return f"data set {config.data.name}"
        if any(sets_key(layer, name) for layer in layers for name in names):
            return "command line"
        of_row = f"method row {config.method}" if sets_key(METHODS[config.method].sets, key) else None
        if of_row and given.get("method", config.method) != config.method:  # the row wins over another method's recipe
            return of_row
        for name in names:
            if sets_key(given, name):
                return _nearest(comments, name) or str(recipe)
        if of_row:
            return of_row
        return f"profile {profile}" if sets_key(PROFILES.get(profile, {}), key) else "default"

    return [(key, value_of(config, key), source(key)) for key, *_ in describe_keys(unlisted=True)]


def source_lines(rows: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Key, value and source in aligned columns, a line per row.

    >>> source_lines([("steps", 8, "ours"), ("optim.lr", 1e-6, "default")])
    ['steps     8        ours', 'optim.lr  1.0e-06  default']
    """
    shown = [(key, shown_value(value), source) for key, value, source in rows]
    key_width = max(len(key) for key, *_ in shown)
    value_width = min(_VALUE_COLUMN, max(len(value) for _, value, _ in shown))
    return [f"{key:<{key_width}}  {value:<{value_width}}  {source}".rstrip() for key, value, source in shown]


def _comments(node: yaml.MappingNode, prefix: str, text: str, shared: str | None) -> Iterator[tuple[str, str]]:
    """(key, comment) of a mapping's keys and of those below it; `shared` is the comment after an enclosing brace."""
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        comment = _own_comment(key_node, value_node, text) or shared
        if comment:
            yield key, comment
        if isinstance(value_node, yaml.MappingNode):
            yield from _comments(value_node, f"{key}.", text, comment if value_node.flow_style else None)


def _own_comment(key: yaml.Node, value: yaml.Node, text: str) -> str | None:
    """The comment after a value, else the one on the key's line, else those of a list's items."""
    if isinstance(value, yaml.ScalarNode) and value.style in ("|", ">"):
        return _after(value.start_mark.index + 1, text, r"[0-9+-]*")
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    found = None if is_block else _after(value.end_mark.index, text)
    found = found or _after(key.end_mark.index, text, r"\s*:")
    if not found and isinstance(value, yaml.SequenceNode):
        items = [_after(item.end_mark.index, text) for item in value.value if isinstance(item, yaml.ScalarNode)]
        found = "; ".join(dict.fromkeys(filter(None, items)))
    return found or None


def _after(index: int, text: str, between: str = "") -> str | None:
    """The comment in the rest of the line from a place on, if nothing but closing signs stands before it."""
    rest = text[index:].partition("\n")[0].rstrip()
    found = re.match(between + _COMMENT.pattern, rest)
    return found[1] or None if found else None


def _nearest(comments: Mapping[str, str], key: str) -> str | None:
    """The comment on the key's line, else on the innermost section's that has one, else on those of keys below it."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        found = comments.get(".".join(parts[:length]))
        if found:
            return found
    return "; ".join(dict.fromkeys(text for name, text in comments.items() if name.startswith(f"{key}."))) or None


def shown_value(value: Any) -> str:
    """A value as YAML, on one line."""
    if isinstance(value, list):
        value = [item.model_dump() if hasattr(item, "model_dump") else item for item in value]
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
