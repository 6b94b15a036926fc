"""Which of several finished runs is best, judged without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spinerl.errors import InputError
from spinerl.guard.rules import best_look
from spinerl.runs import RunFolder

__all__ = ["rank_runs"]


def rank_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """{run, score, kept_step, rule} of every run, the highest label-free score first.

    A run's score is that of the weights it ended with (`spinerl.guard.rules.look_score`).  A folder without a run
    stands for the runs inside it that learned, so that one of `spinerl compare` can be given.  Raises InputError if
    there is no run, if a run was not watched by the guard or is unfinished, or if runs differ in the probe's questions:
    then their scores mean different things.
    """
    runs = [run for folder in folders for run in _runs_in(Path(folder))]
    if not runs:
        raise InputError(f"no run in {', '.join(map(str, folders))}")
    ranked, kinds = [], set()
    for run in runs:
        looks = run.rows("guard.jsonl")
        guard = run.manifest.get("guard")
        if not looks or guard is None:
            what = "was not watched: it has no guard.jsonl (guard=off)" if not looks else "is unfinished"
            raise InputError(f"{run.path} {what}; only finished runs with a guard can be ranked")
        config, facts = run.config, run.manifest
        prints = (facts.get(part, {}).get("fingerprint") for part in ("model", "data"))
        kinds.add((*prints, config.guard.questions))
        kept = next((look for look in looks if look["step"] == guard.get("kept_step")), best_look(looks))
        rule = guard.get("rule")
        ranked.append({"run": str(run.path), "score": kept["score"], "kept_step": kept["step"], "rule": rule})
    if len(kinds) > 1:
        raise InputError("the runs differ in model, questions or guard.questions: their scores cannot be compared")
    return sorted(ranked, key=lambda row: -row["score"])


def _runs_in(folder: Path) -> list[RunFolder]:
    if (folder / "config.yaml").is_file():
        return [RunFolder.open(folder)]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    inside = [RunFolder.open(file.parent) for file in sorted(folder.rglob("config.yaml"))]
    return [run for run in inside if run.config.steps]
