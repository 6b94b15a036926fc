"""A model and the questions it can be asked, ready to run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import torch
from transformers import StopStringCriteria

from spinerl import __version__, templates
from spinerl.config import Config
from spinerl.data import load_data, render_all, render_prompt
from spinerl.data.prompts import Rendered, next_question
from spinerl.engine.backend import backend_of
from spinerl.engine.vllm import open_sampler, require_vllm
from spinerl.errors import InputError
from spinerl.footprint import memory_note
from spinerl.lines import counted
from spinerl.machine import choose_threads, set_threads, tune_allocator
from spinerl.models import precision
from spinerl.models.adapters import add_adapters
from spinerl.models.capabilities import Capabilities
from spinerl.models.context import fit
from spinerl.models.loading import LoadedModel, is_gguf, load_model, state_of
from spinerl.models.weights import listed
from spinerl.observer import Observer
from spinerl.steering import fingerprint_of, open_model
from spinerl.types import GoldTable, Question

__all__ = [
    "Workload",
    "add_configured_adapters",
    "changed_numerics",
    "check_unchanged",
    "fitting",
    "open_workload",
    "renderer",
    "stopping",
    "versions",
]

_IDS_SHOWN = 5  # of questions left out


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
    if config.prompt.chat_template != "off":
        templates.prepare()  # it starts while the model is read
    data, gold = load_data(config.data, answer_kind=config.answer.kind)
    if config.uses_gold and data.guessed_gold is not None:
        raise InputError(
            f"method={config.method} learns from gold answers, which a guess is not for: if they are in column "
            f"{data.guessed_gold!r}, say so with data.columns.gold={data.guessed_gold}"
        )
    if given is None and observer is not None and (note := memory_note(config, data.questions)) is not None:
        observer.note(note)
    loaded = replace(given, settings=config.engine) if given else open_model(config)
    if config.threads:
        set_threads(config.threads)
    elif loaded.device.type == "cpu":
        choose_threads(loaded.model, loaded.vocab_size)
    if config.rollout.sampler == "vllm":
        loaded = replace(loaded, sampler=open_sampler(config, loaded))
    loaded = stopping(loaded, config)
    rendered = render_all(
        data.questions, loaded.tokenizer, config.prompt, kind=config.answer.kind, vision=loaded.vision
    )
    skipped = {**data.skipped, **({"prompt too long": rendered.num_too_long} if rendered.num_too_long else {})}
    if observer is not None:
        for note in data.notes:
            observer.note(note)
        for reason, count in skipped.items():
            observer.note(f"skipped {counted(count, 'question')}: {reason}")
        for note in loaded.notes:
            observer.note(note)
    (questions, prompts, num_left_out), notes = fitting(loaded, rendered, config)
    if num_left_out:
        skipped["prompt fills the model's context"] = num_left_out
    if observer is not None:
        for note in notes:
            observer.note(note)
    gold = {q.id: gold[q.id] for q in questions if q.id in gold}
    facts = {
        "model": {
            "name": config.model.name,
            "fingerprint": fingerprint_of(loaded),
            "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
        },
        "data": {
            "name": config.data.name,
            "fingerprint": data.fingerprint,
            "num_questions": len(questions),
            "num_gold": len(gold),
            "skipped": skipped,
            "notes": list(data.notes),
        },
        "device": str(loaded.device),
        "dtype": loaded.precision,
        "threads": torch.get_num_threads(),
        **({} if loaded.sampler is None else loaded.sampler.facts),
    }

    unlearned = state_of(loaded.model)
    takes_long = given is None and is_gguf(config.model)  # to read; a copy serves while nothing has been learned

    def open_again() -> LoadedModel:
        if given is not None or (takes_long and state_of(loaded.model) == unlearned):
            return replace(loaded, model=copy.deepcopy(loaded.model), capabilities=Capabilities(), sampler=None)
        return replace(load_model(config.model, config.engine), stop_texts=loaded.stop_texts)

    return Workload(loaded, tuple(questions), tuple(prompts), gold, facts, open_again)


def renderer(loaded: LoadedModel, config: Config) -> Callable[[Question], tuple[int, ...]]:
    """What turns a question into its prompt."""
    return partial(
        render_prompt, tokenizer=loaded.tokenizer, prompt=config.prompt, kind=config.answer.kind, vision=loaded.vision
    )


def add_configured_adapters(loaded: LoadedModel, config: Config) -> None:
    """Give a model that is to learn its adapters, if `lora.rank` asks for some."""
    if config.lora.rank and config.steps:
        add_adapters(loaded.model, config.lora, config.seed, train_vision=config.model.train_vision)
        loaded.capabilities.clear(keep=precision.VERDICT)


class Limits(Protocol):
    """What of a model limits its prompts: `LoadedModel`, or the facts of one that is not loaded."""

    @property
    def context(self) -> int | None: ...

    @property
    def num_embeddings(self) -> int: ...


def fitting(loaded: Limits, rendered: Rendered, config: Config) -> tuple[Rendered, tuple[str, ...]]:
    """The questions whose prompts fit into the model's context together with a response (`spinerl.models.context.fit`),
    how many do not, and what is worth a line: which those are, and whether responses will be cut short.

    InputError where none fits, or where a prompt has tokens that the model does not know.
    """
    questions, prompts, _ = rendered
    rows, most = loaded.num_embeddings, config.rollout.max_new_tokens
    for question, prompt in zip(questions, prompts, strict=True):
        if not prompt or max(prompt) >= rows:
            what = "no token" if not prompt else f"token {max(prompt)}, and the model knows {rows}"
            raise InputError(
                f"model={config.model.name}: the prompt of question {question.id!r} holds {what}; its tokenizer or "
                "chat template is of another model"
            )
    found = fit([len(prompt) for prompt in prompts], most, loaded.context)
    if questions and not found.kept:
        raise InputError(
            f"model={config.model.name}: its context has {loaded.context} tokens, and the shortest of {len(prompts)} "
            f"prompts {min(map(len, prompts))}, which leaves fewer than {found.least} for a response; shorten the "
            f"prompts (prompt.examples, prompt.instruction), lower rollout.max_new_tokens={most}, or choose a model "
            "with a longer context"
        )
    notes = [] if found.note is None else [found.note]
    if found.skipped:
        ids = [questions[i].id for i in found.skipped]
        notes.insert(
            0,
            f"skipped {counted(len(ids), 'question')}: of the model's context of {loaded.context} tokens "
            f"the prompt leaves fewer than {found.least} for a response ({listed(ids, _IDS_SHOWN)})",
        )
    kept = Rendered(tuple(questions[i] for i in found.kept), tuple(prompts[i] for i in found.kept), len(found.skipped))
    return kept, tuple(notes)


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


def versions() -> dict[str, str]:
    """Of the packages that compute."""
    return {"spinerl": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def changed_numerics(facts: Mapping[str, Any], loaded: LoadedModel) -> list[str]:
    """What of this machine rounds otherwise than that on which the manifest `facts` was written, in words."""
    then = {**facts, **facts.get("engine", {})}
    return [
        f"{name} was {then[name]}, is {value}"
        for name, value in {**versions(), **backend_of(loaded).machine()}.items()
        if name in then and then[name] != value
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
