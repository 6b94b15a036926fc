"""Models and recipes as files: merge, export, push."""

from __future__ import annotations

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from spinerl.cli.options import AllowPlugins, RecipeAndOverrides, check_writable, config_of
from spinerl.cli.program import app, err, out
from spinerl.config import allow_plugins, load_config, override
from spinerl.errors import InputError


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

    exported = export(allow_plugins(config_of(args), allow), out_folder, overwrite=overwrite)
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

    check_writable(out_file)
    config = load_config(overrides=[override("model", model), "model.device=cpu"]).model
    dtype = stored_dtype(config)
    loaded = load_model(config.model_copy(update={"dtype": "bfloat16" if dtype == "bfloat16" else "float32"}))
    written = export_gguf(loaded, out_file, kind or kind_of_weights(dtype), shown_name(model), base_license(config))
    for note in written.notes:
        out.print(f"note: {note}")
    out.print(f"{out_file}: {written.kind}, {format_size(written.size)}")


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
