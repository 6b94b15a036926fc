"""The scaling picture and its table as files.  The only file that imports matplotlib."""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

from spinerl.bench.machine import one_line
from spinerl.bench.scaling import AXES
from spinerl.errors import MissingExtraError

__all__ = ["require_matplotlib", "write_picture", "write_table"]

_LABELS = {
    "group_size": "responses per question (G)",
    "prompt_tokens": "prompt length (tokens)",
    "new_tokens": "response length (tokens)",
    "vocabulary": "vocabulary (tokens)",
    "questions": "questions per step",
}
_UNITS = {"group_size": "response", "new_tokens": "token"}  # the axes that get a fitted line
_COLOURS = {"rollout": "#1f6f8b", "update": "#c8553d"}


def require_matplotlib() -> None:
    """Raises MissingExtraError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib is not installed: pip install 'spinerl[bench]'")


def write_table(file: Path, points: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """One CSV row per point, with the machine and the date in every row."""
    facts = {name: machine[name] for name in ("date", "cpu", "threads", "device", "torch")}
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*points[0], *facts], lineterminator="\n")
        writer.writeheader()
        for point in points:
            rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in point.items()}
            writer.writerow(rounded | facts)


def write_picture(file: Path, points: list[dict[str, Any]], fits: dict[str, Any], machine: dict[str, Any]) -> None:
    """Small multiples: seconds of rollout and update along each axis, fitted lines where cost should be linear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axis, panel in zip(AXES, panels.flat, strict=False):
        rows = [point for point in points if point["axis"] == axis]
        values = [row["value"] for row in rows]
        for phase, colour in _COLOURS.items():
            seconds = [row[f"{phase}_seconds"] for row in rows]
            fit = fits[axis][phase]
            label = phase
            if axis in _UNITS:
                label += f": {1000 * fit['slope']:.3g} ms per {_UNITS[axis]}, r² {fit['r_squared']:.2f}"
                line = [fit["intercept"] + fit["slope"] * value for value in values]
                panel.plot(values, line, color=colour, linewidth=1, alpha=0.6)
            panel.plot(values, seconds, "o" if axis in _UNITS else "o-", color=colour, markersize=5, label=label)
        if axis == "vocabulary":
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.set_xlabel(_LABELS[axis])
        panel.set_ylabel("seconds")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    _write_text(panels.flat[-1], points)
    figure.suptitle(f"Cost of a step's two large phases\n{one_line(machine)}", fontsize=11)
    figure.savefig(file, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def _write_text(panel: Any, points: list[dict[str, Any]]) -> None:
    """What was held still, where the sixth panel would be."""
    base = {name: Counter(point[name] for point in points).most_common(1)[0][0] for name in AXES}
    lines = ["Held still where not on the axis:", *(f"{_LABELS[name]}: {value}" for name, value in base.items())]
    panel.axis("off")
    panel.text(0.0, 0.9, "\n".join(lines), va="top", fontsize=9, linespacing=1.6)
