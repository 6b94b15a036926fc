"""What a comparison's overrides and recipes mean, and what is refused in one line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from spinerl.comparison.keys import Keys, describe_compare_keys, read_keys
from spinerl.comparison.plan import plan
from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.methods import METHODS

ROOT = Path(__file__).parent.parent.parent


def recipe(tmp_path: Path, text: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return str(file)


def test_words_name_methods_data_and_seeds():
    keys, for_runs = read_keys(None, ["methods=ttrl,80-20", "data=tiny/shift-a,tiny/shift-b", "seeds=0,3", "steps=7"])
    assert keys.methods == ["ttrl", "80-20"]
    assert keys.data == ["tiny/shift-a", "tiny/shift-b"]
    assert keys.seeds == [0, 3]
    assert for_runs.overrides[-1] == "steps=7"


def test_none_is_always_run_and_comes_first_unless_placed():
    assert [row.name for row in plan(["methods=ttrl", "steps=1"]).rows] == ["none", "ttrl"]
    assert [row.name for row in plan(["methods=ttrl,none", "steps=1"]).rows] == ["ttrl", "none"]
    tasks = plan(["methods=ttrl", "steps=5"]).tasks
    assert [task.config.steps for task in tasks] == [0, 5], "steps are for those that learn"


def test_a_recipe_with_variants(tmp_path):
    file = recipe(
        tmp_path,
        "methods: [ttrl, spine-anchored]\n"
        "variants: {spine-anchored: {method: spine, anchor.weight: 0.1, band: {low: 0.2}}}\n"
        "data: {name: [tiny/shift-a], max_questions: 8}\nseeds: [1]\nsteps: 3\n",
    )
    comparison = plan([file, "anchor.weight=0.5", "anchor.scope=all"])
    assert comparison.out == Path("runs/compare-study")
    ttrl, anchored = (comparison.task(name, "tiny/shift-a", 1).config for name in ("ttrl", "spine-anchored"))
    assert (ttrl.anchor.weight, anchored.anchor.weight) == (0.5, 0.1), "a variant's own keys win, or it were none"
    assert (anchored.band.low, anchored.anchor.scope, anchored.forks.selector) == (0.2, "all", "top-entropy")
    assert (ttrl.data.max_questions, ttrl.steps, ttrl.eval.samples, ttrl.threads) == (8, 3, 0, 1)


def test_without_methods_the_variants_are_compared(tmp_path):
    file = recipe(tmp_path, "variants: {a: {method: ttrl}, b: {method: spine}}\n")
    assert [row.name for row in plan([file]).rows] == ["none", "a", "b"]
    assert [row.name for row in plan(["steps=1"]).rows] == ["none", "ttrl", "spine"]


def test_a_variant_from_the_command_line():
    comparison = plan(["variants.mild.method=spine", "variants.mild.band.weight=0.5", "methods=mild"])
    assert comparison.task("mild", "tiny/shift-a", 0).config.band.weight == 0.5


def test_another_way_to_answer_is_a_row_without_votes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    words = ["variants.steered.method=none", "variants.steered.steer.adapted=small", "methods=steered", "samples=8"]
    none, steered = plan(words).tasks
    assert {"votes", "search", "forcing"} & set(none.after)
    assert not {"votes", "search", "forcing"} & set(steered.after)
    assert (steered.config.steps, steered.after["samples"]) == (0, 8)
    elsewhere = [other["config"]["steer"]["adapted"] for other in steered.after["elsewhere"]]
    assert {steered.config.steer.adapted, *elsewhere} == {str(tmp_path / "small")}


def test_settings_lend_all_but_what_a_comparison_sets_itself():
    recipe = ROOT / "configs" / "paper" / "qwen3-1.7b.yaml"
    overrides = [f"settings={recipe}", "model=tiny-reasoner", "methods=ttrl", "group_size=4"]
    config = plan(overrides).task("ttrl", "tiny/shift-a", 0).config
    assert (config.forks.selector, config.band.coefficient) == ("all", 0), "another method's row wins over them"
    assert (config.loss.normalizer, config.anchor.weight) == ("response-tokens", 0.01)
    assert (config.steps, config.optim.minibatches, config.data.name) == (125, 4, "tiny/shift-a")
    assert (config.group_size, config.model.name) == (4, "tiny-reasoner"), "overrides win"


def test_other_data_sets_by_default_for_all_or_by_data_set():
    def asked(*overrides: str) -> dict[str, list[tuple[str, str]]]:
        found = plan(["methods=none", "data=tiny/shift-a,tiny/shift-b", *overrides]).elsewhere
        return {data: [(other.role, other.name) for other in others] for data, others in found.items()}

    assert asked()["tiny/shift-b"] == [("unseen", "tiny/shift-b-unseen"), ("original", "tiny/in-domain")]
    assert asked("unseen=none", "original=none") == {"tiny/shift-a": [], "tiny/shift-b": []}
    both = asked("unseen=tiny/shift-a,tiny/shift-b", "original=none")
    assert both == {"tiny/shift-a": [("unseen", "tiny/shift-b")], "tiny/shift-b": [("unseen", "tiny/shift-a")]}
    one = asked("unseen.tiny/shift-a=tiny/shift-dev", "original=none")
    assert one == {"tiny/shift-a": [("unseen", "tiny/shift-dev")], "tiny/shift-b": []}


def test_a_file_has_no_other_data_sets_unless_given(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "x", "answer": "1"}\n')
    comparison = plan([f"data={file}", "methods=none"])
    assert comparison.elsewhere == {str(file): ()}
    assert comparison.tasks[0].folder.parent.name == "mine"


def test_only_the_first_seed_draws_all_votes():
    first, second = plan(["seeds=4,5", "methods=none", "votes=32", "samples=8"]).tasks
    assert (first.after["votes"], second.after["votes"]) == (32, 8)
    assert first.after["forcing"]["budget"] == first.config.rollout.max_new_tokens
    assert first.after["synthesis"] == 8
    assert not {"forcing", "synthesis"} & set(second.after)


def test_adapted_models_need_not_sample():
    words = ["methods=none,ttrl", "samples=8", "unseen=none", "original=none"]
    none, ttrl = plan(words).tasks
    assert (none.after["votes"], ttrl.after["samples"]) == (64, 8)
    none, ttrl = plan([*words, "sample_adapted=false"]).tasks
    assert (none.after["votes"], ttrl.after) == (64, {"elsewhere": []})


@pytest.mark.parametrize("word", ["synthesis=false", "samples=0", "data=tiny-vqa/shift-a"])
def test_no_synthesis_unless_it_is_wanted_of_drafts_and_without_images(word):
    assert "synthesis" not in plan(["methods=none", word]).tasks[0].after


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["methds=ttrl"], ["methds", "methods"]),
        (["methods=tttrl"], ["tttrl", "ttrl"]),
        (["methods=ttrl,ttrl"], ["ttrl", "twice"]),
        (["methods=ttrl,spine", "reference=spin"], ["reference=spin", "spine"]),
        (["method=ttrl"], ["method=ttrl", "methods="]),
        (["seed=1"], ["seeds="]),
        (["run=x"], ["out="]),
        (["seeds=0,x"], ["seeds", "x"]),
        (["seeds=-1"], ["-1"]),
        (["jobs=-1"], ["jobs"]),
        (["optim.lrr=1"], ["optim.lrr", "optim.lr"]),
        (["forcing.budgt=3"], ["budgt", "budget"]),
        (["synthesis=8"], ["synthesis"]),
        (["data=tiny/shift-z"], ["shift-z"]),
        (["unseen.tiny/shift-b=tiny/in-domain"], ["tiny/shift-b", "data="]),
        (["unseen=tiny/in-domain"], ["twice"]),
        (["variants.x.method=spin"], ["variants.x", "spin", "spine"]),
        (["variants.spine.method=ttrl"], ["spine", "another name"]),
        (["variants.x.method=spine", "variants.x.seed=3"], ["variants.x.seed"]),
        (["variants.x.method=spine", "variants.x.band.lw=3", "methods=x"], ["band.lw", "variants.x"]),
        (["nothing.yaml"], ["nothing.yaml"]),
        (["steps"], ["steps"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_wrong_is_refused_in_one_line(overrides, says):
    with pytest.raises(InputError) as caught:
        plan(overrides)
    assert "\n" not in str(caught.value)
    for word in says:
        assert word in str(caught.value)


def test_two_files_of_one_name_would_share_a_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "q.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(InputError, match="share a folder"):
        plan([f"data={tmp_path / 'a' / 'q.jsonl'},{tmp_path / 'b' / 'q.jsonl'}"])


def test_every_key_is_documented():
    page = (ROOT / "docs" / "compare.md").read_text()
    for key, *_ in describe_compare_keys():
        assert f"`{key}`" in page, key
    sections = [field.default for field in Keys.model_fields.values() if isinstance(field.default, BaseModel)]
    num = sum(len(type(one).model_fields) for one in sections)
    assert len(list(describe_compare_keys())) == len(Keys.model_fields) - len(sections) + num


@pytest.mark.parametrize("study", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_is_a_comparison(study):
    comparison = plan([str(study)])
    assert len(comparison.tasks) == len(comparison.rows) * len(comparison.keys.data) * len(comparison.keys.seeds)
    text = study.read_text()
    assert text.startswith("#")
    assert "aper" in text
    assert f"spinerl compare configs/studies/{study.name}" in text


def test_the_field_has_every_method():
    field = plan([str(ROOT / "configs" / "studies" / "field.yaml")])
    episodes = {name for name, method in METHODS.items() if method.sets.get("stream")}  # they end where they began
    assert {row.method for row in field.rows} == set(METHODS) - episodes
    assert episodes == {"ttadapt", "tt-si"}
    assert {task.data for task in field.tasks} == {"tiny/shift-a", "tiny/shift-b"}
    assert len({task.seed for task in field.tasks}) == 5
    searches = next(task.after["search"] for task in field.tasks if task.row.name == "none")
    assert {"qalign", "carbon", "latentseek", "latentevolve"} <= set(searches)


COMMANDS = [
    shlex.split(line)[2:]
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "reproduction.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("spinerl compare")
]


@pytest.mark.parametrize("overrides", COMMANDS, ids=lambda overrides: " ".join(overrides)[:80])
def test_every_command_of_the_reproduction_is_understood(overrides, monkeypatch):
    """Those for real models as far as that goes without their data."""
    monkeypatch.chdir(ROOT)
    keys, for_runs = read_keys(overrides[0], overrides[1:])
    assert keys.data
    load_config(overrides=for_runs.overrides)
    if len(overrides) == 1:
        assert plan(overrides).tasks
    else:
        assert keys.settings


def test_every_study_is_in_the_reproduction():
    page = (ROOT / "docs" / "reproduction.md").read_text()
    for study in (ROOT / "configs" / "studies").glob("*.yaml"):
        assert f"| {study.stem} |" in page
        assert [f"configs/studies/{study.name}"] in COMMANDS
