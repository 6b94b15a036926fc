"""Question suites for `tiny-reasoner`: `python -m spinerl.tiny.suite --shift a --seed 1 --n 256`.

Prints new questions as JSON lines with `id`, `question` and `answer`. No question of a suite shares its
numbers with any document of the pre-training corpus (see `corpus.is_held_out`).

The suites in the package are listed in BUNDLED; `--write FOLDER` writes them again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeVar

from spinerl.tiny.corpus import COMMON, Kind, Problem, draw_problem, tell

MAX_QUESTIONS = 20_000
"""The most questions one seed gives: every shift holds far more distinct problems than this."""


@dataclass(frozen=True)
class SuiteQuestion:
    """One question of a suite; `answer` is an integer as a string."""

    id: str
    question: str
    answer: str

    def asked(self) -> dict[str, Any]:
        """The row without its answer, as it is stored."""
        return {"id": self.id, "question": self.question}


SHIFTS: dict[str, Kind] = {
    "in-domain": COMMON,
    "dev": Kind(changes=(3, 4), smallest=10, largest=60, packs_frac=0.15),
    "a": Kind(changes=(4,), smallest=2, largest=50, packs_frac=0.22),
    "b": Kind(changes=(2, 3), smallest=100, largest=200),
    "hard": Kind(changes=(5, 6), smallest=35, largest=140),
}
"""What each shift asks for, by its short name."""

BUNDLED: dict[str, tuple[str, int, int]] = {
    "in-domain": ("in-domain", 0, 256),
    "shift-dev": ("dev", 0, 256),
    "shift-a": ("a", 0, 256),
    "shift-b": ("b", 0, 256),
    "shift-hard": ("hard", 0, 256),
    # Fresh questions of the same kinds, to see whether what was learnt on a suite holds beyond its questions.
    "shift-dev-unseen": ("dev", 1, 128),
    "shift-a-unseen": ("a", 1, 128),
    "shift-b-unseen": ("b", 1, 128),
}
"""Shift, seed and number of questions of each suite in the package; no two share a problem (tests/tiny)."""


def suite_problems(shift: str, seed: int, n: int) -> list[tuple[SuiteQuestion, Problem]]:
    """n questions of a shift with the problems behind them, no two with the same numbers.

    Raises ValueError, with one line to show, for an unknown shift or an n outside 1..MAX_QUESTIONS.
    """
    kind = checked_kind(SHIFTS, shift, n)
    rng = Random(f"{shift}/{seed}")
    rows: list[tuple[SuiteQuestion, Problem]] = []
    keys: set[str] = set()
    while len(rows) < n:
        problem = draw_problem(rng, kind, held_out=True)
        if problem.key in keys:
            continue
        keys.add(problem.key)
        row = SuiteQuestion(f"{shift}-{seed}-{len(rows):05d}", tell(rng, problem), str(problem.answer))
        rows.append((row, problem))
    return rows


def suite_rows(shift: str, seed: int, n: int) -> list[SuiteQuestion]:
    """The questions of `suite_problems`, without the problems."""
    return [row for row, _ in suite_problems(shift, seed, n)]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a suite; returns the exit code (2 after one line on stderr for a bad argument)."""
    return command("spinerl.tiny.suite", __doc__, SHIFTS, BUNDLED, suite_rows, argv)


# ------------------------------------------------------------------ shared with the suites of pictures
class SuiteRow(Protocol):
    """A question of either model's suites."""

    @property
    def id(self) -> str: ...

    @property
    def answer(self) -> str: ...

    def asked(self) -> dict[str, Any]: ...


AnyKind = TypeVar("AnyKind")
Rows = Callable[[str, int, int], Sequence[SuiteRow]]


def checked_kind(shifts: Mapping[str, AnyKind], shift: str, n: int) -> AnyKind:
    """What the shift asks for; ValueError, with one line to show, for an unknown shift or a bad n."""
    if shift not in shifts:
        raise ValueError(f"unknown shift {shift!r}: choose one of {', '.join(shifts)}")
    if not 1 <= n <= MAX_QUESTIONS:
        raise ValueError(f"n is {n}: it must lie between 1 and {MAX_QUESTIONS}")
    return shifts[shift]


def write_bundled(folder: Path, bundled: Mapping[str, tuple[str, int, int]], rows_of: Rows) -> None:
    """Writes the bundled suites: NAME.jsonl with the questions, NAME.gold.jsonl with the answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shift, seed, n) in bundled.items():
        rows = rows_of(shift, seed, n)
        questions = [json.dumps(row.asked()) for row in rows]
        gold = [json.dumps({"id": row.id, "answer": row.answer}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(questions) + "\n", encoding="utf-8")
        (folder / f"{name}.gold.jsonl").write_text("\n".join(gold) + "\n", encoding="utf-8")


def command(
    name: str,
    about: str | None,
    shifts: Mapping[str, Any],
    bundled: Mapping[str, tuple[str, int, int]],
    rows_of: Rows,
    argv: Sequence[str] | None,
) -> int:
    """Prints or writes suites from the command line; returns the exit code."""
    parser = _Parser(prog=f"python -m {name}", description=(about or "").split("\n\n")[1])
    parser.add_argument("--shift", default="in-domain", help=f"one of {', '.join(shifts)}")
    parser.add_argument("--seed", type=int, default=0, help="any integer; another seed gives other questions")
    parser.add_argument("--n", type=int, default=256, help=f"how many questions, 1 to {MAX_QUESTIONS}")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the bundled suites there instead")
    args = parser.parse_args(argv)
    if args.write:
        write_bundled(args.write, bundled, rows_of)
        return 0
    try:
        rows = rows_of(args.shift, args.seed, args.n)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in rows:
        print(json.dumps({**row.asked(), "answer": row.answer}))
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports a bad argument in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"error: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
