"""Figures of models and of saved texts: eval, score."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spinerl.cli.options import (
    JsonFile,
    LogFormat,
    Overrides,
    Quiet,
    Verbose,
    check_writable,
    errors_as_events,
    is_json,
    open_display,
    resolved,
)
from spinerl.cli.program import app, err, out
from spinerl.config import Config, load_config
from spinerl.errors import InputError
from spinerl.events import say_event

if TYPE_CHECKING:
    from spinerl.evaluation import Evaluation
    from spinerl.saved import SavedEvaluation


class _Shown(NamedTuple):
    """What `spinerl eval` prints: lines of JSON, or with `quiet` nothing but the result."""

    as_json: bool
    quiet: bool

    def say(self, line: str) -> None:
        if self.as_json:
            say_event("note", text=line)
        elif not self.quiet:
            err.print(line)


@app.command("eval")
def evaluate_command(
    first: Annotated[
        str | None, typer.Argument(metavar="MODEL|FILE", help="a model, or a file of saved predictions")
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="DATA|MODEL|FILE", help="questions; or what to compare with")
    ] = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="write a line per question here as they come, to score or compare later", metavar="FILE"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="go on with an evaluation that was writing --predictions FILE", metavar="FILE"),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", help="questions answered before they are written; 0: by their length", min=0)
    ] = 0,
    quiet: Quiet = False,
    log_format: LogFormat = "text",
    _verbose: Verbose = False,
) -> None:
    """Measure a model on questions, or compare two models, or two files of saved predictions, question by question.

    A model is a hub name, a folder, a run, a GGUF file, tiny-reasoner, tiny-vlm or smollm2-135m.

    Examples: spinerl eval tiny-reasoner tiny/shift-b | spinerl eval tiny-reasoner RUN data=tiny/shift-a |
    spinerl eval before.jsonl after.jsonl | spinerl eval --resume before.jsonl
    """
    from spinerl.runs import write_json

    check_writable(json_file, predictions)
    overrides = overrides or []
    shown = _Shown(is_json(log_format, quiet), quiet)
    with errors_as_events(shown.as_json):
        figures = _evaluated(first, second, overrides, predictions, resume, at_once, shown)
    if json_file is not None:
        write_json(json_file, figures)


def _evaluated(
    first: str | None,
    second: str | None,
    overrides: Sequence[str],
    predictions: Path | None,
    resume: Path | None,
    at_once: int,
    shown: _Shown,
) -> dict[str, Any]:
    """Evaluate as the arguments say, print the figures and return them."""
    if resume is not None:
        if first is not None or predictions is not None or at_once:
            raise InputError("--resume goes on with an evaluation as it was begun: no MODEL, DATA or key=value with it")
        figures = _evaluate_one(*_resumed_evaluation(resume, shown), shown)
    elif first is None or second is None:
        raise InputError("MODEL and DATA are needed (or two files of predictions), or --resume FILE; see --help")
    elif not _are_predictions(first, second) and not any(map(_data_name, overrides)):
        figures = _evaluate_one(*_begun(first, second, overrides, predictions, at_once), shown)
    else:
        if predictions is not None:
            raise InputError("--predictions belongs to one model on one data set: evaluate the two one by one")
        figures = _evaluate_two(first, second, overrides, shown)
    if shown.as_json:
        say_event("end", **figures)
    return figures


def _begun(
    model: str, data: str, overrides: Sequence[str], predictions: Path | None, at_once: int
) -> tuple[Config, SavedEvaluation | None]:
    """The configuration of an evaluation, and where it is written."""
    if predictions is None:
        if at_once:
            raise InputError(f"--at-once {at_once} says how often --predictions FILE is written: name one")
        return resolved({"model": model, "data": data, "method": "none"}, overrides), None
    from spinerl.saved import SavedEvaluation

    saved = SavedEvaluation.begin(predictions, at_once)
    return resolved({"model": model, "data": data, "method": "none"}, overrides), saved


def _resumed_evaluation(path: Path, shown: _Shown) -> tuple[Config, SavedEvaluation]:
    """The same of one that goes on."""
    from spinerl.saved import SavedEvaluation, unfinished_of

    saved = SavedEvaluation.resume(unfinished_of(path))
    assert saved.config is not None
    for line in (saved.dropped, f"going on: {saved.progress}"):
        if line:
            shown.say(line)
    return saved.config, saved


def _evaluate_one(config: Config, saved: SavedEvaluation | None, shown: _Shown) -> dict[str, Any]:
    """Evaluate, print the figures and return them."""
    from spinerl.display import comparison_table, subject_table
    from spinerl.runs import explain_failures
    from spinerl.scoring import by_subject

    try:
        with contextlib.nullcontext() if saved is None else explain_failures(saved.file, saved.command):
            evaluation = _evaluate(config, shown, saved)
            if saved is not None:
                saved.finish()
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if saved is not None and saved.progress:
            error.add_note(f"{saved.progress}; `{saved.command}` goes on")
        raise
    subjects = list(by_subject(evaluation.predictions, config.eval.confidence, config.seed))
    if not shown.as_json:
        out.print(comparison_table({config.model.name: evaluation.metrics}))
        if subjects:
            out.print(subject_table(subjects))
    figures = {"model": config.model.name, "data": config.data.name, **evaluation.metrics}
    if subjects:
        figures["subjects"] = {name: {"num_questions": n, **shares} for name, n, shares in subjects}
    return figures


def _evaluate_two(first: str, second: str, overrides: Sequence[str], shown: _Shown) -> dict[str, Any]:
    """Compare two models, or two files of predictions, print how they differ and return it."""
    from spinerl.answers import Equivalence
    from spinerl.display import comparison_table, difference_lines
    from spinerl.scoring import compare, judge, read_predictions

    if _are_predictions(first, second):
        config = load_config(overrides=overrides)
        with Equivalence() as equivalence:
            both = [
                [
                    judge(row, equivalence, config.answer, config.vote, config.seed)
                    for row in read_predictions(Path(f), config.data.gold_extract)
                ]
                for f in (first, second)
            ]
    else:
        data = next(name for one in reversed(overrides) if (name := _data_name(one)))
        rest = [one for one in overrides if _data_name(one) is None]
        configs = [resolved({"model": model, "data": data, "method": "none"}, rest) for model in (first, second)]
        config = configs[0]
        results = [_evaluate(one, shown) for one in configs]
        both = [evaluation.predictions for evaluation in results]
        if not shown.as_json:
            out.print(comparison_table({name: r.metrics for name, r in zip((first, second), results, strict=True)}))
    differences = compare(both[0], both[1], config.eval.confidence, config.seed)
    for line in difference_lines(first, second, differences) if not shown.as_json else ():
        out.print(line)
    return {"a": first, "b": second, "paired": {name: asdict(d) for name, d in differences.items()}}


def _evaluate(config: Config, shown: _Shown, saved: SavedEvaluation | None = None) -> Evaluation:
    from spinerl.evaluation import evaluate_model

    with open_display(err, shown.as_json, shown.quiet) as display:
        return evaluate_model(config, display, record=saved)


def _data_name(override: str) -> str | None:
    """The data set that a `data=NAME` override names, else None."""
    key, _, name = override.partition("=")
    return name if key in ("data", "data.name") else None


def _are_predictions(*names: str) -> bool:
    return all(os.path.isfile(name) and _holds_predictions(Path(name)) for name in names)


def _holds_predictions(file: Path) -> bool:
    """Whether a file's first line is a prediction row: a file of questions has no responses."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next(lines, "")
    return '"responses"' in first or '"greedy"' in first


@app.command()
def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL rows {id, responses: [text, ...], gold?, kind?}")],
    overrides: Overrides = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write a row per line of FILE (.jsonl: as lines)", metavar="OUT")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="say for each response which rule read what, and what was refused")
    ] = False,
) -> None:
    """Read answers from saved texts, vote, and compare with gold where there is some; no model is needed."""
    from spinerl.answers import Equivalence
    from spinerl.display import comparison_table
    from spinerl.runs import write_json, write_rows
    from spinerl.scoring import (
        explain_row,
        judge,
        over_limit_line,
        read_predictions,
        score_row,
        summarise,
        why_no_accuracy,
    )

    check_writable(json_file)
    config = load_config(overrides=overrides or [])
    rows = [row for row in read_predictions(file, config.data.gold_extract) if "responses" in row]
    if not rows:
        raise InputError(f"{file}: no row has responses to score")
    with Equivalence() as equivalence:
        judged = [judge(row, equivalence, config.answer, config.vote, config.seed) for row in rows]
    known = sum(row["correct"] is not None for row in judged)
    figures = {"num_questions": len(judged), "num_gold": known, **summarise(judged, config.eval.confidence)}
    out.print(comparison_table({file.name: figures}))
    notes = [over_limit_line(equivalence.stats["num_over_limit"]), *why_no_accuracy(judged, config.answer)]
    for line in filter(None, notes):
        out.print(line)
    scored = [score_row(row) for row in judged]
    for row, shown in zip(judged, scored, strict=True) if explain else ():
        shown["readings"] = explain_row(row, config.answer)
        for number, line in enumerate(shown["readings"], 1):
            out.print(f"{row['id']} response {number}: {line}")
    if json_file is not None and json_file.suffix == ".jsonl":
        write_rows(json_file, scored)
    elif json_file is not None:
        write_json(json_file, scored)
