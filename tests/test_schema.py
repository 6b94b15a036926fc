"""`spinerl config --schema`: a valid schema that takes what recipes take, and refuses what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from spinerl.choices import FUNCTIONS
from spinerl.comparison.keys import read_keys
from spinerl.config import RENAMED, SWITCHES, dump_yaml, fields_of, load_config, value_of
from spinerl.errors import InputError
from spinerl.schema import recipe_schema, schema_text

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
SCHEMA = recipe_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_it_is_a_schema_of_draft_2020_12():
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(schema_text()) == SCHEMA
    for part in json.dumps(SCHEMA).split('"$ref": "')[1:]:  # every reference leads somewhere
        place = SCHEMA
        for name in part.partition('"')[0].removeprefix("#/").split("/"):
            place = place[name]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    VALIDATOR.validate(yaml.safe_load(recipe.read_text()))


def test_a_runs_own_configuration_is_valid():
    for overrides in ([], ["method=spine-memory", "lora.rank=4", "engine.disable=[cpu]", "reward=mine:f"]):
        VALIDATOR.validate(yaml.safe_load(dump_yaml(load_config(overrides=overrides))))


def test_every_key_is_described_with_its_default():
    run = SCHEMA["$defs"]["Run"]["properties"]
    for key, field in fields_of():
        place = run
        for name in key.split("."):
            below = place[name]
            target = next((one["$ref"] for one in [below, *below.get("anyOf", [])] if "$ref" in one), None)
            place = SCHEMA["$defs"][target.rpartition("/")[2]]["properties"] if target else below
        assert place["description"] == field.description, key
        if not field.is_required():
            assert place["default"] == field.default, key


# Texts of recipes; the loaders say of each whether it is one.
TEXTS = {
    "nothing wrong": "model: tiny-reasoner\ndata: {name: tiny/shift-a, columns: {question: q}}\nguard: off\nloss: dapo",
    "sections": "model: {name: x}\nloss: {form: token}\nguard: {mode: on}\nvote: {memory: off}\nlog: {plan: off}",
    "an alias": "method: prefix-tree",
    "a plug-in": "reward: mine:f\nvote: {weights: a.b:c}",
    "null": "run: null\nband: {weight_low: null}",
    "a list": "engine: {disable: [cpu, trim]}\nrollout: {stop: ['###']}",
    "a whole number for a share": "band: {low: 0}",
    "an unknown key": "stepss: 3",
    "an unknown key in a section": "band: {lo: 0.1}",
    "a dotted key in a run": "band.low: 0.1",
    "a word for a number": "steps: many",
    "below its bound": "group_size: 0",
    "over its bound": "band: {low: 1.5}",
    "not one of them": "anchor: {estimator: k9}",
    "no method": "method: spin",
    "no loss": "loss: dape",
    "no reward": "reward: majorty",
    "no part of the engine": "engine: {disable: [gpu]}",
    "no memory": "vote: {memory: true}",
    "a list for a text": "model: {name: [a]}",
    "an example without its answer": "prompt: {examples: [{question: a}]}",
    "a comparison": "methods: [ttrl, mine]\nvariants: {mine: {method: spine, band.weight: 0.1, loss: {form: nll}}}",
    "a comparison in words": "methods: ttrl,spine\nseeds: 0,1\ndata: [tiny/shift-a, tiny/shift-b]\nout: runs/x",
    "keys of its runs": "seeds: [0]\noptim.lr: 0.001\nguard: warn\nforcing.budget: 0\ndata.columns.question: q",
    "data by data set": "seeds: 3\nunseen: {tiny/shift-a: [a, b]}\noriginal: none",
    "a method in a comparison": "seeds: [0]\nmethod: ttrl",
    "a seed in a variant": "methods: [a]\nvariants: {a: {method: ttrl, seed: 3}}",
    "a variant without a method": "methods: [a]\nvariants: {a: {band.weight: 0.1}}",
    "a seed below 0": "seeds: [-1]",
    "a wrong key of a comparison": "seeds: [0]\nvotez: 3",
    "a wrong dotted key": "seeds: [0]\nband.lo: 3",
}  # fmt: skip
UNDECIDED = {"no reward"}  # names of functions are looked up when a run begins


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_valid_where_a_recipe_of_it_is_taken(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TEXTS[name])
    value = yaml.safe_load(TEXTS[name])
    is_comparison = {"methods", "seeds", "variants"} & value.keys()
    try:
        if is_comparison:
            keys, for_runs = read_keys(str(recipe), [])
            for row in [*keys.methods, "none"]:
                variant = dict(keys.variants.get(row, {}))
                load_config(overrides=[*for_runs.overrides, f"method={variant.get('method', row)}"])
        else:
            load_config(recipe)
        taken = name not in UNDECIDED
    except InputError:
        taken = False
    assert VALIDATOR.is_valid(value) == taken


def test_old_names_are_marked():
    for old in (*RENAMED, *SWITCHES):
        section, _, name = old.partition(".")
        value = value_of(load_config(), RENAMED[old]) if old in RENAMED else False
        VALIDATOR.validate({section: {name: value}})
        load_config({section: {name: value}})
        found = [one for one in SCHEMA["$defs"].values() if name in one.get("properties", {})]
        assert any(one["properties"][name].get("deprecated") for one in found), old


def test_names_of_functions_are_those_of_the_tables():
    from spinerl.answers import QUESTION_WEIGHTS, REWARDS
    from spinerl.guard.signals import PERTURBATIONS
    from spinerl.maths import SELECTORS, VOTE_WEIGHTS
    from spinerl.rewards import STEP_REWARDS
    from spinerl.views import VIEWS

    tables = {
        "reward": [*REWARDS, *STEP_REWARDS, "gold"],
        "vote.weights": VOTE_WEIGHTS,
        "vote.views": VIEWS,
        "forks.selector": SELECTORS,
        "guard.perturbation": PERTURBATIONS,
        "advantage.question_weight": QUESTION_WEIGHTS,
    }
    assert {key: set(names) for key, names in FUNCTIONS.items()} == {key: set(names) for key, names in tables.items()}
    described = {key: field.description or "" for key, field in fields_of()}
    assert not [name for key, names in FUNCTIONS.items() for name in names if name not in described[key]]
