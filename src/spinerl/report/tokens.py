"""The entropies of all tokens before and after, and which tokens are forks: histograms and pictures of words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spinerl.report.charts import Legend, format_number
from spinerl.report.examples import heat_level, heat_top
from spinerl.report.groups import Group
from spinerl.report.histogram import Histogram, Outline
from spinerl.report.read import TokenCounts, TokenWord
from spinerl.report.text import NBSP, show_percent, show_token

__all__ = ["token_views"]

_WORDS_SHOWN = 60
_SMALLEST, _LARGEST = 8, 26  # font sizes, in tenths of a rem


@dataclass(frozen=True)
class _WordView:
    head: str  # spaces before it, as signs
    text: str
    tail: str  # spaces after it
    title: str
    style: str  # its heat level
    size: int  # .z8 ... .z26 in style.css: tenths of a rem


@dataclass(frozen=True)
class _CloudView:
    when: str
    words: tuple[_WordView, ...]
    note: str


@dataclass(frozen=True)
class _TokenView:
    label: str
    sentences: tuple[str, ...]
    charts: tuple[Histogram, ...]
    forks: tuple[_CloudView, ...]
    followers: tuple[_CloudView, ...]  # () where none were logged, or every token is a fork


def token_views(groups: Sequence[Group]) -> tuple[float, list[_TokenView]]:
    """The top of the colour scale (nats) and, for the first run of each group that logged tokens, what is shown."""
    found = [(group, _first_and_last(group.runs[0].token_counts)) for group in groups if group.runs[0].token_counts]
    top = heat_top(
        word.entropy
        for _, steps in found
        for counts in steps
        for word in (*counts.words[:_WORDS_SHOWN], *counts.followers[:_WORDS_SHOWN])
        if word.entropy is not None
    )
    views = []
    for number, (group, steps) in enumerate(found):
        label = group.label if len(group.runs) == 1 else f"{group.label}: {group.runs[0].name}"
        names = ("before", "after") if len(steps) > 1 else ("",)
        views.append(
            _TokenView(
                label,
                tuple(_sentence(counts, name) for counts, name in zip(steps, names, strict=True)),
                tuple(_charts(number, steps, names, group.style)),
                _clouds(
                    [(c, name, c.words, _num_forks(c)) for c, name in zip(steps, names, strict=True)], "forks", top
                ),
                _clouds(
                    [(c, name, c.followers, _num_followers(c)) for c, name in zip(steps, names, strict=True)],
                    "followers",
                    top,
                ),
            )
        )
    return top, views


def _first_and_last(rows: Sequence[TokenCounts]) -> tuple[TokenCounts, ...]:
    """The first logged step, as far as its bins are those of the last, and the last."""
    last = rows[-1]
    first = next(row for row in rows if row.edges == last.edges)
    return (last,) if first is last else (first, last)


def _when(counts: TokenCounts, name: str) -> str:
    return f"{name}, step {counts.step}" if name else f"step {counts.step}"


def _num_forks(counts: TokenCounts) -> int:
    return max(1, sum(counts.forks))


def _num_followers(counts: TokenCounts) -> int:
    return max(1, sum(counts.tokens) - sum(counts.forks))


def _all_forks(counts: TokenCounts) -> bool:
    """Whether the update acts on every token, so that forks are nothing of their own."""
    return counts.forks == counts.tokens


def _sentence(counts: TokenCounts, name: str) -> str:
    total = sum(counts.tokens)
    parts = []
    if len(counts.edges) > 1:
        parts.append(f"{show_percent(counts.tokens[0] / total)} have less than {counts.edges[1]:g}{NBSP}nats")
    forks = f"{show_percent(sum(counts.forks) / total)} are forks"
    parts.append("the update acts on all of them" if _all_forks(counts) else forks)
    return f"{_when(counts, name).capitalize()}: of {format_number(total, 1)} tokens, {' and '.join(parts)}."


def _charts(number: int, steps: Sequence[TokenCounts], names: Sequence[str], style: str) -> list[Histogram]:
    """All tokens with the forks among them; then, unless all tokens are forks, only the forks."""
    labels = [_when(counts, name) for counts, name in zip(steps, names, strict=True)]
    styles = ("s7 d1", f"{style} d0")[-len(steps) :]
    legend = tuple(map(Legend, labels, styles)) if len(steps) > 1 else ()
    edges = steps[0].edges
    is_open = any(counts.tokens[-1] for counts in steps)
    beyond = f" The last bin holds all from {edges[-1]:g}{NBSP}nats on." if is_open else ""
    selected = not all(map(_all_forks, steps))
    tokens, forks = [], []
    for label, style_, counts in zip(labels, styles, steps, strict=True):
        share, part = (_shares(c, sum(counts.tokens)) for c in (counts.tokens, counts.forks))
        tokens.append(Outline(label, style_, share, part if selected else None))
        forks.append(Outline(label, style_, _shares(counts.forks, _num_forks(counts))))
    charts = [
        Histogram(
            f"token-entropies-{number}",
            "Entropies of all tokens",
            "% of the step's tokens, logarithmic",
            edges,
            tuple(tokens),
            ("Filled: the forks among them." if selected else "The update acts on all of them.") + beyond,
            "forks",
            legend,
            logarithmic=True,
        ),
        Histogram(
            f"fork-entropies-{number}",
            "Entropies of the forks",
            "% of the step's forks",
            edges,
            tuple(forks),
            "The tokens that the update acts on." + beyond,
            legend=legend,
        ),
    ]
    return charts if selected else charts[:1]


def _shares(counts: Sequence[int], total: int) -> tuple[float, ...]:
    """Percent of the total."""
    return tuple(100 * count / total for count in counts)


def _clouds(
    steps: Sequence[tuple[TokenCounts, str, Sequence[TokenWord], int]], what: str, top: float
) -> tuple[_CloudView, ...]:
    """The words of each step, sizes on one scale for all.  `steps`: (counts, name, words, number of such tokens)."""
    most = max((word.count / total for _, _, words, total in steps for word in words), default=1.0) or 1.0
    clouds = []
    for counts, name, words, total in steps:
        shown = words[:_WORDS_SHOWN]
        share = sum(word.count for word in shown) / total
        if shown:
            views = tuple(_word(word, what, word.count / total / most, top) for word in shown)
            note = f"{len(shown)} different tokens, {show_percent(share)} of the step's {what}"
            clouds.append(_CloudView(_when(counts, name).capitalize(), views, note))
    return tuple(clouds)


def _word(word: TokenWord, what: str, size: float, top: float) -> _WordView:
    """`size` is the share of the largest word, 0 to 1; the letters' area is about proportional to it."""
    entropy = "no entropy" if word.entropy is None else f"mean entropy {word.entropy:.2f} nats"
    id_ = "" if word.id is None else f"token {word.id}, "
    shown = show_token(word.text)
    bare = shown.strip("␣") or shown
    head, _, tail = shown.partition(bare)
    return _WordView(
        head,
        bare,
        tail,
        f"{id_}a {what.removesuffix('s')} {word.count} of the {word.seen} times it was seen, {entropy}",
        f"f{heat_level(word.entropy or 0.0, top)}",
        round(_SMALLEST + (_LARGEST - _SMALLEST) * math.sqrt(min(1.0, max(0.0, size)))),
    )
