"""What a data set is made of; the benchmarks' table and users' own YAML or JSON files share the record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spinerl.config import ColumnsConfig, Config, DataConfig, explain_value, read_recipe
from spinerl.data.benchmarks import BENCHMARKS
from spinerl.errors import InputError, did_you_mean
from spinerl.lines import read_text

__all__ = ["Definition", "definition_of", "read_definition", "resolve", "resolve_data", "suite_of"]

FAMILIES = ("tiny", "tiny-vqa")  # bundled questions: of text, and of images
_MOST_BYTES = 256 * 1024  # of a definition in JSON; larger files hold rows
Kind = Literal["auto", "math", "number", "choice", "yesno", "text"]


class Definition(BaseModel):
    """One data set.  `Definition.model_validate({"hub": "me/mine", "columns": {"question": "problem"}})`.

    Everything has a default but the place of the rows: `hub` or `path`, one of the two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hub: str | None = Field(default=None, description="hub data set, owner/name")
    path: str | None = Field(default=None, description="file or folder, relative to the definition file")
    config: str | None = Field(default=None, description="configuration (subset) of the hub data set")
    split: str | None = Field(default=None, description="split; default: test")
    columns: ColumnsConfig = Field(default=ColumnsConfig(), description="as data.columns")
    template: str | None = Field(default=None, description="question's text made of columns: 'Case: {case}'")
    cut_after: str | None = Field(default=None, description="drop the question's text from this mark on")
    where: dict[str, str] = Field(default={}, description="keep only rows with these values, by column")
    gold_after: str | None = Field(default=None, description="the gold is what follows the last such mark")
    gold_form: Literal["auto", "index", "letter", "text"] = Field(
        default="auto", description="how a gold choice is written; index counts from 0"
    )
    image_folder: str | None = Field(
        default=None, description="where image files lie, relative to the folder of the rows; as data.image_folder"
    )
    merged_images: bool = Field(
        default=False, description="a row's image may be several drawn into one, which the text names one by one"
    )
    shuffle_choices: bool = Field(default=False, description="order the options by a hash of the question's id")
    kind: Kind = Field(default="auto", description="answer kind; rows with options are choice whatever it says")
    instruction: str | None = Field(default=None, description="answer instruction; default: the answer kind's own")
    system: str | None = Field(default=None, description="system message")
    rows: int | None = Field(default=None, description="rows expected")
    licence: str = Field(default="", description="licence and access")
    source: str = Field(default="", description="where the definition and the prompt come from")
    note: str = Field(default="", description="anything to know; shown by `spinerl data list`")


def read_definition(raw: Mapping[str, Any], where: str) -> Definition:
    """The definition in a mapping; InputError naming `where`, the field and what is allowed."""
    try:
        definition = Definition.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from None
    if (definition.hub is None) == (definition.path is None):
        raise InputError(f"{where}: give one of `hub: owner/name` and `path: FILE`, where the rows are")
    return definition


def definition_of(data: DataConfig) -> Definition | None:
    """The definition that `data.name` stands for, or None for a plain file or another hub data set.

    A benchmark is found by its short name (case and punctuation aside) or its hub id; a definition file by
    its ending, .yaml or .yml, or .json when the object in it says `hub` or `path`.  Bundled suites have one:
    those of text ask for numbers, those of images for numbers, words and letters.

    >>> definition_of(DataConfig(name="math-500")).rows
    500
    """
    suite = suite_of(data.name)
    if suite is not None:
        return _of_suite(*suite)
    suffix = Path(data.name).suffix.lower()
    if suffix in (".yaml", ".yml"):
        if not Path(data.name).is_file():
            raise InputError(f"data={data.name}: there is no such definition file; see docs/data.md for one")
        return _from_file(read_recipe(data.name), data.name)
    if suffix == ".json" and os.path.isfile(data.name):
        raw = _json_object(Path(data.name))
        return _from_file(raw, data.name) if raw is not None else None
    for name, raw in BENCHMARKS.items():
        by_hub = data.name == raw["hub"] and data.config in (None, raw.get("config"))
        if by_hub or ("/" not in data.name and _plain(data.name) == _plain(name)):
            return read_definition(raw, f"benchmark {name}")
    return None


def resolve_data(data: DataConfig, definition: Definition | None) -> DataConfig:
    """`data` with what it leaves open taken from the definition: configuration, split and columns."""
    if definition is None:
        return data
    own = definition.columns
    # A definition that says how answers are read, and names no options, has none.
    own_choices = None if own.choices == "auto" and definition.kind not in ("auto", "choice") else own.choices
    columns = data.columns.model_copy(
        update={
            "id": data.columns.id if data.columns.id is not None else own.id,
            "question": data.columns.question if data.columns.question is not None else own.question,
            "gold": data.columns.gold if data.columns.gold != "auto" else own.gold,
            "choices": data.columns.choices if data.columns.choices != "auto" else own_choices,
            "subject": data.columns.subject if data.columns.subject is not None else own.subject,
            "images": data.columns.images if data.columns.images != "auto" else own.images,
        }
    )
    return data.model_copy(
        update={
            "config": data.config if data.config is not None else definition.config,
            "split": data.split if data.split is not None else definition.split,
            "columns": columns,
            "image_folder": _image_folder(data, definition) if columns.images is not None else data.image_folder,
        }
    )


def resolve(config: Config) -> Config:
    """The configuration with its data set's own values written out, so that a run folder shows all of them.

    `data.config`, `data.split`, `data.columns`, `data.image_folder`, `prompt.instruction`, `prompt.system` and
    `answer.kind` are filled where they were left open; what the user gave stays.  Resolving twice changes nothing.

    >>> resolve(Config(data=DataConfig(name="math-500"))).data.columns.question
    'problem'
    """
    definition = definition_of(config.data)
    if definition is None:
        return config
    prompt = config.prompt.model_copy(
        update={
            "instruction": config.prompt.instruction
            if config.prompt.instruction is not None
            else definition.instruction,
            "system": config.prompt.system if config.prompt.system is not None else definition.system,
        }
    )
    # A kind is written out only where it holds for every row: options make some rows multiple choice.
    uniform = definition.kind == "choice" or definition.columns.choices in (None, "auto")
    kind = definition.kind if config.answer.kind == "auto" and uniform else config.answer.kind
    return config.model_copy(
        update={
            "data": resolve_data(config.data, definition),
            "prompt": prompt,
            "answer": config.answer.model_copy(update={"kind": kind}),
        }
    )


def suite_of(name: str) -> tuple[str, str] | None:
    """The suite and its family in the name of bundled questions; None for other names.

    "@" and a seed ask for fresh questions of the suite's kind (`spinerl.tiny.fresh_suite`).

    >>> suite_of("tiny/shift-a"), suite_of("tiny-vqa/shift-a@11"), suite_of("math-500")
    (('shift-a', 'tiny'), ('shift-a@11', 'tiny-vqa'), None)
    """
    family, slash, suite = name.partition("/")
    return (suite, family) if slash and family in FAMILIES else None


def _of_suite(suite: str, family: str) -> Definition:
    from spinerl.tiny import suite_path

    suite = suite.partition("@")[0]
    if family == "tiny":
        return Definition(path=str(suite_path(suite)), kind="number")
    path = suite_path(suite, family)
    has_choices = path.is_file() and '"choices"' in path.read_text(encoding="utf-8")
    choices = "choices" if has_choices else None
    columns = ColumnsConfig(choices=choices)
    return Definition(path=str(path), kind="text", columns=columns)


def _image_folder(data: DataConfig, definition: Definition) -> str | None:
    """data.image_folder, or the definition's next to the rows; None where the rows are on the hub."""
    place = data.path if data.path is not None else definition.path
    if data.image_folder is not None or definition.image_folder is None or place is None:
        return data.image_folder
    rows = Path(place)
    return str((rows if rows.is_dir() else rows.parent) / definition.image_folder)


def _from_file(raw: Mapping[str, Any], name: str) -> Definition:
    definition = read_definition(raw, name)
    if definition.path is None:
        return definition
    return definition.model_copy(update={"path": str(Path(name).parent / definition.path)})


def _json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file if it is a definition: it names its rows' place, and that with a word."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        value = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None  # the reader of rows says what is wrong with the file
    is_definition = isinstance(value, dict) and any(isinstance(value.get(key), str) for key in ("hub", "path"))
    return value if is_definition else None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _explain(error: ValidationError) -> str:
    item = error.errors()[0]
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = ColumnsConfig.model_fields if key.startswith("columns.") else Definition.model_fields
        near = did_you_mean(key.rpartition(".")[2], fields)
        return f"unknown field {key}{near}; allowed: {', '.join(fields)}"
    return explain_value(item)
