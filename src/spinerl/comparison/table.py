"""One table, whatever it is printed to: its columns, and each line's cells as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spinerl.comparison.figures import Estimate, Figures, Gain
from spinerl.comparison.words import num_votes, points, reach, verdict

__all__ = ["Cell", "Column", "Table", "build_table"]


@dataclass(frozen=True)
class Cell:
    """`main` is the figure, `small` what stands under it, `verdict` "rose", "fell" or ""."""

    main: str = "–"
    small: str = ""
    verdict: str = ""

    @property
    def text(self) -> str:
        """Both on one line."""
        return f"{self.main} {self.small}".strip()


@dataclass(frozen=True)
class Column:
    """A figure of every line: `head` names it, `note` gives its unit."""

    head: str
    note: str
    cell: Callable[[Figures], Cell]


@dataclass(frozen=True)
class Table:
    """The lines of one data set, or of all together, with the columns that at least one line fills."""

    title: str
    lines: tuple[Figures, ...]
    columns: tuple[Column, ...]
    sentences: tuple[str, ...]

    def cells(self, line: Figures) -> list[Cell]:
        """A line's cells, one per column."""
        return [column.cell(line) for column in self.columns]


def build_table(title: str, lines: Sequence[Figures], k: int, reference: str, sentences: Sequence[str]) -> Table:
    """The table of these lines.  `k`: samples of avg@k and maj@k."""
    elsewhere = list(dict.fromkeys((one.role, one.name) for line in lines for one in line.elsewhere))
    columns = [
        Column("Pass@1", "%, greedy", lambda line: _share(line.right)),
        Column("by seed", "%, range", _spread),
        Column("against none", "points", lambda line: _gain(line.against_none)),
        Column(f"against {reference}", "points", lambda line: _gain(line.against_reference)),
        Column("equal-token vote", "%, unadapted", _votes),
        Column("against that vote", "points", lambda line: _gain(line.against_votes)),
        Column("won : lost", "questions, that vote", lambda line: _won(line.against_votes)),
        Column("against the strongest", "points, no update", _strongest),
        Column("won : lost", "questions, strongest", lambda line: _won(line.against_strongest)),
        Column(f"avg@{k}", "%", lambda line: _plain(line.mean)),
        Column(f"maj@{k}", "%", lambda line: _plain(line.majority)),
        Column("best", "%, by gold", lambda line: _at(line.best)),
        Column("last", "%", lambda line: _at(line.last)),
        *(Column(role, f"{name}, %", lambda line, key=(role, name): _place(line, key)) for role, name in elsewhere),
        Column("tokens", "per question", lambda line: _number(line.tokens, 0)),
        Column("time", "s, that took", lambda line: _number(line.seconds, 0)),
        Column("length", "tokens, at end", lambda line: _number(line.length, 1)),
        Column("entropy", "nats, at end", lambda line: _number(line.entropy, 3)),
    ]
    steps = dict.fromkeys(budget.step for line in lines for budget in line.budgets)
    columns += [
        Column(f"by step {step}", "points, strongest", lambda line, step=step: _budget(line, step)) for step in steps
    ]
    filled = [column for column in columns if any(column.cell(line) != Cell() for line in lines)]
    return Table(title, tuple(lines), tuple(filled), tuple(sentences))


def _share(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    return Cell(f"{100 * estimate.value:.1f}", reach(estimate.low, estimate.high))


def _plain(estimate: Estimate | None) -> Cell:
    return Cell() if estimate is None else Cell(f"{100 * estimate.value:.1f}")


def _spread(line: Figures) -> Cell:
    if line.right is None or len(line.right.by_seed) < 2 or line.name == "none":
        return Cell()
    values = line.right.by_seed.values()
    return Cell(f"{100 * min(values):.1f} to {100 * max(values):.1f}", f"{len(values)} seeds")


def _gain(gain: Gain | None) -> Cell:
    return Cell() if gain is None else Cell(points(gain.value), reach(gain.low, gain.high, True), verdict(gain))


def _votes(line: Figures) -> Cell:
    if line.votes is None or line.num_votes is None:
        return Cell()
    only = "only " if line.votes_capped else ""
    return Cell(f"{100 * line.votes.value:.1f}", f"{only}{num_votes(line.num_votes)}")


def _strongest(line: Figures) -> Cell:
    if line.against_strongest is None or line.strongest is None:
        return Cell()
    cell = _gain(line.against_strongest)
    return Cell(cell.main, f"{cell.small} {line.strongest}", cell.verdict)


def _won(gain: Gain | None) -> Cell:
    return Cell() if gain is None else Cell(f"{gain.num_won} : {gain.num_lost}")


def _budget(line: Figures, step: int) -> Cell:
    for one in line.budgets:
        if one.step == step:
            said = f"{one.num_won} : {one.num_lost}, {one.strongest}"
            return Cell(points(one.right - one.baseline), said)
    return Cell()


def _at(pair: tuple[int, float] | None) -> Cell:
    return Cell() if pair is None else Cell(f"{100 * pair[1]:.1f}", f"step {pair[0]}")


def _place(line: Figures, key: tuple[str, str]) -> Cell:
    for figures in line.elsewhere:
        if (figures.role, figures.name) == key:
            change = _gain(figures.gain)
            return Cell(f"{100 * figures.right.value:.1f}", "" if figures.gain is None else change.text, change.verdict)
    return Cell()


def _number(value: float | None, digits: int) -> Cell:
    return Cell() if value is None else Cell(f"{value:,.{digits}f}".replace(",", "\u202f"))
