"""What is shown of runs and of this program's speed: report, watch, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spinerl.cli.options import JsonFile, Overrides, check_writable
from spinerl.cli.program import app, err, out


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders")],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="default: RUN/report.html, or report.html for several", metavar="FILE"),
    ] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several side by side.

    Damaged lines and files are left out and named, on the page too; the exit code is then 1.
    """
    from spinerl.report import write_report

    target = out_file or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    damage: list[str] = []
    written = write_report(runs, target, damage.append)
    for line in damage:
        err.print(f"damaged: {line}", style="red")
    out.print(f"report: {written}")
    if damage:
        raise typer.Exit(1)


@app.command("watch")
def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="a run, a comparison, or a folder of runs")],
    port: Annotated[int, typer.Option("--port", help="0: any that is free", min=0, max=65535)] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
) -> None:
    """Show a run in progress: its report in a browser on this machine, which refreshes itself.  Ctrl-C ends it.

    Examples: spinerl watch runs/mine --open | spinerl watch runs/compare-ttrl-spine --port 8100
    """
    from spinerl.watch import watch

    watch(folder, port, open_browser, out.print)


@app.command("bench")
def bench_command(
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure speed and memory: a step against TRL, the rollout against generate, the update against a dense one.

    Takes some minutes.  docs/benchmarks.md lists the keys and what each figure means.

    Examples: spinerl bench | spinerl bench parts=update,sharing repeats=3 | spinerl bench parts=scaling
    """
    from spinerl.bench.command import bench

    check_writable(json_file)
    bench(overrides or [], json_file, out, err)
