"""The made-up world of `tiny-vlm`: questions about pictures, and how people answer them.

A solution is a chain of thought in one of two styles:

* *careful*: line by line, what is there and then the total so far ("Row 1: red none red blue, 2.");
* *careless*: only the totals ("I see 2, 3, 3, 5.") or only the result, and what is small is mostly misread
  (see `_misread`).

Both styles slip now and then, the careless one more often; an error ends in a wrong box. Everything is
drawn from a `random.Random`, so a seed fixes every character and pixel. Nothing here imports torch.

Problems are split in two by a hash of picture content and question: `is_held_out` says on which side one
lies. The pre-training corpus takes one side only, the question suites the other only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from spinerl.tiny.corpus import is_held_out
from spinerl.tiny.vqa.pictures import COLOURS, GRID, LOW, SHAPES, TALLEST, Chart, Look, Picture, Scene, Thing, draw

Style = Literal["careful", "careless"]
Asked = Literal["colour", "shape"]

LETTERS = "ABCD"


# --------------------------------------------------------------------------------------- questions
@dataclass(frozen=True)
class Count:
    """How many things of a colour, of a shape, or (neither given) how many in all."""

    colour: str | None = None
    shape: str | None = None

    def takes(self, thing: Thing | None) -> bool:
        """Whether a cell's content is counted."""
        return thing is not None and self.colour in (None, thing.colour) and self.shape in (None, thing.shape)

    def number(self, cells: Sequence[Thing | None]) -> int:
        """How many of these cells are counted."""
        return sum(self.takes(thing) for thing in cells)

    @property
    def asks(self) -> Asked:
        """What has to be told about the cells."""
        return "shape" if self.shape else "colour"

    @property
    def text(self) -> str:
        """What is counted: "red shapes", "circles", "shapes"."""
        shape = _plural(self.shape or "shape")
        return f"{self.colour} {shape}" if self.colour else shape


@dataclass(frozen=True)
class Most:
    """Which of these there is most of; one letter each."""

    options: tuple[Count, ...]


@dataclass(frozen=True)
class Fullest:
    """Which row has the most of something; one letter each."""

    of: Count


@dataclass(frozen=True)
class Where:
    """The colour or the shape of the thing in a cell; its column may be counted from the right."""

    row: int
    column: int
    """From the left, from 1."""
    asks: Asked
    from_right: bool

    @property
    def told_column(self) -> int:
        """The column as the question counts it."""
        return GRID + 1 - self.column if self.from_right else self.column

    def word(self, thing: Thing | None) -> str:
        """What is asked about a cell's content."""
        return word(thing, self.asks)


@dataclass(frozen=True)
class Together:
    """How high these bars are together; all of them when `colours` is empty."""

    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Higher:
    """How much higher one bar is than another."""

    high: str
    low: str


Ask = Count | Most | Fullest | Where | Together | Higher


@dataclass(frozen=True)
class Problem:
    """What is in the picture, and what is asked about it."""

    content: Scene | Chart
    ask: Ask

    @property
    def scene(self) -> Scene:
        """The content where it is a scene."""
        assert isinstance(self.content, Scene)
        return self.content

    @property
    def heights(self) -> dict[str, int]:
        """The bars' heights by colour, from left to right, where the content is a chart."""
        assert isinstance(self.content, Chart)
        return dict(self.content.bars)

    @property
    def choices(self) -> tuple[str, ...]:
        """The options in the order of their letters; empty where none are offered."""
        if isinstance(self.ask, Most):
            return tuple(option.text for option in self.ask.options)
        if isinstance(self.ask, Fullest):
            return tuple(f"row {number}" for number in range(1, GRID + 1))
        return ()

    @property
    def answer(self) -> str:
        """The right answer: a number, a word or a letter."""
        match self.ask:
            case Count():
                return str(self.ask.number(self.scene.cells))
            case Most() | Fullest():
                return LETTERS[_best(self.tallies())]
            case Where():
                return self.ask.word(self.scene.row(self.ask.row)[self.ask.column - 1])
            case Together():
                return str(sum(self.heights[colour] for colour in self.asked_bars()))
            case Higher():
                return str(self.heights[self.ask.high] - self.heights[self.ask.low])

    def name_of(self, answer: str) -> str:
        """The option behind a letter; any other answer as it is."""
        return self.choices[LETTERS.index(answer)] if self.choices else answer

    def tallies(self) -> list[int]:
        """What is compared, option by option."""
        if isinstance(self.ask, Most):
            return [option.number(self.scene.cells) for option in self.ask.options]
        assert isinstance(self.ask, Fullest)
        return [self.ask.of.number(cells) for cells in self.scene.rows]

    def asked_bars(self) -> tuple[str, ...]:
        """The colours of the bars that are added up."""
        assert isinstance(self.ask, Together)
        return self.ask.colours or tuple(self.heights)

    @property
    def key(self) -> str:
        """The same for every problem with the same content and question, whatever the look and the wording."""
        return f"{self.content.key} ? {self.ask}"


def word(thing: Thing | None, asks: Asked) -> str:
    """The colour or the shape in a cell, "none" where it is empty."""
    return "none" if thing is None else thing.colour if asks == "colour" else thing.shape


# ------------------------------------------------------------------------------------------- kinds
PLAIN_LOOK = Look()


@dataclass(frozen=True)
class Kind:
    """A family of problems: what is in the pictures, and how they look."""

    things: tuple[int, int] = (3, 6)
    """How many shapes are in a scene, both ends included."""
    small_frac: float = 0.12
    """Share of the shapes that are small, and of the bars that are low."""
    from_right_frac: float = 0.25
    """Share of the questions about a cell that count its column from the right."""
    bars: tuple[int, int] = (2, 3)
    """How many bars are in a chart, both ends included."""
    look: Look = PLAIN_LOOK


OTHER_LOOKS = Look(
    hue_off=20,
    saturation=(0.45, 1.0),
    brightness=(0.5, 1.0),
    background=(0.55, 1.0),
    tint=0.2,
    speckles=(0.0, 0.06),
)
OTHER_PLACES = Look(sizes=(9, 15), small_sizes=(5, 7), off_centre=3)

COMMON = Kind()
NEW_LOOKS = Kind(look=OTHER_LOOKS)
CROWDED = Kind(things=(5, 9), bars=(3, 3), look=OTHER_PLACES)

CORPUS_KINDS: tuple[tuple[Kind, float], ...] = ((COMMON, 0.60), (NEW_LOOKS, 0.22), (CROWDED, 0.18))
"""The kinds in the corpus, each with its share: the common one and a tail of harder ones."""

ASKS_FRAC = {"count": 0.50, "most": 0.05, "fullest": 0.11, "where": 0.18, "bars": 0.16}
"""Share of each kind of question, for every kind of problem alike."""


def draw_problem(rng: Random, kind: Kind, *, held_out: bool) -> Problem:
    """A random problem of this kind on the asked side of the split."""
    while True:
        name = rng.choices(list(ASKS_FRAC), list(ASKS_FRAC.values()))[0]
        content = draw_chart(rng, kind) if name == "bars" else draw_scene(rng, kind)
        ask = _draw_ask(rng, kind, name, content)
        if ask is not None:
            problem = Problem(content, ask)
            if is_held_out(problem.key) == held_out:
                return problem


def draw_scene(rng: Random, kind: Kind) -> Scene:
    """A scene of a few colours and shapes, so that several things have something in common."""
    colours = rng.sample(COLOURS, rng.randint(2, 3))
    shapes = rng.sample(SHAPES, rng.randint(2, 3))
    cells: list[Thing | None] = [None] * (GRID * GRID)
    for place in rng.sample(range(GRID * GRID), rng.randint(*kind.things)):
        cells[place] = Thing(rng.choice(shapes), rng.choice(colours), rng.random() < kind.small_frac)
    return Scene(tuple(cells))


def draw_chart(rng: Random, kind: Kind) -> Chart:
    """A chart of bars in different colours."""
    colours = rng.sample(COLOURS, rng.randint(*kind.bars))
    return Chart(
        tuple(
            (colour, rng.randint(1, LOW) if rng.random() < kind.small_frac else rng.randint(LOW + 1, TALLEST))
            for colour in colours
        )
    )


def _draw_ask(rng: Random, kind: Kind, name: str, content: Scene | Chart) -> Ask | None:
    """A question of the named kind about the content; None where this content allows none."""
    if isinstance(content, Chart):
        colours = [colour for colour, _ in content.bars]
        heights = dict(content.bars)
        form = rng.choice(("all", "two", "higher"))
        if form == "all":
            return Together()
        one, other = rng.sample(colours, 2)
        if form == "two":
            return Together((one, other))
        if heights[one] == heights[other]:
            return None
        return Higher(*sorted((one, other), key=lambda colour: -heights[colour]))
    place = rng.choice([place for place, thing in enumerate(content.cells) if thing is not None])
    thing = content.cells[place]
    assert thing is not None
    of_colour, of_shape = Count(colour=thing.colour), Count(shape=thing.shape)
    if name == "count":
        return rng.choices((Count(), of_colour, of_shape), (3, 4, 4))[0]
    if name == "most":
        if rng.random() < 0.5:
            options = tuple(Count(colour=colour) for colour in rng.sample(COLOURS, len(COLOURS)))
        else:
            options = tuple(Count(shape=shape) for shape in rng.sample(SHAPES, len(SHAPES)))
        shown = [option for option in options if option.number(content.cells)]
        ask = Most(tuple(shown[:3]))
        return ask if len(shown) >= 2 and _has_best(Problem(content, ask).tallies()) else None
    if name == "fullest":
        ask = Fullest(rng.choice((Count(), of_colour, of_shape)))
        return ask if _has_best(Problem(content, ask).tallies()) else None
    row, column = divmod(place, GRID)
    return Where(row + 1, column + 1, rng.choice(("colour", "shape")), rng.random() < kind.from_right_frac)


def _best(tallies: Sequence[int]) -> int:
    return max(range(len(tallies)), key=lambda index: (tallies[index], -index))


def _has_best(tallies: Sequence[int]) -> bool:
    return sorted(tallies)[-1] > sorted(tallies)[-2]


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"


# ---------------------------------------------------------------------------------------- wordings
COUNT = ("How many {o} are there?", "How many {o} do you see?", "Count the {o}.")
MOST = ("What is there most of?", "Which of these is there most of?")
FULLEST = ("Which row has the most {o}?", "In which row are the most {o}?")
WHERE = ("What {a} is the shape in row {r}, column {c}{s}?", "Row {r}, column {c}{s}: what {a} is it?")
FROM_RIGHT = " from the right"
ALL_BARS = ("How high are all bars together?", "What is the sum of the bars?")
TWO_BARS = ("How high are the {a} and the {b} bar together?", "What is the {a} bar plus the {b} bar?")
HIGHER = ("How much higher is the {a} bar than the {b} one?", "What is the {a} bar minus the {b} bar?")


def tell(rng: Random, problem: Problem) -> str:
    """The problem as an English question, a wording drawn at random; options are not listed."""
    match problem.ask:
        case Count() as ask:
            return rng.choice(COUNT).format(o=ask.text)
        case Most():
            return rng.choice(MOST)
        case Fullest() as ask:
            return rng.choice(FULLEST).format(o=ask.of.text)
        case Where() as ask:
            side = FROM_RIGHT if ask.from_right else ""
            return rng.choice(WHERE).format(a=ask.asks, r=ask.row, c=ask.told_column, s=side)
        case Together(colours=()):
            return rng.choice(ALL_BARS)
        case Together() as ask:
            return rng.choice(TWO_BARS).format(a=ask.colours[0], b=ask.colours[1])
        case Higher() as ask:
            return rng.choice(HIGHER).format(a=ask.high, b=ask.low)


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question as it is put to the model: each option on a line of its own, after its letter.

    >>> print(with_choices("What is there most of?", ("circles", "squares")))
    What is there most of?
    A. circles
    B. squares
    """
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))])


# --------------------------------------------------------------------------------------- solutions
CARELESS_FRAC = 0.55
"""Share of the careless solutions, for every kind of problem alike."""
RESULT_ONLY_FRAC = 0.08
"""Share of the careless solutions that give the result without any total."""
MISREAD_FRAC = 0.75
"""Share of the small things, low bars and columns from the right that a careless solution misreads."""
SLIP_FRAC = {"careless": 0.12, "careful": 0.04}
"""Share of the solutions of each style with a slip."""

BACKWARD_FRAC = 0.25
"""Share of the careful solutions that go from the last row up, or through the bars in the opposite order."""

GLANCE_OPENERS = ("I see", "I see", "I see", "There are")
RESULT_OPENERS = ("The answer is", "It is")
CAREFUL_OPENERS = ("Let us see:", "Step by step:", "One by one:", "Carefully:", "First:")
CLOSERS = ("Answer:", "This makes", "That gives", "In all")


@dataclass(frozen=True)
class Solution:
    """A chain of thought that ends in a box, and what is in the box."""

    text: str
    answer: str
    style: Style


def solve(rng: Random, problem: Problem, style: Style) -> Solution:
    """A random solution in the given style, right or (see SLIP_FRAC, MISREAD_FRAC) wrong."""
    slipped = rng.random() < SLIP_FRAC[style]
    if style == "careless":
        seen, answer = _glance(rng, problem, slipped)
        if rng.random() < RESULT_ONLY_FRAC:
            start = f"{rng.choice(RESULT_OPENERS)} {problem.name_of(answer)}"
        else:
            start = f"{rng.choice(GLANCE_OPENERS)} {', '.join(map(str, seen))}"
        return Solution(f"{start}. \\boxed{{{answer}}}", answer, style)
    chain, answer = _chain(rng, problem, slipped)
    text = f"{rng.choice(CAREFUL_OPENERS)} {' '.join(chain)} {rng.choice(CLOSERS)} \\boxed{{{answer}}}"
    return Solution(text, answer, style)


def _glance(rng: Random, problem: Problem, slipped: bool) -> tuple[list[int] | list[str], str]:
    """What a careless look sees, and the answer it leads to."""
    match problem.ask:
        case Count() as ask:
            counts = [_glance_count(rng, ask, cells) for cells in problem.scene.rows]
            totals = list(itertools.accumulate(_slip_in(rng, counts, slipped)))
            return totals, str(totals[-1])
        case Most() | Fullest() as ask:
            if isinstance(ask, Most):
                seen = [_glance_count(rng, option, problem.scene.cells) for option in ask.options]
            else:
                seen = [_glance_count(rng, ask.of, cells) for cells in problem.scene.rows]
            seen = _slip_in(rng, seen, slipped)
            return seen, LETTERS[_best(seen)]
        case Where() as ask:
            seen = _glance_cell(rng, problem.scene, ask, slipped)
            return [seen], seen
        case Together():
            heights = [_glance_height(rng, problem.heights[colour]) for colour in problem.asked_bars()]
            totals = list(itertools.accumulate(_slip_in(rng, heights, slipped)))
            return totals, str(totals[-1])
        case Higher() as ask:
            heights = [_glance_height(rng, problem.heights[colour]) for colour in (ask.high, ask.low)]
            high, low = _slip_in(rng, heights, slipped)
            return [high, low], str(abs(high - low))


def _glance_count(rng: Random, ask: Count, cells: Sequence[Thing | None]) -> int:
    taken = [thing for thing in cells if thing is not None and ask.takes(thing)]
    return sum(_misread(rng, 1) if thing.small else 1 for thing in taken)


def _glance_height(rng: Random, height: int) -> int:
    return _misread(rng, height) if height <= LOW else height


def _misread(rng: Random, small: int) -> int:
    """What a glance takes a small thing for: overlooked, doubled, or more than it is."""
    if rng.random() >= MISREAD_FRAC:
        return small
    return rng.choices((0, 2 * small, small + 2), (4, 3, 2))[0]


def _glance_cell(rng: Random, scene: Scene, ask: Where, slipped: bool) -> str:
    row, column = ask.row, ask.column
    if ask.from_right and rng.random() < MISREAD_FRAC:
        column = rng.choices((ask.told_column, column - 1, column + 1), (4, 3, 2))[0]
    elif slipped:
        row, column = rng.choice(((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)))
    row, column = min(max(row, 1), GRID), min(max(column, 1), GRID)
    return ask.word(scene.row(row)[column - 1] or rng.choice(scene.things))


def _chain(rng: Random, problem: Problem, slipped: bool) -> tuple[list[str], str]:
    """The sentences of a careful look, and the answer they lead to; a slip is one wrong reading."""
    step = -1 if rng.random() < BACKWARD_FRAC else 1
    match problem.ask:
        case Count() as ask:
            counts = _slip_in(rng, [ask.number(cells) for cells in problem.scene.rows], slipped)[::step]
            totals = list(itertools.accumulate(counts))
            told = zip(_listed(problem.scene, ask.asks)[::step], counts, totals, strict=True)
            return [f"{cells}, {count}, {total}." for cells, count, total in told], str(totals[-1])
        case Most() as ask:
            return _tally(rng, problem, ask, step, slipped)
        case Fullest() as ask:
            counts = _slip_in(rng, problem.tallies(), slipped)
            told = [
                f"{cells}, {count}." for cells, count in zip(_listed(problem.scene, ask.of.asks), counts, strict=True)
            ]
            answer = LETTERS[_best(counts)]
            return [*told[::step], f"Most: {problem.name_of(answer)}."], answer
        case Where() as ask:
            return _find_cell(rng, problem.scene, ask, slipped)
        case Together():
            colours = list(problem.asked_bars())[::step]
            heights = _slip_in(rng, [problem.heights[colour] for colour in colours], slipped)
            totals = list(itertools.accumulate(heights))
            told = [f"{c.capitalize()} {h}, {total}." for c, h, total in zip(colours, heights, totals, strict=True)]
            return told, str(totals[-1])
        case Higher() as ask:
            high, low = _slip_in(rng, [problem.heights[ask.high], problem.heights[ask.low]], slipped)
            told = [f"{ask.high.capitalize()} {high}.", f"{ask.low.capitalize()} {low}."][::step]
            return [*told, f"{high}-{low}={abs(high - low)}."], str(abs(high - low))


def _listed(scene: Scene, asks: Asked) -> list[str]:
    """ "Row 1: red none blue": the rows in order, cell by cell."""
    return [
        f"Row {number}: {' '.join(word(thing, asks) for thing in cells)}"
        for number, cells in enumerate(scene.rows, start=1)
    ]


def _tally(rng: Random, problem: Problem, ask: Most, step: int, slipped: bool) -> tuple[list[str], str]:
    """ "Row 1: red none blue, 1 1.": how many of each option so far."""
    slip_at = rng.randrange(len(ask.options)) if slipped else None
    totals = []
    for index, option in enumerate(ask.options):
        counts = [option.number(cells) for cells in problem.scene.rows]
        totals.append(list(itertools.accumulate(_slip_in(rng, counts, index == slip_at)[::step])))
    so_far = [" ".join(str(sums[index]) for sums in totals) for index in range(GRID)]
    listed = _listed(problem.scene, ask.options[0].asks)[::step]
    told = [f"{cells}, {sums}." for cells, sums in zip(listed, so_far, strict=True)]
    answer = LETTERS[_best([sums[-1] for sums in totals])]
    return [*told, f"Most: {problem.name_of(answer)}."], answer


def _find_cell(rng: Random, scene: Scene, ask: Where, slipped: bool) -> tuple[list[str], str]:
    """The row told cell by cell, and counted off."""
    cells = list(scene.cells)
    place = (ask.row - 1) * GRID + ask.column - 1
    if slipped:
        cells[place] = rng.choice(scene.things)
    answer = ask.word(cells[place])
    told = [f"{_listed(Scene(tuple(cells)), ask.asks)[ask.row - 1]}."]
    if ask.from_right:
        told.append(f"Column {ask.told_column} from the right is column {ask.column}.")
    return [*told, f"Column {ask.column}: {answer}."], answer


def _slip_in(rng: Random, numbers: Sequence[int], slipped: bool) -> list[int]:
    """The numbers, one of them off by one where there is a slip."""
    read = list(numbers)
    if slipped:
        index = rng.randrange(len(read))
        read[index] = abs(read[index] + rng.choice((-1, 1)))
    return read


# ------------------------------------------------------------------------------------------ corpus
READ_FRAC = 0.1
"""Share of the corpus that only tells what is in a picture."""
CAREFUL_FIRST = 40_000
"""So many documents come first that read or go carefully: where to look is learnt from them."""
READ_FRAC_FIRST = 0.5
READ_EACH = "Read each {a}."
READ_ROW = "Read each {a} in row {n}."
READ_BARS = "Read the bars."


@dataclass(frozen=True)
class Example:
    """One document of the pre-training corpus; `question` lists the options, if any.

    `problem` and `style` are None where a picture is only read.
    """

    picture: Picture
    question: str
    response: str
    problem: Problem | None = None
    style: Style | None = None


def corpus(seed: int) -> Iterator[Example]:
    """The endless pre-training corpus of this seed."""
    rng = Random(seed)
    kinds, shares = zip(*CORPUS_KINDS, strict=True)
    for number in itertools.count():
        kind = rng.choices(kinds, shares)[0]
        problem = draw_problem(rng, kind, held_out=False)
        picture = draw(rng, problem.content, kind.look)
        first = number < CAREFUL_FIRST
        if rng.random() < (READ_FRAC_FIRST if first else READ_FRAC):
            yield Example(picture, *read_out(rng, problem.content))
            continue
        question = with_choices(tell(rng, problem), problem.choices)
        style: Style = "careless" if rng.random() < CARELESS_FRAC and not first else "careful"
        yield Example(picture, question, solve(rng, problem, style).text, problem, style)


def read_out(rng: Random, content: Scene | Chart) -> tuple[str, str]:
    """A request to say what is there, and what is there: in all cells, in a row, or bar by bar."""
    if isinstance(content, Chart):
        return READ_BARS, " ".join(f"{colour.capitalize()} {height}." for colour, height in content.bars)
    asks: Asked = rng.choice(("colour", "shape"))
    listed = _listed(content, asks)
    if rng.random() < 0.7:
        return READ_EACH.format(a=asks), " ".join(f"{cells}." for cells in listed)
    number = rng.randint(1, GRID)
    return READ_ROW.format(a=asks, n=number), f"{listed[number - 1]}."
