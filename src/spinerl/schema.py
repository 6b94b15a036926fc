"""A JSON Schema of recipes, for editors and other programs: `spinerl config --schema`.  No torch.

Draft 2020-12, made by pydantic of the configuration and of a comparison's keys, and brought to what a recipe file may
hold: `model: NAME` for a section, `off` read as false by YAML, old names of keys, dotted keys in a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from spinerl.choices import DATA_KEYS, FUNCTIONS, model_names, suite_names
from spinerl.comparison.keys import Keys
from spinerl.config import RENAMED, SWITCHES, Config
from spinerl.methods import ALIASES, LOSSES, METHODS

__all__ = ["SCHEMA_FILE", "TITLE", "recipe_schema", "schema_text"]

SCHEMA_FILE = "spinerl.schema.json"
"""The name under which `spinerl init` writes it next to a recipe."""

TITLE = "spinerl recipe"

_METHOD = {"enum": [*METHODS, *ALIASES]}
_OWN_OF_A_RUN = ("method", "run", "seed")  # what a comparison sets for each run


def schema_text() -> str:
    """The schema as the text of a file."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe: of a comparison if it holds a key that only comparisons have, else of a run.

    >>> sorted(recipe_schema()["$defs"]["BandConfig"]["properties"])[:3]
    ['edges', 'ema_decay', 'high']
    """
    run = _tidy(Config.model_json_schema())
    defs: dict[str, Any] = run.pop("$defs")
    sections = {name: _target(one) for name, one in run["properties"].items() if "$ref" in one}
    _refine(run, sections, defs)
    comparison = _comparison(run, sections, defs)
    only = [name for name in Keys.model_fields if name not in Config.model_fields]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        "description": "A run of `spinerl adapt`, or a comparison of `spinerl compare`.",
        "type": "object",
        "if": {"anyOf": [*({"required": [name]} for name in only), _data_is_a_list()]},
        "then": {"$ref": "#/$defs/Comparison"},
        "else": {"$ref": "#/$defs/Run"},
        "$defs": {"Run": run, "Comparison": comparison, **defs},
    }


def _data_is_a_list() -> dict[str, Any]:
    return {"required": ["data"], "properties": {"data": {"type": "array"}}}


def _tidy(schema: Any) -> Any:
    """The schema without what says nothing: titles, defaults of whole sections, marks of our own."""
    if isinstance(schema, list):
        return [_tidy(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidy(value) for key, value in schema.items() if key != "listed" and not _is_title(key, value)}
    if "$ref" in tidy:
        tidy.pop("default", None)
    return tidy


def _is_title(key: str, value: Any) -> bool:
    return key == "title" and isinstance(value, str)


def _target(reference: Mapping[str, Any]) -> str:
    return reference["$ref"].removeprefix("#/$defs/")


def _refine(run: dict[str, Any], sections: Mapping[str, str], defs: dict[str, Any]) -> None:
    """Bring a run's schema to what its recipe may hold."""
    for key, place in _places(run, sections, defs):
        name = key.rpartition(".")[2]
        place[name] = _refined(key, place[name])
    for old, new in RENAMED.items():
        section, _, name = new.partition(".")
        theirs, _, old_name = old.partition(".")
        deprecated = {**defs[sections[section]]["properties"][name], "description": f"the old name of {new}"}
        defs[sections[theirs]]["properties"][old_name] = {**deprecated, "deprecated": True}
    for old, part in SWITCHES.items():
        section, _, name = old.partition(".")
        description = f"false is called engine.disable=[{part}] now"
        switch = {"type": "boolean", "description": description, "deprecated": True}
        defs[sections[section]]["properties"][name] = switch
    mode = defs[sections["guard"]]["properties"]["mode"]
    names = {"model": {"type": "string", "examples": list(model_names())}, "loss": {"enum": list(LOSSES)}}
    names |= {"data": {"type": "string", "examples": list(suite_names())}, "guard": mode}
    for key, short in names.items():
        run["properties"][key] = {"anyOf": [short, run["properties"][key]], "description": short.get("description", "")
                                  or f"short for {key}.name, or the section's keys"}  # fmt: skip
    run["properties"]["loss"]["description"] = "a row of the table of losses, or the section's keys"


def _places(
    run: dict[str, Any], sections: Mapping[str, str], defs: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, the properties it is one of) of every key that is no section."""
    for name, one in list(run["properties"].items()):
        if name not in sections:
            yield name, run["properties"]
            continue
        properties = defs[_target(one)]["properties"]
        for inner, below in list(properties.items()):
            if "$ref" not in below:
                yield f"{name}.{inner}", properties
                continue
            deep = defs[_target(below)]["properties"]
            yield from ((f"{name}.{inner}.{last}", deep) for last in list(deep))


def _refined(key: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A key's schema with the names that its text may be, and with what YAML makes of on and off."""
    about = {word: schema[word] for word in ("description", "default") if word in schema}
    if key == "method":
        return {**_METHOD, **about}
    if key in FUNCTIONS:
        plugin = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
        one = {"anyOf": [{"enum": list(FUNCTIONS[key])}, plugin]}
        if schema.get("type") == "array":
            one = {"anyOf": [*one["anyOf"], {"type": "array", "items": one}]}
        return {**one, **about}
    if key == "model.name" or key in DATA_KEYS:
        return {**schema, "examples": list(model_names() if key == "model.name" else suite_names())}
    if "enum" in schema and schema.get("type") == "string":
        more = [value for value in ("on", "off", True, False) if value not in schema["enum"] and _accepts(key, value)]
        return {**schema, "enum": [*schema["enum"], *more]} | ({"type": ["string", "boolean"]} if more else {})
    return schema


def _accepts(key: str, value: Any) -> bool:
    """Whether the configuration takes a value for a key."""
    *path, last = key.split(".")
    layer: dict[str, Any] = {last: value}
    for section in reversed(path):
        layer = {section: layer}
    try:
        Config.model_validate(layer)
    except ValidationError:
        return False
    return True


def _comparison(run: Mapping[str, Any], sections: Mapping[str, str], defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a comparison's recipe: its own keys, and those of its runs, dotted or in sections."""
    own = _tidy(Keys.model_json_schema())
    defs |= own.pop("$defs", {})
    of_runs = {name: one for name, one in run["properties"].items() if name not in (*_OWN_OF_A_RUN, "data")}
    dotted = dict(_dotted(sections, defs, Config))
    rows = {**of_runs, **{key: one for key, one in dotted.items() if not key.startswith("data.")}, "method": _METHOD}
    properties = {**of_runs, **dotted, **own["properties"]}
    text = {"type": "string"}
    for name, item in (("methods", text), ("data", text), ("seeds", {"type": "integer", "minimum": 0})):
        listed = {**own["properties"][name], "items": item}
        about = {word: listed.pop(word) for word in ("description", "default") if word in listed}
        properties[name] = {"anyOf": [listed, text, *([item] if name == "seeds" else [])], **about}
    properties["data"]["anyOf"].append({"$ref": "#/$defs/DataConfig"})
    variant = {"type": "object", "properties": rows, "required": ["method"], "additionalProperties": False}
    properties["variants"] = {**own["properties"]["variants"], "additionalProperties": variant}
    forcing = defs[_target(own["properties"]["forcing"])]["properties"]
    properties |= {f"forcing.{name}": {"$ref": f"#/$defs/ForcingKeys/properties/{name}"} for name in forcing}
    return {**own, "properties": properties}


def _dotted(
    sections: Mapping[str, str], defs: Mapping[str, Any], config: type[BaseModel]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, a reference to its schema) of all keys in sections, and of sections in those."""
    for name in config.model_fields:
        for inner, one in defs[sections[name]]["properties"].items() if name in sections else ():
            yield f"{name}.{inner}", {"$ref": f"#/$defs/{sections[name]}/properties/{inner}"}
            if "$ref" in one:
                for last in defs[_target(one)]["properties"]:
                    yield f"{name}.{inner}.{last}", {"$ref": f"#/$defs/{_target(one)}/properties/{last}"}
