"""Before a run: init, preflight, plan."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from spinerl.cli.options import (
    AllowPlugins,
    JsonFile,
    Overrides,
    RecipeAndOverrides,
    Verbose,
    check_writable,
    config_of,
)
from spinerl.cli.program import app, err, out
from spinerl.config import allow_plugins, load_config


@app.command("init")
def init_command(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE.yaml|KEY=VALUE", help="the file to write (recipe.yaml), then its keys"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file if it exists")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing: what is not given has its default")] = False,
) -> None:
    """Write a recipe in which every key is explained.  In a terminal it asks for what is not given.

    Model and data are looked at first.  Next to the recipe goes a schema, with which editors complete and check it.

    Examples: spinerl init | spinerl init mine.yaml model=FOLDER data=questions.jsonl method=ttrl
    """
    from spinerl.new_recipe import write_recipe

    write_recipe(args or [], out, overwrite=overwrite, asking=not yes)


@app.command("preflight")
def preflight_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a hub name, a folder, a GGUF file, or a model's name")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="questions; answers in it are not looked at")],
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Before adapting: ask once, without updates, and say whether labels by majority are likely to be right.

    The verdict is go, caution or no-go; docs/guard.md says how it is reached and how often it was right.

    Examples: spinerl preflight tiny-reasoner tiny/shift-a | spinerl preflight MODEL questions.jsonl group_size=32
    """
    from spinerl.display import Display, preflight_table
    from spinerl.guard.preflight import preflight
    from spinerl.runs import write_json

    check_writable(json_file)
    with Display(err) as display:
        expected, figures = preflight(load_config({"model": model, "data": data}, overrides or []), display)
    out.print(preflight_table(figures))
    colour = {"go": "green", "caution": "yellow", "no-go": "red"}[expected.verdict]
    out.print(Text(expected.verdict, style=f"bold {colour}"), f": {expected.reason}", sep="")
    if "probe_run" in figures:
        out.print(Text(figures["probe_run"]["sentence"]))
    if figures["size"]:
        out.print(Text(figures["size"]))
    if json_file is not None:
        write_json(json_file, figures)


@app.command("plan")
def plan_command(
    args: RecipeAndOverrides = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="how long to measure; 0: only count", min=0.0, max=3600.0)
    ] = 30.0,
    json_file: JsonFile = None,
    allow: AllowPlugins = False,
    _verbose: Verbose = False,
) -> None:
    """Say what a run would take before it starts: responses, tokens, memory part by part before the weights are read,
    time measured in half a minute.

    Takes the same recipe and keys as `spinerl adapt`; nothing is written and no weight changes.  A run that does not
    fit into memory is not measured: keys that would make it fit are named.

    Examples: spinerl plan | spinerl plan model=FOLDER data=questions.jsonl steps=100 | spinerl plan --seconds 0
    """
    from spinerl.display import memory_table, plan_table
    from spinerl.plan import open_plan
    from spinerl.runs import write_json

    check_writable(json_file)
    if seconds:
        err.print(f"measuring for about {seconds:.0f} s ...")
    plan = open_plan(allow_plugins(config_of(args), allow), seconds)
    out.print(plan_table(plan))
    if plan.memory is not None:
        out.print(memory_table(plan.memory))
    for line in plan.lines():
        out.print(line)
    if json_file is not None:
        write_json(json_file, plan.figures())
