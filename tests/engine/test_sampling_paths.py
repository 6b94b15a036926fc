"""Ways to the same responses: shared prompts, compaction, refill, budgets, checks, stop texts, picking a token."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spinerl.config import load_config
from spinerl.engine.cpu import kernels
from spinerl.engine.kv_cache import bytes_per_token, fitting_tokens
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.sampling import Sampled, sample
from spinerl.errors import InputError, NonFiniteError
from spinerl.maths import log_distribution, pick_logprobs, shannon_entropies
from spinerl.models.loading import load_model
from spinerl.types import Question
from tests.models import byte_tokenizer, needs_loops, without

TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with some more words in it than others.", "What is 7?", "And 9?")
QUESTIONS = tuple(Question(str(i), text) for i, text in enumerate(TEXTS))
TOKENS = 40  # more than a block of the cache


def rollout_config(**keys):
    return load_config(overrides=[f"rollout.{k}={v}" for k, v in {"max_new_tokens": TOKENS, **keys}.items()]).rollout


def opened(folder, many_ends=False, exact=True):
    """`exact`: in float64, where sums in another order round no token away; with `many_ends` one in twenty ends."""
    loaded = load_model(load_config(overrides=[f"model={folder}"]).model)
    if exact:
        loaded.model.double()
    if many_ends:
        loaded = replace(loaded, end_ids=tuple(range(1, 261, 20)))
    return loaded, [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


def same(one, other):
    assert one.texts == other.texts
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.finished_mask, other.finished_mask)
    assert (one.logprobs - other.logprobs).abs().max() < 1e-5
    assert (one.entropies - other.entropies).abs().max() < 1e-5


def passes(loaded, run):
    """(rows, tokens per row) of every forward pass, and what the run returned."""
    shapes = []
    handle = loaded.model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        return run(), shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2"])
def test_every_way_gives_the_same_responses(model_folders, architecture):
    # Gemma's eager attention masks padding with a number of the model's type, and takes the softmax in float32.
    loaded, prompts = opened(model_folders(architecture), many_ends=True, exact=architecture != "gemma2")
    expected = sample_responses(loaded, QUESTIONS, prompts, 6, rollout_config(), ("w",))
    assert loaded.capabilities.uses("shared_prefix")
    assert expected.finished_mask.any()
    assert not expected.finished_mask.all()
    for on, budget in product(product([True, False], repeat=3), [7 * TOKENS, 14 * TOKENS]):
        parts = [part for part, used in zip(("shared-prefix", "compact", "refill"), on, strict=True) if not used]
        other = without(loaded, *parts, kv_cache_tokens=budget)
        same(sample_responses(other, QUESTIONS, prompts, 6, rollout_config(), ("w",)), expected)


@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
def test_checking_less_often_changes_nothing(model_folders, architecture):
    loaded, prompts = opened(model_folders(architecture), many_ends=True)
    config = rollout_config()
    for parts in ((), ("compact",), ("shared-prefix",), ("shared-prefix", "compact")):
        loaded = without(loaded, *parts, kv_cache_tokens=14 * TOKENS)
        often = sample_responses(loaded, QUESTIONS, prompts, 6, config, ("c",), steps_per_check=1)
        for steps in (3, 16, 1000):
            same(sample_responses(loaded, QUESTIONS, prompts, 6, config, ("c",), steps_per_check=steps), often)
            greedy = greedy_responses(loaded, QUESTIONS, prompts, config, steps_per_check=steps)
            same(greedy, greedy_responses(loaded, QUESTIONS, prompts, config, steps_per_check=1))


def test_waiting_questions_enter_when_others_finish(model_folders):
    loaded, prompts = opened(model_folders("qwen2"), many_ends=True)
    questions, prompts = QUESTIONS * 4, prompts * 4
    budget = 20 * TOKENS
    sample_responses(loaded, questions[:1], prompts[:1], 1, rollout_config(), ("r",))  # the trial is over

    def sampled(*parts):
        other = without(loaded, *parts, kv_cache_tokens=budget)
        return passes(other, lambda: sample_responses(other, questions, prompts, 6, rollout_config(), ("r",)))

    refilled, shapes = sampled()
    chunked, chunked_shapes = sampled("refill")
    same(refilled, chunked)
    assert len(shapes) < len(chunked_shapes)
    assert sum(tokens == 1 for _, tokens in shapes) < 0.8 * sum(tokens == 1 for _, tokens in chunked_shapes)
    for rows, tokens in shapes + chunked_shapes:
        if tokens == 1:
            assert rows * TOKENS + min(map(len, prompts)) <= budget
    assert max(rows for rows, tokens in shapes if tokens == 1) > 12, "the budget is used"
    first = next(i for i, (_, tokens) in enumerate(shapes) if tokens == 1)
    assert any(tokens > 1 for _, tokens in shapes[first:]), "prompts are computed while others go on"


def test_finished_rows_leave(model_folders):
    loaded, prompts = opened(model_folders("qwen2"), many_ends=True)
    for share in ((), ("shared-prefix",)):
        most = []
        for compact in ((), ("compact",)):
            one = without(loaded, *share, *compact)
            _, shapes = passes(one, lambda m=one: sample_responses(m, QUESTIONS, prompts, 6, rollout_config(), ("l",)))
            most.append(sum(rows for rows, tokens in shapes if tokens == 1))
        assert most[0] < 0.9 * most[1]


def test_one_question_goes_whatever_the_budget(model_folders):
    loaded, prompts = opened(model_folders("llama"))
    expected = sample_responses(loaded, QUESTIONS, prompts, 3, rollout_config(), ("b",))
    for parts in ((), ("shared-prefix",)):
        one = without(loaded, *parts, kv_cache_tokens=1)
        got, shapes = passes(one, lambda m=one: sample_responses(m, QUESTIONS, prompts, 3, rollout_config(), ("b",)))
        same(got, expected)
        assert max(rows for rows, _ in shapes) == 3


@pytest.mark.parametrize("parts", [(), ("shared-prefix",)])
def test_a_response_ends_at_a_stop_text(model_folders, parts):
    loaded, prompts = opened(model_folders("llama"))
    loaded, config = without(loaded, *parts), rollout_config()
    free = sample_responses(loaded, QUESTIONS, prompts, 6, config, ("s",))
    # Two letters, a token each, that some response has; then the prompts of the other questions get them too.
    row, stop = next((i, pair) for i, text in enumerate(free.texts) for pair in re.findall("[a-zA-Z]{2}", text[4:-4]))
    for question in range(len(prompts)):
        if question != row // 6:
            prompts[question] += tuple(loaded.tokenizer(stop).input_ids)
    free = sample_responses(loaded, QUESTIONS, prompts, 6, config, ("s",))
    stopped = sample_responses(
        loaded, QUESTIONS, prompts, 6, config.model_copy(update={"stop": ["<never said>", stop]}), ("s",)
    )
    met = 0
    for i, text in enumerate(free.texts):
        tokens = free.tokens[i][free.mask[i]]
        ends = [n for n in range(1, len(tokens) + 1) if stop in loaded.tokenizer.decode(tokens[:n])]
        length = ends[0] if ends else len(tokens)
        assert int(stopped.mask[i].sum()) == length
        assert torch.equal(stopped.tokens[i][:length], tokens[:length])
        if ends:
            met += 1
            assert stopped.finished_mask[i]
            assert stopped.texts[i].endswith(stop)
        else:
            assert stopped.texts[i] == text
            assert stopped.finished_mask[i] == free.finished_mask[i]
    assert 0 < met < len(free.texts)


def test_an_empty_stop_text_is_an_input_error(model_folders):
    loaded, prompts = opened(model_folders("llama"))
    with pytest.raises(InputError, match=r"rollout\.stop has an empty text"):
        sample_responses(loaded, QUESTIONS, prompts, 1, rollout_config().model_copy(update={"stop": [""]}), ("s",))


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("bloom", {"n_head": 4}), ("gptj", {"n_head": 4, "rotary_dim": 4})]
)
def test_attention_of_its_own_falls_back(tmp_path, architecture, sizes):
    tokenizer = byte_tokenizer()
    sizes |= {"hidden_size": 32, "n_embd": 32, "n_layer": 2, "n_positions": 512, "vocab_size": len(tokenizer)}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **sizes, **ids, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, prompts = opened(tmp_path, exact=False)
    ours = greedy_responses(loaded, QUESTIONS, prompts, rollout_config())
    assert loaded.capabilities.verdicts["shared_prefix"].used is False
    for row, prompt in enumerate(prompts):
        theirs = loaded.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=TOKENS,
            pad_token_id=loaded.pad_id,
        )[0, len(prompt) :]
        assert ours.tokens[row][ours.mask[row]].tolist() == theirs.tolist()


def test_the_models_attention_comes_back(model_folders):
    loaded, prompts = opened(model_folders("qwen3"))
    before = loaded.model.config._attn_implementation

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_responses(loaded, QUESTIONS, prompts, 2, rollout_config(), ("i",), interrupt)
    assert loaded.capabilities.uses("shared_prefix")
    assert loaded.model.config._attn_implementation == before


def test_figures_that_are_no_numbers_stop_the_run(model_folders):
    loaded, prompts = opened(model_folders("qwen3"))
    sample_responses(loaded, QUESTIONS, prompts, 2, rollout_config(), ("n",))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[7] = float("nan")
    for steps in (1, 16):
        with pytest.raises(NonFiniteError, match="logits"):
            sample_responses(loaded, QUESTIONS, prompts, 2, rollout_config(), ("n",), steps_per_check=steps)


@pytest.mark.parametrize("steps", [1, 16])
def test_every_token_is_reported(model_folders, steps):
    loaded, prompts = opened(model_folders("qwen3"))
    seen: list[tuple[int, int]] = []

    def report(tokens, finished):
        seen.append((tokens, finished))

    rollout = sample_responses(loaded, QUESTIONS, prompts, 4, rollout_config(), ("o",), report, steps_per_check=steps)
    tokens, finished = map(sum, zip(*seen, strict=True))
    assert (tokens, finished) == (int(rollout.mask.sum()), len(rollout.mask))


def compiled_sample(logits, temperature, uniforms):
    return Sampled(*kernels.sample(logits, temperature, uniforms), logits.new_empty(0), logits.new_empty(0))


SAMPLE = pytest.mark.parametrize(
    "by", [sample, pytest.param(compiled_sample, marks=needs_loops)], ids=["torch", "compiled"]
)


@SAMPLE
@pytest.mark.parametrize("vocabulary", [64, 1000, 5003, 151_936])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_figures_equal_their_definitions(vocabulary, temperature, by):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, vocabulary, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8, 16, 3]).unsqueeze(1)
    logits[6, ::3] = float("-inf")
    uniforms = torch.rand(7, generator=generator)
    log_dist = log_distribution(logits.double(), temperature)
    sampled = by(logits, temperature, uniforms)
    assert (sampled.logprobs - pick_logprobs(log_dist, sampled.tokens)).abs().max() < 1e-5
    assert (sampled.entropies - shannon_entropies(log_dist)).abs().max() < 1e-5
    cumulative = log_dist.exp().cumsum(-1)
    row = torch.arange(7)
    assert (cumulative[row, sampled.tokens] > uniforms - 1e-5).all()
    assert (cumulative[row, sampled.tokens] - log_dist.exp()[row, sampled.tokens] < uniforms + 1e-5).all()
    likeliest = sample(logits, temperature, None)
    assert torch.equal(likeliest.tokens, logits.argmax(-1))
    assert (likeliest.logprobs - pick_logprobs(log_dist, likeliest.tokens)).abs().max() < 1e-5


@SAMPLE
@pytest.mark.parametrize("vocabulary", [5, 130, 5003])
def test_the_ends_of_the_unit_interval_give_possible_tokens(vocabulary, by):
    last = 1 - 2**-24
    for first, count in product((0, vocabulary // 2), (1, 2, vocabulary // 2)):
        logits = torch.full((3, vocabulary), float("-inf"))
        logits[:, first : first + count] = torch.linspace(-20, 20, count)
        sampled = by(logits, 1.0, torch.tensor([0.0, 0.5, last]))
        assert (sampled.tokens >= first).all()
        assert (sampled.tokens < first + count).all()
        assert sampled.logprobs.isfinite().all()


@SAMPLE
def test_sampled_frequencies_follow_a_large_vocabulary(by):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(5003, generator=generator)
    uniforms = torch.rand(20_000, generator=generator)
    sampled = by(logits.expand(20_000, -1), 1.0, uniforms)
    expected = 20_000 * logits.double().softmax(-1)
    likely = expected > 5
    counts = torch.bincount(sampled.tokens, minlength=5003)
    chi_square = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    freedom = int(likely.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_memory_of_a_token():
    config = AutoConfig.for_model(
        "qwen3", num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=16, hidden_size=64
    )
    assert bytes_per_token(config, torch.float32) == 2 * 3 * 2 * 16 * 4
    assert (
        bytes_per_token(AutoConfig.for_model("gpt2", n_layer=3, n_head=4, n_embd=64), torch.bfloat16) == 2 * 3 * 64 * 2
    )
    assert 1 <= fitting_tokens(config, torch.float32, torch.device("cpu")) < 2**40 // (2 * 3 * 2 * 16 * 4)


def test_a_model_that_was_sampled_still_learns(tmp_path):
    """Also one that keeps tensors made while sampling: dynamic rotary frequencies, for texts over its length."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = AutoConfig.for_model(
        "llama", **sizes, vocab_size=len(tokenizer), max_position_embeddings=48, rope_parameters=rope, eos_token_id=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, prompts = opened(tmp_path, exact=False)
    rollout = sample_responses(loaded, QUESTIONS, prompts, 2, rollout_config(), ("g",))
    logits = loaded.model(rollout.tokens).logits
    chosen = pick_logprobs(log_distribution(logits), rollout.tokens)
    ((chosen - rollout.logprobs) * rollout.mask).sum().backward()
    assert loaded.model.get_input_embeddings().weight.grad.abs().sum() > 0
