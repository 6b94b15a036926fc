"""`spinerl compare --dry-run`: the runs that a comparison would make, those that are there already, its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spinerl.comparison.command import open_named_code
from spinerl.comparison.plan import NONE, Comparison, Task, plan, search_size
from spinerl.comparison.state import State, states
from spinerl.config import Config, ModelConfig
from spinerl.data import load_data
from spinerl.dry_run import check_writable, require_extras
from spinerl.errors import InputError
from spinerl.locks import who_holds
from spinerl.models.headers import model_facts
from spinerl.models.loading import load_tokenizer
from spinerl.plan import count_phases
from spinerl.train import check_gold

__all__ = ["dry_compare"]

_STATES: Mapping[State, str] = {
    "new": "new",
    "interrupted": "goes on",
    "unasked": "asked again",
    "done": "done",
}


def dry_compare(args: Sequence[str], console: Console, overwrite: bool = False, allow: bool = False) -> None:
    """Check a comparison as `spinerl.comparison.compare` would, and print what it would run.  Nothing is written.

    Raises InputError for the first thing that is wrong with the arguments, the data, the models or the runs there are.
    """
    comparison = plan(args)
    notes: list[str] = []
    open_named_code(comparison, allow, notes.append)
    check_writable("out", comparison.out)
    if who_holds(comparison.out) is not None:
        raise InputError(f"out={comparison.out} is in use: another `spinerl compare` runs there; wait for it")
    found = states(comparison, overwrite)
    sizes = _sizes(comparison)
    seen: list[ModelConfig] = []
    for task in comparison.tasks:
        config = task.config
        if config.model not in seen:
            seen.append(config.model)
            facts, tokenizer = model_facts(config.model), load_tokenizer(config.model)
            console.print(f"model: {facts.sentence}; tokenizer of {len(tokenizer):,} tokens")
        require_extras(config)
        check_gold(config, *sizes[task.data])
    for data, (num, num_gold) in sizes.items():
        console.print(f"questions: {num} of {data}, {num_gold} with gold answers, for figures only")
    for note in notes:
        console.print(note)
    console.print(_table(comparison, found, sizes))
    console.print(_baselines(comparison))
    console.print(f"out: {comparison.out}")


def _sizes(comparison: Comparison) -> dict[str, tuple[int, int]]:
    """(questions, those with gold answers) of every data set that is adapted to or asked."""
    sizes: dict[str, tuple[int, int]] = {}
    for task in comparison.tasks:
        others = [(one["name"], Config.model_validate(one["config"])) for one in task.after["elsewhere"]]
        for name, config in [(task.data, task.config), *others]:
            if name not in sizes:
                questions, gold = load_data(config.data, answer_kind=config.answer.kind)
                sizes[name] = len(questions.questions), len(gold)
    return sizes


def _table(comparison: Comparison, found: Mapping[Path, State], sizes: Mapping[str, tuple[int, int]]) -> Table:
    table = Table("run", "data", "seed", "state", show_edge=False, pad_edge=False)
    for title in ("steps", "responses", "tokens at most"):
        table.add_column(title, justify="right")
    left = [0, 0, 0]
    for task in comparison.tasks:
        state = found[task.folder]
        responses, tokens = _amount(task, sizes, state)
        table.add_row(
            task.row.name, task.data, str(task.seed), _STATES[state], str(task.config.steps), f"{responses:,}",
            f"{tokens:,}",
        )  # fmt: skip
        if state != "done":
            left = [one + more for one, more in zip(left, (1, responses, tokens), strict=True)]
    num, responses, tokens = left
    table.add_row(f"{num} of {len(comparison.tasks)} to run", "", "", "", "", f"{responses:,}", f"{tokens:,}")
    return table


def _amount(task: Task, sizes: Mapping[str, tuple[int, int]], state: State) -> tuple[int, int]:
    """(responses, tokens at most) of a whole run and of what its final model is asked; of the latter, where the run is
    finished and its model is only asked."""
    num = sizes[task.data][0]
    phases = () if state == "unasked" else count_phases(task.config, num)
    after: Mapping[str, Any] = task.after
    asked = num * (after.get("samples", 0) + after.get("votes", 0) + bool(after.get("synthesis")))
    if refine := after.get("refine"):
        asked += 2 * num * refine["responses"] * refine["rounds"]  # at most: a check and a correction each
    asked += num * sum(search_size(*search)[1] for search in after.get("search", {}).items())
    asked += sum(sizes[one["name"]][0] for one in after["elsewhere"])
    forced = num * bool(after.get("forcing"))
    longest = task.config.rollout.max_new_tokens
    budget = after["forcing"]["budget"] + after["forcing"]["answer_tokens"] if forced else 0
    responses = sum(phase.responses for phase in phases) + asked + forced
    return responses, sum(phase.tokens for phase in phases) + asked * longest + forced * budget


def _baselines(comparison: Comparison) -> str:
    """The rows without an update, in a line: they read what the unadapted model wrote."""
    after = next(task.after for task in comparison.tasks if task.row.name == NONE)
    said = [f"votes of up to {after['votes']} responses"] if after["votes"] else []
    if comparison.keys.samples:
        said.append(f"best and first of {comparison.keys.samples}")
    said += [f"one more response that reads {after['synthesis']}"] if "synthesis" in after else []
    said += [f"{after['refine']['responses']} checked and corrected"] if "refine" in after else []
    said += [f"budget forcing ({after['forcing']['budget']} tokens)"] if "forcing" in after else []
    said += [search_size(*search)[0] for search in after.get("search", {}).items()]
    return f"baselines without an update: {', '.join(said) or 'none'}"
