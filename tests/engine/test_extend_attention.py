"""Attention of responses that meet their prompt once, against the plain formula."""

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.attention import ATTENTION
from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.backend import _extends
from spinerl.engine.cpu.extend_attention import _attended, _Attention, _CompiledAttention, spans
from spinerl.models.loading import load_model
from tests.models import ARCHITECTURES, needs_loops

PREFIX_OF = torch.tensor([1, 1, 1, 0, 0])
LENGTHS = [7, 4]


def tensors(dtype, kv_heads, width=8, tokens=6):
    generator = torch.Generator().manual_seed(3)
    of_rows, of_prompts = (5, kv_heads, tokens, width), (2, kv_heads, 7, width)
    shapes = [(5, 4, tokens, width), of_rows, of_rows, of_prompts, of_prompts]
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
    found = _Attention.apply(*given, LENGTHS, spans(PREFIX_OF), 0.3, None)
    expected = plain(*given, 0.3)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    assert (found - expected).abs().max() <= limit
    gradients = torch.autograd.grad(found, given, grad)
    for a, b in zip(gradients, torch.autograd.grad(expected, given, grad), strict=True):
        assert (a - b).abs().max() <= limit


@needs_loops
@pytest.mark.parametrize("share", [1.0, 0.2], ids=["all gradients", "few gradients"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("width", "tokens"), [(16, 6), (32, 70), (48, 33), (64, 130)])
def test_the_compiled_one_does_the_same(width, tokens, kv_heads, share):
    """Tiles of queries and keys, whole and in part, key heads that serve one, two and four query heads; tokens without
    gradients, and a row of only such."""
    given = tensors(torch.float32, kv_heads, width, tokens)
    wide = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = plain(*wide, 0.3)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    grad *= torch.rand(grad.shape[:2], generator=torch.Generator().manual_seed(5))[..., None, None] <= share
    grad[1] *= share == 1.0
    expected_gradients = torch.autograd.grad(expected, wide, grad.double())
    found = _CompiledAttention.apply(*given, LENGTHS, spans(PREFIX_OF), 0.3, None)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for a, b in zip(torch.autograd.grad(found, given, grad), expected_gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))


@needs_loops
def test_rows_of_unlike_lengths_need_no_padding():
    """Rows one after the other, against the same rows padded, whose padding has no gradients."""
    given = [tensor.detach().transpose(1, 2) for tensor in tensors(torch.float32, 2, 32, 70)[:3]]
    prompts = [tensor.detach() for tensor in tensors(torch.float32, 2, 32)[3:]]
    lengths = torch.tensor([70, 1, 64, 65, 33])
    real = torch.arange(70) < lengths.unsqueeze(1)
    others = *prompts, LENGTHS, spans(PREFIX_OF), 0.3
    padded = kernels.ExtendAttention(*(tensor.contiguous() for tensor in given), *others)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    packed = kernels.ExtendAttention(*(tensor[real] for tensor in given), *others, starts)
    expected, found = kernels.extend_attention(padded), kernels.extend_attention(packed)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b[real])
    grad = torch.randn(expected[0].shape) * real[..., None, None]
    grad_padded = kernels.extend_attention_backward(padded, grad, *expected)
    grad_packed = kernels.extend_attention_backward(packed, grad[real], *found)
    for i, (a, b) in enumerate(zip(grad_packed, grad_padded, strict=True)):
        assert torch.equal(a, b[real] if i < 3 else b)


@needs_loops
def test_rows_that_continue_nothing():
    """Causal attention by itself, by the same loop."""
    queries, keys, values = (torch.randn(3, 70, heads, 32) for heads in (4, 2, 2))
    nothing = torch.empty(1, 2, 0, 32)
    job = kernels.ExtendAttention(queries, keys, values, nothing, nothing, (0,), ((0, 0, 3),), 0.3)
    output, total = kernels.extend_attention(job)
    wide = [tensor.double().transpose(1, 2).requires_grad_() for tensor in (queries, keys, values)]
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(output.double(), expected.transpose(1, 2), atol=1e-5)
    grad = torch.randn(output.shape)
    found = kernels.extend_attention_backward(job, grad, output, total)
    assert found[3].shape == nothing.shape
    for a, b in zip(found[:3], torch.autograd.grad(expected, wide, grad.double().transpose(1, 2)), strict=True):
        assert torch.allclose(a.double(), b.transpose(1, 2), atol=1e-4)


@pytest.mark.parametrize("attention", [_Attention, pytest.param(_CompiledAttention, marks=needs_loops)])
def test_what_is_known_is_not_computed_and_the_gradient_is_the_same(attention):
    """All but the rows' first tokens are known."""
    given = tensors(torch.float32, 2, width=16)
    others = LENGTHS, spans(PREFIX_OF), 0.3
    expected = attention.apply(*given, *others, None)
    totals = _attended(given[0].transpose(1, 2).contiguous(), tuple(given[1:3]), tuple(given[3:]), *others)[1].detach()
    known = expected.detach().clone(), totals.clone()
    for tensor in known:
        tensor[:, 0] = torch.nan
    found = attention.apply(*given, *others, known)
    assert torch.allclose(found, expected, atol=1e-6)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    for a, b in zip(torch.autograd.grad(found, given, grad), torch.autograd.grad(expected, given, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_prompt_far_more_attractive_than_the_response_leaves_finite_numbers():
    given = tensors(torch.float32, 2)
    with torch.no_grad():
        given[3] *= 1000.0
    found = _Attention.apply(*given, LENGTHS, spans(PREFIX_OF), 1.0, None)
    assert torch.allclose(found, plain(*given, 1.0), atol=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), given))


def test_gradcheck():
    given = tensors(torch.float64, 2)
    torch.autograd.gradcheck(lambda *t: _Attention.apply(*t, LENGTHS, spans(PREFIX_OF), 0.3, None), given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_architectures_use_it(model_folders, architecture):
    loaded = load_model(load_config(overrides=[f"model={model_folders(architecture)}"]).model)
    assert _extends(loaded) == (architecture not in {"gemma2", "mistral"})  # softcaps and windows go the general way
    assert loaded.model.config._attn_implementation != ATTENTION
