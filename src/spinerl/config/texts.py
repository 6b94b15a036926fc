"""Configuration as texts: `key=value` overrides, and YAML that gives the same configuration again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from spinerl.config.keys import Config
from spinerl.errors import InputError, short
from spinerl.lines import visible
from spinerl.recipes import parse_yaml

__all__ = ["HEADLINE", "dump_yaml", "override", "parse_override", "split_override"]

HEADLINE = {"model": "name", "data": "name", "guard": "mode", "track": "to"}  # `model=X` is `model.name=X`
_MAX_SECTIONS = 32


def dump_yaml(config: Config) -> str:
    """The whole configuration as YAML; loading it again gives an equal one."""
    return visible(yaml.dump(config.model_dump(), Dumper=_FaithfulDumper, sort_keys=False, allow_unicode=True))


class _FaithfulDumper(yaml.SafeDumper):
    """Writes texts with characters that YAML takes for line ends (U+0085) or that steer a terminal in double quotes,
    as escapes: those that YAML writes as they are, `visible` turns into the same escapes."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if visible(data) != data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_FaithfulDumper.add_representer(str, _FaithfulDumper.represent_str)


def split_override(text: str, example: str = "steps=20 (a recipe file must end in .yaml)") -> tuple[str, Any]:
    """(key, value) of one `key=value` override, the value read as YAML, or as text where it is none or ends in ":".

    Raises InputError, with the example, for any other text, and for a value that `parse_yaml` refuses.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"{short(text)} is not key=value; example: {example}")
    try:
        text.encode()
        return key, value if value.endswith(":") else parse_yaml(value)
    except UnicodeEncodeError:
        raise InputError(f"{short(text)} is not UTF-8 text") from None
    except InputError as error:
        raise InputError(f"{short(key)}={short(value)}: {error}") from None
    except yaml.YAMLError:
        return key, value


_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Signs that YAML takes for line ends, or refuses, where they are not escaped."""


def override(key: str, value: Any) -> str:
    """`key=value` as the command line has it, whatever the value.

    >>> override("rollout.stop", ["###"])
    'rollout.stop=["###"]'
    """
    text = _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
    return f"{key}={text}"


def parse_override(text: str) -> dict[str, Any]:
    """The layer of one `key=value` override; InputError if it is none.

    Where the key's value is a text, what is written is the text, unless it stands in quotes or is null: a folder may be
    called 2024, #1 or [x].
    """
    key, value = split_override(text)
    raw = text.partition("=")[2]
    is_null = value is None and raw.strip().lower() in ("", "null", "~")
    is_section = isinstance(value, Mapping) and key in HEADLINE
    if _is_text(key) and not (is_null or is_section or raw[:1] in ("'", '"')):
        value = raw
    *sections, last = key.split(".")
    if len(sections) > _MAX_SECTIONS:
        raise InputError(f"{short(key, bare=True)}: more than {_MAX_SECTIONS} levels of sections")
    layer: dict[str, Any] = {last: value}
    for section in reversed(sections):
        layer = {section: layer}
    return layer


def _is_text(key: str) -> bool:
    """Whether the value of a dotted key is a text or null, and nothing else."""
    section: Any = Config
    *sections, last = key.split(".")
    if key in HEADLINE and key != "guard":
        sections, last = [key], HEADLINE[key]
    for name in sections:
        field = section.model_fields.get(name) if isinstance(section, type) else None
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return False
        section = field.annotation
    field = section.model_fields.get(last)
    return field is not None and field.annotation in (str, str | None)
