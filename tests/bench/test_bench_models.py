"""The made-up models do what the measurements need of them."""

from __future__ import annotations

import pytest
import torch

from spinerl.bench.models import number_tokenizer, random_questions, stopping_rate, write_model
from spinerl.bench.rollout import generate
from spinerl.bench.settings import load_settings
from spinerl.bench.step import vote_rewards
from spinerl.bench.work import Job, open_work
from tests.bench.miniature import MODEL, overrides

SMALL = load_settings(overrides(MODEL, questions=4, group_size=16, prompt_tokens=6, new_tokens=32))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(SMALL, folder / "equal", stops=False)
    write_model(SMALL, folder / "half", stops=True)
    return Job(SMALL, folder)


def test_prompts_have_their_length_and_texts_read_back():
    tokenizer = number_tokenizer(64)
    questions, prompts = random_questions(tokenizer, SMALL, 3, 50)
    assert [tuple(tokenizer(q.text).input_ids) for q in questions] == list(prompts)
    assert {len(prompt) for prompt in prompts} == {50}
    assert (questions, prompts) == random_questions(tokenizer, SMALL, 3, 50)


def test_equal_responses_run_to_the_limit_on_both_sides(job):
    work = open_work(job)
    assert work.sample().mask.all()
    responses = generate(work, stops=False)
    assert responses.shape == (64, 32)
    assert not torch.isin(responses, torch.tensor([0, 1])).any()


def test_half_responses_stop_at_half_the_length_on_average(job):
    work = open_work(job, "half")
    lengths = work.sample().mask.sum(dim=1).double()
    error = 5 * lengths.std() / len(lengths) ** 0.5
    assert lengths.mean().item() == pytest.approx(16.0, abs=float(error))
    assert lengths.min() < 5
    assert lengths.max() == 32


def test_stopping_rate_keeps_the_mean():
    for limit in (2, 8, 128, 1000):
        rate = stopping_rate(limit)
        assert sum((1 - rate) ** i for i in range(limit)) == pytest.approx(limit / 2)


def test_random_responses_have_a_majority(job):
    from spinerl.answers import Equivalence

    work = open_work(job)
    with Equivalence() as equivalence:
        rewards = vote_rewards(work.sample().texts, work.config, equivalence)
    groups = [rewards[i : i + 16] for i in range(0, 64, 16)]
    assert sum(0 < sum(group) < 16 for group in groups) >= 2, "advantages that are not zero"
