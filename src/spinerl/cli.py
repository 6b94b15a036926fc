"""The commands.  Thin: they parse arguments, call the package, print.  `spinerl.exits` has the exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from spinerl import __version__
from spinerl.config import (
    PLUGIN_KEYS,
    Config,
    allow_plugins,
    dump_yaml,
    layer_value,
    load_config,
    named_by_file,
    override,
    parse_override,
    value_of,
)
from spinerl.errors import InputError, RunError, SpinerlError
from spinerl.events import JsonLines, say_event
from spinerl.exits import as_ended, quiet_output, signals_raised, tolerant_output
from spinerl.lines import one_line, visible
from spinerl.recipes import split_args
from spinerl.terminal import PlainConsole, SafeFormatter
from spinerl.usage import as_parsed, as_refused, command_order, show_plainly

if TYPE_CHECKING:
    from rich.console import Console

    from spinerl.display import Display
    from spinerl.evaluation import Evaluation
    from spinerl.runs import RunFolder
    from spinerl.saved import SavedEvaluation

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """The commands, none of which ends in a traceback for what is no fault of the program."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        show_plainly(self)

    def list_commands(self, ctx: Any) -> list[str]:
        return command_order(super().list_commands(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _ended_in_a_line(ctx):
            return super().parse_args(ctx, as_parsed(args))

    def invoke(self, ctx: Any) -> Any:
        with _ended_in_a_line(ctx):
            found = super().invoke(ctx)
            sys.stdout.flush()
        return found


@contextlib.contextmanager
def _ended_in_a_line(ctx: Any) -> Iterator[None]:
    """Inside, errors that are not the program's become its own.

    Here, not in `main`: typer has ends of its own for some of these, in which nothing is said, or many lines.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        ended = None if isinstance(error, SpinerlError) else as_refused(error, ctx) or as_ended(error)
        if ended is None:
            raise
        raise ended from None


app = typer.Typer(
    name="spinerl",
    cls=_Commands,
    help="Label-free test-time reinforcement learning for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = PlainConsole()
err = PlainConsole(stderr=True)
_LONGEST_LINE = 4000  # characters of an error

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
    as_json = _is_json(log_format, quiet)
    with _errors_as_events(as_json):
        if dry and resume is not None:
            raise InputError("--dry-run looks at a run that has not begun; `spinerl report RUN` shows one that has")
        run, config = (None, _config(args)) if resume is None else _resumed(resume, args or [], overwrite)
        config = allow_plugins(config, allow)
        if dry:
            from spinerl.dry_run import show_dry_run

            show_dry_run(config, args or [], out, overwrite)
            return
        from spinerl.train import adapt as run_adapt  # seconds of imports, which a misspelt key need not wait for

        try:
            with _observer(out, as_json, quiet, config, run) as display:
                finished = run_adapt(config, display, resume=run, overwrite=overwrite, other_numerics=other_numerics)
        except SystemExit as error:  # a library's, or the model's own code: no model was written
            raise RunError(f"the run was ended from inside: something in it called exit({error.code!r})") from None
        _print_result(finished, quiet, as_json)


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

    _check_writable(json_file, predictions)
    overrides = overrides or []
    shown = _Shown(_is_json(log_format, quiet), quiet)
    with _errors_as_events(shown.as_json):
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
        return _resolved({"model": model, "data": data, "method": "none"}, overrides), None
    from spinerl.saved import SavedEvaluation

    saved = SavedEvaluation.begin(predictions, at_once)
    return _resolved({"model": model, "data": data, "method": "none"}, overrides), saved


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
        configs = [_resolved({"model": model, "data": data, "method": "none"}, rest) for model in (first, second)]
        config = configs[0]
        results = [_evaluate(one, shown) for one in configs]
        both = [evaluation.predictions for evaluation in results]
        if not shown.as_json:
            out.print(comparison_table({name: r.metrics for name, r in zip((first, second), results, strict=True)}))
    differences = compare(both[0], both[1], config.eval.confidence, config.seed)
    for line in difference_lines(first, second, differences) if not shown.as_json else ():
        out.print(line)
    return {"a": first, "b": second, "paired": {name: asdict(d) for name, d in differences.items()}}


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

    _check_writable(json_file)
    with Display(err) as display:
        expected, figures = preflight(load_config({"model": model, "data": data}, overrides or []), display)
    out.print(preflight_table(figures))
    colour = {"go": "green", "caution": "yellow", "no-go": "red"}[expected.verdict]
    out.print(Text(expected.verdict, style=f"bold {colour}"), f": {expected.reason}", sep="")
    if json_file is not None:
        write_json(json_file, figures)


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

    _check_writable(json_file)
    ranked = rank_runs(runs)
    out.print(ranking_table(ranked))
    if json_file is not None:
        write_json(json_file, ranked)


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

    _check_writable(json_file)
    if seconds:
        err.print(f"measuring for about {seconds:.0f} s ...")
    plan = open_plan(allow_plugins(_config(args), allow), seconds)
    out.print(plan_table(plan))
    if plan.memory is not None:
        out.print(memory_table(plan.memory))
    for line in plan.lines():
        out.print(line)
    if json_file is not None:
        write_json(json_file, plan.figures())


@app.command()
def merge(
    model: Annotated[
        str, typer.Argument(metavar="RUN|FOLDER|FILE", help="a run that learned adapters, their folder, or a GGUF file")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="write the whole model here", metavar="FOLDER")],
) -> None:
    """Write a plain Hugging Face folder: of adapters (lora.rank) added into their model's weights, or of a GGUF file.

    Examples: spinerl merge runs/mine --out mine-merged | spinerl merge model.gguf --out model
    """
    from spinerl.cards import merged_card, write_card
    from spinerl.models.adapters import base_of, learned_nothing
    from spinerl.models.loading import load_model, resolve_name, save_model

    if out_folder.exists() and any(out_folder.iterdir()):
        raise InputError(f"--out {out_folder} is not empty; name a new folder")
    base = base_of(resolve_name(model))
    if base is None and not Path(resolve_name(model)).is_file():
        raise InputError(f"{model} holds no adapters: its model is whole already, in {resolve_name(model)}")
    loaded = load_model(load_config(overrides=[override("model", model), "model.device=cpu"]).model)
    card = merged_card(model, base, loaded)
    out_folder.mkdir(parents=True, exist_ok=True)
    save_model(loaded, out_folder)
    write_card(out_folder, card)
    if base is not None and learned_nothing(resolve_name(model)):
        out.print(f"these adapters learned nothing (all 0): the merged model is {base} as it was")
    out.print(f"{'model' if base is None else 'merged model'}: {out_folder}")


@app.command("push")
def push_command(
    source: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="a finished run, or the folder of a model")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="only for its owner's eyes")] = False,
    revision: Annotated[str | None, typer.Option(help="a branch, made if it is not there", metavar="NAME")] = None,
    message: Annotated[str | None, typer.Option(help="of the commit", metavar="TEXT")] = None,
    with_report: Annotated[bool, typer.Option("--with-report", help="the run's report and configuration, too")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be uploaded, and ask no one")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="upload without asking")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub, after showing what goes where and asking.

    Weights, settings, tokenizer and card are uploaded; no optimizer states, checkpoints or data.  docs/hub.md has more.

    Examples: spinerl push runs/mine me/mine --private | spinerl push mine-merged me/merged --dry-run
    """
    from spinerl.push import find_destination, format_size, plan_upload, push

    upload = plan_upload(source, with_report)
    table = Table("file", "size", show_edge=False, pad_edge=False)
    for file in upload.files:
        table.add_row(file.name, format_size(file.size))
    out.print(table)
    if upload.left_out:
        out.print(f"not uploaded: {', '.join(upload.left_out)}")
    for note in upload.notes:
        out.print(f"note: {note}")
    what = f"{len(upload.files)} files, {format_size(upload.size)}"
    if dry_run:
        out.print(f"{what}; nothing was uploaded (--dry-run)")
        return
    to = find_destination(repo, private)
    who = "private" if to.private else "public: everyone can read it"
    where = f"{to.address}, {'which is there already' if to.exists else 'a new repository'}, {who}"
    out.print(f"{what} to {where}")
    if not yes and sys.stdin.isatty():
        answer = ""
        with contextlib.suppress(EOFError):
            answer = out.input("upload? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise InputError("nothing was uploaded")
    elif not yes and not to.private:
        raise InputError(
            f"{to.repo} is public, and there is no terminal to ask on: confirm with --yes, or use --private"
        )
    out.print(f"uploaded: {push(upload, to, revision, message, bars=err.is_terminal)}")


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

    _check_writable(json_file)
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

    config = _resolved({"data": name}, overrides or [])
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

    config = _resolved({"data": name}, overrides or [])
    found = check(config, load_tokenizer(config.model), load_processor(config.model))
    summary, *findings = found.lines()
    for line in (summary, f"read as {found.reading}", *findings):
        out.print(line)
    if not found.ok:
        raise typer.Exit(1)


export_app = typer.Typer(
    help="Write a recipe as a job of another trainer's, or a model as a file.", no_args_is_help=True
)
app.add_typer(export_app, name="export")


@export_app.command("verl")
def export_verl(
    out_folder: Annotated[Path, typer.Option("--out", help="write the job here", metavar="FOLDER")],
    args: RecipeAndOverrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the export if there is one")] = False,
    allow: AllowPlugins = False,
) -> None:
    """Write what verl needs to run a recipe on a Ray cluster: questions, settings, command.  docs/scaling.md has more.

    Gold answers are not written.  verl need not be installed here.

    Examples: spinerl export verl model=Qwen/Qwen3-1.7B data=math-500 --out jobs/qwen | spinerl export verl
    method=ttrl --out job
    """
    from spinerl.bridges.verl_export import export

    exported = export(allow_plugins(_config(args), allow), out_folder, overwrite=overwrite)
    for note in exported.notes:
        out.print(note)
    out.print(" ".join(map(shlex.quote, exported.command)))
    out.print(f"wrote {exported.folder}: {exported.num_questions} questions, recipe.yaml, run.sh")
    out.print("Nothing has been run: the job needs verl 0.9 with vLLM, and GPUs on every node.")
    out.print(f"start: GPUS=8 NODES=1 sh {exported.folder / 'run.sh'}")


@export_app.command("gguf")
def export_gguf_command(
    model: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="a run, the folder of a model, or a model's name")],
    out_file: Annotated[Path, typer.Option("--out", help="write the file here", metavar="FILE")],
    kind: Annotated[
        str | None, typer.Option("--type", help="f32, f16, bf16 or q8_0; default: as the weights are", metavar="TYPE")
    ] = None,
) -> None:
    """Write a model as a GGUF file for llama.cpp, adapters added in; only models that come back the same are written.

    Examples: spinerl export gguf runs/mine --out mine.gguf | spinerl export gguf FOLDER --out small.gguf --type q8_0
    """
    from spinerl.cards import base_license, shown_name
    from spinerl.models.gguf_writer import export_gguf, kind_of_weights
    from spinerl.models.loading import load_model, stored_dtype
    from spinerl.push import format_size

    _check_writable(out_file)
    config = load_config(overrides=[override("model", model), "model.device=cpu"]).model
    dtype = stored_dtype(config)
    loaded = load_model(config.model_copy(update={"dtype": "bfloat16" if dtype == "bfloat16" else "float32"}))
    written = export_gguf(loaded, out_file, kind or kind_of_weights(dtype), shown_name(model), base_license(config))
    for note in written.notes:
        out.print(f"note: {note}")
    out.print(f"{out_file}: {written.kind}, {format_size(written.size)}")


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
    config = _config(args)
    if sources:
        from spinerl.sources import list_sources, source_lines

        recipe, overrides = split_args(args)
        sys.stdout.write(visible("\n".join(source_lines(list_sources(config, recipe, overrides)))) + "\n")
        return
    sys.stdout.write(dump_yaml(config))


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

    _check_writable(json_file)
    bench(overrides or [], json_file, out, err)


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


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    install: Annotated[
        str | None,
        typer.Option("--install-completion", help="let bash, zsh or fish complete commands and keys", metavar="SHELL"),
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show-completion", help="print the script that does so", metavar="SHELL")
    ] = None,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit()
    if install is not None or show is not None:
        from spinerl import completion

        if show is not None:
            sys.stdout.write(completion.script(show or completion.this_shell()))
        else:
            for line in completion.install(install or completion.this_shell()):
                out.print(line)
        raise typer.Exit()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: every error of ours is one line on standard error."""
    tolerant_output()
    if arguments is None and "_SPINERL_COMPLETE" in os.environ:  # a shell asks what may follow (`spinerl.completion`)
        _complete(os.environ["_SPINERL_COMPLETE"], sys.argv[1:])
        return
    try:
        if arguments is None:  # this process is ours: Pythons that libraries start import nothing of the working folder
            os.environ["PYTHONSAFEPATH"] = "1"
            os.environ.pop("OMP_DYNAMIC", None)  # as many threads as a run has, on a busy machine too
        _check_working_folder()
        with signals_raised():
            app(args=None if arguments is None else list(arguments))
    except (SpinerlError, KeyboardInterrupt) as error:
        ended = error if isinstance(error, SpinerlError) else as_ended(error)
        assert ended is not None
        if str(ended):
            with contextlib.suppress(BrokenPipeError):
                err.print(f"spinerl: {_one_line(ended)}", style="red")
        if ended.exit_code == 141:
            quiet_output()
        raise SystemExit(ended.exit_code) from None


def _complete(shell: str, arguments: Sequence[str]) -> None:
    """Answer a shell.  It shows no errors: where one is raised, there is nothing to complete."""
    from spinerl.completion import answer

    try:
        for line in answer(typer.main.get_command(app), shell, arguments):
            sys.stdout.write(f"{line}\n")
    except Exception:
        if os.environ.get("SPINERL_STRICT"):
            raise


def _one_line(error: SpinerlError) -> str:
    """An error's words without what a terminal would take for more than words."""
    text = one_line(str(error))
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the working folder is gone ({error.strerror}); change to another") from None


class _Shown(NamedTuple):
    """What `spinerl eval` prints: lines of JSON, or with `quiet` nothing but the result."""

    as_json: bool
    quiet: bool

    def say(self, line: str) -> None:
        if self.as_json:
            say_event("note", text=line)
        elif not self.quiet:
            err.print(line)


def _is_json(log_format: str, quiet: bool) -> bool:
    if quiet and log_format == "json":
        raise InputError("--quiet and --log-format json exclude each other: one prints little, the other everything")
    return log_format == "json"


@contextlib.contextmanager
def _errors_as_events(as_json: bool) -> Iterator[None]:
    """Of lines of JSON the last one says what ended the command, as the line on standard error does."""
    try:
        yield
    except (SpinerlError, KeyboardInterrupt, OSError, MemoryError) as error:
        ended = error if isinstance(error, SpinerlError) else as_ended(error)
        if as_json and ended is not None and ended.exit_code != 141:
            say_event("error", text=one_line(str(ended)), exit_code=ended.exit_code)
        raise


def _observer(
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


def _evaluate(config: Config, shown: _Shown, saved: SavedEvaluation | None = None) -> Evaluation:
    from spinerl.evaluation import evaluate_model

    with _observer(err, shown.as_json, shown.quiet) as display:
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


def _check_writable(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise InputError(f"{file} cannot be written: its folder does not exist")


def _config(args: list[str] | None) -> Config:
    """The configuration of `[RECIPE] [KEY=VALUE]...`."""
    return _resolved(*split_args(args))


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


def _resolved(recipe: Mapping[str, Any] | str | None, overrides: Sequence[str]) -> Config:
    """The configuration with what the data set brings (split, columns, instruction) written out."""
    from spinerl.data import resolve

    return resolve(load_config(recipe, overrides))


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


if __name__ == "__main__":
    main()
