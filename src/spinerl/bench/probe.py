"""The first measurement of a run: makes the models, and decides the threads and the device for all others."""

from __future__ import annotations

from typing import Any

import torch

from spinerl.bench.machine import describe_machine
from spinerl.bench.models import write_model, write_update_model
from spinerl.bench.update import prepare_update
from spinerl.bench.work import Job, bench_config
from spinerl.machine import choose_threads
from spinerl.models.loading import load_model

__all__ = ["probe"]


def probe(job: Job) -> dict[str, Any]:
    """Writes the models into the scratch folder; returns `machine` and `model` facts.

    Raises InputError for a model or device that cannot be had.
    """
    settings = job.settings
    if settings.model == "random":
        write_model(settings, job.scratch / "equal", stops=False)
        write_model(settings, job.scratch / "half", stops=True)
    loaded = load_model(bench_config(job).model)
    if not settings.threads and loaded.device.type == "cpu":
        choose_threads(loaded.model, loaded.model.config.vocab_size)
    if "update" in settings.parts:
        write_update_model(settings, job.scratch / "update")
        prepare_update(job)
    return {
        "machine": describe_machine(torch.get_num_threads(), str(loaded.device)),
        "model": {
            "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
            "dtype": loaded.precision,
        },
    }
