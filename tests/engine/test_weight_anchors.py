"""What acts on weights as such: those that return to their initial values, and the Fisher anchor, by loops."""

from __future__ import annotations

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.fisher import estimate_fisher
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.models.loading import load_model
from spinerl.types import Question


def steps(fraction, dtype=torch.float32, fisher=None, num=3):
    """(weights before, weights and gradients after each step, figures) of some updates with made-up gradients."""
    random = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=random).to(dtype)) for size in ((6, 5), (7,))]
    initial = [p.detach().clone() for p in parameters]
    keys = [f"optim.restore={fraction}", "optim.lr=0.1", "optim.max_grad_norm=0.5"]
    optimizer = Optimizer(parameters, load_config(overrides=keys).optim, num, fisher)
    after, figures = [], []
    for _ in range(num):
        optimizer.zero_grad()
        gradients = [torch.randn(p.shape, generator=random).to(dtype) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.collect()
        figures.append(optimizer.step())
        after.append(([p.detach().clone() for p in parameters], gradients))
    return initial, after, figures


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_with_the_smallest_gradients_return(dtype):
    initial, after, _ = steps(0.3, dtype)
    for weights, gradients in after:
        flat = sorted(float(g) ** 2 for gradient in gradients for g in gradient.flatten())
        edge = flat[int(0.3 * 37) - 1]
        returned = 0
        for now, first, gradient in zip(weights, initial, gradients, strict=True):
            small = gradient.float().square() <= edge * (1 + 1e-6)
            assert torch.equal(now[small], first[small])
            if dtype == torch.float32:  # in 16 bits one may come back by itself
                assert not torch.isclose(now[~small], first[~small], atol=1e-4).any()
            returned += int(small.sum())
        assert returned >= 11
    assert torch.equal(steps(0.0)[1][0][0][0], steps(0.01)[1][0][0][0])  # 1 % of 37 weights is none


def test_the_fisher_anchor_is_a_term_of_the_loss():
    """Its gradient, 2 alpha F (w - initial w), by autograd of the term itself."""
    random = torch.Generator().manual_seed(1)
    fisher = [torch.rand(size, generator=random) for size in ((6, 5), (7,))]
    initial, after, figures = steps(0.0, fisher=(3.0, fisher))
    assert figures[0]["anchor/fisher"] == 0.0
    weights = [w.clone().requires_grad_() for w in after[0][0]]
    value = sum(3.0 * (f * (w - first).square()).sum() for f, w, first in zip(fisher, weights, initial, strict=True))
    value.backward()
    assert figures[1]["anchor/fisher"] == pytest.approx(value.item(), rel=1e-6)
    total = torch.cat([(w.grad + g).flatten() for w, g in zip(weights, after[1][1], strict=True)])
    assert figures[1]["optim/grad_norm"] == pytest.approx(total.norm().item(), rel=1e-5)
    free = steps(0.0)[2]
    assert free[0]["optim/grad_norm"] == figures[0]["optim/grad_norm"]
    assert free[1]["optim/grad_norm"] != figures[1]["optim/grad_norm"]


def test_fisher_information_by_loops(model_folders):
    config = load_config(overrides=[f"model={model_folders('llama')}", "rollout.max_new_tokens=6"])
    loaded = load_model(config.model, config.engine)
    loaded.model.double()
    questions = [Question("a", "What is 2 + 3?"), Question("b", "Hi")]
    prompts = [tuple(loaded.tokenizer(question.text).input_ids) for question in questions]
    found = estimate_fisher(loaded, questions, prompts, config)
    rollout = sample_responses(loaded, questions, prompts, 1, config.rollout, (0, "fisher"))
    expected = [torch.zeros_like(p) for p in loaded.model.parameters()]
    for row, prompt in enumerate(prompts):
        ids = [*prompt, *rollout.tokens[row, : int(rollout.mask[row].sum())].tolist()]
        log_p = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0], -1)
        likelihoods = [log_p[at - 1, ids[at]] for at in range(len(prompt), len(ids))]
        loaded.model.zero_grad()
        (sum(likelihoods) / len(likelihoods)).backward()
        for total, parameter in zip(expected, loaded.model.parameters(), strict=True):
            total += parameter.grad.square() / 2
    assert max(float(total.max()) for total in expected) > 1e-6
    for one, total in zip(found, expected, strict=True):
        torch.testing.assert_close(one, total, rtol=1e-4, atol=1e-9)
