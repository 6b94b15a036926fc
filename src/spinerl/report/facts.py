"""The tables of what a run was: its manifest and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from spinerl.config import describe_keys
from spinerl.report.groups import nested
from spinerl.report.read import RunData, number

__all__ = ["config_table", "dump", "manifest_table"]


def dump(config: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {_show(value)}" for key, value in _flatten(config))


def manifest_table(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """(fact, its value per run, or the one value that all runs share); facts that no run has are left out."""

    def skipped(manifest: Mapping[str, Any]) -> str:
        reasons = nested(manifest, "data", "skipped")
        if not isinstance(reasons, Mapping):
            return "–"
        return ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count) or "none"

    def of(*keys: str) -> list[str]:
        return [_show(value) if (value := nested(run.manifest, *keys)) is not None else "–" for run in runs]

    rows = [
        *([("Run folder", [runs[0].name])] if len(runs) == 1 else []),
        ("Started", of("started")),
        ("Command", [_command(run.manifest.get("command")) for run in runs]),
        ("Seed", of("seed")),
        ("Model", of("model", "name")),
        ("Model fingerprint", of("model", "fingerprint")),
        ("Parameters", [_thousands(nested(run.manifest, "model", "num_parameters")) for run in runs]),
        ("Data", of("data", "name")),
        ("Data fingerprint", of("data", "fingerprint")),
        ("Questions", [_thousands(nested(run.manifest, "data", "num_questions")) for run in runs]),
        ("Questions with gold", [_thousands(nested(run.manifest, "data", "num_gold")) for run in runs]),
        ("Skipped rows", [skipped(run.manifest) for run in runs]),
        ("Device", of("device")),
        ("Weights", of("dtype")),
        ("Threads", of("threads")),
        ("Platform", of("platform")),
        (
            "Versions",
            [
                ", ".join(
                    f"{name} {run.manifest[name]}"
                    for name in ("spinerl", "python", "torch", "transformers", "vllm")
                    if name in run.manifest
                )
                or "–"
                for run in runs
            ],
        ),
    ]
    return [(label, values if len(set(values)) > 1 else values[:1]) for label, values in rows if set(values) != {"–"}]


def _command(value: Any) -> str:
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _thousands(value: Any) -> str:
    count = number(value)
    return "–" if count is None else f"{count:,.0f}".replace(",", "\u202f")


def config_table(runs: Sequence[RunData]) -> list[tuple[str, str, str, list[str]]]:
    """(key, description, default, value per run) of the keys that are not at their default in every run."""
    rows, known = [], set()
    for key, _, default, description in describe_keys(unlisted=True):
        known.add(key)
        values = [_show(run.setting(key, default)) for run in runs]
        if set(values) != {_show(default)}:
            rows.append((key, description, _show(default), values))
    leaves = dict.fromkeys(key for run in runs for key, _ in _flatten(run.config))
    for key in leaves:
        if not any(key == name or key.startswith(f"{name}.") for name in known):
            rows.append((key, "not a key of this version", "–", [_show(run.setting(key, "–")) for run in runs]))
    return rows


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves += _flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | tuple) else str(value)
