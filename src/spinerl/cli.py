"""The commands.  Thin: they parse words, call the package, print.

Exit codes: 0 done, 1 failed while running, 2 refused input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spinerl import __version__
from spinerl.config import Config, describe_keys, dump_yaml, load_config
from spinerl.errors import InputError, SpinerlError

__all__ = ["app", "main"]

app = typer.Typer(
    name="spinerl",
    help="Label-free test-time reinforcement learning for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE.yaml] [KEY=VALUE]...", help="a recipe file, then overrides"),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="configuration overrides")]


@app.command()
def adapt(
    words: Words = None,
    resume: Annotated[Path | None, typer.Option(help="continue this run folder", metavar="RUN")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run folder if it exists")] = False,
) -> None:
    """Adapt a model to unlabeled questions.  Without arguments: the demo.

    Examples: spinerl adapt | spinerl adapt method=ttrl seed=1 | spinerl adapt model=FOLDER data=questions.jsonl
    """
    from spinerl.display import Display
    from spinerl.runs import RunFolder
    from spinerl.train import adapt as run_adapt

    if resume is not None:
        if words or overwrite:
            raise InputError(
                "--resume continues a run as it was configured: no recipe, key=value or --overwrite with it"
            )
        run = RunFolder.open(resume)
        config = run.config
    else:
        run, config = None, _config(words)
    with Display(out, config.steps) as display:
        finished = run_adapt(config, display, resume=run, overwrite=overwrite)
    _print_result(finished.path, finished.rows("eval.jsonl"))


@app.command("eval")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="a hub name, a model folder, a run folder, or tiny-reasoner")],
    data: Annotated[str, typer.Argument(help="tiny/SUITE, a file, or a hub data set")],
    overrides: Overrides = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here", metavar="FILE")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="write a line per question here (JSONL)", metavar="FILE")
    ] = None,
) -> None:
    """Measure a model on questions: greedy Pass@1, avg@k, maj@k with intervals, length, entropy."""
    from spinerl.answers import Equivalence
    from spinerl.display import Display, comparison_table
    from spinerl.evaluate import evaluate
    from spinerl.runs import write_json, write_text
    from spinerl.train import open_workload

    config = _resolved({"model": model, "data": data, "method": "none"}, overrides or [])
    for file in (json_file, predictions):
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{file} cannot be written: its folder does not exist")
    with Display(err, 0) as display, Equivalence() as equivalence:
        work = open_workload(config, display)
        display.phase("evaluate", 0)
        result = evaluate(work.loaded, work.questions, work.prompts, work.gold, config, equivalence, display.tokens)
    out.print(comparison_table({config.model.name: result.metrics}))
    if json_file is not None:
        write_json(json_file, {"model": config.model.name, "data": config.data.name, **result.metrics})
    if predictions is not None:
        write_text(predictions, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.predictions))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="default: RUN/report.html, or report.html for several", metavar="FILE"),
    ] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from spinerl.report import write_report

    target = out_file or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    out.print(f"report: {write_report(runs, target)}")


@app.command("config")
def config_command(
    words: Words = None, keys: Annotated[bool, typer.Option("--keys", help="list every key instead")] = False
) -> None:
    """Print the resolved configuration, or explain every key."""
    if keys:
        table = Table("key", "type", "default", "meaning", show_edge=False)
        for key, kind, default, description in describe_keys():
            table.add_row(key, kind, "null" if default is None else str(default), description)
        out.print(table)
        return
    sys.stdout.write(dump_yaml(_config(words)))


@app.command()
def doctor() -> None:
    """Show versions, devices, and what is missing."""
    from spinerl.doctor import diagnose

    rows = diagnose()
    for what, finding, well in rows:
        out.print(f"{'ok ' if well else 'BAD'} {what:16s} {finding}", highlight=False, markup=False)
    if not all(well for *_, well in rows):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: every error of ours is one line on standard error."""
    try:
        app(args=None if arguments is None else list(arguments))
    except SpinerlError as error:
        err.print(f"spinerl: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("spinerl: interrupted; `spinerl adapt --resume RUN` continues a run", highlight=False)
        raise SystemExit(130) from None


def _config(words: list[str] | None) -> Config:
    """The configuration of `[RECIPE] [KEY=VALUE]...`: the first word without '=' names the recipe."""
    rest = list(words or [])
    recipe = rest.pop(0) if rest and "=" not in rest[0] else None
    if recipe is not None and not Path(recipe).is_file():
        raise InputError(f"recipe {recipe} does not exist; give a YAML file first, then key=value words")
    return _resolved(recipe, rest)


def _resolved(recipe: Mapping[str, Any] | str | None, words: Sequence[str]) -> Config:
    """The configuration with what the data set brings (split, columns, instruction) written out."""
    from spinerl.data import resolve

    return resolve(load_config(recipe, words))


def _print_result(path: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    from spinerl.display import comparison_table

    first, last = evaluations[0], evaluations[-1]
    columns = (
        {"before": first} if first["step"] == last["step"] else {"before": first, f"after {last['step']} steps": last}
    )
    out.print(comparison_table(columns))
    out.print(f"run: {path}   report: {path / 'report.html'}", highlight=False)


if __name__ == "__main__":
    main()
