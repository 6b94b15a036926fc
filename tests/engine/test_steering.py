"""A model steered by what another learned, against whole passes of the three models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.errors import InputError
from spinerl.models.loading import Steering, load_model
from spinerl.runs import RunFolder
from spinerl.scoring import read_predictions
from spinerl.steering import fingerprint_of, open_model
from tests.commands import exit_code
from tests.engine.test_sampler import QUESTIONS, TEXTS
from tests.engine.test_vision import opened, single_row
from tests.models import without, write_model
from tests.vision_models import FAMILIES, write_vision_model

KEYS = ["rollout.max_new_tokens=40", "rollout.temperature=0.8"]


def logits_of(loaded, ids):
    with torch.no_grad():
        return loaded.model(torch.tensor([ids])).logits[0].double()


def steered_logits(loaded, ids):
    """z + w (z_adapted - z_base), token by token of the narrowest vocabulary."""
    logits, steering = logits_of(loaded, ids), loaded.steering
    adapted, base = (logits_of(one, ids) for one in steering.models)
    known = adapted.shape[1]
    assert logits.shape[1] > known == base.shape[1]
    moved = [logits[:, i] + steering.weight * (adapted[:, i] - base[:, i]) for i in range(known)]
    return torch.stack(moved, dim=1)


@pytest.fixture(scope="module", params=["shared", "copied", "mixed"])
def steered(request, tmp_path_factory):
    """A model of more layers and a padded vocabulary, steered by two of another kind."""
    folder = tmp_path_factory.mktemp("steered")
    large = write_model("qwen3", folder / "large", seed=1, num_hidden_layers=3, vocab_size=272)
    adapted, base = (write_model("llama", folder / f"small{seed}", seed=seed) for seed in (2, 3))
    words = [f"model={large}", f"steer.adapted={adapted}", f"steer.base={base}", "steer.weight=0.7", *KEYS]
    config = load_config(overrides=["method=none", *words])
    loaded = open_model(config)
    assert loaded.steering is not None
    models = list(loaded.steering.models)
    if request.param == "copied":
        loaded, *models = (without(one, "shared-prefix") for one in (loaded, *models))
    if request.param == "mixed":
        models[1] = without(models[1], "shared-prefix")
    return config, dataclasses.replace(loaded, steering=Steering(*models, weight=0.7))


def prompts_of(loaded):
    return [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


def test_the_likeliest_tokens_are_those_of_the_moved_logits(steered):
    config, loaded = steered
    found = greedy_responses(loaded, QUESTIONS, prompts_of(loaded), config.rollout)
    plain = greedy_responses(dataclasses.replace(loaded, steering=None), QUESTIONS, found.prompts, config.rollout)
    assert found.texts != plain.texts
    for row, prompt in enumerate(found.prompts):
        ids = list(prompt)
        for token in found.tokens[row][found.mask[row]].tolist():
            assert token == int(steered_logits(loaded, ids)[-1].argmax())
            ids.append(token)


def test_figures_of_sampled_tokens_are_those_of_the_moved_logits(steered):
    config, loaded = steered
    found = sample_responses(loaded, QUESTIONS, prompts_of(loaded), 5, config.rollout, ("t", 0))
    for row in range(len(found.tokens)):
        prompt = found.prompts[row // 5]
        response = found.tokens[row][found.mask[row]]
        logits = steered_logits(loaded, [*prompt, *response.tolist()])[len(prompt) - 1 : -1]
        dist = torch.log_softmax(logits / 0.8, -1)
        assert (dist.gather(1, response[:, None])[:, 0] - found.logprobs[row][found.mask[row]]).abs().max() < 1e-4
        assert (-(dist.exp() * dist).sum(1) - found.entropies[row][found.mask[row]]).abs().max() < 1e-4


def test_nothing_learned_changes_no_bit(model_folders):
    small = model_folders("llama")
    words = [f"model={model_folders('qwen3')}", f"steer.adapted={small}", f"steer.base={small}", "steer.weight=2"]
    config = load_config(overrides=["method=none", *words, *KEYS])
    same = open_model(config)
    plain = dataclasses.replace(same, steering=None)
    a, b = (sample_responses(one, QUESTIONS, prompts_of(one), 3, config.rollout, ("t", 1)) for one in (plain, same))
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.logprobs, b.logprobs)


def test_a_model_steered_from_its_own_start_is_the_adapted_one(tmp_path):
    base, adapted = (write_model("qwen3", tmp_path / str(seed), seed=seed) for seed in (4, 5))
    words = ["method=none", f"model={base}", *KEYS]
    config = load_config(overrides=[*words, f"steer.adapted={adapted}", f"steer.base={base}"])
    loaded, other = open_model(config), load_model(config.model.model_copy(update={"name": str(adapted)}))
    ours, theirs = (greedy_responses(one, QUESTIONS, prompts_of(one), config.rollout) for one in (loaded, other))
    assert ours.texts == theirs.texts
    assert fingerprint_of(loaded) != fingerprint_of(other)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_images_move_the_logits_too(family, tmp_path):
    small = [write_vision_model(family, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    large = write_vision_model(family, tmp_path / "large", seed=3)
    _, config, prompts = opened(large, "method=none", f"steer.adapted={small[0]}", f"steer.base={small[1]}")
    loaded = open_model(config)
    assert loaded.steering is not None
    found = greedy_responses(loaded, QUESTIONS, prompts, config.rollout)
    for row, prompt in enumerate(prompts):
        response = found.tokens[row][found.mask[row]].tolist()
        with torch.no_grad():
            own, adapted, base = (single_row(one, prompt, response) for one in (loaded, *loaded.steering.models))
        logits = (own + adapted - base)[len(prompt) - 1 : -1]
        assert logits.argmax(1).tolist() == response


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["steer.weight=0.5"], "set steer.adapted"),
        (["steer.adapted=x", "method=spine"], "only answers"),
        (["steer.adapted={plain}", "method=none"], "steer.base"),
        (["steer.adapted={plain}", "steer.base={plain}", "method=none", "model=tiny-reasoner"], "another vocabulary"),
    ],
)
def test_what_cannot_steer_is_refused_in_one_line(words, says, model_folders):
    plain = model_folders("qwen3")
    with pytest.raises(InputError, match=says) as error:
        open_model(load_config(overrides=[f"model={plain}", *(word.format(plain=plain) for word in words)]))
    assert "\n" not in str(error.value)


def test_a_run_steers_from_the_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    small = ["data.max_questions=4", "rollout.max_new_tokens=12", "eval.samples=0", "threads=1"]
    words = ["data=tiny/shift-a", "steps=1", "group_size=4", "optim.lr=0.05", "guard=off", f"run={run}"]
    assert exit_code(["adapt", *words, *small]) == 0
    for name, model in (("adapted", [run]), ("steered", ["tiny-reasoner", f"steer.adapted={run}"])):
        asked = ["eval", model[0], "tiny/shift-a", *model[1:], *small]
        assert exit_code([*asked, "--predictions", tmp_path / f"{name}.jsonl"]) == 0
    texts = [[row["greedy"]["text"] for row in read_predictions(tmp_path / f"{name}.jsonl")]
             for name in ("adapted", "steered")]  # fmt: skip
    assert texts[0] == texts[1] != [row["greedy"]["text"] for row in RunFolder(run).predictions(0)]
    assert exit_code(["adapt", f"steer.adapted={run}", *words[:-1], f"run={tmp_path / 'other'}"]) == 2
    assert "only answers" in capsys.readouterr().err
