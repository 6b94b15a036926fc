"""TensorBoard: event files in RUN/trackers/tensorboard, so that `tensorboard --logdir runs` shows all runs.

A run that goes on adds a file, which begins by taking back the steps after its checkpoint (a `SessionLog.START` event,
as `purge_step` of torch's SummaryWriter writes); steps that a kill kept from the files are written after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from spinerl.trackers import Tracked
from spinerl.trackers.rows import Entry, Histogram, Table

__all__ = ["TensorBoard"]

_events: Any = event_pb2  # what a protocol's file defines, no checker sees
_summaries: Any = summary_pb2
_tensors: Any = tensor_pb2
_types: Any = types_pb2
_DT_STRING = _types.DataType.Value("DT_STRING")

_CATEGORIES = ("scalars", "tensors", "histograms")


class TensorBoard:
    """A `Tracker`."""

    def __init__(self, run: Tracked) -> None:
        goes_on = any(run.folder.glob("events.out.tfevents.*"))
        self._there = set(_known_events(str(run.folder), run.done)) if goes_on else set()
        self._writer = EventFileWriter(str(run.folder))
        if goes_on:
            start = _events.SessionLog(status=_events.SessionLog.START)
            self._add(_events.Event(step=run.done + 1, session_log=start))
        lines = (f"{key}: {value}" for key, value in run.config.items())
        self._values(0, [_text("config", "\n".join(f"    {line}" for line in lines))])

    def write(self, entry: Entry) -> None:
        values = [_summaries.Summary.Value(tag=name, simple_value=value) for name, value in entry.scalars.items()]
        values += [_summaries.Summary.Value(tag=name, histo=_histogram(one)) for name, one in entry.histograms.items()]
        values += [_text(name, _markdown(table)) for name, table in entry.tables.items()]
        values += [_text(name, text) for name, text in entry.texts.items()]
        self._values(entry.step, values)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, status: str) -> None:  # noqa: ARG002 - event files do not say how a run ended
        self._writer.close()

    def _values(self, step: int, values: list[Any]) -> None:
        new = [value for value in values if (value.tag, step) not in self._there]
        if new:
            self._add(_events.Event(step=step, summary=_summaries.Summary(value=new)))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)


def _known_events(folder: str, last: int) -> Iterator[tuple[str, int]]:
    """(tag, step) of all that the files hold up to a step."""
    found = EventAccumulator(folder, size_guidance=dict.fromkeys(_CATEGORIES, 0))
    found.Reload()
    readers = {"scalars": found.Scalars, "tensors": found.Tensors, "histograms": found.Histograms}
    for category, read in readers.items():
        for tag in found.Tags()[category]:
            yield from ((tag, event.step) for event in read(tag) if event.step <= last)


def _text(tag: str, text: str) -> Any:
    metadata = _summaries.SummaryMetadata(plugin_data=_summaries.SummaryMetadata.PluginData(plugin_name="text"))
    tensor = _tensors.TensorProto(dtype=_DT_STRING, string_val=[text.encode("utf-8", "backslashreplace")])
    tensor.tensor_shape.dim.add(size=1)
    return _summaries.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _histogram(one: Histogram) -> Any:
    """Each bin by its upper edge; the sums by the middles of the bins."""
    middles = [(low + high) / 2 for low, high in zip(one.edges, one.edges[1:], strict=False)]
    return _summaries.HistogramProto(
        min=one.edges[0],
        max=one.edges[-1],
        num=sum(one.counts),
        sum=sum(count * middle for count, middle in zip(one.counts, middles, strict=True)),
        sum_squares=sum(count * middle**2 for count, middle in zip(one.counts, middles, strict=True)),
        bucket_limit=one.edges[1:],
        bucket=one.counts,
    )


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
