"""Part efficiency: what share of the machine's matmul speed our rollout and update reach."""

from __future__ import annotations

from typing import Any

import torch

from spinerl.bench.flops import Shape, matmul_peak, rollout_flops, update_flops
from spinerl.bench.timing import figures, interleave
from spinerl.bench.work import Job, bench_config, open_work

__all__ = ["measure_efficiency"]


def measure_efficiency(job: Job) -> dict[str, Any]:
    """FLOP per second of the needed matmuls over the best of plain matmuls in the same process.

    Plain matmuls are those of torch and, on a CPU, of oneDNN.  They are measured before and after; the best counts.
    """
    settings = job.settings
    work = open_work(job)
    shape = Shape.of(work.loaded.model.config)
    everything = bench_config(job, overrides=["method=ttrl"])
    rollout = work.sample()
    batch, targets = work.targets(rollout)
    _, all_targets = work.targets(rollout, everything)
    dtype = torch.bfloat16 if work.loaded.mixed else work.loaded.model.dtype
    job.note("matmuls")
    libraries = [False, True] if work.device == "cpu" and dtype == torch.float32 else [False]
    peaks = {onednn: matmul_peak(work.device, dtype, onednn=onednn) for onednn in libraries}
    tasks = {
        "rollout": work.sample,
        "update": lambda _: work.learn(batch, targets),
        "update of all tokens": lambda _: work.learn(batch, all_targets, everything),
    }
    seconds = interleave(tasks, job.patience(most=2), work.device, job.note)
    peaks = {onednn: max(peak, matmul_peak(work.device, dtype, onednn=onednn)) for onednn, peak in peaks.items()}
    peak = max(peaks.values())
    sizes = (len(work.questions), work.config.group_size, settings.prompt_tokens, settings.new_tokens)
    forks, tokens = int(targets.fork_mask.sum()), int(batch.mask.sum())
    flops = {
        "rollout": rollout_flops(shape, *sizes),
        "update": update_flops(shape, *sizes, wanted=forks),
        "update of all tokens": update_flops(shape, *sizes, wanted=tokens),
    }
    result: dict[str, Any] = {"matmul_gflop_per_s": peak / 1e9, "torch_mm_gflop_per_s": peaks[False] / 1e9}
    for name, key in (("rollout", "rollout"), ("update", "update"), ("update of all tokens", "update_all_tokens")):
        rates = [flops[name] / s for s in seconds[name]]
        result |= figures(f"{key}_fraction_of_peak", [rate / peak for rate in rates])
        result |= figures(f"{key}_seconds", seconds[name])
        result[f"{key}_gflop"] = flops[name] / 1e9
    result["rollout_tokens_per_s"] = int(rollout.mask.sum()) / result["rollout_seconds"]
    result["update_tokens_per_s"] = tokens / result["update_seconds"]
    return result
