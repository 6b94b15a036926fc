"""The figures of a table: each with its interval, over the questions of one data set or of several together.

Questions are the unit.  A question's value is its mean over the seeds; intervals are over questions, inside each data
set, and data sets weigh the same.  What differs between seeds is reported next to them: the value by seed, and for
differences Student's interval over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from spinerl.comparison.baselines import EQUAL_TOKEN_RULES, EqualTokens, at_equal_tokens, baselines
from spinerl.comparison.collect import MethodResult, Values
from spinerl.comparison.plan import NONE
from spinerl.stats import grouped_difference, grouped_mean, spread_interval, two_level_interval

__all__ = ["Budget", "ElsewhereFigures", "Estimate", "Figures", "Gain", "figure_lines", "strongest_baseline"]

_ROUNDING = 1e-9  # smaller differences of means are none


@dataclass(frozen=True)
class Estimate:
    """A share of right answers with its interval, and by seed; fractions."""

    value: float
    low: float
    high: float
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Gain:
    """How much better a row is than another, paired by question; fractions.

    `low`, `high`: over questions.  `seeds_low`, `seeds_high`: over seeds; `both_low`, `both_high`: over both (two-level
    bootstrap); None for fewer than two seeds.  `num_won`, `num_lost`: questions whose mean over seeds rose, or fell.
    """

    value: float
    low: float
    high: float
    p_value: float
    num_questions: int
    by_seed: Mapping[int, float]
    seeds_low: float | None
    seeds_high: float | None
    both_low: float | None = None
    both_high: float | None = None
    num_won: int = 0
    num_lost: int = 0


@dataclass(frozen=True)
class Budget:
    """An adapted row at one of its steps against the strongest baseline at the tokens sampled until then; fractions.

    `strongest` names the baseline: of those without an update that take no more tokens, the one that is right most
    often, which only gold answers show, so it is chosen in its own favor.  `num_won`, `num_lost`: questions whose mean
    over seeds is above, or below, its.
    """

    step: int
    tokens: float
    right: float
    strongest: str
    baseline: float
    num_won: int
    num_lost: int


@dataclass(frozen=True)
class ElsewhereFigures:
    """What the final model does elsewhere: on unseen questions, or on the original domain."""

    role: str
    name: str
    right: Estimate
    gain: Gain | None  # against no adaptation


@dataclass(frozen=True)
class Figures:
    """One line of a table; what is not known or does not apply is None.

    `kind` is "none", "adapted" or "no update".  `right`: greedy Pass@1, or for "no update" the answer elected.
    `against_votes`: against majority voting at equal tokens, whose own figure is `votes` with `num_votes` a
    question (`votes_capped`: more tokens were spent than the saved responses could stand for).  `against_strongest`:
    against the strongest baseline at no more tokens (see `Budget`), named `strongest`; `budgets`: the same at up to
    four steps.  `best`, `last`: (step, Pass@1) of the mean over seeds; the best is chosen with gold answers, so it
    flatters.  `tokens`: sampled per question.
    """

    name: str
    kind: str
    note: str
    seeds: tuple[int, ...]
    right: Estimate | None
    mean: Estimate | None
    majority: Estimate | None
    against_none: Gain | None
    against_reference: Gain | None
    against_votes: Gain | None
    votes: Estimate | None
    num_votes: float | None
    votes_capped: bool
    best: tuple[int, float] | None
    last: tuple[int, float] | None
    elsewhere: tuple[ElsewhereFigures, ...]
    tokens: float | None
    seconds: float | None
    length: float | None
    entropy: float | None
    uses_gold: bool = False
    strongest: str | None = None
    against_strongest: Gain | None = None
    budgets: tuple[Budget, ...] = ()


def figure_lines(
    tables: Sequence[Sequence[MethodResult]], k: int, confidence: float = 0.95, reference: str = "ttrl"
) -> list[Figures]:
    """The lines of one table over the outcomes of each data set, rows without an update included.

    With several data sets, only rows that all of them have; "unseen" and "original" are then their means.

    Args:
        tables: the outcomes of each data set, one list per set.
        k: responses of the rows without an update.
        reference: the row that others are compared with besides no adaptation.
    """
    groups = [_with_baselines(outcomes, k) for outcomes in tables]
    names = [name for name in groups[0] if all(name in group for group in groups)]
    lines = []
    for name in names:
        rows = [group[name] for group in groups]
        lines.append(_line(rows, groups, confidence, reference))
    return [line for line in lines if line is not None]


def _with_baselines(outcomes: Sequence[MethodResult], k: int) -> dict[str, MethodResult]:
    """The outcomes by name: adapted rows first as given, then those without an update."""
    found = {outcome.name: outcome for outcome in outcomes}
    none = found.get(NONE)
    if none is not None and none.votes:
        found |= {baseline.name: baseline for baseline in baselines(none, k)}
        spent = [fmean(o.tokens.values()) for o in outcomes if o.kind == "adapted" and o.tokens]
        for rule in EQUAL_TOKEN_RULES if spent else ():
            if (equal := at_equal_tokens(none, fmean(spent), rule)) is not None:
                found[equal.outcome.name] = equal.outcome
    return found


def _line(
    rows: Sequence[MethodResult], groups: Sequence[Mapping[str, MethodResult]], confidence: float, reference: str
) -> Figures:
    first = rows[0]
    nones = [group.get(NONE) for group in groups]
    references = [group.get(reference) for group in groups]
    adapted = first.kind == "adapted"
    equal = _equal(rows, nones) if adapted else []
    seeds = sorted(set.intersection(*(set(row.right) for row in rows)))
    strongest = strongest_baseline(nones, groups, [row.tokens for row in rows]) if adapted else None
    course = _course(rows) if adapted else {}
    best = max(course, key=lambda step: (course[step], -step)) if course else None
    return Figures(
        name=first.name,
        kind=first.kind,
        note=" / ".join(dict.fromkeys(row.note for row in rows)),
        seeds=tuple(seeds),
        right=_estimate([row.right for row in rows], confidence),
        mean=_estimate([row.mean for row in rows], confidence),
        majority=_estimate([row.majority for row in rows], confidence),
        against_none=None if first.name == NONE else _gain_over(nones, rows, confidence),
        against_reference=None if first.name == reference else _gain_over(references, rows, confidence),
        against_votes=_gain([e.outcome.right for e in equal], [row.right for row in rows], confidence),
        votes=_estimate([e.outcome.right for e in equal], confidence),
        num_votes=fmean(e.num_votes for e in equal) if equal else None,
        votes_capped=any(e.capped for e in equal),
        best=None if best is None else (best, course[best]),
        last=None if not course else (max(course), course[max(course)]),
        elsewhere=_elsewhere_figures(rows, nones, confidence),
        tokens=_mean_of(row.tokens for row in rows),
        seconds=_mean_of(row.seconds for row in rows),
        length=_mean_of(row.length for row in rows),
        entropy=_mean_of(row.entropy for row in rows),
        uses_gold=first.uses_gold,
        strongest=None if strongest is None else strongest.name,
        against_strongest=strongest and _gain(strongest.right, [row.right for row in rows], confidence),
        budgets=_budgets(rows, nones, groups) if adapted else (),
    )


class Strongest(NamedTuple):
    """A baseline without an update, and whether it is right, for each data set."""

    name: str
    right: tuple[Values, ...]
    share: float


def strongest_baseline(
    nones: Sequence[MethodResult | None],
    groups: Sequence[Mapping[str, MethodResult]],
    tokens: Sequence[Mapping[int, float]],
) -> Strongest | None:
    """Of the baselines that take no more tokens than these, the one that is right most often.

    Votes and the likeliest response are taken at just these tokens (`at_equal_tokens`), the others as they stand in
    the table.  None where nothing was saved to decide from.

    Args: `tokens`, per question, by seed, for each data set.
    """
    known = [none for none in nones if none is not None]
    if len(known) < len(groups) or not all(tokens):
        return None
    limits = [fmean(own.values()) for own in tokens]
    found: dict[str, list[MethodResult]] = {}
    for rule in EQUAL_TOKEN_RULES:
        equal = [at_equal_tokens(none, limit, rule) for none, limit in zip(known, limits, strict=True)]
        outcomes = [one.outcome for one in equal if one is not None]
        if len(outcomes) == len(groups):
            found[outcomes[0].name] = outcomes
    for name, first in groups[0].items():
        if first.kind == "no update" and name not in found and all(name in group for group in groups):
            own = [group[name] for group in groups]
            if all(one.tokens and fmean(one.tokens.values()) <= most for one, most in zip(own, limits, strict=True)):
                found[name] = own
    ranked = [Strongest(name, tuple(one.right for one in own), _share(own)) for name, own in found.items()]
    return max(ranked, key=lambda one: one.share) if ranked else None


def _share(outcomes: Sequence[MethodResult]) -> float:
    return fmean(fmean(_by_question(one.right).values() or [0.0]) for one in outcomes)


def _budgets(
    rows: Sequence[MethodResult], nones: Sequence[MethodResult | None], groups: Sequence[Mapping[str, MethodResult]]
) -> tuple[Budget, ...]:
    """At a quarter, a half, three quarters and the end of the evaluated steps that all runs have."""
    runs = [way for row in rows for way in row.on_the_way.values()]
    steps = sorted(set.intersection(*(set(way) for way in runs))) if runs else []
    if not steps or not all(row.on_the_way for row in rows):
        return ()
    quarters = (steps[max(0, round(len(steps) * part) - 1)] for part in (0.25, 0.5, 0.75, 1.0))
    found = []
    for step in dict.fromkeys(quarters):
        tokens = [{seed: way[step][0] for seed, way in row.on_the_way.items()} for row in rows]
        strongest = strongest_baseline(nones, groups, tokens)
        if strongest is None:
            return ()
        rights = [_by_question({seed: way[step][1] for seed, way in row.on_the_way.items()}) for row in rows]
        bases = [_by_question(values) for values in strongest.right]
        changes = [own[id_] - base[id_] for own, base in zip(rights, bases, strict=True) for id_ in own if id_ in base]
        found.append(
            Budget(
                step,
                fmean(fmean(own.values()) for own in tokens),
                fmean(fmean(own.values()) for own in rights),
                strongest.name,
                strongest.share,
                *_won_and_lost(changes),
            )
        )
    return tuple(found)


def _won_and_lost(changes: Sequence[float]) -> tuple[int, int]:
    """How many of these differences by question are above 0, and below."""
    return sum(one > _ROUNDING for one in changes), sum(one < -_ROUNDING for one in changes)


def _equal(rows: Sequence[MethodResult], nones: Sequence[MethodResult | None]) -> list[EqualTokens]:
    """Majority voting at each data set's own tokens; [] where one of them cannot say."""
    found = [
        at_equal_tokens(none, fmean(row.tokens.values())) if none is not None and row.tokens else None
        for row, none in zip(rows, nones, strict=True)
    ]
    known = [equal for equal in found if equal is not None]
    return known if len(known) == len(found) else []


def _course(rows: Sequence[MethodResult]) -> dict[int, float]:
    """Greedy Pass@1 by step, over the steps that all runs were evaluated at; mean over seeds, then data sets."""
    runs = [course for row in rows for course in row.course.values()]
    if not runs or any(not row.course for row in rows):
        return {}
    steps = set.intersection(*(set(course) for course in runs))
    return {step: fmean(fmean(c[step] for c in row.course.values()) for row in rows) for step in sorted(steps)}


def _elsewhere_figures(
    rows: Sequence[MethodResult], nones: Sequence[MethodResult | None], confidence: float
) -> tuple[ElsewhereFigures, ...]:
    """One data set: one per other data set.  Several: one per role, the mean over each set's."""
    if len(rows) == 1:
        keys = [[key] for key in rows[0].elsewhere]
    else:
        roles = dict.fromkeys(role for row in rows for role, _ in row.elsewhere)
        keys = [[key for row in rows for key in row.elsewhere if key[0] == role] for role in roles]
        keys = [list(dict.fromkeys(group)) for group in keys]
    found = []
    for group in keys:
        pairs = [
            (row, none, key) for row, none in zip(rows, nones, strict=True) for key in group if key in row.elsewhere
        ]
        values = [row.elsewhere[key] for row, _, key in pairs]
        right = _estimate(values, confidence)
        if right is None or len({row.data for row, *_ in pairs}) < len(rows):
            continue
        gain = None
        if all(none is not None and none.name != row.name and key in none.elsewhere for row, none, key in pairs):
            gain = _gain([none.elsewhere[key] for _, none, key in pairs if none is not None], values, confidence)
        role, names = group[0][0], list(dict.fromkeys(name for _, name in group))
        found.append(ElsewhereFigures(role, names[0] if len(names) == 1 else f"{len(names)} sets", right, gain))
    return tuple(found)


def _gain_over(others: Sequence[MethodResult | None], rows: Sequence[MethodResult], confidence: float) -> Gain | None:
    """Seeds are paired where both learn: the same seed brings both the same questions in the same order."""
    known = [other for other in others if other is not None]
    if len(known) < len(rows):
        return None
    both_learn = known[0].kind == rows[0].kind == "adapted"
    return _gain([other.right for other in known], [row.right for row in rows], confidence, both_learn)


def _estimate(groups: Sequence[Values], confidence: float) -> Estimate | None:
    means = [list(_by_question(values).values()) for values in groups]
    if not means or not all(means):
        return None
    seeds = sorted(set.intersection(*(set(values) for values in groups)))
    by_seed = {seed: fmean(fmean(values[seed].values()) for values in groups) for seed in seeds}
    return Estimate(*grouped_mean(means, confidence), by_seed)


def _gain(a: Sequence[Values], b: Sequence[Values], confidence: float, pair_seeds: bool = False) -> Gain | None:
    """b - a by question, each averaged over its own seeds, or with `pair_seeds` over those that both have.

    By seed: b's seed against a's same one, or without `pair_seeds` against a's mean.
    """
    befores, afters = [], []
    shares: list[dict[int, float]] = []
    changes: list[list[list[float]]] = []
    if not a:
        return None
    for x, y in zip(a, b, strict=True):
        seeds = sorted(set(x) & set(y)) if pair_seeds else sorted(y)
        if not seeds:
            return None
        before, after = _by_question(x, seeds if pair_seeds else None), _by_question(y, seeds)
        ids = [id_ for id_ in after if id_ in before]
        if not ids:
            return None
        befores.append([before[id_] for id_ in ids])
        afters.append([after[id_] for id_ in ids])
        pairs = {seed: (x[seed] if pair_seeds else before, y[seed]) for seed in seeds}
        shares.append({seed: _difference(own, now, ids) for seed, (own, now) in pairs.items()})
        changes.append([[now[id_] - own[id_] for id_ in ids] for own, now in pairs.values()])
    found = grouped_difference(befores, afters, confidence)
    common = sorted(set.intersection(*map(set, shares)))
    by_seed = {seed: fmean(one[seed] for one in shares) for seed in common}
    none = (None, None)
    seeds_ = spread_interval(list(by_seed.values()), confidence) or none
    both = two_level_interval(changes, confidence) or none
    won = _won_and_lost([y - x for a, b in zip(befores, afters, strict=True) for x, y in zip(a, b, strict=True)])
    return Gain(found.difference, found.low, found.high, found.p_value, found.num, by_seed, *seeds_, *both, *won)


def _difference(before: Mapping[str, float], after: Mapping[str, float], ids: Sequence[str]) -> float:
    return fmean(after[id_] - before[id_] for id_ in ids)


def _by_question(values: Values, seeds: Sequence[int] | None = None) -> dict[str, float]:
    """A question's mean over the seeds (all, or those given), for the questions that all of them have."""
    tables = [table for seed, table in values.items() if seeds is None or seed in seeds]
    if not tables:
        return {}
    ids = [id_ for id_ in tables[0] if all(id_ in table for table in tables)]
    return {id_: math.fsum(table[id_] for table in tables) / len(tables) for id_ in ids}


def _mean_of(by_set: Iterable[Mapping[int, float]]) -> float | None:
    """Mean over seeds, then over data sets; None where one of them does not say."""
    listed = list(by_set)
    return fmean(fmean(values.values()) for values in listed) if listed and all(listed) else None
