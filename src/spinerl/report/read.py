"""A run folder as plain records.  What a run left behind is read; what it did not is simply absent."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spinerl.errors import InputError, cause_of
from spinerl.files import kind_of
from spinerl.lines import lines_of, read_text
from spinerl.recipes import read_yaml
from spinerl.streams import MOST_STEPS

__all__ = ["Point", "Response", "RunData", "Sample", "TokenCounts", "TokenWord", "number", "read_run"]

Point = tuple[float, float | None]
"""(step, value); None where the run wrote something that is not a finite number."""

_EVIDENCE = (
    "metrics.jsonl",
    "eval.jsonl",
    "manifest.json",
)  # one of them next to config.yaml makes a run folder

_LARGEST, _SMALLEST = 1e30, 1e-30  # no figure of a run is outside of these; charts could not be drawn


@dataclass(frozen=True)
class Response:
    """One logged response: its text, and per token the string, the entropy in nats and whether it is a fork.

    `tokens`, `entropies` and `forks` have the same length, 0 if the run logged no tokens.
    """

    text: str
    answer: str | None
    reward: float | None
    advantage: float | None
    truncated: bool
    tokens: tuple[str, ...]
    entropies: tuple[float | None, ...]
    forks: tuple[bool, ...]


@dataclass(frozen=True)
class Sample:
    """One question of one logged step with its vote and some of its responses."""

    step: int
    question_id: str
    question: str
    pseudo_label: str | None
    majority_frac: float | None
    votes: tuple[tuple[str, float], ...]  # answer, votes; most votes first
    num_abstained: int
    responses: tuple[Response, ...]
    images: tuple[Path, ...] = ()  # small copies in the run folder


@dataclass(frozen=True)
class TokenWord:
    """A token: its text, its id, how often it was seen, how often a fork (or a follower), its mean entropy in nats."""

    text: str
    id: int | None
    seen: int
    count: int
    entropy: float | None


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of one logged step: how many have an entropy in each bin, how many of these are forks.

    Bin i holds edges[i] <= entropy < edges[i + 1] in nats, the last one has no upper end.  `words` are the tokens
    that are most often forks, `followers` those that are most often the others, most frequent first.
    """

    step: int
    edges: tuple[float, ...]
    tokens: tuple[int, ...]
    forks: tuple[int, ...]
    words: tuple[TokenWord, ...]
    followers: tuple[TokenWord, ...] = ()


@dataclass(frozen=True)
class RunData:
    """What a run folder holds.

    `config` is the nested resolved configuration, `manifest` the facts of the run ({} if not written yet),
    `metrics` and `evals` the rows by ascending step (a step written twice, as after a resume, counts once and
    the later row wins), `notes` what a reader must know about damaged or missing parts, `damage` those notes that are
    about damage: about what no run leaves, interrupted or not.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    evals: tuple[Mapping[str, Any], ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    looks: tuple[Mapping[str, Any], ...] = ()  # the guard's, by ascending step
    token_counts: tuple[TokenCounts, ...] = ()  # by ascending step
    labels: tuple[Mapping[str, Any], ...] = ()  # labels.jsonl, by ascending step
    damage: tuple[str, ...] = ()

    def series(self, key: str) -> tuple[Point, ...]:
        """The values of one metric by step: from eval.jsonl for an "eval/..." key, from guard.jsonl for a "guard/..."
        one (its rest is the key there), else from metrics.jsonl.

        Rows without the key are left out; a value that is not a finite number is None.
        """
        if key.startswith("guard/"):
            key, rows = key.removeprefix("guard/"), self.looks
        else:
            rows = self.evals if key.startswith("eval/") else self.metrics
        return tuple((float(row["step"]), number(row[key])) for row in rows if key in row)

    def setting(self, key: str, default: Any = None) -> Any:
        """The configuration's value at a dotted key, `default` if the run did not write it."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def planned_steps(self) -> int | None:
        """The steps this run set out to do, None if its configuration does not say."""
        steps = number(self.setting("steps"))
        return None if steps is None else int(steps)

    @property
    def steps_done(self) -> int:
        """The steps that left a line in metrics.jsonl."""
        return len(self.metrics)

    @property
    def finished(self) -> bool:
        """Whether all planned steps were done, or the guard ended the run before."""
        return self.planned_steps is None or self.steps_done >= self.planned_steps or "guard" in self.manifest

    @property
    def guard(self) -> Mapping[str, Any]:
        """What the guard did: kept_step, rule, text; {} for a run without it, or before its end."""
        guard = self.manifest.get("guard")
        return guard if isinstance(guard, Mapping) else {}

    @property
    def stream(self) -> Mapping[str, Any]:
        """What a stream's answers were worth (`scoring.stream_figures`); {} for other runs, and before the end."""
        stream = self.manifest.get("stream")
        return stream if isinstance(stream, Mapping) else {}

    @property
    def final_eval(self) -> Mapping[str, Any] | None:
        """The evaluation of the weights that the run ended with; None before the first."""
        kept = self.guard.get("kept_step")
        return next((row for row in self.evals if row["step"] == kept), self.evals[-1] if self.evals else None)

    @property
    def step_seconds(self) -> float | None:
        """Time spent in steps (s), None if no step was timed.  Evaluations are not in it."""
        times = [value for _, value in self.series("time/step_s") if value is not None]
        return sum(times) if times else None


def number(value: Any) -> float | None:
    """The value as a finite float, None for anything else (NaN, infinity, text, booleans, nothing).

    No figure of a run is over 1e30 either; one under 1e-30 is 0.

    >>> number(3), number(float("nan")), number("3"), number(True)
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    if not abs(result) <= _LARGEST:  # nor NaN
        return None
    return result if abs(result) >= _SMALLEST else 0.0


class _Notes:
    """What a reader must know, in the order in which it was found."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.damage: list[str] = []

    def note(self, text: str) -> None:
        self.all.append(text)

    def damaged(self, text: str) -> None:
        self.all.append(text)
        self.damage.append(text)


def read_run(folder: Path | str) -> RunData:
    """Read one run folder; an unfinished run and a last line cut short are fine and leave a note.

    Raises InputError naming the folder if it is not a run folder: there is no config.yaml, it holds no
    mapping, or none of metrics.jsonl, eval.jsonl and manifest.json is next to it.

        run = read_run("runs/spine-tiny-seed0")
        run.series("reward/mean")   # ((1.0, 0.41), (2.0, 0.44), ...)
    """
    folder = Path(folder)
    config = _read_config(folder)
    notes = _Notes()
    metrics = _by_step(_read_lines(folder / "metrics.jsonl", notes))
    evals = _by_step(_read_lines(folder / "eval.jsonl", notes, in_order=False))
    samples = _read_samples(folder / "samples.jsonl", notes)
    token_counts = _read_token_counts(folder / "tokens.jsonl", notes)
    _note_non_finite(metrics, "metrics.jsonl", notes)
    _note_non_finite(evals, "eval.jsonl", notes)
    manifest = _read_manifest(folder / "manifest.json", notes)
    looks = _by_step(_read_lines(folder / "guard.jsonl", notes))
    labels = _read_lines(folder / "labels.jsonl", notes)
    return RunData(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        manifest=manifest,
        metrics=metrics,
        evals=evals,
        samples=samples,
        notes=tuple(notes.all),
        looks=looks,
        token_counts=token_counts,
        labels=tuple(_latest(labels, lambda row: (row["step"], str(row.get("id"))))),
        damage=tuple(notes.damage),
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.yaml"
    try:
        kind, config_kind = kind_of(folder, follow=True), kind_of(path, follow=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be opened: {cause_of(error)}") from None
    if kind != "a folder":
        what = "there is no such folder" if kind is None else f"it is {kind}"
        raise InputError(f"{folder} is not a run folder: {what}; give the one a run wrote")
    if config_kind != "a file":
        what = "it has no config.yaml" if config_kind is None else f"its config.yaml is {config_kind}"
        raise InputError(f"{folder} is not a run folder: {what}; give the folder a run wrote")
    if not any((folder / name).is_file() for name in _EVIDENCE):
        raise InputError(f"{folder} is not a run folder: it has none of {', '.join(_EVIDENCE)}; has the run started?")
    try:
        config = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError, InputError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{folder} is not a run folder: config.yaml holds {type(config).__name__}, not key: value lines"
        )
    return _with_text_keys(config)


def _with_text_keys(value: Any) -> Any:
    """The value with the keys of its mappings as texts, as those of a run's configuration are."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


def _is_there(path: Path, notes: _Notes) -> bool:
    """Whether there is a file; something else in its place is noted."""
    kind = kind_of(path, follow=True)
    if kind not in (None, "a file"):
        notes.damaged(f"{path.name} is {kind}, not a file: it is left out.")
    return kind == "a file"


def _read_manifest(path: Path, notes: _Notes) -> Mapping[str, Any]:
    if kind_of(path, follow=True) is None:
        notes.note("manifest.json is missing: versions, device and data counts are unknown.")
        return {}
    if not _is_there(path, notes):
        return {}
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        notes.damaged("manifest.json cannot be read: versions, device and data counts are unknown.")
        return {}
    for key in ("model", "data", "guard"):
        if not isinstance(manifest.get(key, {}), dict):
            notes.damaged(f"manifest.json: `{key}` is no object: what it should say is unknown.")
            del manifest[key]
    return manifest


def _read_lines(path: Path, notes: _Notes, *, in_order: bool = True) -> list[Mapping[str, Any]]:
    """The JSON objects of a file that have a whole number "step"; bad lines are noted and left out.

    `in_order`: whether a step that comes after a later one is noted too; all of them are read.
    """
    if not _is_there(path, notes):
        return []
    try:
        text = read_text(path, errors="replace")
    except OSError as error:
        notes.damaged(f"{path.name} cannot be read ({cause_of(error)}): it is left out.")
        return []
    lines, is_cut = lines_of(text), not text.endswith("\n")
    rows: list[Mapping[str, Any]] = []
    bad: list[int] = []
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        step = number(row.get("step")) if isinstance(row, dict) else None
        if isinstance(row, dict) and step is not None and step == int(step) and 0 <= step < MOST_STEPS:
            rows.append({**row, "step": int(step)})
        elif i == last and is_cut and row is None:
            notes.note(f"{path.name}: the last line is cut short and left out.")
        else:
            bad.append(i + 1)
    if bad:
        which = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first of them line {bad[0]},"
        notes.damaged(f"{path.name}: {which} cannot be read and {'is' if len(bad) == 1 else 'are'} left out.")
    if in_order:
        wrong = next((b["step"] for a, b in itertools.pairwise(rows) if b["step"] < a["step"]), None)
        if wrong is not None:
            notes.note(f"{path.name}: step {wrong} comes after a later one; of equal steps the last counts.")
    return rows


def _by_step(rows: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(_latest(rows, lambda row: row["step"]))


def _latest(
    rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Hashable]
) -> Iterator[Mapping[str, Any]]:
    """The last row of each key, by step."""
    yield from sorted({key(row): row for row in rows}.values(), key=lambda row: row["step"])


def _note_non_finite(rows: Iterable[Mapping[str, Any]], name: str, notes: _Notes) -> None:
    bad = [
        (key, row["step"])
        for row in rows
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and number(value) is None
    ]
    if bad:
        key, step = bad[0]
        count = "1 value is" if len(bad) == 1 else f"{len(bad)} values are"
        notes.note(f"{name}: {count} not finite (first: {key} at step {step}); curves have gaps there.")
    odd = [
        (key, row["step"])
        for row in rows
        for key, value in row.items()
        if "/" in key and value is not None and not isinstance(value, int | float)
    ]
    if odd:
        key, step = odd[0]
        count = "1 value is" if len(odd) == 1 else f"{len(odd)} values are"
        notes.damaged(f"{name}: {count} no number (first: {key} at step {step}); curves have gaps there.")


def _read_samples(path: Path, notes: _Notes) -> tuple[Sample, ...]:
    rows = _read_lines(path, notes)
    return tuple(
        _sample(row, path.parent) for row in _latest(rows, lambda row: (row["step"], str(row.get("question_id"))))
    )


def _sample(row: Mapping[str, Any], folder: Path) -> Sample:
    raw = row.get("votes")
    counted = {str(answer): number(n) for answer, n in raw.items()} if isinstance(raw, dict) else {}
    votes = sorted(((answer, n) for answer, n in counted.items() if n), key=lambda vote: -vote[1])
    responses, images = row.get("responses"), row.get("images")
    return Sample(
        step=row["step"],
        question_id=str(row.get("question_id", "?")),
        question=str(row.get("question") or row.get("prompt") or ""),
        pseudo_label=_text(row.get("pseudo_label")),
        majority_frac=number(row.get("majority_frac")),
        votes=tuple(votes),
        num_abstained=int(number(row.get("num_abstained")) or 0),
        responses=tuple(_response(r) for r in responses if isinstance(r, dict)) if isinstance(responses, list) else (),
        images=tuple(folder / name for name in images if _is_plain(name)) if isinstance(images, list) else (),
    )


def _is_plain(name: Any) -> bool:
    """Whether this is a name, and stays inside the run folder's images."""
    return isinstance(name, str) and name.startswith("images/") and "/" not in name.removeprefix("images/")


def _response(row: Mapping[str, Any]) -> Response:
    tokens, entropies, forks = (
        row.get(key) if isinstance(row.get(key), list) else [] for key in ("tokens", "entropies", "forks")
    )
    assert isinstance(tokens, list)
    assert isinstance(entropies, list)
    assert isinstance(forks, list)
    n = len(tokens) if len(tokens) == len(entropies) == len(forks) else 0
    return Response(
        text=str(row.get("text") or ""),
        answer=_text(row.get("answer")),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        truncated=row.get("truncated") is True,
        tokens=tuple(str(token) for token in tokens[:n]),
        entropies=tuple(number(entropy) for entropy in entropies[:n]),
        forks=tuple(fork is True for fork in forks[:n]),
    )


def _read_token_counts(path: Path, notes: _Notes) -> tuple[TokenCounts, ...]:
    """The rows of tokens.jsonl whose bins fit together and hold a token."""
    rows = _by_step(_read_lines(path, notes))
    found = [counts for row in rows if (counts := _token_counts(row)) is not None]
    if len(found) < len(rows):
        notes.damaged(f"{path.name}: {len(rows) - len(found)} of {len(rows)} histograms do not fit and are left out.")
    return tuple(counts for counts in found if any(counts.tokens))


def _token_counts(row: Mapping[str, Any]) -> TokenCounts | None:
    edges, tokens, forks = (_numbers(row.get(key)) for key in ("edges", "tokens", "forks"))
    if not len(edges) == len(tokens) == len(forks) or not edges or list(edges) != sorted(set(edges)):
        return None
    return TokenCounts(
        step=row["step"],
        edges=edges,
        tokens=tuple(map(int, tokens)),
        forks=tuple(map(int, forks)),
        words=_token_words(row.get("words"), "forks"),
        followers=_token_words(row.get("followers"), "followers"),
    )


def _token_words(rows: Any, what: str) -> tuple[TokenWord, ...]:
    words = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            id_, seen, count = (number(row.get(key)) for key in ("id", "seen", what))
            id_ = None if id_ is None else int(id_)
            text, entropy = str(row.get("token", "")), number(row.get("entropy"))
            words.append(TokenWord(text, id_, int(seen or 0), int(count or 0), entropy))
    return tuple(words)


def _numbers(value: Any) -> tuple[float, ...]:
    """The list's numbers, none under 0; () if it holds anything else, or is no list."""
    found = [number(item) for item in value] if isinstance(value, list) else []
    sound = [item for item in found if item is not None and item >= 0]
    return tuple(sound) if len(sound) == len(found) else ()


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
