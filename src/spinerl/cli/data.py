"""Data sets: data list, data show, data check."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from spinerl.cli.options import Overrides, resolved
from spinerl.cli.program import app, out

data_app = typer.Typer(
    help="Look at data sets: the known ones, their first questions, their faults.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
DataName = Annotated[str, typer.Argument(metavar="NAME|FILE", help="a known data set, a file, - or tiny/SUITE")]


@data_app.command("list")
def data_list() -> None:
    """The known data sets, and where they come from."""
    from spinerl.data import list_datasets
    from spinerl.data.files import ENDINGS
    from spinerl.tiny import SUITES, VQA_SUITES
    from spinerl.tiny.suite import BUNDLED

    table = Table("name", "questions", "answers", "hub", "split", "licence and access", show_edge=False)
    for suite in SUITES:
        table.add_row(f"tiny/{suite}", str(BUNDLED[suite][2]), "number", "bundled", "", "Apache-2.0")
    for suite in VQA_SUITES:
        table.add_row(f"tiny-vqa/{suite}", str(BUNDLED[suite][2]), "text", "bundled", "", "Apache-2.0 with images")
    for row in list_datasets():
        notes = " ".join(str(row[key]) for key in ("licence", "note") if row[key])
        table.add_row(row["name"], str(row["rows"]), row["kind"], row["hub"], row["split"], notes)
    out.print(table)
    out.print(f"Or a file ({', '.join(ENDINGS)}; of text also .gz and .zst), - for standard input, or a folder.")


@data_app.command("show")
def data_show(
    name: DataName,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("-n", help="how many questions", min=1)] = 3,
) -> None:
    """The first questions as the model will see them, its chat template applied."""
    from spinerl.data import preview, reading_of
    from spinerl.models.loading import load_tokenizer
    from spinerl.models.processor import load_processor

    config = resolved({"data": name}, overrides or [])
    out.print(f"read as {reading_of(config)}", style="dim")
    for row in preview(config, load_tokenizer(config.model), rows, load_processor(config.model)):
        gold = "none" if row.gold is None else row.gold
        tokens = "" if row.num_tokens is None else f" · {row.num_tokens} tokens"
        out.print(f"── {row.id} · {row.kind}{tokens} · gold: {gold}", style="bold")
        out.print(row.text)
        for line in row.images:
            out.print(line, style="dim")


@data_app.command("check")
def data_check(name: DataName, overrides: Overrides = None) -> None:
    """Go through every row and say what is wrong; exit code 1 if a run would not start."""
    from spinerl.data import check
    from spinerl.models.loading import load_tokenizer
    from spinerl.models.processor import load_processor

    config = resolved({"data": name}, overrides or [])
    found = check(config, load_tokenizer(config.model), load_processor(config.model))
    summary, *findings = found.lines()
    for line in (summary, f"read as {found.reading}", *findings):
        out.print(line)
    if not found.ok:
        raise typer.Exit(1)
