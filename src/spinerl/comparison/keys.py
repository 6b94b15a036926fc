"""The keys of a comparison, read from a recipe and from key=value overrides.  No torch.

A comparison's recipe holds the keys below; every other key in it is a configuration key of all its runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spinerl.config import (
    STANDARD_INPUT,
    Config,
    explain_value,
    named_by_file,
    override,
    parse_override,
    read_recipe,
    split_override,
)
from spinerl.errors import InputError, did_you_mean
from spinerl.methods import ALIASES, METHODS

__all__ = ["ForcingKeys", "Keys", "RunOverrides", "describe_compare_keys", "leaves", "read_keys"]

_NAME = re.compile(r"[A-Za-z0-9+][A-Za-z0-9_+-]*")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ForcingKeys(_Section):
    """Budget forcing: what is appended where, in words of the model's own language."""

    budget: int = Field(-1, ge=-1, description="tokens of reasoning; -1: rollout.max_new_tokens; 0: no such row")
    cue: str = Field(" Wait", description="appended where a response ends before the budget is spent")
    answer: str = Field(" The answer is", description="appended where the budget cuts a response off")
    answer_tokens: int = Field(32, ge=1, description="tokens left for the answer after that")


class DeepeningKeys(_Section):
    """ID-sampling: responses that are sent on at growing budgets."""

    responses: int = Field(
        0, ge=0, description="ID-sampling: responses that get a cue at growing budgets; 0: no such row"
    )
    budget: int = Field(32, ge=1, description="tokens before the first cue")
    growth: float = Field(
        2.0, gt=1.0, description="how much each budget is of the one before, until the response's limit"
    )
    cue: str = Field(" Wait", description="appended where a budget ends")


class QalignKeys(_Section):
    """QAlign: a Markov chain over responses."""

    steps: int = Field(0, ge=0, description="QAlign: responses in a question's chain, each half new; 0: no such row")
    beta: float = Field(0.02, gt=0.0, description="how little the mean token probability counts when one is accepted")


class CarbonKeys(_Section):
    """CarBoN: calibrated best of N."""

    responses: int = Field(0, ge=0, description="CarBoN: responses, half of them calibrated; 0: no such row, else 2 up")
    keep: int = Field(2, ge=1, description="the most probable of the first half, which calibrate")
    steps: int = Field(20, ge=1, description="steps of Adam")
    lr: float = Field(0.01, gt=0.0, description="their size")
    decay: float = Field(0.01, ge=0.0, description="weight of the squared shift in the loss")


class LatentKeys(_Section):
    """LatentSeek and LatentEvolve: learned hidden states behind the first tokens of a response."""

    rounds: int = Field(0, ge=0, description="LatentSeek: most updates per question; 0: no such row")
    evolve: int = Field(0, ge=0, description="LatentEvolve: the same, begun near similar questions; 0: no such row")
    fraction: float = Field(0.1, gt=0.0, le=1.0, description="share of the greedy response whose states are learned")
    most: int = Field(300, ge=1, description="most tokens of it")
    lr: float = Field(0.03, gt=0.0, description="step size of Adam")


class Keys(_Section):
    """What is compared, and how the models are asked afterwards."""

    methods: list[str] = Field([], description="methods and variants, in the table's order; `none` is always run")
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="further rows: {NAME: {method: METHOD, KEY: VALUE, ...}}"
    )
    data: list[str] = Field(["tiny/shift-a"], min_length=1, description="data sets to adapt to, one by one")
    seeds: list[int] = Field([0], min_length=1, description="every method runs with each")
    reference: str = Field("ttrl", description="the row that others are compared with besides `none`, where it is run")
    settings: str | None = Field(
        None,
        description="recipe of a run (say configs/paper/qwen3-1.7b.yaml): all runs take its keys, method and data "
        "aside, and those that another method's row sets itself",
    )
    out: str | None = Field(None, description="folder of the comparison; null: runs/compare-...")
    jobs: int = Field(0, ge=0, description="runs at a time; 0: one per core, or 1 on a GPU")
    unseen: str | list[str] | dict[str, str | list[str]] | None = Field(
        "auto",
        description="data sets to ask the adapted models too, for all or by data set; auto: tiny/SUITE-unseen",
    )
    original: str | list[str] | dict[str, str | list[str]] | None = Field(
        "auto", description="the same, for what the model could do before: forgetting; auto: tiny/in-domain"
    )
    elsewhere_questions: int = Field(0, ge=0, description="only the first N unseen and original questions; 0: all")
    samples: int = Field(
        16, ge=0, description="responses per question for avg@k and maj@k of the final models; 0: none"
    )
    sample_adapted: bool = Field(
        True, description="whether adapted models sample too; false: only the unadapted one, for the baselines"
    )
    votes: int = Field(64, ge=0, description="most responses per question of the unadapted model that vote")
    synthesis: bool = Field(
        True, description="whether the unadapted model also reads its `samples` responses and writes one more: a row"
    )
    refine: int = Field(
        0, ge=0, description="responses that the unadapted model checks and corrects before they vote; 0: no such row"
    )
    refine_rounds: int = Field(1, ge=1, description="most corrections of each of those")
    neighbors: int = Field(
        0, ge=0, description="questions that decide together with each, where all share their labels; 0: no such rows"
    )
    forcing: ForcingKeys = ForcingKeys.model_validate({})
    deepening: DeepeningKeys = DeepeningKeys.model_validate({})
    qalign: QalignKeys = QalignKeys.model_validate({})
    carbon: CarbonKeys = CarbonKeys.model_validate({})
    latents: LatentKeys = LatentKeys.model_validate({})

    @field_validator("methods", "data", "seeds", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


# What runs of a comparison set besides the defaults.  They evaluate greedily as they go, for the curves; samples are
# taken from the final model only (`samples`), and a finished run is not gone on with: it needs no checkpoint.
DEFAULTS = ("threads=1", "eval.every=10", "eval.samples=0", "checkpoint.keep=0", "guard=warn")

# How often a dotted key of these is cut: what follows is the name of a data set, or a run's own key.
_DEPTH = {"unseen": 0, "original": 0, "variants": 1}

# One run's identity, which a comparison sets itself.
_OWN = {"method": "methods=a,b", "run": "out=FOLDER", "seed": "seeds=0,1,2"}


@dataclass(frozen=True)
class RunOverrides:
    """The overrides that configure every run, in order, those that win last.

    `lent` are those that only the recipe named by `settings` gives, `method` is the method it was written for.
    `files` names the recipes; `typed` is what the command line gives, nested: for all runs, and by variant.
    """

    overrides: tuple[str, ...]
    lent: frozenset[str] = frozenset()
    method: str | None = None
    files: str = ""
    typed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def marked(self, config: Config) -> Config:
        """A run's configuration, remembering which code only the recipes name."""
        variants = self.typed.get("variants")
        return named_by_file(config, self.files, self.typed, *(variants.values() if isinstance(variants, dict) else ()))

    def of(self, method: str) -> tuple[str, ...]:
        """The overrides for runs of a method: of a recipe for another one, none that the method's row sets itself."""
        if method == self.method:
            return self.overrides
        own = {key for key, _ in leaves(METHODS[ALIASES.get(method, method)].sets)}
        return tuple(one for one in self.overrides if one not in self.lent or one.partition("=")[0] not in own)


def read_keys(recipe: str | None, overrides: Sequence[str]) -> tuple[Keys, RunOverrides]:
    """(the comparison's keys, the overrides that configure every run) of a recipe file and `key=value` overrides.

    For the runs later ones win: DEFAULTS, the recipe, the recipe that `settings` names, the overrides.
    Raises InputError in one line for an unknown key, a value out of range, a name given twice, an unknown method.
    """
    own: dict[str, Any] = {}
    whole = ("variants", "unseen", "original")  # their keys are names, with dots or without
    from_recipe = _sort(leaves(read_recipe(recipe) if recipe else {}, whole), own)
    from_overrides = _sort((split_override(one, "seeds=0,1,2 (a recipe file comes first)") for one in overrides), own)
    try:
        keys = Keys.model_validate(own)
    except ValidationError as error:
        raise InputError("; ".join(_explain(item) for item in error.errors()[:2])) from None
    settings: list[str] = []
    method = None
    if keys.settings is not None:
        given = list(leaves(read_recipe(keys.settings)))
        method = str(dict(given).get("method", Config.model_fields["method"].default))
        settings = [override(key, value) for key, value in given if key.partition(".")[0] not in (*_OWN, "data")]
    typed: dict[str, Any] = {}
    for key, value in (leaf for one in overrides for leaf in leaves(parse_override(one))):
        _lay(typed, key.split("."), value)
    run_overrides = (*DEFAULTS, *from_recipe, *settings, *from_overrides)
    lent = frozenset(settings) - {*from_recipe, *from_overrides}
    files = " and ".join(one for one in (recipe, keys.settings) if one)
    return _checked(keys), RunOverrides(run_overrides, lent, method, files, typed)


def _sort(given: Iterable[tuple[str, Any]], own: dict[str, Any]) -> list[str]:
    """Lay a comparison's own keys into `own`; the others as overrides for the runs."""
    for_runs: list[str] = []
    for key, value in given:
        top, _, rest = key.partition(".")
        if key in ("data", "data.name"):
            own["data"] = STANDARD_INPUT if value == [None] else value  # which YAML reads "-" as
        elif top == "data" or (top in Config.model_fields and top not in _OWN):
            for_runs.append(override(key, value))
        elif top in Keys.model_fields:
            _lay(own, [top, *(part for part in rest.split(".", _DEPTH.get(top, -1)) if part)], value)
        elif top in _OWN:
            raise InputError(f"{key}={value}: a comparison sets it for each run; give {_OWN[top]}")
        else:
            near = did_you_mean(top, [*Keys.model_fields, *Config.model_fields])
            raise InputError(
                f"unknown key {key}{near}; a comparison's own keys: {', '.join(Keys.model_fields)}; "
                "`spinerl config --keys` lists the others"
            )
    return for_runs


def leaves(layer: Mapping[str, Any], whole: Sequence[str] = (), prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested mapping; the values of the keys in `whole` are not taken apart.

    >>> list(leaves({"anchor": {"weight": 0.1}, "band.low": 0.2}))
    [('anchor.weight', 0.1), ('band.low', 0.2)]
    """
    for key, value in layer.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and name not in whole:
            yield from leaves(value, whole, f"{name}.")
        else:
            yield name, value


def describe_compare_keys() -> Iterator[tuple[str, Any, str]]:
    """(key, default, description) of every key of a comparison; docs/compare.md lists them."""
    for name, field in Keys.model_fields.items():
        if isinstance(field.default, _Section):
            for inner, one in type(field.default).model_fields.items():
                yield f"{name}.{inner}", one.default, one.description or ""
        else:
            yield name, field.default, field.description or ""


def _lay(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a nested value; a section takes the place of a plain value of its name."""
    *sections, last = path
    for name in sections:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[last] = value


def _split(value: Any) -> Any:
    """A list; from one text its parts between commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else [] if value is None else [value]


def _checked(keys: Keys) -> Keys:
    for name in ("methods", "data", "seeds"):
        values = getattr(keys, name)
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise InputError(f"{name}: {twice} is given twice")
    if any(seed < 0 for seed in keys.seeds):
        raise InputError(f"seeds={keys.seeds}: a seed is 0 or more")
    for name, sets in keys.variants.items():
        if name in (*METHODS, *ALIASES):
            raise InputError(f"variants: {name} is a method; give the variant another name")
        if not _NAME.fullmatch(name):
            raise InputError(f"variants: {name!r} is no name; letters, digits and _ + - make one")
        method = sets.get("method")
        if method not in (*METHODS, *ALIASES):
            near = did_you_mean(str(method), METHODS)
            raise InputError(f"variants.{name}.method={method!r} is not a method{near}; allowed: {', '.join(METHODS)}")
        taken = next((key for key in sets if key.partition(".")[0] in ("data", "seed", "run")), None)
        if taken:
            raise InputError(
                f"variants.{name}.{taken}: a variant cannot set it; data sets and seeds are the same for all"
            )
    if keys.carbon.responses == 1:
        raise InputError("carbon.responses=1: half of them calibrate the others; give 2 or more, or 0")
    for key, value in (("latents.rounds", keys.latents.rounds), ("latents.evolve", keys.latents.evolve),
                       ("neighbors", keys.neighbors)):  # fmt: skip
        if value and not keys.samples:
            raise InputError(
                f"{key}={value} reads the unadapted model's first `samples` responses; give samples=8, say"
            )
    known = [*METHODS, *ALIASES, *keys.variants]
    for name in keys.methods:
        if name not in known:
            raise InputError(
                f"methods: {name!r} is neither a method nor a variant{did_you_mean(name, known)}; "
                f"allowed: {', '.join(known)}"
            )
    return keys


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}{did_you_mean(key, [name for name, *_ in describe_compare_keys()])}"
    return explain_value(item)
