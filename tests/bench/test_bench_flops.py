"""The count of operations, by hand and against the one that watches the matmuls as they run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from spinerl.bench.flops import Shape, forward_flops, matmul_peak, rollout_flops, update_flops

# Width 4, 2 layers, 2 heads of width 3, 1 of keys and values, 5 inside, 7 words.
SMALL = Shape(hidden_size=4, layers=2, heads=2, kv_heads=1, head_dim=3, intermediate_size=5, vocabulary=7)


def test_weights_of_a_small_model():
    queries, keys, values, out = 4 * 6, 4 * 3, 4 * 3, 6 * 4
    assert SMALL.weights_per_token == 2 * (queries + keys + values + out + 3 * 4 * 5)


def test_forward_of_a_small_model():
    # 3 tokens attend to 1 + 2 + 3 positions: a score and a weighted sum, 2 heads of 3, in both layers.
    assert forward_flops(SMALL, tokens=3, attended=6, logits=1) == 2 * 3 * 264 + 2 * 2 * 6 * 2 * 3 * 2 + 2 * 4 * 7


def test_rollout_of_a_small_model():
    # One prompt of 2 tokens, 2 responses of 3: the third token is drawn and not read.
    prefill = forward_flops(SMALL, 2, 1 + 2, 1)
    decoding = forward_flops(SMALL, 2 * 2, 2 * (3 + 4), 2 * 2)
    assert rollout_flops(SMALL, 1, 2, 2, 3) == prefill + decoding


def test_update_of_a_small_model():
    tokens = 2 + 2 * 2  # the prompt once, two responses but for their last token
    attended = (1 + 2) + 2 * (3 + 4)
    assert update_flops(SMALL, 1, 2, 2, 3, wanted=5) == 3 * forward_flops(SMALL, tokens, attended, 5)


def test_equals_the_matmuls_that_run(model_folders):
    model = AutoModelForCausalLM.from_pretrained(model_folders("qwen3"), attn_implementation="eager")
    ids = torch.arange(2 * 10).view(2, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    rotary = 2 * 2 * 4 * 10  # the model multiplies positions by frequencies as a matmul
    # Eager attention computes the whole square, also what is masked away.
    counted = forward_flops(Shape.of(model.config), tokens=20, attended=2 * 10 * 10, logits=20)
    assert counter.get_total_flops() == pytest.approx(counted, abs=rotary)


@pytest.mark.parametrize("onednn", [False, True])
def test_the_peak_of_this_machine_is_a_speed(onednn):
    assert 1e8 < matmul_peak(seconds=0.1, onednn=onednn) < 1e16
