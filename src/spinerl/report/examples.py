"""The example responses: which are shown, and how much of each."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from spinerl.files import kind_of
from spinerl.report.charts import format_number
from spinerl.report.groups import Group
from spinerl.report.read import Response, RunData, Sample
from spinerl.report.text import show_percent, show_sign

__all__ = ["Examples", "example_views", "heat_legend", "heat_level", "heat_top"]

_RUNS_ABREAST = 4  # runs whose responses to one question stand next to one another
_RESPONSES_SHOWN = 4  # of one question
_RESPONSES_BETWEEN = 2  # of one question at a step that is neither the first nor the last
_ANSWERS_SHOWN = 6  # bars of one vote
_TOKENS_PER_RESPONSE = 500
_TOKENS_PER_PAGE = 14_000  # a token costs about 60 bytes; this keeps the page under 2 MB
_TEXT_SHOWN = 3_000  # characters of a question, or of a response logged without tokens
_IMAGES_SHOWN = 4  # of one question
_IMAGE_BYTES = 2**20  # those that a run keeps have some thousands
_IMAGE_MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff"}
_HEAT_LEVELS = 6  # .f0 ... .f5 in style.css

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _TokenView:
    space: str  # leading blanks, kept out of the highlight
    text: str
    title: str
    style: str  # "" for a follower, else its heat level


@dataclass(frozen=True)
class _ResponseView:
    response: Response
    tokens: tuple[_TokenView, ...]
    text: str
    left_out: str
    reward: str
    advantage: str


@dataclass(frozen=True)
class _SampleView:
    """A card.  `run` and `style` (its colour's class) name the run where cards of several runs stand together."""

    sample: Sample
    when: str
    run: str
    style: str
    question: str
    images: tuple[str, ...]  # data URIs
    votes: tuple[tuple[str, float, float, bool], ...]  # answer, votes, share of all responses, won
    other_votes: str
    abstained_share: float
    majority: str
    responses: tuple[_ResponseView, ...]
    left_out: str


@dataclass(frozen=True)
class _Moment:
    """What one position of the slider shows: a card, or one per run (None: it logged none up to this step)."""

    label: str
    cards: tuple[_SampleView | None, ...]


@dataclass(frozen=True)
class _Strip:
    """A question, or where none was logged twice a place among a step's questions, over the logged steps.

    `first` stands next to whatever the slider shows; with cards of several runs there is none.
    """

    id: str
    about: str
    first: _SampleView | None
    moments: tuple[_Moment, ...]


@dataclass(frozen=True)
class _RunSamples:
    label: str
    strips: tuple[_Strip, ...]
    note: str


@dataclass(frozen=True)
class Examples:
    """The example responses of a page: questions that several runs share, their runs side by side; then run by run."""

    abreast: tuple[_Strip, ...]
    runs: tuple[_RunSamples, ...]


@dataclass(frozen=True)
class _Shown:
    """A sample that is shown, and how many of its responses."""

    sample: Sample
    responses: int
    when: str
    run: str = ""
    style: str = ""


_Chosen = tuple[str, _Shown | None, list[tuple[str, list[_Shown | None]]]]
"""A strip before its tokens are counted: what it is about, the first card, (label, cards) of each moment."""


def example_views(groups: Sequence[Group]) -> tuple[float, Examples]:
    """The top of the colour scale (nats), and the examples: of the first run of each group that logged samples."""
    runs = [
        (group.label if len(group.runs) == 1 else f"{group.label}: {group.runs[0].name}", group.style, group.runs[0])
        for group in groups
        if group.runs[0].samples
    ]
    seeds = [(run.name, groups[0].style, run) for run in groups[0].runs if run.samples] if len(groups) == 1 else runs
    few = len(runs) <= 3
    abreast = _abreast(seeds, 2 if few else 1)
    strips_each, moments_each = (3, 4) if len(runs) == 1 and not abreast else (2, 2) if few else (1, 1)
    chosen = [(label, run, _strips(run.samples, strips_each, moments_each)) for label, _, run in runs]
    shown = list(chain(_cards(abreast), *(_cards(strips) for _, _, strips in chosen)))
    responses = [response for item in shown for response in item.sample.responses[: item.responses]]
    top = heat_top(
        entropy
        for response in responses
        for entropy, fork in zip(response.entropies, response.forks, strict=True)
        if fork and entropy is not None
    )
    limit = min(_TOKENS_PER_RESPONSE, max(40, _TOKENS_PER_PAGE // max(1, len(responses))))
    views = []
    for number, (label, run, strips) in enumerate(chosen):
        steps = {sample.step for sample in run.samples}
        count = sum(1 for _ in _cards(strips))
        note = f"{count} of {len(run.samples)} logged questions, from {len(steps)} logged steps."
        views.append(_RunSamples(label, _strip_views(f"run-{number}", strips, top, limit), note))
    return top, Examples(_strip_views("same", abreast, top, limit), tuple(views))


def _cards(strips: Iterable[_Chosen]) -> Iterator[_Shown]:
    for _, first, moments in strips:
        yield from (item for item in (first, *chain(*(cards for _, cards in moments))) if item is not None)


def _strip_views(prefix: str, strips: Iterable[_Chosen], top: float, limit: int) -> tuple[_Strip, ...]:
    return tuple(
        _Strip(
            f"{prefix}-{number}",
            about,
            _sample_view(first, top, limit),
            tuple(_Moment(label, tuple(_sample_view(card, top, limit) for card in cards)) for label, cards in moments),
        )
        for number, (about, first, moments) in enumerate(strips)
    )


def _strips(samples: Sequence[Sample], count: int, most: int) -> list[_Chosen]:
    """Questions that were logged at several steps, the most often logged first; then one of each step's others."""
    if len({sample.step for sample in samples}) == 1:
        pairs = [samples[i : i + 2] for i in range(0, min(len(samples), 2 * count), 2)]
        return [("", *_one_by_one(pair, ("", ""), most)) for pair in pairs]
    by_question: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_question.setdefault((sample.question_id, sample.question), []).append(sample)
    again = [seen for seen in by_question.values() if len(seen) > 1]
    again.sort(key=lambda seen: (-len(seen), seen[0].step - seen[-1].step))
    same = again[: max(1, count - 1)]
    used = {id(sample) for seen in same for sample in seen}
    left: dict[int, list[Sample]] = {}
    for sample in samples:
        if id(sample) not in used:
            left.setdefault(sample.step, []).append(sample)
    found = [(f"question {seen[0].question_id}", seen) for seen in same]
    while left and len(found) < count:
        found.append(("a question of each step", [own.pop(0) for own in left.values()]))
        left = {step: own for step, own in left.items() if own}
    return [(about, *_one_by_one(seen, ("early, ", "late, "), most)) for about, seen in found]


def _one_by_one(
    seen: Sequence[Sample], roles: tuple[str, str], most: int
) -> tuple[_Shown, list[tuple[str, list[_Shown | None]]]]:
    """The first sample, and some of the later ones: the last, and those between at even distances."""
    early, late = roles
    first = _Shown(seen[0], _RESPONSES_SHOWN, f"{early}step {seen[0].step}")
    moments: list[tuple[str, list[_Shown | None]]] = []
    for sample in _spread(seen[1:], most):
        last = sample is seen[-1]
        when = f"{late if last else ''}step {sample.step}"
        shown = _Shown(sample, _RESPONSES_SHOWN if last else _RESPONSES_BETWEEN, when)
        moments.append((f"step {sample.step}", [shown]))
    return first, moments


def _abreast(runs: Sequence[tuple[str, str, RunData]], count: int) -> list[_Chosen]:
    """Questions that several runs logged, at each step with each run's latest responses; those of most runs first."""
    runs = runs[:_RUNS_ABREAST]
    logged: dict[tuple[str, str], dict[int, list[Sample]]] = {}
    for number, (_, _, run) in enumerate(runs):
        for sample in run.samples:
            logged.setdefault((sample.question_id, sample.question), {}).setdefault(number, []).append(sample)
    shared = [(key, own) for key, own in logged.items() if len(own) > 1]
    shared.sort(key=lambda item: (-len(item[1]), -_span(item[1].values())))
    chosen: list[_Chosen] = []
    for (question_id, _), own in shared[:count]:
        # From where a second run has logged it, on to where the last has.
        begin = sorted(seen[0].step for seen in own.values())[1]
        steps = sorted({sample.step for seen in own.values() for sample in seen if sample.step >= begin})
        moments: list[tuple[str, list[_Shown | None]]] = []
        for step in [begin, *_spread(steps[1:], 2)]:
            cards: list[_Shown | None] = []
            for number, (label, style, _) in enumerate(runs):
                latest = next((one for one in reversed(own.get(number, [])) if one.step <= step), None)
                cards.append(latest and _Shown(latest, _RESPONSES_BETWEEN, f"step {latest.step}", label, style))
            moments.append((f"step {step}", cards))
        chosen.append((f"question {question_id}", None, moments))
    return chosen


def _span(each: Iterable[Sequence[Sample]]) -> int:
    """Steps from the first to the last sample."""
    steps = [sample.step for seen in each for sample in seen]
    return max(steps) - min(steps)


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many of the items at even distances, the last among them.

    >>> _spread("abcdefg", 3), _spread("ab", 3)
    (['b', 'e', 'g'], ['a', 'b'])
    """
    if len(items) <= most:
        return list(items)
    return [items[round((i + 1) * len(items) / most) - 1] for i in range(most)]


def _sample_view(item: _Shown | None, top: float, limit: int) -> _SampleView | None:
    if item is None:
        return None
    sample = item.sample
    total = sum(n for _, n in sample.votes) + sample.num_abstained or 1
    hidden = sample.votes[_ANSWERS_SHOWN:]
    more = len(sample.responses) - item.responses
    return _SampleView(
        sample=sample,
        when=item.when.capitalize(),
        run=item.run,
        style=item.style,
        question=_shortened(sample.question),
        images=tuple(uri for file in sample.images[:_IMAGES_SHOWN] if (uri := _data_uri(file))),
        votes=tuple(
            (answer, n, _share(n, total), answer == sample.pseudo_label) for answer, n in sample.votes[:_ANSWERS_SHOWN]
        ),
        other_votes=f"{len(hidden)} other answers: {format_number(sum(n for _, n in hidden))} votes" if hidden else "",
        abstained_share=_share(sample.num_abstained, total),
        majority=show_percent(sample.majority_frac),
        responses=tuple(_response_view(response, top, limit) for response in sample.responses[: item.responses]),
        left_out=f"{more} more logged responses are not shown." if more > 0 else "",
    )


def _share(part: float, total: float) -> float:
    return min(1.0, max(0.0, part / total))


def _response_view(response: Response, top: float, limit: int) -> _ResponseView:
    tokens = tuple(
        _TokenView(
            space=token[: len(token) - len(token.lstrip(" "))] if token.strip(" ") else "",
            # a line end inside a token shows as a sign, and still ends the line
            text=(token.lstrip(" ") or token).replace("\n", "↵\n"),
            title="no entropy" if entropy is None else f"{entropy:.2f} nats",
            style=f"f{heat_level(entropy or 0.0, top)}" if fork else "",
        )
        for token, entropy, fork in zip(response.tokens[:limit], response.entropies, response.forks, strict=False)
    )
    more = len(response.tokens) - len(tokens)
    return _ResponseView(
        response=response,
        tokens=tokens,
        text="" if tokens else _shortened(response.text),
        left_out=f"… {more} more tokens are not shown." if more > 0 else "",
        reward="–" if response.reward is None else f"{response.reward:.3g}",
        advantage="–"
        if response.advantage is None
        else f"{show_sign(response.advantage) if response.advantage else ''}{abs(response.advantage):.2f}",
    )


def _data_uri(file: Path) -> str:
    """A small copy of an image as an address; "" for anything else that is there under its name.

    Links are not followed: a run folder from elsewhere must not bring other files of this machine onto the page.
    """
    if kind_of(file) != "a file" or file.stat().st_size > _IMAGE_BYTES:
        return ""
    data = file.read_bytes()
    kind = next((name for name, magic in _IMAGE_MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} … ({len(text) - _TEXT_SHOWN} more characters)"


def heat_level(entropy: float, top: float) -> int:
    """The level (0 to 5) of an entropy on a colour scale from 0 to `top` nats."""
    return min(_HEAT_LEVELS - 1, max(0, int(_HEAT_LEVELS * entropy / top)))


def heat_legend(top: float) -> list[tuple[str, str]]:
    """(CSS class, "0.5 to 1.0") of each level, in nats."""
    edges = [top * i / _HEAT_LEVELS for i in range(_HEAT_LEVELS + 1)]
    return [(f"f{i}", f"{edges[i]:.2g}–{edges[i + 1]:.2g}") for i in range(_HEAT_LEVELS)]


def heat_top(entropies: Iterable[float]) -> float:
    """The top of a colour scale: the next multiple of 0.6 nats, so that the six levels have round edges."""
    return 0.6 * max(1, -int(-max(entropies, default=1.0) // 0.6))
