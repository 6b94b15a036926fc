"""Commands in this process, as a user gives them."""

from __future__ import annotations

from spinerl.cli import main

SMALL = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=2", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "eval.samples=0", "guard=off",
]  # fmt: skip
"""A run of two steps that takes seconds."""


def run_command(arguments, capsys) -> tuple[int, str]:
    """(exit code, what was printed) of a command in this process; a traceback would be an exception here."""
    code = 0
    try:
        main([str(one) for one in arguments])
    except SystemExit as exit_:
        code = exit_.code or 0
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


def run_lines(arguments, capsys) -> tuple[int, list[str]]:
    """(exit code, the lines of standard error) of a command in this process."""
    code = 0
    try:
        main([str(one) for one in arguments])
    except SystemExit as exit_:
        code = exit_.code or 0
    return code, [line for line in capsys.readouterr().err.splitlines() if line.strip()]
