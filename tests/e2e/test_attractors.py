"""A phrase that ends every response, and one answer to every question: no label is won by either."""

import shutil

import pytest
from safetensors.torch import load_file

from spinerl.config import load_config
from spinerl.guard.preflight import preflight
from spinerl.tiny import model_path
from spinerl.train import adapt
from tests.attractors import HELPFUL, SAME_BOX, plant
from tests.e2e.test_guarded_runs import Quiet

OVERRIDES = ["data=tiny/shift-a", "data.max_questions=24", "questions_per_step=8", "group_size=8", "eval.samples=0"]
OVERRIDES += ["threads=1", "guard.questions=12", "guard.samples=8", "guard.every=2", "method=ttrl"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return {name: plant(folder / name, how) for name, how in (("helpful", HELPFUL), ("same", SAME_BOX))}


def run(folder, model, *overrides):
    observer = Quiet()
    config = load_config(overrides=[*OVERRIDES, f"model={model}", f"run={folder}", *overrides])
    return adapt(config, observer), observer.notes


@pytest.mark.parametrize(("kind", "steps"), [("auto", 3), ("math", 1), ("text", 1)])
def test_labels_are_as_right_with_a_closing_phrase_as_without(tmp_path, planted, kind, steps):
    """The sampled tokens are the same; every response of the one run ends "I hope the answer is helpful!"."""
    runs = [
        run(tmp_path / str(i), model, f"steps={steps}", f"answer.kind={kind}")[0]
        for i, model in enumerate(["tiny-reasoner", planted["helpful"]])
    ]
    labels = [made.rows("labels.jsonl") for made in runs]
    assert len(labels[0]) == 8 * steps
    assert labels[0] == labels[1]
    assert sum(bool(row["correct"]) for row in labels[0]) > 2 * steps
    assert all(
        response["text"].endswith(". I hope the answer is helpful!")
        for row in runs[1].rows("samples.jsonl")
        for response in row["responses"]
        if not response["truncated"]
    )
    looks = [[look["score"] for look in made.rows("guard.jsonl")] for made in runs]
    assert looks[0] == looks[1]
    assert all("label/void_frac" not in row for row in runs[1].rows("metrics.jsonl"))


def test_one_answer_to_every_question_trains_nothing(tmp_path, planted):
    finished, notes = run(tmp_path / "r", planted["same"], "steps=3")
    assert finished.rows("metrics.jsonl") == []
    guard = finished.manifest["guard"]
    assert (guard["kept_step"], guard["rule"]) == (0, "no-go")
    assert "one answer, '42', wins the votes on 100 % of the questions" in guard["text"]
    assert guard["text"] in notes
    (look,) = finished.rows("guard.jsonl")
    assert (look["probe/shared_frac"], look["shared_answer"]) == (1.0, "42")
    expected, figures = preflight(load_config(overrides=[*OVERRIDES, f"model={planted['same']}"]))
    assert (expected.verdict, figures["shared_frac"]) == ("no-go", 1.0)
    assert expected.majority_frac > 0.9  # by agreement only it is the best model there is


def test_without_the_guard_its_votes_are_void(tmp_path, planted):
    finished, _ = run(tmp_path / "r", planted["same"], "steps=1", "guard=off")
    rows = finished.rows("labels.jsonl")
    assert [(row["label"], row["vote"], row["void"]) for row in rows] == [(None, "42", True)] * 8
    (step,) = finished.rows("metrics.jsonl")
    assert step["label/void_frac"] == 1.0
    assert (step["reward/mean"], step["reward/zero_variance_frac"]) == (0.0, 1.0)
    before, after = (load_file(folder / "model.safetensors") for folder in (model_path(), finished.path / "model"))
    assert all((after[name] == weight).all() for name, weight in before.items())


def test_a_run_with_void_votes_resumes_as_if_it_had_not_been_interrupted(tmp_path, planted):
    overrides = ["steps=2", "guard=warn", "guard.every=1", "checkpoint.every=1", "data.max_questions=8", "group_size=4"]
    made, _ = run(tmp_path / "r", planted["same"], *overrides)
    steps = made.rows("metrics.jsonl")
    assert [row["label/void_frac"] for row in steps] == [1.0, 1.0]
    assert steps[1]["label/kept_frac"] == 1.0  # of what the votes would have been: void labels are no memory
    before = _remembered(made)
    shutil.rmtree(made.path / "checkpoints" / "step-000002")
    adapt(made.config, Quiet(), resume=made)
    assert _remembered(made) == before


def _remembered(made):
    """What was written down of labels and looks, its own speed aside."""
    looks = [{key: value for key, value in look.items() if key != "time/look_s"} for look in made.rows("guard.jsonl")]
    return looks, made.rows("labels.jsonl")


@pytest.mark.parametrize("reward", ["majority", "leave-one-out", "frequency", "empo", "ttrv", "evol"])
def test_no_reward_made_of_votes_pays_for_a_void_one(tmp_path, planted, reward):
    overrides = ["steps=1", "guard=off", "data.max_questions=8", "group_size=4", f"reward={reward}"]
    finished, _ = run(tmp_path / "r", planted["same"], *overrides)
    assert finished.rows("metrics.jsonl")[0]["reward/zero_variance_frac"] == 1.0


def test_switched_off_the_answer_wins_everything(tmp_path, planted):
    finished, _ = run(tmp_path / "r", planted["same"], "steps=1", "guard=off", "vote.max_shared=1")
    rows = finished.rows("labels.jsonl")
    assert {row["label"] for row in rows} == {"42"}
    assert not any("void" in row for row in rows)
    assert finished.rows("metrics.jsonl")[0]["reward/mean"] > 0.9
