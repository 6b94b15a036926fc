"""A comparison's run folders with made-up results, so that every figure of a table can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spinerl.comparison.plan import Comparison, Task, elsewhere_file, plan
from spinerl.comparison.state import ASKED
from spinerl.config import dump_yaml

OVERRIDES = ["methods=ttrl,spine", "data=tiny/shift-a", "seeds=0,1", "steps=2", "eval.every=1", "samples=4", "votes=4"]


def made_up(out: Path, *overrides: str) -> Comparison:
    """The plan of a small comparison under a folder."""
    return plan([*OVERRIDES, f"out={out}", *overrides])


def write_task(
    task: Task,
    course: Sequence[Sequence[bool]],
    *,
    classes: Sequence[Sequence[int | None]] | None = None,
    lengths: Sequence[Sequence[int]] | None = None,
    elsewhere: Mapping[str, Sequence[bool]] | None = None,
    tokens: Sequence[float] = (),
    fingerprint: str = "",
) -> None:
    """One finished run.

    `course`: for each evaluation, by step, whether each question's greedy answer is right.  `classes`: for each
    question, the answer class of each response of the final (for `none`: the unadapted) model; class 0 is right.
    `tokens`: drawn in each step.
    """
    folder = task.folder
    (folder / "predictions").mkdir(parents=True)
    (folder / ASKED).mkdir()
    (folder / "config.yaml").write_text(dump_yaml(task.config))
    num = len(course[0])
    data = {"name": task.data, "num_questions": num, "num_gold": num, "fingerprint": fingerprint}
    (folder / "manifest.json").write_text(json.dumps({"finished": "now", "data": data, "seed": task.seed}))
    (folder / "report.html").write_text("")
    evals = []
    for step, right in enumerate(course):
        rows = [_greedy(i, ok) for i, ok in enumerate(right)]
        _lines(folder / "predictions" / f"step-{step:06d}.jsonl", rows)
        evals.append({"step": step, "num_questions": num, "num_gold": num, "eval/pass@1": sum(right) / num,
                      "eval/greedy_length": 20.0, "eval/response_length": 30.0, "eval/entropy": 0.3})  # fmt: skip
    _lines(folder / "eval.jsonl", evals)
    _lines(folder / "metrics.jsonl", [
        {"step": i + 1, "rollout/num_drawn": n, "time/step_s": 2.0, "label/majority_frac": 0.5 + 0.1 * i,
         "reward/mean": 0.4, "rollout/response_length": 30.0 - i, "rollout/entropy": 0.3, "gold/label_accuracy": 0.6}
        for i, n in enumerate(tokens)
    ])  # fmt: skip
    key = "samples" if task.config.steps else "votes"
    if classes is not None:
        _lines(folder / ASKED / f"{key}.jsonl", [
            sampled(i, own, (lengths or [[10] * len(own)] * num)[i]) for i, own in enumerate(classes)
        ])  # fmt: skip
        figures = {key: {"response_length": 25.0, "entropy": 0.25, "truncated_frac": 0.0}}
        (folder / ASKED / "figures.json").write_text(json.dumps(figures))
    for other in task.after["elsewhere"]:
        right = (elsewhere or {}).get(other["role"], ())
        _lines(folder / ASKED / elsewhere_file(other["role"], other["name"]), [
            _greedy(i, ok) for i, ok in enumerate(right)
        ])  # fmt: skip
    state = {"after": task.after, "fingerprints": {}}
    (folder / ASKED / "state.json").write_text(json.dumps(state))


def sampled(i: int, classes: Sequence[int | None], lengths: Sequence[int]) -> dict[str, Any]:
    """A judged row of sampled responses; class 0 is right."""
    return {
        "id": f"q{i}", "gold": "0", "responses": ["..."] * len(classes), "truncated": [False] * len(classes),
        "answers": [None if c is None else str(c) for c in classes], "classes": list(classes),
        "responses_correct": [c == 0 for c in classes], "lengths": list(lengths),
        "probabilities": [0.5 + 0.01 * j for j in range(len(classes))],
        "certainties": [5.0 - j for j in range(len(classes))],
    }  # fmt: skip


def _greedy(i: int, right: bool) -> dict[str, Any]:
    return {"id": f"q{i}", "gold": "0", "greedy": {"text": "...", "answer": "0" if right else "1", "correct": right}}


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
