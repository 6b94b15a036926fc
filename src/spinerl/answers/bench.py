"""How many answers a second are extracted and sorted into classes: `python -m spinerl.answers.bench`."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from spinerl.answers.equivalence import Equivalence
from spinerl.answers.extract import extract_answer
from spinerl.answers.votes import vote

__all__ = ["main", "make_group"]

# Answers in several spellings.  The last rows are beyond the fast reader, so math-verify has to compare them.
_EASY = [
    ("{a}", "{a}.0", "x = {a}"),
    ("\\frac{{{a}}}{{7}}", "\\dfrac{{{a}}}{{7}}", "{a}/7"),
    ("{a}\\sqrt{{{b}}}", "{a} \\sqrt{{{b}}}", "\\sqrt{{{b}}}\\cdot {a}"),
    ("\\left( {a}, \\frac{{\\pi}}{{{b}}} \\right)", "({a}, \\pi/{b})"),
    ("[{a}, {a}{b})", "[{a},{a}{b})"),
    ("{a}x^2 - {b}", "-{b}+{a}x^2"),
    ("\\begin{{pmatrix}} {a} \\\\ {b} \\end{{pmatrix}}", "\\begin{{bmatrix}} {a} \\\\ {b} \\end{{bmatrix}}"),
    ("{a}^\\circ", "{a}"),
]
_HARD = [
    ("x < {a}", "(-\\infty, {a})"),
    ("\\int_0^{{{a}}} x\\,dx", "\\frac{{{a}^2}}{{2}}"),
]


def make_group(rng: random.Random, num_responses: int, hard_frac: float) -> list[str]:
    """Responses to one question: 3 to 5 answers in several spellings, a skewed vote, and the usual sentence before the
    box."""
    answers: list[tuple[str, ...]] = []
    for _ in range(rng.randint(3, 5)):
        forms = rng.choice(_HARD if rng.random() < hard_frac else _EASY)
        a, b = rng.randint(2, 999), rng.choice([2, 3, 5, 6, 7])
        answers.append(tuple(form.format(a=a, b=b) for form in forms))
    weights = [2.0**-i for i in range(len(answers))]
    responses = []
    for _ in range(num_responses):
        form = rng.choice(rng.choices(answers, weights)[0])
        responses.append("Let us think step by step. " * 40 + f"So the final answer is \\boxed{{{form}}}.")
    return responses


def main(argv: Sequence[str] | None = None) -> int:
    """Prints answers per second for extraction only and for the whole path; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m spinerl.answers.bench", description=__doc__)
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--hard-frac", type=float, default=0.02, help="share of answers only math-verify compares")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    groups = [make_group(rng, options.responses, options.hard_frac) for _ in range(options.groups)]
    total = options.groups * options.responses
    start = time.perf_counter()
    for _ in range(20000):
        extract_answer(groups[0][0], "math")
    print(f"extract_answer, boxed: {(time.perf_counter() - start) / 20000 * 1e6:.1f} microseconds")
    with Equivalence() as equivalence:
        equivalence.equivalent("x \\ne 1", "x \\ne 2")  # starts a worker
        start = time.perf_counter()
        num_classes = 0
        for group in groups:
            answers = [extract_answer(text, "math") for text in group]
            num_classes += len(vote(answers, equivalence.classes(answers, "math")).counts)
        took = time.perf_counter() - start
        mean = num_classes / max(1, options.groups)
        print(f"{total} answers, {mean:.1f} classes a group: {total / took:.0f} answers/s")
        print(f"stats: {equivalence.stats}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
