"""What a comparison will run: one task per method, data set and seed, each with its whole configuration.  No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinerl.comparison.keys import Keys, RunOverrides, leaves, read_keys
from spinerl.config import FILE_ENDING, STANDARD_INPUT, Config, load_config, override
from spinerl.data import load_data, resolve
from spinerl.errors import InputError, did_you_mean
from spinerl.paths import absolute_paths
from spinerl.recipes import split_args
from spinerl.tiny import SUITES, VQA_SUITES

__all__ = ["Comparison", "Elsewhere", "Task", "Variant", "elsewhere_file", "plan", "search_size", "slug"]

NONE = "none"
"""The row without adaptation."""

# Sections that say how a model is asked; the others say how it learns.
_ASKING = ("model", "steer", "prompt", "answer", "rollout", "vote", "eval", "threads")


@dataclass(frozen=True)
class Variant:
    """A method, or a variant of one: `Variant("spine-anchored", "spine", ("anchor.weight=0.1",))`."""

    name: str
    method: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Elsewhere:
    """Another data set to ask the final model; `role` is "unseen" or "original"."""

    role: str
    name: str


@dataclass(frozen=True)
class Task:
    """One run.  `after` is what is asked of the model once the run is finished, as plain values (see `after.py`)."""

    row: Variant
    data: str
    seed: int
    config: Config
    folder: Path
    after: dict[str, Any]

    @property
    def label(self) -> str:
        """For people: "spine, tiny/shift-a, seed 0"."""
        return f"{self.row.name}, {self.data}, seed {self.seed}"


def search_size(name: str, request: Mapping[str, Any]) -> tuple[str, int]:
    """A search in words, and the responses per question that it samples at most.

    >>> search_size("qalign", {"steps": 39})
    ('a chain of 39', 39)
    """
    if name == "deepening":
        return f"{request['responses']} with growing budgets", request["responses"]
    if name == "qalign":
        return f"a chain of {request['steps']}", request["steps"]
    if name == "carbon":
        return f"{request['responses']}, half of them calibrated", request["responses"]
    if name == "neighbors":
        return f"neighbors' votes ({request['num']}) where questions share labels", 0
    # The greedy response, one to begin with and one per round.
    return f"{name} of {request['rounds']} rounds", request["rounds"] + 1 + (name == "latentevolve")


@dataclass(frozen=True)
class Comparison:
    """Rows x data sets x seeds.  `tasks` are ordered so that whole seeds finish first.

    `fingerprints` holds the questions' fingerprint of each data set, `elsewhere` the other sets asked, by data set.
    """

    keys: Keys
    out: Path
    rows: tuple[Variant, ...]
    tasks: tuple[Task, ...]
    elsewhere: dict[str, tuple[Elsewhere, ...]]
    fingerprints: dict[str, str]

    def task(self, row: str, data: str, seed: int) -> Task:
        """The task of a row, data set and seed; KeyError if there is none."""
        for task in self.tasks:
            if (task.row.name, task.data, task.seed) == (row, data, seed):
                return task
        raise KeyError((row, data, seed))


def plan(args: Sequence[str]) -> Comparison:
    """The comparison that `[RECIPE.yaml] [KEY=VALUE]...` describes; nothing is written.

    Every configuration is resolved and every data set opened here, so that what is wrong is refused before
    anything runs.  Raises InputError in one line.
    """
    recipe, rest = split_args(args)
    keys, for_runs = read_keys(recipe, rest)
    if STANDARD_INPUT in keys.data:
        raise InputError("data=-: a comparison reads its questions many times; write standard input to a file")
    rows = _rows(keys)
    elsewhere = {data: _elsewhere(keys, data) for data in keys.data}
    out = Path(keys.out or Path("runs") / f"compare-{_out_name(recipe, rows, keys)}")
    slugs = {data: slug(data) for data in keys.data}
    if len(set(slugs.values())) < len(slugs):
        raise InputError(f"data={','.join(keys.data)}: two of these would share a folder; rename a file")
    fingerprints: dict[str, str] = {}
    with_images: set[str] = set()
    tasks = []
    for seed in keys.seeds:
        for data in keys.data:
            asked = [(other, _asking_config(for_runs, NONE, (), other.name, seed, keys)) for other in elsewhere[data]]
            for row in rows:
                folder = out / slugs[data] / f"{row.name}-seed{seed}"
                config = _config(row, for_runs, data, seed, folder)
                for name, one in [(data, config), *((other.name, own) for other, own in asked)]:
                    if name not in fingerprints:
                        opened = load_data(one.data, answer_kind=one.answer.kind)[0]
                        fingerprints[name] = opened.fingerprint
                        if any(question.images for question in opened.questions):
                            with_images.add(name)
                others = [
                    _asking_config(for_runs, row.method, row.overrides, other.name, seed, keys) for other, _ in asked
                ]
                after = _after(row, config, keys, seed, elsewhere[data], others, data in with_images)
                tasks.append(Task(row, data, seed, config, folder, after))
    return Comparison(keys, out, rows, tuple(tasks), elsewhere, fingerprints)


def slug(name: str) -> str:
    """A data set's name as a folder's: "tiny/shift-a" -> "tiny-shift-a"."""
    path = Path(name)
    stem = path.stem if path.suffix == ".yaml" else FILE_ENDING.sub("", path.name)
    base = stem if stem != path.name else name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip("-.") or "data"
    return plain if len(plain) <= 80 else f"{plain[:60]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def elsewhere_file(role: str, name: str) -> str:
    """The file, inside a run's folder for what its model was asked, of another data set's answers."""
    return f"{role}-{slug(name)}.jsonl"


def _rows(keys: Keys) -> tuple[Variant, ...]:
    named = keys.methods or ([*keys.variants] if keys.variants else ["ttrl", "spine"])
    if NONE not in named:
        named = [NONE, *named]
    rows = []
    for name in named:
        sets = dict(keys.variants.get(name, {}))
        rows.append(Variant(name, sets.pop("method", name), tuple(override(key, value) for key, value in leaves(sets))))
    if "reference" in keys.model_fields_set and keys.reference not in named:
        raise InputError(
            f"reference={keys.reference} is not among the rows{did_you_mean(keys.reference, named)}: {', '.join(named)}"
        )
    return tuple(rows)


def _config(row: Variant, for_runs: RunOverrides, data: str, seed: int, folder: Path) -> Config:
    """A run's resolved configuration.  The variant's overrides come after the shared ones, which must not undo them."""
    own = [f"method={row.method}", override("data.name", data), f"seed={seed}", override("run", str(folder))]
    if row.method == NONE:
        own.append("steps=0")  # whatever the shared keys ask of the others
    try:
        config = resolve(load_config(overrides=[*for_runs.of(row.method), *row.overrides, *own]))
        return for_runs.marked(absolute_paths(config))
    except InputError as error:
        where = "" if not row.overrides else f" (in variants.{row.name})"
        raise InputError(f"{error}{where}") from None


def _asking_config(
    for_runs: RunOverrides, method: str, extra: Sequence[str], data: str, seed: int, keys: Keys
) -> Config:
    """How a finished model is asked another data set: greedily, with the run's own prompts and limits."""
    overrides = [one for one in (*for_runs.of(method), *extra) if one.partition("=")[0].partition(".")[0] in _ASKING]
    overrides += ["method=none", "steps=0", "eval.samples=0", "eval.max_questions=0", f"seed={seed}"]
    overrides += [override("data.name", data), f"data.max_questions={keys.elsewhere_questions}"]
    return absolute_paths(resolve(load_config(overrides=overrides)))


def _after(
    row: Variant,
    config: Config,
    keys: Keys,
    seed: int,
    others: Sequence[Elsewhere],
    configs: Sequence[Config],
    shows_images: bool,
) -> dict[str, Any]:
    after: dict[str, Any] = {
        "elsewhere": [
            {"role": other.role, "name": other.name, "config": own.model_dump(mode="json")}
            for other, own in zip(others, configs, strict=True)
        ]
    }
    if row.name == NONE:
        # All votes are sampled for the first seed only: the questions are the unit, and votes are dear.
        after["votes"] = max(keys.votes, keys.samples, keys.refine) if seed == keys.seeds[0] else keys.samples
        if keys.synthesis and keys.samples and seed == keys.seeds[0] and not shows_images:  # its prompts hold no images
            after["synthesis"] = keys.samples
        if keys.refine and seed == keys.seeds[0] and not shows_images:
            after["refine"] = {"responses": keys.refine, "rounds": keys.refine_rounds}
        forcing = keys.forcing
        if forcing.budget and seed == keys.seeds[0]:  # greedy, so the same for every seed
            budget = config.rollout.max_new_tokens if forcing.budget < 0 else forcing.budget
            after["forcing"] = forcing.model_dump() | {"budget": budget}
        if seed == keys.seeds[0] and not shows_images and (searches := _searches(keys)):
            after["search"] = searches
    elif keys.sample_adapted and not config.eval_samples:
        after["samples"] = keys.samples
    return after


def _searches(keys: Keys) -> dict[str, dict[str, Any]]:
    """The searches that are asked for, each with its request: the arguments of its function."""
    latents = keys.latents.model_dump(include={"fraction", "most", "lr"})
    asked = {
        "deepening": (keys.deepening.responses, keys.deepening.model_dump()),
        "qalign": (keys.qalign.steps, keys.qalign.model_dump()),
        "carbon": (keys.carbon.responses, keys.carbon.model_dump()),
        "latentseek": (keys.latents.rounds, {"rounds": keys.latents.rounds, **latents}),
        "latentevolve": (keys.latents.evolve, {"rounds": keys.latents.evolve, **latents}),
        "neighbors": (keys.neighbors, {"num": keys.neighbors}),
    }
    return {name: {**request, "seen": keys.samples} for name, (wanted, request) in asked.items() if wanted}


def _elsewhere(keys: Keys, data: str) -> tuple[Elsewhere, ...]:
    found = [Elsewhere("unseen", name) for name in _named(keys.unseen, data, "unseen", keys.data)]
    found += [Elsewhere("original", name) for name in _named(keys.original, data, "original", keys.data)]
    names = [other.name for other in found]
    if len(set(map(slug, names))) < len(names):
        raise InputError(f"unseen and original name a data set twice for {data}: {', '.join(names)}")
    return tuple(found)


def _named(value: Any, data: str, key: str, all_data: Sequence[str]) -> list[str]:
    if isinstance(value, dict):
        strange = next((name for name in value if name not in all_data), None)
        if strange is not None:
            raise InputError(f"{key}.{strange}: not one of data={','.join(all_data)}")
        value = value.get(data)
    if value == "auto":
        family, _, suite = data.partition("@")[0].partition("/")
        other = f"{suite}-unseen" if key == "unseen" else "in-domain"
        known = {"tiny": SUITES, "tiny-vqa": VQA_SUITES}.get(family, ())
        return [f"{family}/{other}"] if other in known and other != suite else []
    if value in (None, "none", ""):
        return []
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
    return [name for name in names if name != data]  # a list for all data sets names each of them too


def _out_name(recipe: str | None, rows: Sequence[Variant], keys: Keys) -> str:
    if recipe is not None:
        return Path(recipe).stem
    name = "-".join([*(row.name for row in rows if row.name != NONE), *map(slug, keys.data)])
    return name if len(name) <= 80 else f"{name[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
