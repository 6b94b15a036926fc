"""Configuration: layers, strictness, round trips, recipes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from spinerl.config import describe_keys, dump_yaml, load_config
from spinerl.errors import InputError
from spinerl.methods import METHODS

ROOT = Path(__file__).parent.parent


def test_layers_win_in_order(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: ttrl\nsteps: 7\nband: {weight: 0.5}\n")
    config = load_config(recipe, ["steps=9", "optim.lr=1e-4"])
    assert config.forks.selector == "all"  # the method's row
    assert config.band.weight == 0.5  # the recipe wins over the row, which says 0
    assert config.steps == 9  # overrides win over the recipe
    assert config.optim.lr == 1e-4
    assert config.prompt.instruction == ""  # the bundled model's profile
    assert load_config({"model": "org/name"}).prompt.instruction is None


def test_short_and_long_names_are_one():
    overrides = ["data=a.jsonl", "data.columns.question=problem"]
    assert load_config(overrides=overrides) == load_config(
        {"data": {"name": "a.jsonl", "columns": {"question": "problem"}}}
    )
    assert load_config(overrides=overrides[::-1]) == load_config(overrides=overrides)


@pytest.mark.parametrize(
    ("recipe", "words", "schedule"),
    [
        ({}, [], "constant"),
        ({"vote": {"memory": False}}, [], "constant"),  # what YAML makes of a bare off
        ({"vote": {"memory": "fixed"}}, [], "cosine"),
        ({}, ["method=spine-memory"], "cosine"),
        ({"method": "spine-memory"}, ["optim.schedule=constant"], "constant"),
        ({"optim": {"schedule": "constant"}}, ["vote.memory=ema"], "constant"),
        ({}, ["method=spine", "vote.memory=sum", "stream.on=true"], "constant"),
    ],
)
def test_a_learning_rate_falls_where_labels_are_remembered(recipe, words, schedule):
    config = load_config(recipe, words)
    assert config.optim.schedule == schedule
    assert load_config(yaml.safe_load(dump_yaml(config))) == config


def test_old_switches_disable_parts_of_the_engine(caplog):
    """Those of the first release: false ones are listed, true ones were the default, and each word counts."""
    recipe = {"optim": {"replay": False, "trim": True, "lr": 0.1}, "rollout": {"engine": "native"}}
    config = load_config(recipe, ["rollout.compiled=false", "engine.disable=[sort]", "rollout.max_cache_tokens=7"])
    assert sorted(config.engine.disable) == ["activation-reuse", "compiled", "sort"]
    assert (config.engine.kv_cache_tokens, config.optim.lr, config.rollout.sampler) == (7, 0.1, "native")
    assert "optim.replay=false is engine.disable=[activation-reuse]" in caplog.text
    assert "trim" not in caplog.text
    both = load_config({"rollout": {"engine": "vllm"}}, ["rollout.sampler=native"])
    assert both.rollout.sampler == "native", "the new name wins"
    with pytest.raises(InputError, match=r"optim\.sort='maybe'.*engine\.disable=\[sort\]"):
        load_config(overrides=["optim.sort=maybe"])


def test_old_names_are_read_with_a_notice(caplog):
    config = load_config({"loss": {"normaliser": "response", "clip_low": 0.1}})
    assert (config.loss.normalizer, config.loss.clip_low) == ("response", 0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "old keys, read until the next release: loss.normaliser is called loss.normalizer"
    ]
    assert load_config(overrides=["method=prefix-tree"]) == load_config(overrides=["method=tempo"])


@pytest.mark.parametrize(("memory", "tolerance"), [("off", 0.0), ("sum", 0.05)])
def test_a_run_recorded_without_a_tolerance_keeps_the_one_it_had(memory, tolerance):
    """Its guard saved weights by that one; by another it would look for some that were never saved."""
    assert load_config({"guard": {"tolerance": None}, "vote": {"memory": memory}}).guard.tolerance == tolerance
    assert load_config().guard.tolerance == 0.1


def test_each_side_of_the_band_has_its_weight():
    config = load_config(overrides=["band.weight=0.2", "band.weight_high=0.5"])
    assert config.band.weights == (0.2, 0.5)
    assert config.band.coefficient == 0.5
    assert load_config(overrides=["method=ttrl"]).band.coefficient == 0


@pytest.mark.parametrize("method", METHODS)
def test_resolved_yaml_resolves_to_itself(method, tmp_path):
    config = load_config(overrides=[f"method={method}", "seed=3"])
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("group_sise=8", 'did you mean "group_size"'),
        ("band.wieght=1", 'did you mean "weight"'),
        ("data.columns.questoin=x", 'did you mean "question"'),
        ("weight=1", 'did you mean "'),
        ("group_size=1", "leaves a response nothing to be compared with"),
        ("group_size=0", "greater than or equal to 1"),
        ("rollout.scored=half", "rollout.scored"),
        ("band.weight_low=-1", "band.weight_low"),
        ("method=spin", 'did you mean "spine"'),
        ("forks.fraction=0", "greater than 0"),
        ("forks.fraction=1.5", "less than or equal to 1"),
        ("anchor.estimator=k4", "k1"),
        ("seed=abc", "seed='abc'"),
        ("optim.lr=nan", "optim.lr"),
        ("steps", "not key=value"),
        ("=3", "not key=value"),
        ("rollout.num_votes=3", "under group_size"),
        ("band.low=0.9", "above band.high"),
        ("optim.minibatches=99", "more than questions_per_step"),
        ("method=5", "not a method"),
        ("band=3", "band=3"),
    ],
)
def test_refuses(word, says):
    with pytest.raises(InputError) as caught:
        load_config(overrides=[word])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("word", "value"), [("off", "off"), ("on", "on"), ("auto", "auto"), ("false", "off")])
def test_on_and_off_are_words_although_yaml_reads_them_otherwise(word, value):
    assert load_config(overrides=[f"prompt.chat_template={word}"]).prompt.chat_template == value
    if word != "auto":
        mode = load_config(overrides=[f"guard={word}"]).guard.mode
        assert mode == {"off": "off", "on": "rollback"}[value]


def test_refuses_training_with_method_none():
    with pytest.raises(InputError, match="only evaluates"):
        load_config(overrides=["method=none", "steps=5"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "steps: 1\nsteps: 2\n", "3"])
def test_refuses_bad_recipes(tmp_path, text):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"r\.yaml"):
        load_config(file)


def test_missing_recipe_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


RECIPES = sorted(file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name != "studies")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_resolve_and_are_sparse(recipe):
    config = load_config(recipe)
    given = yaml.safe_load(recipe.read_text())
    if recipe.stem == "demo":
        assert config == load_config()  # the demo is what no arguments mean
    else:
        assert set(given) < {name.split(".")[0] for name, *_ in describe_keys()}


def test_run_folder_has_a_telling_name():
    config = load_config(overrides=["data=some/where/my file.jsonl", "seed=2", "model=org/Name-1B"])
    assert config.run_folder == Path("runs/spine-org-Name-1B-my-file-seed2")
    assert load_config(overrides=["run=x/y"]).run_folder == Path("x/y")


@pytest.mark.parametrize(
    "module", ["config", "methods", "types", "errors", "answers", "report", "data", "seeding", "scoring", "stats"]
)
def test_light_modules_do_not_import_torch(module):
    code = f"import spinerl.{module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_methods_row_wins_over_a_recipe():
    recipe = ROOT / "configs" / "paper" / "qwen3-1.7b.yaml"
    for method in ("ttrl", "lmsi"):
        config = load_config(recipe, [f"method={method}"])
        assert (config.forks.selector, config.band.coefficient) == ("all", 0)
        assert (config.rollout.temperature, config.optim.lr, config.group_size) == (0.7, 1e-6, 8)
    assert config.loss.form == "nll"
    assert config.anchor.weight == 0
    assert load_config(recipe, ["method=ttrl", "anchor.scope=all"]).anchor.weight == 0.01
    assert load_config(recipe, ["method=ttrl", "band.weight=0.5"]).band.coefficient == 0.5  # overrides win over all


def test_thresholds_without_a_ground_to_choose_them_are_unlisted_and_settable():
    listed, every = ({key for key, *_ in describe_keys(unlisted)} for unlisted in (False, True))
    assert every - listed == {
        f"guard.{name}"
        for name in ("lost", "drop", "patience", "readable", "max_refusals", "max_shared", "max_concentration")
    }
    assert load_config(overrides=["guard.patience=7"]).guard.patience == 7
    guide = (Path(__file__).parent.parent / "docs" / "guard.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in guide for key in every - listed)
