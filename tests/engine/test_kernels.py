"""Compiled loops against their formulas in float64, on every kind of size, and the same whatever the threads."""

from __future__ import annotations

import ctypes

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.cpu import kernels
from spinerl.engine.cpu.backend import decoder_step
from spinerl.engine.cpu.bindings import bind
from spinerl.engine.cpu.fused import fused_modules
from spinerl.engine.cpu.library import build, library_override
from spinerl.engine.sampler import sample_responses
from spinerl.models.loading import load_model
from spinerl.types import Question
from tests.models import needs_bf16, needs_loops, without, write_model

pytestmark = needs_loops

QUESTIONS = tuple(Question(str(i), "") for i in range(3))
PROMPTS = ((3, 4, 5, 6, 7, 8, 9), (9, 8, 7), (11, 12, 13, 14, 15))


@pytest.fixture(scope="module")
def plain_loops(tmp_path_factory):
    """The loops as compiled for processors of which nothing is known."""
    file = tmp_path_factory.mktemp("loops") / "plain.so"
    build(file, tuned=False)
    return bind(ctypes.CDLL(str(file)))


@pytest.fixture(params=["this machine's", "any machine's"])
def loops(request):
    """The loops as they run here, and as they would anywhere."""
    if request.param == "this machine's":
        yield
        return
    plain = request.getfixturevalue("plain_loops")
    assert not plain.constants.has_wide_registers
    with library_override(plain):
        yield


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients_agree(loop, formula, *inputs, limit=1e-5):
    """Value and grads of a loop, and of a formula in float64."""
    narrow = [tensor.clone().requires_grad_() for tensor in inputs]
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    found, expected = loop(*narrow), formula(*wide)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= limit
    grad = randn(*expected.shape, seed=9)
    for a, b in zip(
        torch.autograd.grad(found, narrow, grad), torch.autograd.grad(expected, wide, grad.double()), strict=True
    ):
        assert (a - b).abs().max() <= limit * max(1.0, float(b.abs().max()))
    with torch.no_grad():
        assert torch.equal(loop(*inputs), found)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 33), (70, 7), (1, 256), (400, 48)])
def test_norms(shape):
    def formula(states, weight):
        return weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-5)

    gradients_agree(lambda s, w: kernels.rms_norm(s, w, 1e-5), formula, randn(*shape), randn(shape[-1], seed=1))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 33), (1, 7), (50, 400)])
def test_gates(shape):
    def formula(gates, states):
        return torch.nn.functional.silu(gates) * states

    gradients_agree(kernels.swiglu, formula, 5 * randn(*shape), randn(*shape, seed=1))


@pytest.mark.usefixtures("loops")
def test_gates_of_large_numbers_are_finite():
    gates = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]])
    found = kernels.swiglu(gates, torch.ones_like(gates))
    assert torch.allclose(found, torch.nn.functional.silu(gates), atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("width", [16, 33, 9])
def test_gates_and_their_grads_in_places(width):
    gates, states, grads = randn(9, width), randn(9, width, seed=1), randn(4, width, seed=2)
    places = torch.tensor([8, 0, 3, 3])
    found, *by_both = kernels.swiglu_recompute_backward((places, gates, states), grads)
    inputs = [gates[places].requires_grad_(), states[places].requires_grad_()]
    expected = kernels.swiglu(*inputs)
    assert torch.allclose(found, expected)
    for a, b in zip(by_both, torch.autograd.grad(expected, inputs, grads), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("width", [16, 33, 7])
def test_norms_of_sums_in_places(width):
    """The norm of states and kept rows, and its gradients with that of a residual, against autograd in float64."""
    places, kept, residual, grads = torch.tensor([4, 0, 0]), randn(5, width), randn(3, width, seed=1), randn(3, width)
    states, weight = randn(3, width, seed=2), randn(width, seed=3)
    found, inverse = kernels.rms_norm_with_rstd(states, (places, kept), weight, 1e-5)
    grad_states, grad_weight = kernels.rms_norm_backward(grads, states, weight, inverse, (places, kept), residual)
    wide = states.double().requires_grad_(), weight.double().requires_grad_()
    whole = wide[0] + kept.double()[places]
    expected = wide[1] * whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + 1e-5)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    of_states, of_weight = torch.autograd.grad(expected, wide, grads.double())
    assert torch.allclose(grad_states.double(), of_states + residual, atol=1e-5)
    assert torch.allclose(grad_weight.double(), of_weight, atol=1e-5)
    other = randn(5, width, seed=4)
    assert torch.equal(kernels.add_indexed(states, places, kept, other), states + kept[places] + other[places])


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("width", [8, 32, 36, 64])
@pytest.mark.parametrize("normed", [True, False])
def test_turned_heads(width, normed):
    """Norm and rope of kept heads, and their grads, against autograd in float64."""
    places, kept, grads = torch.tensor([3, 3, 0, 1]), randn(4, 3 * width), randn(4, 3, width, seed=1)
    weight = randn(width, seed=2) if normed else None
    how = kernels.NormRope(weight, 1e-5, randn(4, width, seed=3), randn(4, width, seed=4))
    found = kernels.norm_rope((places, kept), 3, how)
    grad_rows, grad_weight = kernels.norm_rope_backward((places, kept), how, grads)
    rows = kept.double()[places].view(4, 3, width).requires_grad_()
    wide = [rows] if weight is None else [rows, weight.double().requires_grad_()]
    states = rows
    if normed:
        states = wide[1] * rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-5)
    a, b = states.chunk(2, dim=-1)
    cos_sin = [part.double().unsqueeze(1) for part in (how.cos, how.sin)]
    expected = states * cos_sin[0] + torch.cat([-b, a], dim=-1) * cos_sin[1]
    assert torch.allclose(found.double(), expected, atol=1e-5)
    of_rows, *of_weight = torch.autograd.grad(expected, wide, grads.double())
    assert torch.allclose(grad_rows.double().view_as(of_rows), of_rows, atol=2e-5)
    assert (grad_weight is None) == (not normed)
    for grad in of_weight:
        assert torch.allclose(grad_weight.double(), grad, atol=2e-5)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("width", [8, 32, 36, 64])
def test_rope(width):
    cosines, sines = randn(2, 5, width, seed=1), randn(2, 5, width, seed=2)

    def formula(states):
        a, b = states.chunk(2, dim=-1)
        turned = torch.cat([-b, a], dim=-1)
        return states * cosines.double().unsqueeze(2) + turned * sines.double().unsqueeze(2)

    gradients_agree(lambda s: kernels.rope(s, cosines, sines), formula, randn(2, 5, 3, width))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("width", kernels.head_dims())
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (7, 1), (12, 2)])
@pytest.mark.parametrize("own", [1, 16, 21])
def test_decoding(width, heads, kv_heads, own):
    """Prompts of unlike lengths, questions with unlike numbers of rows, own tokens in one block and in two."""
    question_of = torch.tensor([1, 0, 1, 2, 1, 1])
    lengths = [70, 3, 64]
    rows, block = len(question_of), 16
    prompt_keys, prompt_values = randn(3, kv_heads, 70, width), randn(3, kv_heads, 70, width, seed=1)
    blocks = [
        (randn(8, kv_heads, block, width, seed=2 + i), randn(8, kv_heads, block, width, seed=7 + i)) for i in (0, 1)
    ]
    blocks = blocks[: -(-own // block)]
    queries = randn(rows, heads, width, seed=5)
    order = question_of.argsort(stable=True)
    tasks = torch.tensor([[0, 1, 1, 2], [0, 1, 3, 5], [1, 2, 2, 1]])
    found, total = kernels.decode_attention(
        queries, 0.3, blocks, own, kernels.pack_panels(prompt_keys), prompt_values, torch.tensor(lengths), tasks, order
    )
    for row, question in enumerate(question_of.tolist()):
        for head in range(heads):
            of_keys = head // (heads // kv_heads)
            keys, values = (
                torch.cat([prompt[question, of_keys, : lengths[question]], *(b[i][row, of_keys] for b in blocks)])
                for i, prompt in enumerate((prompt_keys, prompt_values))
            )
            seen = lengths[question] + own
            scores = 0.3 * keys[:seen].double() @ queries[row, head].double()
            assert total[row, head] == pytest.approx(float(scores.logsumexp(0)), abs=1e-5)
            assert torch.allclose(found[row, head].double(), scores.softmax(0) @ values[:seen].double(), atol=1e-5)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 1, 16), (7, 5, 48), (300, 13, 80), (1000, 130, 64), (257, 600, 16)])
def test_matmuls(rows, n, k):
    grads, states, weight = randn(rows, n), randn(rows, k, seed=1), randn(n, k, seed=2)
    expected = grads.double().t() @ states.double()
    limit = 1e-5 * float(expected.abs().max() + 1)
    assert (kernels.grad_weight(grads, states) - expected).abs().max() <= limit
    back = grads.double() @ weight.double()
    into = randn(rows, k, seed=3)
    assert (kernels.grad_input(grads, weight) - back).abs().max() <= 1e-5 * float(back.abs().max())
    found = kernels.grad_input(grads, weight, into.clone())
    assert (found - back - into).abs().max() <= 1e-5 * float(back.abs().max() + 1)


def rounded(tensor):
    return tensor.bfloat16().double()


@needs_bf16
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(1, 1, 1), (3, 5, 7), (16, 64, 32), (17, 65, 33), (130, 200, 100), (300, 130, 576)]
)
def test_matmuls_of_rounded_factors(rows, n, k):
    states, weight, grads, base = randn(rows, k), randn(n, k, seed=1), randn(rows, n, seed=2), randn(rows, k, seed=3)
    packed, transposed = kernels.bf16_pack(weight), kernels.bf16_pack(weight, transposed=False)
    into = base.clone()
    kernels.bf16_matmul(grads, transposed, k, into)
    pairs = {
        "output": (kernels.bf16_matmul(states, packed, n), rounded(states) @ rounded(weight).T),
        "grad_input": (kernels.bf16_matmul(grads, transposed, k), rounded(grads) @ rounded(weight)),
        "added": (into, base + rounded(grads) @ rounded(weight)),
        "grad_weight": (kernels.bf16_grad_weight(grads, states), rounded(grads).T @ rounded(states)),
    }
    for what, (found, expected) in pairs.items():
        assert found.dtype == torch.float32
        assert found.shape == expected.shape, what
        assert (found - expected).abs().max() <= 2e-6 * max(rows, n, k) ** 0.5 * expected.abs().max() + 1e-6, what


@needs_bf16
def test_rounded_matmuls_do_not_depend_on_threads():
    states, weight = randn(300, 200), randn(130, 200, seed=1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        grads = kernels.bf16_matmul(states, kernels.bf16_pack(weight), 130)
        found.append([grads, kernels.bf16_matmul(grads, kernels.bf16_pack(weight, False), 200)])
        found[-1].append(kernels.bf16_grad_weight(grads, states))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *found))


@pytest.mark.usefixtures("plain_loops")
def test_without_instructions_for_bfloat16_there_are_no_such_matmuls(plain_loops):
    with library_override(plain_loops):
        assert not kernels.has_bf16()
        with pytest.raises(RuntimeError, match="no instructions for bfloat16"):
            kernels.bf16_pack(randn(4, 4))


@pytest.mark.usefixtures("loops")
def test_packed_matrices():
    panel = kernels.library().constants.panel
    weight = randn(panel + 3, 5)
    found = kernels.pack_panels(weight)
    assert found.shape == (2, 5, panel)
    assert torch.equal(found.transpose(1, 2).flatten(0, 1)[: len(weight)], weight)
    assert found[1, :, 3:].abs().max() == 0


def test_threads_change_nothing():
    grads, states = randn(700, 130), randn(700, 64, seed=1)
    norm = randn(300, 256).requires_grad_(), randn(256, seed=1).requires_grad_()
    kept, by_heads = (torch.arange(300), randn(300, 4 * 32)), randn(300, 4, 32, seed=2)
    how = kernels.NormRope(randn(32), 1e-6, randn(300, 32), randn(300, 32, seed=1))
    prompts = randn(2, 2, 70, 32), randn(2, 2, 70, 32, seed=1)
    job = kernels.ExtendAttention(
        randn(300, 4, 32), randn(300, 2, 32), randn(300, 2, 32), *prompts, (70, 9), ((1, 0, 1), (0, 1, 5)), 0.3,
        torch.tensor([0, 90, 100, 101, 200, 300]),
    )  # fmt: skip

    def everything():
        normed = kernels.rms_norm(*norm, 1e-6)
        by_norm = torch.autograd.grad(normed.square().sum(), norm)
        matmuls = kernels.grad_weight(grads, states), kernels.grad_input(grads, randn(130, 64))
        attended = kernels.extend_attention(job)
        by_attention = kernels.extend_attention_backward(job, by_heads, *attended)
        sampled = kernels.sample(randn(60, 700), 0.8, torch.linspace(0, 0.99, 60))
        by_rope = kernels.norm_rope_backward(kept, how, by_heads)
        return [*matmuls, normed, *by_norm, *by_rope, *attended, *by_attention, *sampled]

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def opened(folder, *words):
    config = load_config(overrides=[f"model={folder}", "rollout.max_new_tokens=70", *words])
    return load_model(config.model, config.engine), config


@pytest.fixture(scope="module")
def wide_models(tmp_path_factory):
    """Models whose heads are 16 wide, as the loops for attention want them."""
    made = {}

    def folder(architecture):
        if architecture not in made:
            made[architecture] = write_model(
                architecture, tmp_path_factory.mktemp(architecture), spread=0.1, head_dim=16
            )
        return made[architecture]

    return folder


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("qwen2", True), ("qwen3", True), ("llama", True), ("gemma2", False), ("mistral", False), ("gpt2", False)],
)
@pytest.mark.parametrize("budget", [0, 300], ids=["all at once", "some after others"])
def test_compiled_loops_change_no_sample(wide_models, architecture, layers, budget):
    """Responses of unlike lengths: rows leave, questions enter, blocks of 64 tokens are filled."""
    loaded, config = opened(wide_models(architecture), f"engine.kv_cache_tokens={budget}")
    plain = without(loaded, "compiled", kv_cache_tokens=budget)
    expected = sample_responses(plain, QUESTIONS, PROMPTS, 5, config.rollout, ("k",))
    assert "compiled_attention" not in loaded.capabilities.verdicts
    found = sample_responses(loaded, QUESTIONS, PROMPTS, 5, config.rollout, ("k",))
    assert loaded.capabilities.uses("compiled_attention")
    assert loaded.capabilities.uses("fused_modules")
    assert (decoder_step(loaded) is not None) == layers
    assert torch.equal(found.tokens, expected.tokens)
    assert len(set(found.mask.sum(1).tolist())) > 1
    assert torch.allclose(found.logprobs, expected.logprobs, atol=1e-4)
    assert torch.allclose(found.entropies, expected.entropies, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("qwen2", "float32"), pytest.param("qwen3", "mixed", marks=needs_bf16)]
)
def test_threads_that_share_large_weights_change_no_sample(tmp_path, architecture, dtype):
    """One thread takes rows through all layers; several take columns of weights of over 16 MB."""
    folder = write_model(architecture, tmp_path, spread=0.02, head_dim=16, hidden_size=256, intermediate_size=8160)
    loaded, config = opened(folder, f"model.dtype={dtype}")
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sample_responses(loaded, QUESTIONS, PROMPTS, 5, config.rollout, ("k",)))
            assert loaded.capabilities.uses("decoder_step")
    finally:
        torch.set_num_threads(1)
    assert len(set(results[0].mask.sum(1).tolist())) > 1
    for found in results[1:]:
        assert torch.equal(found.tokens, results[0].tokens)
        assert torch.equal(found.logprobs, results[0].logprobs)


def test_a_model_that_computes_otherwise_keeps_its_own_functions(wide_models):
    """The parts have the names; what they compute is another thing."""
    loaded, config = opened(wide_models("llama"))
    for layer in loaded.model.model.layers:
        ordinary = layer.mlp.forward
        layer.mlp.forward = lambda states, ordinary=ordinary: 2 * ordinary(states)
    with torch.no_grad(), fused_modules(loaded):
        assert loaded.capabilities.verdicts["fused_modules"].used is False
    assert decoder_step(loaded) is None
    assert loaded.capabilities.verdicts["decoder_step"].used is False
    plain = without(loaded, "compiled")
    expected = sample_responses(plain, QUESTIONS, PROMPTS, 4, config.rollout, ("k",))
    assert torch.equal(sample_responses(loaded, QUESTIONS, PROMPTS, 4, config.rollout, ("k",)).tokens, expected.tokens)


def test_modules_are_their_own_again_afterwards(wide_models):
    loaded, _ = opened(wide_models("qwen3"))
    from transformers.models.qwen3 import modeling_qwen3

    ordinary = modeling_qwen3.apply_rotary_pos_emb
    with fused_modules(loaded):
        assert loaded.capabilities.uses("fused_modules")
        assert modeling_qwen3.apply_rotary_pos_emb is not ordinary
    with pytest.raises(RuntimeError, match="inside"), fused_modules(loaded):
        raise RuntimeError("inside")
    assert modeling_qwen3.apply_rotary_pos_emb is ordinary
    assert not any("forward" in module.__dict__ for module in loaded.model.modules())


def test_without_a_library_torch_does_it(wide_models):
    loaded, config = opened(wide_models("qwen2"))
    expected = sample_responses(loaded, QUESTIONS, PROMPTS, 3, config.rollout, ("k",))
    loaded, _ = opened(wide_models("qwen2"))
    with library_override(None):
        found = sample_responses(loaded, QUESTIONS, PROMPTS, 3, config.rollout, ("k",))
    assert torch.equal(found.tokens, expected.tokens)
    assert not {"fused_modules", "compiled_attention", "decoder_step"} & loaded.capabilities.verdicts.keys()
