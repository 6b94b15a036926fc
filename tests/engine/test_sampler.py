"""The sampler against transformers' own generate and against teacher forcing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.backend import backend_of
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.models.loading import load_model
from spinerl.types import Question
from tests.models import ARCHITECTURES, without

TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with some more words in it than others.", "What is 7?")
QUESTIONS = tuple(Question(str(i), text) for i, text in enumerate(TEXTS))


def opened(folder, **keys):
    config = load_config(overrides=[f"model={folder}", *(f"{k}={v}" for k, v in keys.items())])
    loaded = load_model(config.model, config.engine)
    prompts = [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]
    return config, loaded, prompts


def teacher_forced(loaded, rollout, temperature):
    """(log-probabilities, entropies) of a rollout's tokens by the plainest forward there is, one row at a time."""
    figures = []
    for row, prompt in enumerate(p for p in rollout.prompts for _ in range(rollout.num_responses)):
        response = rollout.tokens[row][rollout.mask[row]]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *response.tolist()]])).logits[0, len(prompt) - 1 : -1]
        log_dist = torch.log_softmax(logits.double() / temperature, -1)
        figures.append((log_dist.gather(1, response[:, None])[:, 0], -(log_dist.exp() * log_dist).sum(1)))
    return (torch.cat(parts) for parts in zip(*figures, strict=True))


@pytest.mark.parametrize("parts", [(), ("shared-prefix",), ("cpu",)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(model_folders, architecture, parts):
    config, loaded, prompts = opened(model_folders(architecture), **{"rollout.max_new_tokens": 40})
    loaded = without(loaded, *parts)
    ours = greedy_responses(loaded, QUESTIONS, prompts, config.rollout)
    for row, prompt in enumerate(prompts):
        theirs = loaded.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=loaded.pad_id,
            eos_token_id=list(loaded.end_ids),
        )[0, len(prompt) :]
        assert ours.tokens[row][ours.mask[row]].tolist() == theirs.tolist()


@pytest.mark.parametrize("parts", [(), ("shared-prefix",), ("cpu",)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_figures_equal_teacher_forcing(model_folders, architecture, parts):
    keys = {"rollout.max_new_tokens": 48, "rollout.temperature": 0.8}
    config, loaded, prompts = opened(model_folders(architecture), **keys)
    loaded = without(loaded, *parts)
    rollout = sample_responses(loaded, QUESTIONS, prompts, 5, config.rollout, ("t", 0))
    logprobs, entropies = teacher_forced(loaded, rollout, 0.8)
    assert (logprobs - rollout.logprobs[rollout.mask]).abs().max() < 1e-4
    assert (entropies - rollout.entropies[rollout.mask]).abs().max() < 1e-4
    assert ("shared_prefix" in loaded.capabilities.verdicts) == ("shared-prefix" not in parts)


EXAMPLES = "Ann has 5 pens and buys 3 more.  5 + 3 = 8.  She has 8 pens.\n"


@pytest.mark.parametrize("parts", [(), ("compiled",)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_that_begin_alike_compute_that_once(model_folders, architecture, parts):
    config, loaded, _ = opened(model_folders(architecture), **{"rollout.max_new_tokens": 20})
    loaded = without(loaded, *parts)
    prompts = [tuple(loaded.tokenizer(EXAMPLES + text).input_ids) for text in TEXTS]
    passes = []
    sizes = lambda _module, args: passes.append(tuple(args[0].shape)) if args[0].shape[1] > 1 else None  # noqa: E731
    backend_of(loaded).settle()
    with loaded.model.get_input_embeddings().register_forward_pre_hook(sizes):
        rollout = sample_responses(loaded, QUESTIONS, prompts, 3, config.rollout, ("t", 7))
    start = next(i for i in range(999) if len({prompt[i] for prompt in prompts}) > 1)
    assert start > 40
    assert passes == [(1, start), (len(prompts), max(map(len, prompts)) - start)]
    logprobs, entropies = teacher_forced(loaded, rollout, 1.0)
    assert (logprobs - rollout.logprobs[rollout.mask]).abs().max() < 1e-4
    assert (entropies - rollout.entropies[rollout.mask]).abs().max() < 1e-4


def test_masks_and_padding(model_folders):
    config, loaded, prompts = opened(model_folders("qwen3"), **{"rollout.max_new_tokens": 64})
    rollout = sample_responses(loaded, QUESTIONS, prompts, 16, config.rollout, ("t", 1))
    end = loaded.end_ids[0]
    assert rollout.finished_mask.any()
    assert not rollout.finished_mask.all()
    for row in range(len(rollout.tokens)):
        length = int(rollout.mask[row].sum())
        assert rollout.mask[row, :length].all(), "generated tokens come first"
        assert (rollout.tokens[row, length:] == loaded.pad_id).all()
        assert (rollout.logprobs[row, length:] == 0).all()
        assert (rollout.entropies[row, length:] == 0).all()
        ended = rollout.tokens[row, length - 1].item() == end
        assert ended == rollout.finished_mask[row].item(), "the emitted end token counts"
        assert end not in rollout.tokens[row, : length - 1]
        assert rollout.finished_mask[row] or length == 64


@pytest.mark.parametrize("parts", [(), ("shared-prefix",), ("cpu",)])
def test_rows_that_end_with_their_first_token(model_folders, parts):
    """Nothing has been decoded yet when they leave."""
    config, loaded, prompts = opened(model_folders("qwen3"), **{"rollout.max_new_tokens": 8})
    loaded = dataclasses.replace(without(loaded, *parts), end_ids=tuple(range(0, 260, 3)))
    rollout = sample_responses(loaded, QUESTIONS, prompts, 6, config.rollout, ("t", 6))
    lengths = rollout.mask.sum(1)
    assert (lengths == 1).any()
    assert (lengths > 2).any()
    logprobs, _ = teacher_forced(loaded, rollout, 1.0)
    assert (logprobs - rollout.logprobs[rollout.mask]).abs().max() < 1e-4


def test_samples_do_not_depend_on_batching_or_neighbours(model_folders):
    folder = model_folders("llama")
    config, loaded, prompts = opened(folder, **{"rollout.max_new_tokens": 24})
    together = sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("t", 2))
    narrow = without(loaded, kv_cache_tokens=200)
    single = sample_responses(narrow, QUESTIONS[::-1], prompts[::-1], 4, config.rollout, ("t", 2))
    assert together.texts[:4] == single.texts[-4:]
    assert together.texts[-4:] == single.texts[:4]
    assert sample_responses(loaded, QUESTIONS, prompts, 4, config.rollout, ("t", 3)).texts != together.texts


def test_sampled_frequencies_follow_the_distribution(model_folders):
    config, loaded, prompts = opened(model_folders("qwen2"), **{"rollout.max_new_tokens": 1})
    rollout = sample_responses(loaded, QUESTIONS[:1], prompts[:1], 4000, config.rollout, ("t", 4))
    probabilities = torch.softmax(loaded.model(torch.tensor([prompts[0]])).logits[0, -1].double(), -1)
    counts = torch.bincount(rollout.tokens[:, 0], minlength=len(probabilities)).double()
    likely = probabilities > 5 / 4000
    expected = 4000 * probabilities[likely]
    chi_square = ((counts[likely] - expected) ** 2 / expected).sum()
    freedom = int(likely.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations of a chi-square


@pytest.mark.parametrize(("key", "value"), [("top_k", 3), ("top_p", 0.5), ("min_p", 0.5)])
def test_truncated_sampling_keeps_to_its_set(model_folders, key, value):
    config, loaded, prompts = opened(
        model_folders("qwen3"),
        **{"rollout.max_new_tokens": 1, f"rollout.{key}": value},
    )
    rollout = sample_responses(loaded, QUESTIONS[:1], prompts[:1], 800, config.rollout, ("t", 5))
    probabilities = torch.softmax(loaded.model(torch.tensor([prompts[0]])).logits[0, -1], -1)
    ordered, tokens = probabilities.sort(descending=True)
    size = {
        "top_k": 3,
        "top_p": int((ordered.cumsum(0) < 0.5).sum()) + 1,
        "min_p": int((ordered >= 0.5 * ordered[0]).sum()),
    }[key]
    assert set(rollout.tokens[:, 0].tolist()) == set(tokens[:size].tolist())
    # log-probabilities stay those of the whole distribution: what a later forward pass gives
    assert torch.allclose(rollout.logprobs[:, 0].exp(), probabilities[rollout.tokens[:, 0]], atol=1e-5)
