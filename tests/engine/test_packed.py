"""Weights laid out for decoding: the same numbers, for as long as they are asked for."""

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.loading import load_model
from spinerl.engine.packed import packed_weights
from spinerl.engine.sampler import sample_responses
from spinerl.types import Question
from tests.models import ARCHITECTURES

QUESTIONS = (Question("a", "first"), Question("b", "second"))
PROMPTS = ((3, 4, 5, 6, 7), (9, 8, 7))


def opened(folder, **keys):
    config = load_config(
        overrides=[f"model={folder}", "rollout.max_new_tokens=24", *(f"{k}={v}" for k, v in keys.items())]
    )
    return load_model(config.model), config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_weights_change_no_sample(model_folders, architecture):
    loaded, config = opened(model_folders(architecture))
    plain = config.rollout.model_copy(update={"pack_weights": False})
    expected = sample_responses(loaded, QUESTIONS, PROMPTS, 4, plain, ("p",))
    assert "packed_weights" not in loaded.abilities
    found = sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("p",))
    assert loaded.abilities["packed_weights"]
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.logprobs, expected.logprobs, atol=1e-4)


def test_the_layers_are_their_own_again_afterwards(model_folders):
    loaded, _ = opened(model_folders("qwen2"))
    ids = torch.tensor([PROMPTS[0]])
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.inference_mode(), packed_weights(loaded):
        assert "forward" in layer.__dict__
        before = loaded.model(input_ids=ids).logits
    assert "forward" not in layer.__dict__
    with torch.no_grad():
        layer.weight.mul_(3)
        expected = loaded.model(input_ids=ids).logits
    with torch.inference_mode(), packed_weights(loaded):  # the weights as they are now
        found = loaded.model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3)


def test_an_error_inside_leaves_no_packed_layer(model_folders):
    loaded, _ = opened(model_folders("llama"))
    with pytest.raises(RuntimeError, match="inside"), packed_weights(loaded):
        raise RuntimeError("inside")
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())


def test_other_types_are_left_alone(model_folders):
    loaded, _ = opened(model_folders("qwen3"), **{"model.dtype": "bfloat16"})
    with packed_weights(loaded):
        assert not any("forward" in module.__dict__ for module in loaded.model.modules())
