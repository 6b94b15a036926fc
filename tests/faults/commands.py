"""Commands in this process, and what they print."""

from __future__ import annotations

from tests.commands import exit_code

SMALL = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=2", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "eval.samples=0", "guard=off",
]  # fmt: skip
"""A run of two steps that takes seconds."""


def run_command(arguments, capsys) -> tuple[int, str]:
    """(exit code, what was printed) of a command in this process."""
    code = exit_code(arguments)
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


def run_lines(arguments, capsys) -> tuple[int, list[str]]:
    """(exit code, the lines of standard error) of a command in this process."""
    code = exit_code(arguments)
    return code, [line for line in capsys.readouterr().err.splitlines() if line.strip()]
