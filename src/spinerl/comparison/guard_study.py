"""How well the guard judges, measured on finished runs whose gold answers are known.

    python -m spinerl.comparison.guard_study OUT... [--json FILE] [--picture FILE]

Takes folders of comparisons whose runs were watched (guard=warn, as comparisons do).  Every run is replayed: the
guard's own rules see its looks one by one, and gold says what the weights they would have kept are worth.  Only looks
at steps that were evaluated count.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinerl.config import GuardConfig, load_config
from spinerl.guard.rules import best_look, judge, look_score
from spinerl.runs import RunFolder, write_json
from spinerl.stats import roc_area

__all__ = ["Replay", "judge_signals", "replay", "summarise_replays"]

# name: (key, 1 if a rise is bad or -1 if a fall is)
_SIGNALS: dict[str, tuple[str, int]] = {
    "label-free score": ("score", -1),
    "support by the initial votes": ("probe/initial_support", -1),
    "agreement with the initial majority": ("probe/initial_agreement", -1),
    "answers alike on the probe": ("probe/concentration", 1),
    "KL to the initial model": ("probe/kl", 1),
    "greedy length": ("probe/length_ratio", -1),
    "labels kept": ("label/kept_frac", -1),
    "majority fraction": ("label/majority_frac", 1),
    "unanimous groups": ("label/unanimous_frac", 1),
    "answer entropy": ("label/answer_entropy", -1),
    "halves agree": ("label/halves_agree", -1),
    "labels alike": ("label/concentration", 1),
    "certainty AUC": ("label/certainty_auc", -1),
    "token entropy": ("rollout/entropy", -1),
    "response length": ("rollout/response_length", -1),
    "truncated": ("rollout/truncated_frac", 1),
}


@dataclass(frozen=True)
class Replay:
    """One run under the guard.  Accuracies are greedy Pass@1, fractions."""

    run: str
    data: str
    start: float  # of the unadapted model
    end: float  # of the last step
    best: float  # of the best evaluated step, by gold: the oracle
    kept: float  # of the weights that the guard would have kept
    kept_step: int
    last_step: int
    stopped: int | None  # the step at which a rule was broken
    rule: str | None
    after: float | None  # of the best step evaluated after the stop; None without a stop, or without such a step
    changes: Mapping[str, float]  # signal: how far it has moved by the middle of the run, up is bad


def replay(run: RunFolder, keys: GuardConfig) -> Replay | None:
    """The guard's decisions on a watched run; None for one without gold or guard, or unfinished."""
    accuracy = {row["step"]: row["eval/pass@1"] for row in run.rows("eval.jsonl") if "eval/pass@1" in row}
    looks = [look for look in run.rows("guard.jsonl") if look["step"] in accuracy]
    steps = run.rows("metrics.jsonl")
    if len(looks) < 2 or not steps or "finished" not in run.manifest:
        return None
    rows: list[dict[str, Any]] = []
    for look in looks:
        since = rows[-1]["step"] if rows else 0
        between = [row for row in steps if since < row["step"] <= look["step"]]
        row = {key: value for key, value in look.items() if key != "label/kept_frac"} | _means(between)
        row["score"] = look_score(row, rows)
        rows.append(row)
    seen: list[Mapping[str, Any]] = []
    verdict = None
    for row in rows:
        seen.append(row)
        verdict = judge(seen, keys)
        if verdict is not None:
            break
    best = seen[0] if verdict is not None and verdict.rule == "no-go" else best_look(seen, keys.tolerance)
    stopped = seen[-1]["step"] if verdict is not None else None
    later = [value for step, value in accuracy.items() if stopped is not None and step > stopped]
    return Replay(
        run=str(run.path),
        data=run.config.data.name,
        start=accuracy[looks[0]["step"]],
        end=accuracy[max(accuracy)],
        best=max(accuracy.values()),
        kept=accuracy[best["step"]],
        kept_step=best["step"],
        last_step=max(accuracy),
        stopped=stopped,
        rule=verdict.rule if verdict is not None else None,
        after=max(later, default=None),
        changes=_changes(rows),
    )


def summarise_replays(replays: Sequence[Replay], margin: float = 0.02) -> dict[str, Any]:
    """What the guard did over some runs.

    harmed: runs that end more than `margin` below their start, without and with the guard.  gain_kept: on runs whose
    oracle checkpoint is better than the start by more than `margin`, the sum of the kept gains over the sum of the
    oracle's.  false_stops: runs that were stopped and of which a later step is better than the kept one by more than
    `margin`.
    """
    helped = [r for r in replays if r.best - r.start > margin]
    possible = sum(r.best - r.start for r in helped)
    return {
        "runs": len(replays),
        "harmed_without": sum(r.end < r.start - margin for r in replays),
        "harmed_with": sum(r.kept < r.start - margin for r in replays),
        "worst_with": min((r.kept - r.start for r in replays), default=None),
        "helped": len(helped),
        "gain_kept": sum(r.kept - r.start for r in helped) / possible if possible else None,
        "gain_kept_by_last": sum(r.end - r.start for r in helped) / possible if possible else None,
        "mean_end": _mean([r.end for r in replays]),
        "mean_kept": _mean([r.kept for r in replays]),
        "mean_best": _mean([r.best for r in replays]),
        "stopped": sum(r.rule is not None for r in replays),
        "false_stops": sum(r.after is not None and r.after > r.kept + margin for r in replays),
        "rules": {name: sum(r.rule == name for r in replays) for name in sorted({r.rule for r in replays if r.rule})},
    }


def judge_signals(replays: Sequence[Replay]) -> dict[str, float | None]:
    """Per signal, the area under its ROC for "this run ends below its start", from its change by the middle.

    Of the labels kept, which are a change already, the level at the middle counts.
    """
    return {
        name: roc_area(
            [r.changes[name] for r in replays if name in r.changes and r.end < r.start],
            [r.changes[name] for r in replays if name in r.changes and r.end >= r.start],
        )
        for name in _SIGNALS
    }


def _means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the step metrics that are signals; a key that no step has is left out."""
    keys = [key for key, _ in _SIGNALS.values() if not key.startswith("probe/") and key != "score"]
    return {key: _mean(known) for key in keys if (known := [row[key] for row in steps if row.get(key) is not None])}


def _changes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    half = [row for row in rows if row["step"] <= rows[-1]["step"] / 2] or list(rows[:2])
    changes = {}
    for name, (key, sign) in _SIGNALS.items():
        known = [row[key] for row in rows if row.get(key) is not None]
        now = [row[key] for row in half if row.get(key) is not None]
        if known and now:
            changes[name] = sign * (now[-1] - known[0]) if key != "label/kept_frac" else -now[-1]
    return changes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures by data set and over all; see the module."""
    parser = argparse.ArgumentParser(prog="python -m spinerl.comparison.guard_study", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write every figure and every run here")
    parser.add_argument("--picture", type=Path, help="draw start, end, kept and oracle of every run here")
    given = parser.parse_args(arguments)
    keys = load_config().guard
    files = sorted(file for folder in given.folders for file in folder.rglob("config.yaml"))
    replays = [r for file in files if (r := replay(RunFolder(file.parent), keys)) is not None]
    groups = {name: [r for r in replays if r.data == name] for name in sorted({r.data for r in replays})}
    groups["all"] = replays
    result = {name: {**summarise_replays(own), "auc": judge_signals(own)} for name, own in groups.items()}
    for name, figures in result.items():
        print(name)
        for key, value in figures.items():
            if key != "auc":
                print(f"  {key:18s} {value if not isinstance(value, float) else round(value, 3)}")
        shown = sorted(figures["auc"].items(), key=lambda item: -(item[1] or 0))
        print("  AUC: " + ", ".join(f"{signal} {value:.2f}" for signal, value in shown if value is not None))
    if given.json:
        write_json(given.json, {"groups": result, "runs": [vars(r) for r in replays]})
    if given.picture:
        draw(replays, given.picture)


def draw(replays: Sequence[Replay], file: Path) -> None:
    """Every run as a column, sorted by where it ends without the guard: its start, end, oracle, and what is kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    suites = sorted({r.data for r in replays})
    figure, axes = pyplot.subplots(1, len(suites), figsize=(4 * len(suites), 3.6), sharey=True, squeeze=False)
    for axis, suite in zip(axes[0], suites, strict=True):
        own = sorted((r for r in replays if r.data == suite), key=lambda r: r.end)
        places = range(len(own))
        axis.vlines(places, [100 * r.end for r in own], [100 * r.best for r in own], color="0.85", linewidth=3)
        for label, marker, colour, values in (
            ("unadapted", "_", "black", [r.start for r in own]),
            ("best step, by gold", "^", "0.6", [r.best for r in own]),
            ("last step", "x", "tab:red", [r.end for r in own]),
            ("kept by the guard", "o", "tab:blue", [r.kept for r in own]),
        ):
            axis.plot(places, [100 * v for v in values], marker, color=colour, markersize=4, label=label)
        axis.set_title(suite)
        axis.set_xticks([])
        axis.set_xlabel(f"{len(own)} runs")
    axes[0][0].set_ylabel("greedy Pass@1, %")
    axes[0][0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
