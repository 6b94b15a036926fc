"""How the commands are shown in help texts, and what is said of a mistake in one: groups, plain texts, one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spinerl.config import describe_keys
from spinerl.errors import InputError, did_you_mean
from spinerl.sources import shown_value

__all__ = ["GROUPS", "as_parsed", "as_refused", "command_order", "print_keys", "show_plainly"]

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Before": {
        "init": "write a commented recipe, by asking or from KEY=VALUE",
        "preflight": "ask once, without updates: are majority labels likely right?",
        "plan": "how many tokens, how long, how much memory a run takes",
    },
    "Adapt": {
        "adapt": "adapt a model to unlabeled questions; without arguments: the demo",
        "compare": "methods, data sets and seeds side by side, in one table",
        "select": "rank finished runs without labels, the best first",
    },
    "Measure": {
        "eval": "measure a model on questions, or compare two, one by one",
        "score": "read, vote and score saved texts; no model is needed",
        "report": "one HTML page about one run, or several side by side",
        "watch": "the report of a run in progress, in a browser",
        "bench": "speed and memory against TRL, generate and a dense update",
    },
    "Models and data": {
        "data": "known data sets, their first questions, their faults",
        "merge": "a plain model folder of adapters, or of a GGUF file",
        "export": "a recipe as another trainer's job, a model as a GGUF file",
        "push": "upload a model with its card to the Hugging Face hub",
    },
    "Set-up": {
        "config": "the resolved configuration, every key explained, the schema",
        "doctor": "versions, devices, what is missing, which paths suit a model",
    },
}
"""The commands in `spinerl --help`: by group, each in a line of 80 columns, in this order."""

_OTHERS = "More"
_MEANT = {"train": "adapt", "run": "adapt", "finetune": "adapt", "test": "eval", "benchmark": "bench", "new": "init"}
"""What other programs call a command."""


def show_plainly(root: Any) -> None:
    """Give the commands their groups and lines, and let help texts be texts: rich takes `[word]` for a style of its own
    and leaves it out."""
    lines = {name: (group, line) for group, rows in GROUPS.items() for name, line in rows.items()}
    for name, command in root.commands.items():
        own = getattr(command, "rich_help_panel", None)
        command.rich_help_panel, line = lines.get(name, (own if isinstance(own, str) else _OTHERS, None))
        command.short_help = line or command.short_help
    _escape_texts(root)


def _escape_texts(command: Any) -> None:
    for one in (command, *command.params):
        for text in ("help", "short_help", "epilog"):
            if isinstance(value := getattr(one, text, None), str):
                setattr(one, text, escape(value))
    for below in getattr(command, "commands", {}).values():
        _escape_texts(below)


def command_order(names: Sequence[str]) -> list[str]:
    """The commands in the order of `GROUPS`, others after them."""
    known = [name for rows in GROUPS.values() for name in rows]
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def as_parsed(arguments: Sequence[str]) -> list[str]:
    """The arguments as the parser takes them: `help COMMAND` is `COMMAND --help`, and the shell may be left out after
    the options of completion.

    >>> as_parsed(["help", "adapt"]), as_parsed(["--show-completion"])
    (['adapt', '--help'], ['--show-completion', ''])
    """
    if list(arguments[:1]) == ["help"]:
        return [*arguments[1:], "--help"]
    return [*arguments, ""] if list(arguments) in (["--show-completion"], ["--install-completion"]) else [*arguments]


def as_refused(error: BaseException, root: Any) -> InputError | None:
    """One line for a mistake in a command line that the parser found, with the help that shows the right one; None for
    any other error.

    Args:
        root: the parser's context of the whole program.
    """
    message = getattr(error, "format_message", None)  # of click's errors, whichever copy of it typer has
    if message is None or type(error).__name__ == "NoArgsIsHelpError":
        return None
    said = " ".join(str(message()).split()).rstrip(".")
    unknown = re.search(r"No such command '([^']*)'", said)
    if unknown and (meant := _MEANT.get(unknown[1])):
        said = f"No such command '{unknown[1]}'. Did you mean '{meant}'?"
    context: Any = getattr(error, "ctx", None)
    names = [root.invoked_subcommand] if context is None and root.invoked_subcommand else []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    command = " ".join(["spinerl", *names])
    return InputError(f"{said}{'' if said.endswith('?') else ';'} `{command} --help` shows what there is")


def print_keys(console: Console, starts: Sequence[str]) -> None:
    """Every key with its type, its default and what it means, or those that begin with one of `starts`.

    A table in a terminal, elsewhere a line per key.  InputError for a start that no key has.
    """
    rows = [(key, kind, shown_value(default), description) for key, kind, default, description in describe_keys()]
    names = [key for key, *_ in rows]
    for start in starts:
        if not any(name.startswith(start) for name in names):
            near = did_you_mean(start, [*names, *(name.partition(".")[0] for name in names)])
            raise InputError(f"no key begins with {start!r}{near}; `spinerl config --keys` lists them all")
    rows = [row for row in rows if not starts or row[0].startswith(tuple(starts))]
    if not console.is_terminal:
        width = max(len(key) for key, *_ in rows)
        for key, kind, default, description in rows:
            console.print(f"{key:{width}}  {kind}, default {default}: {description}")
        return
    table = Table(show_edge=False)
    table.add_column("key", no_wrap=True)
    for title in ("type", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
