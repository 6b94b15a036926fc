"""Part scaling: seconds of rollout and update against each size of the workload, the others held still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spinerl.bench.models import write_model
from spinerl.bench.settings import Settings
from spinerl.bench.timing import seconds_of
from spinerl.bench.work import Job, open_work

__all__ = ["AXES", "fit_line", "measure_scaling", "sweep"]

# Each axis: the setting it moves and by what factors.
AXES: dict[str, tuple[float, ...]] = {
    "group_size": (0.25, 0.5, 1, 2),
    "prompt_tokens": (0.25, 0.5, 1, 2, 4),
    "new_tokens": (0.25, 0.5, 1, 2),
    "vocabulary": (1, 4, 16, 64),
    "questions": (0.25, 0.5, 1, 2),
}


def sweep(settings: Settings) -> list[tuple[str, Settings]]:
    """(axis, settings) of every point, the base once per axis.

    The base is the settings with half of the questions, responses and lengths, so that doubling stays affordable.
    """
    base = settings.model_copy(
        update={
            "questions": max(1, settings.questions // 2),
            "group_size": max(2, settings.group_size // 2),
            "prompt_tokens": max(2, settings.prompt_tokens // 2),
            "new_tokens": max(2, settings.new_tokens // 2),
        }
    )
    points: list[tuple[str, Settings]] = []
    for axis, factors in AXES.items():
        least = 2 if axis in ("group_size", "new_tokens") else 1
        values = sorted({max(least, round(getattr(base, axis) * factor)) for factor in factors})
        points += [(axis, base.model_copy(update={axis: value})) for value in values]
    return points


def measure_scaling(job: Job) -> dict[str, Any]:
    """One row per point: the axis, all sizes, and the fastest of a few repeats in seconds.

    The fastest and not the median: noise only ever adds, and a line is fitted.  A repeat goes through all points
    before the next one begins, so that a busy minute spoils one try at each and not all tries at one.
    """
    points = [_Point(axis, settings, job) for axis, settings in sweep(job.settings)]
    for repeat in range(1 + min(3, job.settings.repeats)):
        for number, point in enumerate(points, 1):
            what = f"repeat {repeat}" if repeat else "warm-up"
            job.note(f"{point.axis} = {point.value}, point {number} of {len(points)}, {what}")
            point.measure(repeat)
    rows = [point.row() for point in points]
    return {"points": rows, "lines": lines(rows)}


class _Point:
    """One workload, kept open, and the seconds it took."""

    def __init__(self, axis: str, settings: Settings, job: Job) -> None:
        self.axis, self.value = axis, getattr(settings, axis)
        self._sizes = {name: getattr(settings, name) for name in AXES}
        self._work = open_work(Job(settings, _model_of(settings, job.scratch)))
        self._learnt: Any = None
        self._seconds: dict[str, list[float]] = {"rollout_seconds": [], "update_seconds": []}

    def measure(self, repeat: int) -> None:
        """A rollout and an update; repeat 0 is the warm-up."""
        work = self._work
        if self._learnt is None:
            self._learnt = work.targets(work.sample())
        took = (
            0.0 if repeat == 0 else seconds_of(lambda: work.sample(repeat), work.device),
            seconds_of(lambda: work.learn(*self._learnt), work.device),
        )
        if repeat:
            for found, seconds in zip(self._seconds.values(), took, strict=True):
                found.append(seconds)

    def row(self) -> dict[str, Any]:
        """The axis, its value, the fastest seconds and all sizes."""
        fastest = {name: min(found) for name, found in self._seconds.items()}
        return {"axis": self.axis, "value": self.value, **fastest, **self._sizes}


def lines(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Slope (seconds per unit) and share of the variance explained, of each phase along each axis."""
    found: dict[str, Any] = {}
    for axis in AXES:
        points = [row for row in rows if row["axis"] == axis]
        for phase in ("rollout", "update"):
            line = fit_line([p["value"] for p in points], [p[f"{phase}_seconds"] for p in points])
            found.setdefault(axis, {})[phase] = dict(zip(("intercept", "slope", "r_squared"), line, strict=True))
    return found


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """(intercept, slope, r squared) of the least-squares line; r squared is 1 for points that are all one height.

    >>> fit_line([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    (1.0, 2.0, 1.0)
    """
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    intercept = mean_y - slope * mean_x
    total = sum((b - mean_y) ** 2 for b in y)
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return intercept, slope, 1 - left / total if total else 1.0


def _model_of(settings: Settings, scratch: Path) -> Path:
    """A scratch folder with the model of this vocabulary (the sweep changes no other of its sizes)."""
    folder = scratch / f"vocabulary-{settings.vocabulary}"
    if settings.model == "random" and not folder.exists():
        write_model(settings, folder / "equal", stops=False)
    return folder
