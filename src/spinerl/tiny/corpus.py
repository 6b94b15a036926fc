"""The made-up world of `tiny-reasoner`: word problems, and how people solve them.

A problem is a short sum told as a story. A solution is a chain of thought in one of two styles:

* *careful*: one operation at a time, a hard one written place by place ("46+37: 76, 83.");
* *careless*: only the running totals ("46, 83, 74.") or only the result, and packs are mostly misread
  ("3 bags of 4" taken as 4, as 7 or as 3).

Both styles slip now and then, the careless one more often; an error ends in a wrong box. Everything is
drawn from a `random.Random`, so a seed fixes every character. Nothing here imports torch.

Problems are split in two by a hash of their numbers: `is_held_out` says on which side one lies. The
pre-training corpus takes one side only, the question suites the other only.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

Style = Literal["careful", "careless"]

HELD_OUT_BUCKETS = 16
"""One problem in this many is held out of the corpus."""


# ---------------------------------------------------------------------------------------- problems
@dataclass(frozen=True)
class Term:
    """One change of the amount: `sign * count * size` things; a count above 1 is told as packs.

    >>> Term(-1, 3, 4).value, Term(1, 1, 12).value
    (-12, 12)
    """

    sign: int
    count: int
    size: int

    @property
    def value(self) -> int:
        """The signed number of things."""
        return self.sign * self.count * self.size

    @property
    def text(self) -> str:
        """The term without its sign, as written in a sum: "12" or "3*4"."""
        return f"{self.count}*{self.size}" if self.count > 1 else str(self.size)


@dataclass(frozen=True)
class Problem:
    """A start amount (the first term, always positive) and the changes to it, in the order of the story.

    The amount never drops below zero on the way.
    """

    terms: tuple[Term, ...]

    @property
    def answer(self) -> int:
        """The final amount."""
        return sum(term.value for term in self.terms)

    @property
    def key(self) -> str:
        """The same for every problem with the same numbers, whatever their order and the wording.

        >>> Problem((Term(1, 1, 20), Term(-1, 3, 4))).key
        '+20 -3*4'
        """
        return " ".join(sorted(f"{'+' if t.sign > 0 else '-'}{t.text}" for t in self.terms))


def is_held_out(key: str) -> bool:
    """Whether the problem of this key belongs to the question suites (True) or to the corpus (False)."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_BUCKETS == 0


@dataclass(frozen=True)
class Kind:
    """A family of problems: how many changes follow the start amount, and how large the numbers are."""

    changes: tuple[int, ...]
    """Numbers of changes, each equally likely."""
    smallest: int
    largest: int
    """Range of the plain numbers, both ends included."""
    packs_frac: float = 0.12
    """Share of the terms told as packs ("3 bags of 4")."""


COMMON = Kind(changes=(2, 2, 3), smallest=2, largest=50)
MORE_STEPS = Kind(changes=(4, 5), smallest=2, largest=50)
LARGER_NUMBERS = Kind(changes=(2, 3), smallest=20, largest=200)

CORPUS_KINDS: tuple[tuple[Kind, float], ...] = ((COMMON, 0.66), (MORE_STEPS, 0.14), (LARGER_NUMBERS, 0.20))
"""The kinds in the corpus, each with its share: the common one and a tail of harder ones."""


def draw_problem(rng: Random, kind: Kind, *, held_out: bool) -> Problem:
    """A random problem of this kind on the asked side of the split."""
    while True:
        terms: list[Term] = []
        amount = 0
        for index in range(1 + rng.choice(kind.changes)):
            sign = 1 if index == 0 or rng.random() < 0.5 else -1
            if rng.random() < kind.packs_frac:
                term = Term(sign, rng.randint(2, 5), rng.randint(2, 9))
            else:
                term = Term(sign, 1, rng.randint(kind.smallest, kind.largest))
            if amount + term.value < 0:
                term = Term(1, term.count, term.size)
            terms.append(term)
            amount += term.value
        problem = Problem(tuple(terms))
        if is_held_out(problem.key) == held_out:
            return problem


# ---------------------------------------------------------------------------------------- wordings
# Sentence patterns. {N} the owner, {P} / {p} the pronoun, {m} its object form, {f} a friend,
# {q} a quantity ("12 apples", "3 bags of 4 apples"), {o} the things.
START = ("{N} has {q}.", "{N} starts with {q}.", "There are {q} in the box of {N}.", "Today {N} owns {q}.")
GAIN = (
    "{P} buys {q}.",
    "{P} finds {q}.",
    "{f} gives {m} {q}.",
    "{P} gets {q} from {f}.",
    "Then {f} brings {q}.",
)
LOSS = (
    "{P} loses {q}.",
    "{P} sells {q}.",
    "{P} gives {q} to {f}.",
    "{f} takes {q}.",
    "Then {p} uses {q}.",
)
ASK = ("How many {o} does {N} have now?", "How many {o} are there now?", "How many {o} does {p} have?")


BARE_FRAC = 0.33
"""Share of the corpus problems given as a plain sum ("What is 34+12-9?")."""

HE = ("Tom", "Ben", "Sam", "Max", "Leo", "Omar")
SHE = ("Mia", "Ann", "Eva", "Zoe", "Lin", "Nora")
THINGS = ("apples", "pens", "books", "coins", "eggs", "cards", "shells", "stamps", "plums", "stones")
PACKS = ("bags", "boxes", "sets")


def tell(rng: Random, problem: Problem) -> str:
    """The problem as an English question, with names, things and sentence patterns drawn at random."""
    owner, friend = rng.sample(HE + SHE, 2)
    subject, him = ("he", "him") if owner in HE else ("she", "her")
    things, pack = rng.choice(THINGS), rng.choice(PACKS)
    fields = {"N": owner, "f": friend, "P": subject.capitalize(), "p": subject, "m": him, "o": things}
    sentences = []
    for index, term in enumerate(problem.terms):
        patterns = START if index == 0 else GAIN if term.sign > 0 else LOSS
        packs = f"{term.count} {pack} of " if term.count > 1 else ""
        quantity = f"{packs}{term.size} {things}"
        sentences.append(rng.choice(patterns).format(q=quantity, **fields))
    sentences.append(rng.choice(ASK).format(**fields))
    return " ".join(sentences)


def tell_bare(problem: Problem) -> str:
    """The problem as a plain sum: "What is 34+12-9?"."""
    return f"What is {_sum_text(problem.terms)}?"


def _sum_text(terms: tuple[Term, ...]) -> str:
    signed = "".join(("+" if term.sign > 0 else "-") + term.text for term in terms)
    return signed.removeprefix("+")


# --------------------------------------------------------------------------------------- solutions
CARELESS_FRAC = 0.55
"""Share of the careless solutions, for every kind of problem alike."""
RESULT_ONLY_FRAC = 0.08
"""Share of the careless solutions that give the result without any total."""
MISREAD_FRAC = 0.75
"""Share of the packs that a careless solution misreads."""
SLIP_FRAC = {"careless": 0.12, "careful": 0.04}
"""Share of the solutions of each style with a slip in one operation."""
PLACE_BY_PLACE_FRAC = 0.6
"""Share of the careful operations written place by place, where the change has several places."""
CHECK_FRAC = 0.12
"""Share of the careful solutions that check their last operation."""

TOTALS_OPENERS = ("So", "So", "So", "That is")
RESULT_OPENERS = ("The answer is", "It is")
CAREFUL_OPENERS = ("First", "Start with", "We have", "Step by step:", "Let us see:")
CLOSERS = ("Answer:", "This makes", "Now there are", "In all")


@dataclass(frozen=True)
class Solution:
    """A chain of thought that ends in a box, and the number in the box."""

    text: str
    answer: int
    style: Style


def solve(rng: Random, problem: Problem, style: Style) -> Solution:
    """A random solution in the given style, right or (see SLIP_FRAC, MISREAD_FRAC) wrong."""
    slipped = rng.random() < SLIP_FRAC[style]
    if style == "careless":
        return _solve_carelessly(rng, problem, slipped)
    return _solve_carefully(rng, problem, slipped)


def _solve_carelessly(rng: Random, problem: Problem, slipped: bool) -> Solution:
    """The running totals as the story goes."""
    values = [term.sign * (_misread(rng, term) if term.count > 1 else term.size) for term in problem.terms]
    if slipped:
        values[rng.randrange(1, len(values))] += _slip(rng)
    totals = list(itertools.accumulate(values))
    if min(totals) < 0:
        totals = list(itertools.accumulate(term.value for term in problem.terms))
    if rng.random() < RESULT_ONLY_FRAC:
        start = rng.choice(RESULT_OPENERS)
    else:
        start = f"{rng.choice(TOTALS_OPENERS)} {', '.join(map(str, totals))}."
    return Solution(f"{start} \\boxed{{{totals[-1]}}}", totals[-1], "careless")


def _misread(rng: Random, term: Term) -> int:
    """What a careless reader takes a number of packs for."""
    if rng.random() >= MISREAD_FRAC:
        return term.count * term.size
    return rng.choices((term.size, term.count + term.size, term.count), (4, 3, 2))[0]


def _solve_carefully(rng: Random, problem: Problem, slipped: bool) -> Solution:
    """One operation at a time, as told, or gains before losses, or with the losses summed up first."""
    start, *changes = problem.terms
    route = rng.choice(("as told", "as told", "gains first", "losses summed up"))
    losses = [term for term in changes if term.sign < 0]
    lines = [f"{start.text}={start.value}."] if start.count > 1 else []
    order = changes
    if route == "gains first":
        order = sorted(changes, key=lambda term: -term.sign)
    elif route == "losses summed up" and len(losses) >= 2:
        first = losses[0]
        lines += [f"{first.text}={-first.value}."] if first.count > 1 else []
        more, lost = _operations(rng, -first.value, [Term(1, t.count, t.size) for t in losses[1:]])
        lines += more
        order = [*(term for term in changes if term.sign > 0), Term(-1, 1, lost)]

    slip_at = rng.randrange(len(order)) if slipped else None
    more, amount = _operations(rng, start.value, order, slip_at)
    lines += more
    last = order[-1].value
    if rng.random() < CHECK_FRAC and slip_at is None:
        lines.append(f"Check: {amount}{'-' if last > 0 else '+'}{abs(last)}={amount - last}.")
    opener = rng.choice(CAREFUL_OPENERS)
    if not opener.endswith(":"):
        opener = f"{opener} {start.text}."
    text = " ".join([opener, *lines, f"{rng.choice(CLOSERS)} \\boxed{{{amount}}}"])
    return Solution(text, amount, "careful")


def _operations(rng: Random, amount: int, terms: list[Term], slip_at: int | None = None) -> tuple[list[str], int]:
    """The lines that apply `terms` to `amount` one after the other, and the amount reached."""
    lines: list[str] = []
    for index, term in enumerate(terms):
        if term.count > 1:
            lines.append(f"{term.text}={term.count * term.size}.")
        after = amount + term.value
        if index == slip_at:
            after = abs(after + _slip(rng))
        operation = f"{amount}{'+' if term.sign > 0 else '-'}{abs(term.value)}"
        partials = place_by_place(amount, term.value)
        if len(partials) > 1 and rng.random() < PLACE_BY_PLACE_FRAC:
            shown = [*partials[:-1], after]
            lines.append(f"{operation}: {', '.join(map(str, shown))}.")
        else:
            lines.append(f"{operation}={after}.")
        amount = after
    return lines, amount


def place_by_place(amount: int, change: int) -> list[int]:
    """The amounts on the way when `change` is applied one decimal place at a time, largest first.

    >>> place_by_place(46, 37), place_by_place(83, -20)
    ([76, 83], [63])
    """
    sign = 1 if change >= 0 else -1
    digits = str(abs(change))
    partials = []
    for place, digit in enumerate(digits):
        if digit != "0":
            amount += sign * int(digit) * 10 ** (len(digits) - 1 - place)
            partials.append(amount)
    return partials


def _slip(rng: Random) -> int:
    """By how much a slip misses."""
    return rng.choice((-10, -2, -1, 1, 2, 10))


# ------------------------------------------------------------------------------------------ corpus
@dataclass(frozen=True)
class Example:
    """One document of the pre-training corpus."""

    problem: Problem
    question: str
    solution: Solution


def corpus(seed: int) -> Iterator[Example]:
    """The endless pre-training corpus of this seed."""
    rng = Random(seed)
    kinds, shares = zip(*CORPUS_KINDS, strict=True)
    while True:
        problem = draw_problem(rng, rng.choices(kinds, shares)[0], held_out=False)
        question = tell_bare(problem) if rng.random() < BARE_FRAC else tell(rng, problem)
        style: Style = "careless" if rng.random() < CARELESS_FRAC else "careful"
        yield Example(problem, question, solve(rng, problem, style))
