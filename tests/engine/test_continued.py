"""Attention of responses that meet their prompt once, against the plain formula."""

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.attention import ATTENTION
from spinerl.engine.continued import _Attention, spans
from spinerl.engine.loading import load_model
from spinerl.engine.passes import _continues
from tests.models import ARCHITECTURES

PREFIX_OF = torch.tensor([1, 1, 1, 0, 0])
LENGTHS = [7, 4]


def tensors(dtype, kv_heads):
    generator = torch.Generator().manual_seed(3)
    shapes = [(5, 4, 6, 8), (5, kv_heads, 6, 8), (5, kv_heads, 6, 8), (2, kv_heads, 7, 8), (2, kv_heads, 7, 8)]
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


def plain(query, keys, values, prompt_keys, prompt_values, scaling):
    """One masked softmax over the prompt's copy and the row's own tokens."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (
        torch.cat([prompt[PREFIX_OF], own], dim=2).repeat_interleave(groups, dim=1)
        for prompt, own in ((prompt_keys, keys), (prompt_values, values))
    )
    tokens, width = query.shape[2], prompt_keys.shape[2]
    seen = torch.ones(len(query), 1, tokens, width + tokens, dtype=torch.bool)
    for row, question in enumerate(PREFIX_OF.tolist()):
        seen[row, 0, :, LENGTHS[question] : width] = False
    seen[..., width:] = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    scores = (query @ keys.mT * scaling).masked_fill(~seen, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ values).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_output_and_every_gradient(dtype, limit, kv_heads):
    given = tensors(dtype, kv_heads)
    found = _Attention.apply(*given, LENGTHS, spans(PREFIX_OF), 0.3)
    expected = plain(*given, 0.3)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    assert (found - expected).abs().max() <= limit
    gradients = torch.autograd.grad(found, given, slope)
    for a, b in zip(gradients, torch.autograd.grad(expected, given, slope), strict=True):
        assert (a - b).abs().max() <= limit


def test_a_prompt_far_more_attractive_than_the_response_leaves_finite_numbers():
    given = tensors(torch.float32, 2)
    with torch.no_grad():
        given[3] *= 1000.0
    found = _Attention.apply(*given, LENGTHS, spans(PREFIX_OF), 1.0)
    assert torch.allclose(found, plain(*given, 1.0), atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), given))


def test_gradcheck():
    given = tensors(torch.float64, 2)
    torch.autograd.gradcheck(lambda *t: _Attention.apply(*t, LENGTHS, spans(PREFIX_OF), 0.3), given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_architectures_use_it(model_folders, architecture):
    loaded = load_model(load_config(overrides=[f"model={model_folders(architecture)}"]).model)
    assert _continues(loaded) == (architecture not in {"gemma2", "mistral"})  # softcaps and windows go the general way
    assert loaded.model.config._attn_implementation != ATTENTION
