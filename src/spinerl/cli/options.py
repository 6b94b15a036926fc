"""What several commands have in common: options, the configuration of their arguments, who shows what happens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from spinerl.config import Config, load_config
from spinerl.errors import InputError, SpinerlError
from spinerl.events import JsonLines, say_event
from spinerl.exits import as_ended
from spinerl.lines import one_line
from spinerl.recipes import split_args
from spinerl.terminal import SafeFormatter

if TYPE_CHECKING:
    from rich.console import Console

    from spinerl.display import Display
    from spinerl.runs import RunFolder

__all__ = [
    "AllowPlugins",
    "DryRun",
    "JsonFile",
    "LogFormat",
    "Overrides",
    "Quiet",
    "RecipeAndOverrides",
    "Verbose",
    "check_writable",
    "config_of",
    "errors_as_events",
    "is_json",
    "open_display",
    "resolved",
]

RecipeAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE.yaml|KEY=VALUE", help="a recipe file, then overrides"),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="configuration overrides")]


def _log_to_terminal(verbose: bool) -> bool:
    """With -v, what the engine finds out about the model goes to standard error."""
    if verbose:
        lines = logging.StreamHandler()
        lines.setFormatter(SafeFormatter("%(name)s: %(message)s"))
        logging.basicConfig(handlers=[lines])
        logging.getLogger("spinerl").setLevel(logging.INFO)
    return verbose


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="say which faster paths suit the model, and why", callback=_log_to_terminal),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print only the result, and errors")]
LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option("--log-format", help="json: all that happens, and the result, as lines of JSON (docs/commands.md)"),
]
AllowPlugins = Annotated[
    bool,
    typer.Option("--allow-plugins", help="run the code that the recipe or the run folder names (docs/extending.md)"),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check everything and show what would run; read no weights, write nothing")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here", metavar="FILE")]


def is_json(log_format: str, quiet: bool) -> bool:
    if quiet and log_format == "json":
        raise InputError("--quiet and --log-format json exclude each other: one prints little, the other everything")
    return log_format == "json"


@contextlib.contextmanager
def errors_as_events(as_json: bool) -> Iterator[None]:
    """Of lines of JSON the last one says what ended the command, as the line on standard error does."""
    try:
        yield
    except (SpinerlError, KeyboardInterrupt, OSError, MemoryError) as error:
        ended = error if isinstance(error, SpinerlError) else as_ended(error)
        if as_json and ended is not None and ended.exit_code != 141:
            say_event("error", text=one_line(str(ended)), exit_code=ended.exit_code)
        raise


def open_display(
    console: Console, as_json: bool, quiet: bool, config: Config | None = None, run: RunFolder | None = None
) -> Display | JsonLines:
    """Who shows what happens; `run`: the one that goes on."""
    from spinerl.display import Display

    took = {}
    if run is not None:
        with contextlib.suppress(SpinerlError):  # damaged: the run itself says so
            for name, stream, key in (("evaluate", "eval", "time/eval_s"), ("guard", "guard", "time/look_s")):
                for row in run.rows(f"{stream}.jsonl"):
                    if isinstance(row.get(key), float):
                        took[name] = row[key]
    return JsonLines(config, took) if as_json else Display(console, config, quiet=quiet, took=took)


def check_writable(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{file} cannot be written: its folder does not exist")


def config_of(args: list[str] | None) -> Config:
    """The configuration of `[RECIPE] [KEY=VALUE]...`."""
    return resolved(*split_args(args))


def resolved(recipe: Mapping[str, Any] | str | None, overrides: Sequence[str]) -> Config:
    """The configuration with what the data set brings (split, columns, instruction) written out."""
    from spinerl.data import resolve

    return resolve(load_config(recipe, overrides))
