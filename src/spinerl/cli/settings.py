"""The configuration and this machine: config, doctor."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from spinerl.cli.options import RecipeAndOverrides, config_of
from spinerl.cli.program import app, out
from spinerl.config import dump_yaml
from spinerl.lines import visible
from spinerl.recipes import split_args


@app.command("config")
def config_command(
    args: RecipeAndOverrides = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="list every key instead, or those that begin so: --keys vote")
    ] = False,
    sources: Annotated[bool, typer.Option("--sources", help="say next to each value where it comes from")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="print a JSON Schema of recipes instead")] = False,
) -> None:
    """Print the resolved configuration, or explain every key.

    Examples: spinerl config method=ttrl | spinerl config configs/paper/qwen3-1.7b.yaml --sources | spinerl config
    --schema > spinerl.schema.json
    """
    if schema:
        from spinerl.schema import schema_text

        sys.stdout.write(schema_text())
        return
    if keys:
        from spinerl.usage import print_keys

        print_keys(out, args or [])
        return
    config = config_of(args)
    if sources:
        from spinerl.sources import list_sources, source_lines

        recipe, overrides = split_args(args)
        sys.stdout.write(visible("\n".join(source_lines(list_sources(config, recipe, overrides)))) + "\n")
        return
    sys.stdout.write(dump_yaml(config))


@app.command()
def doctor(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="the model whose faster paths to check")
    ] = "tiny-reasoner",
) -> None:
    """Show versions, devices, what is missing, and which faster paths suit a model, and why."""
    from spinerl.doctor import diagnose, diagnose_model

    rows = [*diagnose(), *diagnose_model(model)]
    for what, finding, well in rows:
        out.print(f"{'ok ' if well else 'BAD'} {what:26s} {finding}")
    if not all(well for *_, well in rows):
        raise typer.Exit(1)
