"""Where values come from: comments of a recipe, layers below it; and that the recipes name all their sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from spinerl import cli
from spinerl.comparison.keys import leaves
from spinerl.config import describe_keys, load_config
from spinerl.data import resolve
from spinerl.sources import list_sources, source_lines, trailing_comments

ROOT = Path(__file__).parent.parent
SOURCED = sorted((ROOT / "configs" / "paper").glob("*.yaml")) + sorted((ROOT / "configs" / "ttrl").glob("*.yaml"))
SOURCE = re.compile(
    r"v1 section \d|v1 eqs?\. \(\d|v1, results tables|EasyR1 default, not printed|ours: ."
    r"|amc\.sh|verl default|TTRL code, ."
)


def sources_of(tmp_path: Path, text: str, *overrides: str) -> dict[str, str]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    config = resolve(load_config(recipe, overrides))
    return {key: source for key, _, source in list_sources(config, recipe, overrides)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("steps: 8  # ours\n", {"steps": "ours"}),
        ("steps: 8\n# on a line of its own\n", {}),
        ("# a header\nsteps: 8 # one\n\nseed: 1   #two\n", {"steps": "one", "seed": "two"}),
        ("a:\n  b:\n    c: 1  # deep\n  d: 2  # less deep\n", {"a.b.c": "deep", "a.d": "less deep"}),
        ("a:  # section\n  b: 1\n", {"a": "section"}),
        ("a: 'x # y'\n", {}),
        ('a: "x # y"  # z # more\n', {"a": "z # more"}),
        ("a: 'it''s # y'  # z\n", {"a": "z"}),
        ("a: x#y\n", {}),
        ("a: x#y  # z\n", {"a": "z"}),
        ("'a # b': 1  # z\n", {"a # b": "z"}),
        ("a:   # nothing given\nb: 1\n", {"a": "nothing given"}),
        ("a:  # before the value\n  1\n", {"a": "before the value"}),
        ("a: [1, 'x # y']  # z\n", {"a": "z"}),
        ("a: [1,\n    2]  # z\n", {"a": "z"}),
        ("a:  # of the list\n  - 1\n  - 2  # of an item\n", {"a": "of the list"}),
        ("a:\n  - 1  # one\n  - 2\n  - 3  # three\nb: 1\n", {"a": "one; three"}),
        ("a: {b: 1, c: {d: 2}}  # z\n", {"a": "z", "a.b": "z", "a.c": "z", "a.c.d": "z"}),
        ("a: {b: 1,  # one\n    c: 2}  # z\n", {"a": "z", "a.b": "one", "a.c": "z"}),
        ("a: |  # z\n  x # y\nb: >-  # w\n  x\n", {"a": "z", "b": "w"}),
        ("a: ρ  # Größe ≥ 1\r\nb: 1  # z\r\n", {"a": "Größe ≥ 1", "b": "z"}),
        ("a: 1  #\n", {}),
        ("", {}),
        ("- 1  # a list is no recipe\n", {}),
    ],
)
def test_trailing_comments(text, found):
    assert trailing_comments(text) == found


def test_each_layer_is_named(tmp_path):
    text = "method: ttrl  # why\nsteps: 7  # short\nband:  # the band\n  low: 0.2\n  high: 0.6  # high\nseed: 4\n"
    found = sources_of(tmp_path, text, "optim.lr=1e-4", "steps=9")
    assert found["optim.lr"] == found["steps"] == "command line", "overrides win over the recipe and its comments"
    assert (found["method"], found["band.low"], found["band.high"]) == ("why", "the band", "high")
    assert found["seed"] == str(tmp_path / "recipe.yaml"), "set without a comment"
    assert found["forks.selector"] == found["reward"] == "method row ttrl"
    assert found["rollout.max_new_tokens"] == "profile tiny-reasoner"
    assert found["answer.kind"] == "data set tiny/shift-a"
    assert found["anchor.weight"] == "default"


def test_short_forms_name_all_that_they_set(tmp_path):
    found = sources_of(
        tmp_path, "model: org/name  # a model\nguard: 'off'  # no guard\nloss: grpo  # a loss\n", "data=amc"
    )
    assert (found["model.name"], found["guard.mode"], found["loss.normalizer"]) == ("a model", "no guard", "a loss")
    assert (found["data.name"], found["data.split"]) == ("command line", "data set amc")
    assert found["steps"] == "default", "no profile"


def test_a_mapping_that_is_a_value(tmp_path):
    found = sources_of(tmp_path, "prompt:\n  template_options:\n    enable_thinking: false  # short answers\n")
    assert found["prompt.template_options"] == "short answers"


def test_without_a_recipe():
    rows = list_sources(load_config())
    assert [key for key, *_ in rows] == [key for key, *_ in describe_keys(unlisted=True)]
    assert {source for *_, source in rows} == {"default", "method row spine", "profile tiny-reasoner"}
    assert list_sources(load_config(overrides=["method=none"]), None, ["method=none"])


def test_columns_are_aligned_and_values_are_yaml():
    long = "x" * 50
    lines = source_lines([("a", None, "one"), ("a.long.key", [1, "off"], "two"), ("b", long, "three")])
    assert lines[0].index("one") == lines[1].index("two")
    assert yaml.safe_load(lines[1].removeprefix("a.long.key").removesuffix("two")) == [1, "off"]
    assert lines[2].endswith(f"{long}  three")


@pytest.mark.parametrize("recipe", SOURCED, ids=lambda file: file.stem)
def test_every_line_of_a_sourced_recipe_has_its_source(recipe):
    text = recipe.read_text(encoding="utf-8")
    comments = trailing_comments(text)
    given = [key for key, _ in leaves(yaml.safe_load(text))]
    assert len(given) > 30
    assert [key for key in given if not SOURCE.match(comments.get(key, ""))] == []
    assert "Memory: " in text


@pytest.mark.parametrize("recipe", SOURCED, ids=lambda file: file.stem)
def test_the_recipes_say_what_their_sources_say(recipe):
    """Section 4.1 of the paper and its equations, EasyR1's defaults, TTRL's script."""
    config = load_config(recipe)
    assert (config.model.dtype, config.guard.mode, config.optim.max_grad_norm) == ("bfloat16", "off", 1.0)
    if recipe.parent.name == "ttrl":
        assert (config.method, config.forks.selector, config.band.coefficient) == ("ttrl", "all", 0)
        assert (config.num_votes, config.group_size, config.questions_per_step) == (64, 32, 8)
        assert (config.anchor.weight, config.anchor.scope, config.anchor.estimator) == (0.001, "all", "k3")
        assert (config.rollout.temperature, config.rollout.max_new_tokens) == (1.0, 3072)
        assert config.optim.minibatches == config.questions_per_step, "an update per question"
        updates = config.steps * config.optim.minibatches
        assert (config.steps, config.optim.warmup_steps) == (30 * (83 // 8), round(0.03 * updates))
        return
    images = "vl" in recipe.stem
    assert (config.method, config.group_size, config.eval_samples) == ("spine", 8, 0)
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.scored) == (0.7, 0.95, "full")
    assert config.rollout.max_new_tokens == (2048 if images else 3072)
    assert config.model.train_vision is images
    assert (config.forks.selector, config.forks.fraction, config.forks.scope) == ("top-entropy", 0.2, "response")
    assert (config.band.low, config.band.high, config.band.weights) == (0.1, 0.5, (0.01, 0.01))
    assert (config.loss.normalizer, config.loss.clip_low, config.loss.clip_high) == ("response-tokens", 0.2, 0.3)
    assert (config.anchor.weight, config.anchor.estimator, config.anchor.scope) == (0.01, "k3", "forks")
    assert (config.optim.lr, config.optim.weight_decay, config.optim.schedule) == (1e-6, 0.01, "constant")
    assert (config.questions_per_step, config.steps * config.optim.minibatches) == (512, 500)


@pytest.mark.parametrize(
    "recipe", [file for file in SOURCED if file.parent.name == "paper"], ids=lambda file: file.stem
)
def test_the_command_shows_values_and_sources(recipe, capsys):
    cli.app(["config", str(recipe)], standalone_mode=False)
    resolved = yaml.safe_load(capsys.readouterr().out)
    images = "vl" in recipe.stem
    assert (resolved["rollout"]["temperature"], resolved["rollout"]["top_p"]) == (0.7, 0.95)
    assert resolved["rollout"]["max_new_tokens"] == (2048 if images else 3072)
    assert (resolved["model"]["train_vision"], resolved["group_size"]) == (images, 8)
    cli.app(["config", str(recipe), "seed=3", "--sources"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    shown = dict(line.split(None, 1) for line in lines)
    assert list(shown) == [key for key, *_ in describe_keys(unlisted=True)]
    assert re.fullmatch(r"0\.7 +v1 section 4\.1", shown["rollout.temperature"])
    assert re.fullmatch(r"0\.01 +ours: beta_l .*", shown["band.weight"])
    assert re.fullmatch(r"majority +method row spine", shown["reward"])
    assert re.fullmatch(r"3 +command line", shown["seed"])
    cli.app(["config", str(recipe), "method=ttrl", "--sources"], standalone_mode=False)
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert re.fullmatch(r"all +method row ttrl", shown["forks.selector"])
    assert re.fullmatch(r"0\.7 +v1 section 4\.1", shown["rollout.temperature"])
    assert re.fullmatch(r"0 +default", shown["rollout.top_k"])


def test_the_command_without_a_recipe_and_with_one_that_does_not_exist(capsys):
    cli.app(["config", "--sources"], standalone_mode=False)
    assert "profile tiny-reasoner" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["config", "nowhere.yaml", "--sources"])
    said = capsys.readouterr()
    assert not said.out
    assert "nowhere.yaml does not exist" in said.err
    assert said.err.count("\n") == 1


def test_an_old_switch_is_where_a_disabled_part_comes_from(tmp_path):
    recipe = tmp_path / "old.yaml"
    recipe.write_text("optim: {replay: false}\n")
    sources = {key: source for key, _, source in list_sources(load_config(recipe), recipe)}
    assert sources["engine.disable"] == str(recipe)
    overridden = list_sources(load_config(overrides=["rollout.compiled=false"]), None, ["rollout.compiled=false"])
    assert {key: source for key, _, source in overridden}["engine.disable"] == "command line"
