"""Runs: adapt, compare, select."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spinerl.cli.options import (
    AllowPlugins,
    DryRun,
    LogFormat,
    Quiet,
    RecipeAndOverrides,
    Verbose,
    check_writable,
    config_of,
    errors_as_events,
    is_json,
    open_display,
)
from spinerl.cli.program import app, out
from spinerl.config import PLUGIN_KEYS, Config, allow_plugins, layer_value, named_by_file, parse_override, value_of
from spinerl.errors import InputError, RunError
from spinerl.events import say_event

if TYPE_CHECKING:
    from spinerl.runs import RunFolder


@app.command()
def adapt(
    args: RecipeAndOverrides = None,
    resume: Annotated[Path | None, typer.Option(help="continue this run folder", metavar="RUN")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run folder if it exists")] = False,
    other_numerics: Annotated[
        bool,
        typer.Option(
            "--allow-different-numerics", help="resume also where this machine rounds otherwise than the one before"
        ),
    ] = False,
    allow: AllowPlugins = False,
    dry: DryRun = False,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
    _verbose: Verbose = False,
) -> None:
    """Adapt a model to unlabeled questions.  Without arguments: the demo.

    Examples: spinerl adapt | spinerl adapt method=ttrl seed=1 | spinerl adapt model=FOLDER data=questions.jsonl
    """
    as_json = is_json(log_format, quiet)
    with errors_as_events(as_json):
        if dry and resume is not None:
            raise InputError("--dry-run looks at a run that has not begun; `spinerl report RUN` shows one that has")
        run, config = (None, config_of(args)) if resume is None else _resumed(resume, args or [], overwrite)
        config = allow_plugins(config, allow)
        if dry:
            from spinerl.dry_run import show_dry_run

            show_dry_run(config, args or [], out, overwrite)
            return
        from spinerl.train import adapt as run_adapt  # seconds of imports, which a misspelt key need not wait for

        try:
            with open_display(out, as_json, quiet, config, run) as display:
                finished = run_adapt(config, display, resume=run, overwrite=overwrite, other_numerics=other_numerics)
        except SystemExit as error:  # a library's, or the model's own code: no model was written
            raise RunError(f"the run was ended from inside: something in it called exit({error.code!r})") from None
        _print_result(finished, quiet, as_json)


def _resumed(folder: Path, args: list[str], overwrite: bool) -> tuple[RunFolder, Config]:
    """A run that goes on, and its configuration; `args` may only name again what it names of code."""
    from spinerl.runs import RunFolder

    if overwrite or not {one.partition("=")[0] for one in args} <= {*PLUGIN_KEYS, "model.trust_remote_code"}:
        raise InputError("--resume continues a run as it was configured: no recipe, key=value or --overwrite with it")
    run = RunFolder.open(folder)
    config, words = run.config, [parse_override(one) for one in args]
    for word, key in zip(words, (one.partition("=")[0] for one in args), strict=True):
        if layer_value(word, key) != value_of(config, key):
            raise InputError(f"--resume continues a run as it was configured: its {key} is {value_of(config, key)}")
    return run, named_by_file(config, run.path / "config.yaml", *words)


def _print_result(run: RunFolder, quiet: bool, as_json: bool) -> None:
    from spinerl.display import comparison_table, stream_lines
    from spinerl.report import read_run

    data = read_run(run.path)
    last = data.final_eval
    if last is None:
        raise RunError(f"{run.path / 'eval.jsonl'} was damaged while the run was under way")
    first = data.evals[0]
    if as_json:
        places = {"run": str(run.path), "report": str(run.path / "report.html")}
        guard = data.manifest.get("guard", {})
        say_event("end", **places, before=first, after=last, guard=guard, finished=data.manifest.get("finished"))
        return
    if quiet and data.guard:
        out.print(data.guard["text"])
    columns = (
        {"before": first} if first["step"] == last["step"] else {"before": first, f"after {last['step']} steps": last}
    )
    out.print(comparison_table(columns))
    for line in stream_lines(run.rows("stream.jsonl")):
        out.print(line)
    if data.manifest.get("uses_gold"):
        out.print("This run learned from gold answers: an upper bound, not an adaptation without labels.", style="bold")
    out.print(f"run: {run.path}   report: {run.path / 'report.html'}")


@app.command("compare")
def compare_command(
    args: RecipeAndOverrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start runs again whose settings changed")] = False,
    allow: AllowPlugins = False,
    dry: DryRun = False,
) -> None:
    """Run methods side by side, every one on every data set with every seed, and write one table and one page.

    Finished runs are kept and interrupted ones continue: give the same command again.  docs/compare.md has the keys.

    Examples: spinerl compare methods=ttrl,spine data=tiny/shift-a seeds=0,1,2 | spinerl compare
    configs/studies/ablation.yaml | spinerl compare configs/studies/methods.yaml jobs=1 out=runs/mine
    """
    if dry:
        from spinerl.comparison.dry_run import dry_compare

        dry_compare(args or [], out, overwrite, allow)
        return
    from spinerl.comparison import compare

    try:
        compare(args or [], out, overwrite, allow)
    except KeyboardInterrupt as error:
        error.add_note("the same command continues the comparison")
        raise


@app.command("select")
def select_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    json_file: Annotated[Path | None, typer.Option("--json", help="write the ranking here", metavar="FILE")] = None,
) -> None:
    """Rank finished runs without labels, the best first.

    Runs must be of the same model and questions.  Examples: spinerl select runs/a runs/b | spinerl select runs/sweep
    """
    from spinerl.display import ranking_table
    from spinerl.guard.select import rank_runs
    from spinerl.runs import write_json

    check_writable(json_file)
    ranked = rank_runs(runs)
    out.print(ranking_table(ranked))
    if json_file is not None:
        write_json(json_file, ranked)
