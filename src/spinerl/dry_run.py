"""`spinerl adapt --dry-run`: all that a run checks before it begins, and how much it will do; no weight is read and
nothing is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from spinerl.config import Config
from spinerl.data import load_data, render_all, resolve
from spinerl.display import plan_table
from spinerl.engine.vllm import require_vllm
from spinerl.errors import InputError
from spinerl.locks import who_holds
from spinerl.models.adapters import require_peft
from spinerl.models.headers import model_facts
from spinerl.models.loading import load_tokenizer
from spinerl.models.processor import load_processor
from spinerl.paths import absolute_paths
from spinerl.permission import open_code
from spinerl.plan import Phase, Plan, count_phases
from spinerl.runs import RunFolder
from spinerl.train import check_disk, check_gold
from spinerl.workload import fitting

__all__ = ["DryRun", "check_writable", "dry_run", "require_extras", "show_dry_run"]


@dataclass(frozen=True)
class DryRun:
    """What was found: lines of (what, finding), worth a line each; and the phases of the run."""

    found: tuple[tuple[str, str], ...]
    phases: tuple[Phase, ...]


def dry_run(config: Config, overwrite: bool = False) -> DryRun:
    """Check a run as `spinerl.train.adapt` would, up to where it reads weights.

    Raises InputError for the first thing that is wrong, in the words in which the run would be refused.
    """
    folder, named = config.run_folder, config.data.name
    config = absolute_paths(resolve(config))
    found: list[tuple[str, str]] = []
    open_code(config, lambda line: found.append(("plug-in", line.removeprefix("plug-in "))))
    _check_folder(folder, overwrite)
    require_extras(config)
    data, gold = load_data(config.data, answer_kind=config.answer.kind)
    facts, tokenizer = model_facts(config.model), load_tokenizer(config.model)
    vision = load_processor(config.model)
    rendered = render_all(data.questions, tokenizer, config.prompt, kind=config.answer.kind, vision=vision)
    (questions, prompts, _), notes = fitting(facts, rendered, config)
    num_gold = sum(question.id in gold for question in questions)
    check_gold(config, len(questions), num_gold)
    check_disk(config, folder, facts.weight_bytes)
    lengths = [len(prompt) for prompt in prompts]
    with_gold = f"{num_gold} with gold answers, for figures only" if num_gold else "none with a gold answer"
    template = "the model's chat template" if getattr(vision or tokenizer, "chat_template", None) else "plain"
    form = "plain" if config.prompt.chat_template == "off" else template
    skipped = {**data.skipped, **({"prompt too long": rendered.num_too_long} if rendered.num_too_long else {})}
    found = [
        ("model", facts.sentence),
        ("tokenizer", f"{len(tokenizer):,} tokens"),
        ("questions", f"{len(questions)} of {named}, {with_gold}"),
        *(("skipped", f"{num}: {reason}") for reason, num in skipped.items()),
        ("prompts", f"{min(lengths)} to {max(lengths)} tokens, {form}"),
        *(("note", note) for note in notes),
        ("method", config.method),
        *found,
        ("run", f"{folder}, {'which is replaced' if folder.is_dir() and any(folder.iterdir()) else 'free'}"),
    ]
    return DryRun(tuple(found), count_phases(config, len(questions)))


def _check_folder(folder: Path, overwrite: bool) -> None:
    """InputError if a new run cannot be written in a folder, or another process writes there."""
    RunFolder(folder).check_free(overwrite)
    check_writable("run", folder)
    owner = who_holds(folder)
    if owner is not None:
        raise InputError(f"{folder} is being written by {owner}; wait for its end, or stop it")


def require_extras(config: Config) -> None:
    """MissingExtraError for a package that the run needs and that is not installed."""
    if config.rollout.sampler == "vllm" and config.vllm.url is None:
        require_vllm()
    if config.lora.rank and config.steps:
        require_peft()


def check_writable(key: str, folder: Path) -> None:
    """InputError if the user may not write in a folder, or make it."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "Permission denied" if place.is_dir() else "Not a directory"
        raise InputError(f"{key}={folder} cannot be written: {why}: {place}; choose another {key}=FOLDER")


def show_dry_run(config: Config, args: Sequence[str], console: Console, overwrite: bool = False) -> None:
    """Check a run and print what was found, the amount of work, and the command that does it."""
    seen = dry_run(config, overwrite)
    for what, finding in seen.found:
        console.print(f"{what:10s} {finding}")
    console.print(plan_table(Plan(seen.phases)))
    options = ["--overwrite"] * overwrite + ["--allow-plugins"] * config.code_allowed
    console.print(f"nothing was written; it runs with: {shlex.join(['spinerl', 'adapt', *args, *options])}")
