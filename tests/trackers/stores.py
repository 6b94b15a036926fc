"""What each tracker's store holds, by its own reader where it has one; of the scalars {name: {step: [values]}}."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

Scalars = dict[str, dict[int, list[float]]]


def tensorboard_events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(run / "trackers" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}
    )
    return found.Reload()


def tensorboard(run: Path) -> Scalars:
    found: Scalars = defaultdict(lambda: defaultdict(list))
    events = tensorboard_events(run)
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[name][event.step].append(event.value)
    return found


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    """The history of the one offline store: records of wandb's protocol in a log of LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run / "trackers" / "wandb" / "wandb").glob("offline-run-*/*.wandb")
    rows = []
    for data in _leveldb_log(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                place = row
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            rows.append(row)
    return rows


def _leveldb_log(data: bytes, block: int = 32768):
    """The records: after 7 bytes of wandb's own, in blocks, each part with checksum (4), length (2) and type (1: whole,
    2: first, 3: middle, 4: last)."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if not kind:
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb(run: Path) -> Scalars:
    found: Scalars = defaultdict(lambda: defaultdict(list))
    for row in wandb_rows(run):
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                found[name][row["step"]].append(value)
    return found


def mlflow_client(run: Path) -> tuple[Any, str]:
    from mlflow import MlflowClient

    run_id = json.loads((run / "trackers" / "mlflow" / "run.json").read_text())["id"]
    return MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}"), run_id


def mlflow(run: Path) -> Scalars:
    client, run_id = mlflow_client(run)
    found: Scalars = defaultdict(lambda: defaultdict(list))
    for key in client.get_run(run_id).data.metrics:
        for one in client.get_metric_history(run_id, key):
            found[key.replace("_at_", "@")][one.step].append(one.value)
    return found


def trackio_rows(run: Path) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    run_id = json.loads((run / "trackers" / "trackio" / "run.json").read_text())["id"]
    return SQLiteStorage.get_logs("spinerl", run.name, run_id=run_id)


def trackio(run: Path) -> Scalars:
    found: Scalars = defaultdict(lambda: defaultdict(list))
    for row in trackio_rows(run):
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                found[name][row["step"]].append(value)
    return found


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}
