"""The program: its entry point, and how a command ends.  `spinerl.exits` has the exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spinerl import __version__
from spinerl.errors import InputError, SpinerlError
from spinerl.exits import as_ended, quiet_output, signals_raised, tolerant_output
from spinerl.lines import one_line
from spinerl.terminal import PlainConsole
from spinerl.usage import as_parsed, as_refused, command_order, show_plainly

__all__ = ["app", "err", "main", "out"]

_LONGEST_LINE = 4000  # characters of an error


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
