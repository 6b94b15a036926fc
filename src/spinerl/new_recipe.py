"""`spinerl init`: a recipe with every key explained, by asking in a terminal or from `key=value` overrides.

What is named is looked at before it is written: the data set is read, the model's headers too.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from spinerl.config import (
    Config,
    DataConfig,
    describe_keys,
    expand_layer,
    load_config,
    override,
    parse_override,
    sets_key,
    value_of,
)
from spinerl.data.definitions import definition_of, resolve_data, suite_of
from spinerl.errors import InputError, short
from spinerl.files import kind_of, quoted, write_text
from spinerl.lines import read_text, visible
from spinerl.methods import METHODS
from spinerl.schema import SCHEMA_FILE, TITLE, schema_text
from spinerl.sources import shown_value

__all__ = ["Draft", "begin", "recipe_text", "write_recipe"]

LARGE = 3 * 10**9
"""Parameters from which on adapters are what fits: all weights would take 22 bytes each, 66 GB (docs/scaling.md)."""

_RANK, _RANK_LR = 16, 2e-5  # those of docs/scaling.md
_KEYS = (
    "model.name", "data.name", "method", "run", "seed", "steps", "questions_per_step", "group_size",
    "rollout.temperature", "rollout.max_new_tokens", "lora.rank", "optim.lr", "eval.samples", "guard.mode",
    "checkpoint.every",
)  # fmt: skip
_WIDTH = 110
_OFFERED = ("spine", "ttrl", "spine-memory", "lmsi", "none")


@dataclass
class Draft:
    """A recipe in the making: the overrides it stands for, and by key what was found out about its value."""

    overrides: list[str]
    found: dict[str, str] = field(default_factory=dict)
    parameters: int = 0  # of the model; 0: not known

    @property
    def config(self) -> Config:
        """What the overrides resolve to."""
        return load_config(overrides=self.overrides)

    def gives(self, key: str) -> bool:
        """Whether an override sets the key."""
        return any(sets_key(expand_layer(parse_override(one)), key) for one in self.overrides)


def begin(overrides: Sequence[str], say: Callable[[str], object], ask: Callable[[str], str] | None = None) -> Draft:
    """Settle the model, the data, the method and what the model's size decides.

    Raises InputError for what cannot be read.  What is on the hub and out of reach is only said.

    Args:
        say: called with a line about what was found.
        ask: returns the answer to a question; None: what no override gives has its default.
    """
    draft = Draft(list(overrides))
    draft.config  # noqa: B018 - a wrong key is refused before the first question
    _settle(draft, "model.name", "model: a hub name, a folder or a GGUF file", _look_at_model, say, ask)
    _choose_adapters(draft, say, ask)
    _settle(draft, "data.name", "data: a file of questions, a benchmark or a hub data set", _look_at_data, say, ask)
    if ask is not None and not draft.gives("method"):
        for name in _OFFERED:
            say(f"  {name}: {METHODS[name].summary}")
        _answered(draft, "method", f"method (one of {len(METHODS)}, docs/method.md)", say, ask)
    row = METHODS[draft.config.method]
    draft.found["method"] = f"{draft.config.method}: {row.summary} ({row.source})"
    return draft


def _settle(
    draft: Draft,
    key: str,
    question: str,
    look: Callable[[Draft, Callable[[str], str] | None], str],
    say: Callable[[str], object],
    ask: Callable[[str], str] | None,
) -> None:
    """Give a key its value and look at what it names; what an answer names is asked for until it is there."""
    is_open = ask is not None and not draft.gives(key)
    while True:
        before = list(draft.overrides)
        if ask is not None and is_open:
            _answered(draft, key, question, say, ask)
        try:
            say(look(draft, ask))
            return
        except InputError as error:
            if not is_open:
                raise
            say(f"{error}")
            draft.overrides = before


def _answered(draft: Draft, key: str, question: str, say: Callable[[str], object], ask: Callable[[str], str]) -> None:
    """Ask for a key's value until it is one that the key can have; an empty answer keeps the default."""
    while True:
        given = ask(f"{question} [{shown_value(value_of(draft.config, key))}]")
        if not given:
            return
        one = override(key, int(given) if given.isdecimal() else given)
        try:
            load_config(overrides=[*draft.overrides, one])
        except InputError as error:
            say(f"{error}")
            continue
        draft.overrides.append(one)
        return


def _look_at_model(draft: Draft, _ask: Callable[[str], str] | None) -> str:
    """A line about the model; InputError for one on this machine that cannot be opened."""
    from spinerl.models.headers import model_facts  # torch, which a misspelt key need not wait for
    from spinerl.models.loading import resolve_name

    config = draft.config.model
    is_here = Path(resolve_name(config.name)).exists()
    draft.parameters = _size_in(config.name)
    try:
        facts = model_facts(config)
    except InputError as error:
        if is_here:
            raise
        draft.found["model.name"] = f"not looked at: {error}"
        return draft.found["model.name"]
    draft.parameters = draft.parameters if facts.parameters is None else facts.parameters
    draft.found["model.name"] = facts.sentence
    return facts.sentence


def _look_at_data(draft: Draft, ask: Callable[[str], str] | None) -> str:
    """A line about the questions and their columns; InputError for data on this machine that cannot be used."""
    from spinerl.data import load_data, resolve

    config = resolve(draft.config)
    columns = ()
    try:
        questions, gold = load_data(config.data, answer_kind=config.answer.kind)
        columns = _columns(config.data)
    except InputError as error:
        if str(error).startswith("hub data set"):
            draft.found["data.name"] = f"not read: {error}"
            return draft.found["data.name"]
        if ask is None or draft.gives("data.columns.question") or not (columns := _columns(config.data)):
            raise
        name = ask(f"{error}; which of its columns has the questions: {', '.join(columns)}?")
        draft.overrides.append(override("data.columns.question", name))
        return _look_at_data(draft, ask)
    said = [f"{len(questions.questions)} questions", f"{len(gold)} with gold answers, for figures only"]
    said += [f"skipped {num}: {reason}" for reason, num in questions.skipped.items()]
    said += [f"columns {', '.join(columns)}"] if columns else []
    draft.found["data.name"] = f"{config.data.name}: {'; '.join(said)}"
    first = " ".join(questions.questions[0].text.split())
    return f"{draft.found['data.name']}; the first: {first[:100]}{'...' if len(first) > 100 else ''}"


def _columns(data: DataConfig) -> tuple[str, ...]:
    """The columns of a data set that can be opened; () for one that cannot, and for bundled ones."""
    from spinerl.data.sources import open_table

    if suite_of(data.name) is not None:
        return ()
    try:
        definition = definition_of(data)
        return open_table(resolve_data(data, definition), definition).columns
    except InputError:
        return ()


def _choose_adapters(draft: Draft, say: Callable[[str], object], ask: Callable[[str], str] | None) -> None:
    """Adapters for a large model, unless the user decided; its size by its weights, else by its name."""
    size = draft.parameters
    if size < LARGE or draft.gives("lora.rank"):
        return
    draft.found["lora.rank"] = (
        f"all {size / 1e9:.3g} B weights would take about {22 * size / 1e9:.0f} GB, adapters about "
        f"{2 * size / 1e9:.0f} GB (docs/scaling.md)"
    )
    say(f"lora.rank={_RANK}: {draft.found['lora.rank']}")
    draft.overrides.insert(0, f"lora.rank={_RANK}")
    if ask is not None:
        _answered(draft, "lora.rank", "lora.rank, 0 for all weights", say, ask)
    if draft.config.lora.rank and not draft.gives("optim.lr"):
        draft.overrides.append(override("optim.lr", _RANK_LR))
        draft.found["optim.lr"] = "adapters take a larger one than all weights do"


def _size_in(name: str) -> int:
    """The number of parameters that a model's name says, 0 if it says none.

    >>> _size_in("Qwen/Qwen3-8B"), _size_in("smollm2-135m"), _size_in("gpt2")
    (8000000000, 135000000, 0)
    """
    found = re.search(r"(?<![\d.A-Za-z])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z])", Path(name).name)
    return round(float(found[1]) * (10**9 if found[2] in "Bb" else 10**6)) if found else 0


def recipe_text(draft: Draft, file: Path, schema: str | None = None) -> str:
    """The recipe as the text of a file: its keys in sections, each under what it means.

    It resolves to what the overrides resolve to.

    Args:
        file: where it will be, for the commands it names.
        schema: the path of its schema, as seen from it.
    """
    config = draft.config
    known = {key: description for key, *_, description in describe_keys(unlisted=True)}
    keys = [key for key in _KEYS if draft.gives(key) or key not in ("run", "lora.rank")]
    keys += [key for key in known if key not in keys and draft.gives(key)]
    others = load_config(_nested({key: value_of(config, key) for key in keys}))
    keys += [key for key in known if value_of(others, key) != value_of(config, key)]  # set under another name
    tree = _nested({key: key for key in keys})
    name = quoted(file)
    lines = [f"# yaml-language-server: $schema={schema}"] if schema is not None else []
    lines += [
        "# Made by `spinerl init`.  `spinerl config --keys` lists every key; what a command gives wins (seed=1).",
        "#",
        f"#     spinerl adapt {name} --dry-run    # check it, run nothing",
        f"#     spinerl plan {name}    # how long it takes, how much memory",
        f"#     spinerl adapt {name}",
    ]

    def write(place: Mapping[str, Any], indent: str) -> None:
        for word, below in place.items():
            if isinstance(below, str):
                lines.extend(_comment(indent, known[below], draft.found.get(below)))
                lines.append(f"{indent}{word}: {shown_value(value_of(config, below))}")
            else:
                lines.append(f"{indent}{word}:")
                write(below, f"{indent}  ")

    for word, below in tree.items():
        lines.append("")
        write({word: below}, "")
    return "\n".join(lines) + "\n"


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, in sections."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def _comment(indent: str, meaning: str, found: str | None) -> list[str]:
    """What a key means, and what was found out about its value, as lines of comments."""
    width = _WIDTH - len(indent)  # a name with a hyphen stays whole
    texts = [text for text in (meaning, found) if text]
    lines = [part for text in texts for part in textwrap.wrap(text, width, break_on_hyphens=False)]
    return [f"{indent}# {visible(line)}" for line in lines]


def write_recipe(args: Sequence[str], console: Console, *, overwrite: bool = False, asking: bool = True) -> Path:
    """What `spinerl init [RECIPE.yaml] [KEY=VALUE]...` does; the recipe's path.

    Next to the recipe goes its schema, unless something else has that name there.  Raises InputError, with nothing
    written, for a file that exists, and as `begin`.

    Args:
        asking: whether to ask where input and output are a terminal.
    """
    rest = list(args)
    file = Path(rest.pop(0) if rest and "=" not in rest[0] else "recipe.yaml")
    _check_place(file, overwrite)
    in_terminal = asking and sys.stdin.isatty() and console.is_terminal
    draft = begin(rest, console.print, partial(_ask, console) if in_terminal else None)
    schema = file.with_name(SCHEMA_FILE)
    kind = kind_of(schema)
    has_schema = kind is None or (kind == "a file" and f'"title": "{TITLE}"' in read_text(schema, errors="replace"))
    write_text(file, recipe_text(draft, file, SCHEMA_FILE if has_schema else None))
    if has_schema:
        write_text(schema, schema_text())
        console.print(f"schema for editors: {schema}")
    console.print(f"recipe: {file}; check it: spinerl adapt {quoted(file)} --dry-run")
    return file


def _check_place(file: Path, overwrite: bool) -> None:
    """InputError if no recipe can be written there."""
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{short(str(file), bare=True)}: a recipe's name ends in .yaml, an override is key=value")
    kind = kind_of(file)
    if kind not in (None, "a file"):
        raise InputError(f"{file} is {kind}; choose another name")
    if kind is not None and not overwrite:
        raise InputError(f"{file} exists; replace it with --overwrite, or choose another name")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file} cannot be written: its folder does not exist")


def _ask(console: Console, question: str) -> str:
    """The answer typed after a question, without spaces around it."""
    console.print(question)
    try:
        return input("> ").strip()
    except EOFError:
        raise InputError("the input ended before all was answered: nothing was written") from None
