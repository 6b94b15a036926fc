"""What a benchmark ran on, without names of hosts, people or folders."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spinerl.lines import lines_of, read_text

__all__ = ["describe_machine", "one_line"]


def describe_machine(threads: int, device: str) -> dict[str, Any]:
    """Processor, cores, versions, load and date; the load is the one-minute average, None where unknown."""
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": _load(),
        "device": device,
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        import torch

        facts["gpu"] = torch.cuda.get_device_name(device)
    for package in ("torch", "transformers", "trl", "spinerl"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


def one_line(facts: dict[str, Any]) -> str:
    """The machine in a line, for captions."""
    load = "unknown" if facts["load_average"] is None else f"{facts['load_average']:.1f}"
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "trl") if facts[name])
    where = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores"
    return f"{where}; load {load} before; {versions}; {facts['date']}"


def _cpu_name() -> str:
    try:
        lines = lines_of(read_text(Path("/proc/cpuinfo")))
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
