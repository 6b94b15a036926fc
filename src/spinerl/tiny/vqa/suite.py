"""Question suites for `tiny-vlm`: `python -m spinerl.tiny.vqa.suite --shift a --seed 1 --n 256`.

Prints new questions as JSON lines with `id`, `question`, `images`, `choices` (where options are offered) and
`answer`. No question of a suite shares picture content and question with any document of the pre-training
corpus (see `spinerl.tiny.corpus.is_held_out`).

The suites in the package are listed in BUNDLED; `--write FOLDER` writes them again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from spinerl.tiny import suite as text_suite
from spinerl.tiny.vqa.corpus import COMMON, Kind, Problem, draw_problem, tell
from spinerl.tiny.vqa.pictures import Look, Picture, draw


@dataclass(frozen=True)
class PictureQuestion:
    """One question of a suite; `answer` is a number, a word or, with `choices`, a letter."""

    id: str
    question: str
    picture: Picture
    choices: tuple[str, ...]
    answer: str

    def asked(self) -> dict[str, Any]:
        """The row without its answer, as it is stored."""
        choices = {"choices": list(self.choices)} if self.choices else {}
        return {"id": self.id, "question": self.question, "images": [self.picture.data_url()], **choices}


SHIFTS: dict[str, Kind] = {
    "in-domain": COMMON,
    "dev": Kind(
        things=(4, 7),
        small_frac=0.2,
        bars=(2, 3),
        from_right_frac=0.35,
        look=Look(
            hue_off=12,
            saturation=(0.6, 1.0),
            brightness=(0.6, 1.0),
            background=(0.7, 1.0),
            tint=0.15,
            speckles=(0.01, 0.04),
            sizes=(10, 14),
            off_centre=2,
        ),
    ),
    "a": Kind(
        things=(4, 8),
        small_frac=0.4,
        from_right_frac=0.6,
        look=Look(
            hue_off=16,
            saturation=(0.5, 0.85),
            brightness=(0.5, 0.85),
            background=(0.55, 0.85),
            tint=0.2,
            speckles=(0.02, 0.06),
        ),
    ),
    "b": Kind(
        things=(6, 9),
        small_frac=0.2,
        bars=(3, 3),
        from_right_frac=0.5,
        look=Look(sizes=(9, 15), small_sizes=(5, 7), off_centre=3),
    ),
}
"""What each shift asks for, by its short name."""

BUNDLED: dict[str, tuple[str, int, int]] = {
    "in-domain": ("in-domain", 0, 256),
    "shift-dev": ("dev", 0, 256),
    "shift-a": ("a", 0, 256),
    "shift-b": ("b", 0, 256),
    # Fresh questions of the same kinds, to see whether what was learnt on a suite holds beyond its questions.
    "shift-dev-unseen": ("dev", 1, 128),
    "shift-a-unseen": ("a", 1, 128),
    "shift-b-unseen": ("b", 1, 128),
}
"""Shift, seed and number of questions of each suite in the package; no two share a problem (tests/tiny)."""


def suite_problems(shift: str, seed: int, n: int) -> list[tuple[PictureQuestion, Problem]]:
    """n questions of a shift with the problems behind them, no two alike in picture content and question.

    Nor is one like a question of the bundled suites listed before this one (of all of them, for other seeds): there
    are few charts of two bars, so the split from the corpus does not by itself keep suites apart.

    Raises ValueError, with one line to show, for an unknown shift or an n outside 1..MAX_QUESTIONS.
    """
    kind = text_suite.checked_kind(SHIFTS, shift, n)
    rng = Random(f"vqa/{shift}/{seed}")
    rows: list[tuple[PictureQuestion, Problem]] = []
    keys = set(_taken_before(shift, seed))
    while len(rows) < n:
        problem = draw_problem(rng, kind, held_out=True)
        if problem.key in keys:
            continue
        keys.add(problem.key)
        picture = draw(rng, problem.content, kind.look)
        name = f"vqa-{shift}-{seed}-{len(rows):05d}"
        rows.append((PictureQuestion(name, tell(rng, problem), picture, problem.choices, problem.answer), problem))
    return rows


@functools.cache
def _taken_before(shift: str, seed: int) -> frozenset[str]:
    """The keys of all problems in the bundled suites before the one of this shift and seed."""
    taken: frozenset[str] = frozenset()
    for bundled, bundled_seed, n in BUNDLED.values():
        if (bundled, bundled_seed) == (shift, seed):
            break
        taken |= {problem.key for _, problem in suite_problems(bundled, bundled_seed, n)}
    return taken


def suite_rows(shift: str, seed: int, n: int) -> list[PictureQuestion]:
    """The questions of `suite_problems`, without the problems."""
    return [row for row, _ in suite_problems(shift, seed, n)]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a suite; returns the exit code (2 after one line on stderr for a bad argument)."""
    return text_suite.command("spinerl.tiny.vqa.suite", __doc__, SHIFTS, BUNDLED, suite_rows, argv)


if __name__ == "__main__":
    sys.exit(main())
