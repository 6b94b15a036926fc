"""What the finished runs of a comparison hold, question by question.  No torch, no model: saved rows are read.

Everything is kept as {seed: {question id: value}}: questions are the unit, seeds are averaged later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinerl.answers import vote
from spinerl.comparison.plan import NONE, Comparison, Task, elsewhere_file
from spinerl.comparison.state import ASKED, ASKING_S
from spinerl.config import VoteConfig
from spinerl.errors import InputError, RunError
from spinerl.report import RunData, read_run
from spinerl.report.read import number
from spinerl.streams import read_lines
from spinerl.types import Vote

__all__ = ["MethodResult", "Rows", "Values", "collect", "first_vote", "first_votes"]

Values = dict[int, dict[str, float]]
"""{seed: {question id: value}}; right is 1, wrong 0, a mean of samples in between."""

Rows = list[dict[str, Any]]
"""Judged rows (`spinerl.scoring`), one per question."""


@dataclass(frozen=True)
class MethodResult:
    """One row of the comparison on one data set.

    `kind` is "none", "adapted", or "no update".  `right`: of the answer given, that is of the greedy response, or of
    the answer that a way of voting elects.  `mean`, `majority`: of k samples.  `elsewhere`: as `right`, by role and
    name.  `tokens` per question and `seconds` are what getting there cost, by seed; an adaptation's are those
    of its steps.  `course`: greedy Pass@1 by step, by seed; `on_the_way`: by seed and evaluated step, the tokens per
    question until then and whether each question's greedy answer is right.  `length` (tokens) and `entropy` (nats) are
    of the final model's samples.  `votes` holds the unadapted model's responses, for the row without adaptation, as do
    `synthesized` (written after reading those), `refined` (checked and corrected), `forced` (by budget forcing) and
    `searched` (by search and seed; some searches read the first `num_seen` votes);
    `asking_s`: the seconds that each of these took, by name and seed.  `decided`: what `baselines` has worked out.
    """

    name: str
    kind: str
    data: str
    note: str = ""
    right: Values = field(default_factory=dict)
    mean: Values = field(default_factory=dict)
    majority: Values = field(default_factory=dict)
    elsewhere: dict[tuple[str, str], Values] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    length: dict[int, float] = field(default_factory=dict)
    entropy: dict[int, float] = field(default_factory=dict)
    course: dict[int, dict[int, float]] = field(default_factory=dict)
    on_the_way: dict[int, dict[int, tuple[float, dict[str, float]]]] = field(default_factory=dict)
    runs: tuple[RunData, ...] = ()
    votes: dict[int, Rows] = field(default_factory=dict)
    synthesized: dict[int, Rows] = field(default_factory=dict)
    refined: dict[int, Rows] = field(default_factory=dict)
    forced: dict[int, Rows] = field(default_factory=dict)
    searched: dict[str, dict[int, Rows]] = field(default_factory=dict)
    num_seen: dict[str, int] = field(default_factory=dict)
    asking_s: dict[str, dict[int, float]] = field(default_factory=dict)
    decided: dict[tuple[str, int, int], dict[str, float]] = field(default_factory=dict, repr=False, compare=False)
    uses_gold: bool = False
    voting: VoteConfig = field(default_factory=lambda: VoteConfig.model_validate({}))


def collect(
    comparison: Comparison, finished: Sequence[Task], on_damage: Callable[[Task, str], object] | None = None
) -> dict[str, list[MethodResult]]:
    """By data set, an outcome per row of the comparison; a row without a finished run is left out.

    So is a run that is damaged: `on_damage` gets it with the reason.  RunError where that is not given.
    """
    found: dict[str, list[MethodResult]] = {}
    for data in comparison.keys.data:
        outcomes = []
        for row in comparison.rows:
            tasks = [task for task in finished if task.row == row and task.data == data]
            outcome = _outcome(tasks, comparison.keys.samples, on_damage)
            if outcome is not None:
                outcomes.append(outcome)
        found[data] = outcomes
    return found


def first_votes(rows: Rows, num: int, voting: VoteConfig, seed: int) -> dict[str, float]:
    """Whether the majority of a question's first `num` responses is right, by id; rows without gold are left out.

    The rules are those of `eval/maj@k`: by default a tie elects no answer, which is wrong.
    """
    found: dict[str, float] = {}
    for row in rows:
        if row.get("responses_correct") is None:
            continue
        one = first_vote(row, num, voting, seed)
        found[row["id"]] = float(one.winner is not None and row["responses_correct"][one.classes.index(one.winner)])
    return found


def first_vote(row: Mapping[str, Any], num: int, voting: VoteConfig, seed: int) -> Vote:
    """The vote of a judged row's first `num` responses."""
    return vote(
        row["answers"][:num],
        row["classes"][:num],
        **voting.rules,
        seed=seed,
    )


def _outcome(tasks: Sequence[Task], k: int, on_damage: Callable[[Task, str], object] | None) -> MethodResult | None:
    """A row's runs on one data set, those that can be read; None if there is none."""
    if not tasks:
        return None
    config = tasks[0].config
    kind = "adapted" if config.steps else NONE
    uses_gold = config.uses_gold
    note = "an upper bound, not a baseline" if uses_gold else "greedy" if kind == NONE else ""

    def read(own: Sequence[Task], runs: Sequence[RunData]) -> MethodResult:
        outcome = MethodResult(
            tasks[0].row.name, kind, tasks[0].data, note, runs=tuple(runs), uses_gold=uses_gold, voting=config.vote
        )
        for task, run in zip(own, runs, strict=True):
            _read_run(outcome, task, run, k)
        return outcome

    whole: list[tuple[Task, RunData]] = []
    for task in tasks:
        try:
            run = read_run(task.folder)
            if run.damage:
                raise RunError(f"{task.folder / run.damage[0]}")
            try:
                read([task], [run])
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                what = f"{type(error).__name__}: {error}"
                raise RunError(f"{task.folder} is damaged: its rows are not as they were written ({what})") from None
            whole.append((task, run))
        except (RunError, InputError) as error:
            if on_damage is None:
                raise
            on_damage(task, str(error))
    return read([task for task, _ in whole], [run for _, run in whole]) if whole else None


def _read_run(outcome: MethodResult, task: Task, run: RunData, k: int) -> None:
    """Add one seed's run to the outcome."""
    seed, asked = task.seed, task.folder / ASKED
    if run.final_eval is None:
        raise RunError(f"{task.folder / 'eval.jsonl'} is missing or empty")
    last = run.final_eval["step"]
    predictions = task.folder / "predictions" / f"step-{last:06d}.jsonl"
    final = _rows(predictions)
    if not final:
        raise RunError(f"{predictions} is missing or empty")
    outcome.right[seed] = _greedy(final)
    course = {row["step"]: value for row in run.evals if (value := number(row.get("eval/pass@1"))) is not None}
    if course:
        outcome.course[seed] = course
    votes = _rows(asked / "votes.jsonl")
    sampled = _rows(asked / "samples.jsonl") or votes or [row for row in final if row.get("responses")]
    if votes:
        outcome.votes[seed] = votes
    if synthesized := _rows(asked / "synthesis.jsonl"):
        outcome.synthesized[seed] = synthesized
    if refined := _rows(asked / "refined.jsonl"):
        outcome.refined[seed] = refined
    if forced := _rows(asked / "forced.jsonl"):
        outcome.forced[seed] = forced
    for name, request in task.after.get("search", {}).items():
        outcome.num_seen[name] = request["seen"]
        if rows := _rows(asked / f"{name}.jsonl"):
            outcome.searched.setdefault(name, {})[seed] = rows
    if known := [row for row in sampled if row.get("responses_correct") is not None]:
        size = min(k or len(row["responses_correct"]) for row in known)
        outcome.mean[seed] = {row["id"]: sum(row["responses_correct"][:size]) / size for row in known}
        outcome.majority[seed] = first_votes(known, size, outcome.voting, seed)
    figures = _saved_figures(asked)
    for values, figure in zip((outcome.length, outcome.entropy), _figures(figures, run), strict=True):
        if figure is not None:
            values[seed] = figure
    for name, own in figures.items():
        if isinstance(own, dict) and (seconds := number(own.get(ASKING_S))) is not None:
            outcome.asking_s.setdefault(name, {})[seed] = seconds
    if outcome.kind == "adapted":
        num_questions = max(1, int(number(run.manifest.get("data", {}).get("num_questions")) or len(final)))
        sampled = run.series("rollout/num_drawn") or run.series("rollout/num_tokens")
        spent = [*sampled, *run.series("memory/tokens"), *run.series("stream/num_tokens")]
        outcome.tokens[seed] = sum(value or 0.0 for _, value in spent) / num_questions
        outcome.seconds[seed] = run.step_seconds or 0.0
        outcome.on_the_way[seed] = {
            step: (sum(value or 0.0 for at, value in spent if at <= step) / num_questions, right)
            for step in sorted(course)
            if step and (right := _greedy(_rows(task.folder / "predictions" / f"step-{step:06d}.jsonl")))
        }
    else:
        final_eval = run.final_eval
        answer = final_eval.get("eval/greedy_tokens", final_eval.get("eval/greedy_length"))
        outcome.tokens[seed] = number(answer) or 0.0  # of the answer itself
        if (seconds := number(final_eval.get("time/eval_s"))) is not None and not task.config.eval_samples:
            outcome.seconds[seed] = seconds
    for other in task.after["elsewhere"]:
        values = outcome.elsewhere.setdefault((other["role"], other["name"]), {})
        values[seed] = _greedy(_rows(asked / elsewhere_file(other["role"], other["name"])))


def _saved_figures(asked: Path) -> dict[str, Any]:
    """What `after.py` wrote into figures.json; {} where that cannot be read."""
    try:
        figures = json.loads((asked / "figures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return figures if isinstance(figures, dict) else {}


def _figures(figures: Mapping[str, Any], run: RunData) -> tuple[float | None, float | None]:
    """(length, entropy) of the final model's samples; of its greedy responses where none were sampled."""
    own = figures.get("samples") or figures.get("votes")
    if isinstance(own, dict):
        return number(own.get("response_length")), number(own.get("entropy"))
    final = run.final_eval or {}
    return number(final.get("eval/response_length")), number(final.get("eval/entropy"))


def _greedy(rows: Rows) -> dict[str, float]:
    known = ((row["id"], (row.get("greedy") or {}).get("correct")) for row in rows)
    return {id_: float(right) for id_, right in known if right is not None}


def _rows(file: Path) -> Rows:
    return list(read_lines(file))
