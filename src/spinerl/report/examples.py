"""The example responses: which are shown, and how much of each."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spinerl.files import kind_of
from spinerl.report.charts import format_number
from spinerl.report.groups import Group
from spinerl.report.read import Response, Sample
from spinerl.report.text import show_percent, show_sign

__all__ = ["example_views", "heat_legend", "heat_level", "heat_top"]

_PAIRS_SHOWN = 3  # early and late questions per run; fewer when several runs share the page
_RESPONSES_SHOWN = 4  # of one question
_ANSWERS_SHOWN = 6  # bars of one vote
_TOKENS_PER_RESPONSE = 500
_TOKENS_PER_PAGE = 14_000  # a token costs about 60 bytes; this keeps the page under 2 MB
_TEXT_SHOWN = 3_000  # characters of a question, or of a response logged without tokens
_IMAGES_SHOWN = 4  # of one question
_IMAGE_BYTES = 2**20  # those that a run keeps have some thousands
_IMAGE_MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff"}
_HEAT_LEVELS = 6  # .f0 ... .f5 in style.css


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
    sample: Sample
    when: str
    question: str
    images: tuple[str, ...]  # data URIs
    votes: tuple[tuple[str, float, float, bool], ...]  # answer, votes, share of all responses, won
    other_votes: str
    abstained_share: float
    majority: str
    responses: tuple[_ResponseView, ...]
    left_out: str


@dataclass(frozen=True)
class _RunSamples:
    label: str
    pairs: tuple[tuple[_SampleView | None, ...], ...]  # (early, late)
    note: str


def example_views(groups: Sequence[Group]) -> tuple[float, list[_RunSamples]]:
    """The top of the colour scale (nats) and, for the first run of each group, early and late questions."""
    runs = [
        (group.label if len(group.runs) == 1 else f"{group.label}: {group.runs[0].name}", group.runs[0])
        for group in groups
        if group.runs[0].samples
    ]
    pairs_each = _PAIRS_SHOWN if len(runs) == 1 else 1 if len(runs) > 3 else 2
    chosen = [(label, run, _pair_up(run.samples, pairs_each)) for label, run in runs]
    shown = [
        response
        for *_, pairs in chosen
        for sample in itertools.chain(*pairs)
        if sample is not None
        for response in sample.responses[:_RESPONSES_SHOWN]
    ]
    entropies = [
        entropy
        for response in shown
        for entropy, fork in zip(response.entropies, response.forks, strict=True)
        if fork and entropy is not None
    ]
    top = heat_top(entropies)
    limit = min(_TOKENS_PER_RESPONSE, max(40, _TOKENS_PER_PAGE // max(1, len(shown))))
    views = []
    for label, run, pairs in chosen:
        steps = {sample.step for sample in run.samples}
        roles = ("early, ", "late, ") if len(steps) > 1 else ("", "")
        cards = tuple(
            tuple(_sample_view(sample, role, top, limit) for sample, role in zip(pair, roles, strict=True))
            for pair in pairs
        )
        count = sum(card is not None for pair in cards for card in pair)
        note = f"{count} of {len(run.samples)} logged questions, from {len(steps)} logged steps."
        views.append(_RunSamples(label, cards, note))
    return top, views


def _pair_up(samples: Sequence[Sample], count: int) -> list[tuple[Sample | None, Sample | None]]:
    """(early, late) questions: the same question twice where the run logged one, else first and last ones."""
    if len({sample.step for sample in samples}) == 1:
        flat: list[Sample | None] = [*samples[: 2 * count]]
        flat += [None] * (len(flat) % 2)
        return list(zip(flat[::2], flat[1::2], strict=True))
    by_question: dict[str, list[Sample]] = {}
    for sample in samples:
        by_question.setdefault(sample.question_id, []).append(sample)
    same = sorted(
        ((seen[0], seen[-1]) for seen in by_question.values() if len({s.step for s in seen}) > 1),
        key=lambda pair: pair[0].step - pair[1].step,
    )
    pairs: list[tuple[Sample | None, Sample | None]] = [*same[:count]]
    used = {id(sample) for pair in pairs for sample in pair}
    rest = [sample for sample in samples if id(sample) not in used]
    while len(pairs) < count and rest:
        early = rest.pop(0)
        late = rest.pop() if rest else None
        if late is not None and late.step == early.step:
            rest, late = [], None
        pairs.append((early, late))
    return pairs


def _sample_view(sample: Sample | None, role: str, top: float, limit: int) -> _SampleView | None:
    if sample is None:
        return None
    total = sum(n for _, n in sample.votes) + sample.num_abstained or 1
    hidden = sample.votes[_ANSWERS_SHOWN:]
    more = len(sample.responses) - _RESPONSES_SHOWN
    return _SampleView(
        sample=sample,
        when=f"{role}step {sample.step}".capitalize(),
        question=_shortened(sample.question),
        images=tuple(uri for file in sample.images[:_IMAGES_SHOWN] if (uri := _data_uri(file))),
        votes=tuple(
            (answer, n, _share(n, total), answer == sample.pseudo_label) for answer, n in sample.votes[:_ANSWERS_SHOWN]
        ),
        other_votes=f"{len(hidden)} other answers: {format_number(sum(n for _, n in hidden))} votes" if hidden else "",
        abstained_share=_share(sample.num_abstained, total),
        majority=show_percent(sample.majority_frac),
        responses=tuple(_response_view(response, top, limit) for response in sample.responses[:_RESPONSES_SHOWN]),
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
