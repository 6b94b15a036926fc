"""A model and the questions it can be asked, ready to run; and the observer of what happens meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import StopStringCriteria

from spinerl.config import Config
from spinerl.data import load_data, render_all
from spinerl.data.prompts import next_question
from spinerl.engine.backend import backend_of
from spinerl.engine.capabilities import Capabilities
from spinerl.engine.loading import LoadedModel, fingerprint, load_model
from spinerl.engine.vllm import open_sampler, require_vllm
from spinerl.errors import InputError
from spinerl.machine import choose_threads, tune_allocator
from spinerl.types import GoldTable, Question

__all__ = ["Observer", "Workload", "changed_numerics", "check_unchanged", "open_workload", "stopping"]


class Observer(Protocol):
    """Called for what happens; changes nothing.  `spinerl.display` is the one the commands use."""

    def phase(self, name: str, total_tokens: int) -> None:
        """A phase that samples at most this many tokens begins: "evaluate" or "step"."""
        ...

    def tokens(self, count: int) -> None:
        """So many tokens were sampled."""
        ...

    def step(self, metrics: Mapping[str, Any], num_steps: int) -> None:
        """A line of metrics.jsonl was written."""
        ...

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """A line of eval.jsonl was written."""
        ...

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint was written to this folder."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


@dataclass(frozen=True)
class Workload:
    """A model and the questions it can be asked, ready to run."""

    loaded: LoadedModel
    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    gold: GoldTable
    facts: Mapping[str, Any]  # for the manifest
    open_again: Callable[[], LoadedModel] | None = None  # another copy of the model, before it has learned anything

    def only(self, indices: Sequence[int]) -> Workload:
        """The same with only these questions."""
        questions = tuple(self.questions[i] for i in indices)
        gold = {q.id: self.gold[q.id] for q in questions if q.id in self.gold}
        prompts = tuple(self.prompts[i] for i in indices)
        return replace(self, questions=questions, prompts=prompts, gold=gold)


def open_workload(config: Config, observer: Observer | None = None, given: LoadedModel | None = None) -> Workload:
    """Load the questions, then the model (or take the one given), and render the prompts.

    `config` has been through `spinerl.data.resolve`.  Raises InputError; writes nothing.
    """
    if config.rollout.sampler == "vllm" and config.vllm.url is None:
        require_vllm()  # rather now than after a large model was read
    tune_allocator()
    data, gold = load_data(config.data, answer_kind=config.answer.kind)
    loaded = replace(given, settings=config.engine) if given else load_model(config.model, config.engine)
    if config.threads:
        torch.set_num_threads(config.threads)
    elif loaded.device.type == "cpu":
        choose_threads(loaded.model, loaded.vocab_size)
    if config.rollout.sampler == "vllm":
        loaded = replace(loaded, sampler=open_sampler(config, loaded))
    loaded = stopping(loaded, config)
    questions, prompts, num_too_long = render_all(
        data.questions, loaded.tokenizer, config.prompt, kind=config.answer.kind, vision=loaded.vision
    )
    skipped = {**data.skipped, **({"prompt too long": num_too_long} if num_too_long else {})}
    gold = {q.id: gold[q.id] for q in questions if q.id in gold}
    if observer is not None:
        for reason, count in skipped.items():
            observer.note(f"skipped {count} question{'s' * (count != 1)}: {reason}")
    facts = {
        "model": {
            "name": config.model.name,
            "fingerprint": fingerprint(loaded.model),
            "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
        },
        "data": {
            "name": config.data.name,
            "fingerprint": data.fingerprint,
            "num_questions": len(questions),
            "num_gold": len(gold),
            "skipped": skipped,
        },
        "device": str(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **({} if loaded.sampler is None else loaded.sampler.facts),
    }

    def open_again() -> LoadedModel:
        if given is None:
            return replace(load_model(config.model, config.engine), stop_texts=loaded.stop_texts)
        return replace(loaded, model=copy.deepcopy(given.model), capabilities=Capabilities(), sampler=None)

    return Workload(loaded, tuple(questions), tuple(prompts), gold, facts, open_again)


def check_unchanged(what: str, facts: Mapping[str, Any], work: Workload) -> None:
    """InputError if the model or the questions are others than those that `facts`, of a manifest, are of.

    Args:
        what: is to be resumed.
    """
    for part in ("model", "data"):
        then, now = facts.get(part, {}).get("fingerprint"), work.facts[part]["fingerprint"]
        if then is not None and then != now:
            raise InputError(
                f"{what} cannot be resumed: its {part} {work.facts[part]['name']} has changed since it began "
                f"({then} then, {now} now)"
            )


def changed_numerics(facts: Mapping[str, Any], loaded: LoadedModel) -> list[str]:
    """What of this machine rounds otherwise than that on which the manifest `facts` was written, in words."""
    engine = facts.get("engine", {})
    return [
        f"{name} was {engine[name]}, is {value}"
        for name, value in backend_of(loaded).machine().items()
        if name in engine and engine[name] != value
    ]


def stopping(loaded: LoadedModel, config: Config) -> LoadedModel:
    """The model with the text at which its responses to plain prompts end (rollout.stop_at_next).

    A text that its tokenizer cannot write is left out: then nothing it writes has it.
    """
    text = next_question(loaded.tokenizer, config.prompt, loaded.vision) if config.rollout.stop_at_next else None
    if text is None or text in config.rollout.stop:
        return loaded
    try:
        StopStringCriteria(loaded.tokenizer, [text])
    except ValueError:
        return loaded
    return replace(loaded, stop_texts=(text,))
