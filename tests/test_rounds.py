"""Responses that several steps learn from: when they are sampled, what each step gets, and that they outlive a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spinerl import rounds as rounds_module
from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.engine.tree import tree_responses
from spinerl.errors import CheckpointError, InputError
from spinerl.models.loading import load_model
from spinerl.rounds import Rounds, first_step
from spinerl.schedule import question_order
from spinerl.step import StepState, rollout_metrics, train_step
from spinerl.types import Question
from spinerl.workload import Workload
from tests.engine.test_truncation import distributions

TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with more words.", "What is 7?", "And 9?")
QUESTIONS = tuple(Question(f"q{i}", text) for i, text in enumerate(TEXTS))
RANKS = [3, 0, 4, 1, 2]
TENSORS = ("tokens", "mask", "finished_mask", "logprobs", "entropies", "certainties", "sampler_logprobs", "log_mass")
TREE = ["tree.bases=2", "tree.forks=1", "tree.branches=1"]


@pytest.mark.parametrize(
    ("reuse", "order", "expected"),
    [
        (0, "shuffled", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (0, "sequential", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (1, "shuffled", [1, 1, 3, 3, 5, 5, 7, 7, 9, 9]),  # 2 of 5 questions a step: 2 steps a pass, one question waits
        (1, "sequential", [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]),  # 3 steps until all have come
        (2, "shuffled", [1, 1, 1, 1, 5, 5, 5, 5, 9, 9]),
        (2, "easy-to-hard", [1, 1, 1, 1, 1, 1, 7, 7, 7, 7]),
    ],
)
def test_first_step_by_hand(reuse, order, expected):
    assert [first_step(step, reuse, 5, 2, order) for step in range(1, 11)] == expected


@pytest.fixture
def scene(model_folders, monkeypatch):
    """A function: overrides -> (configuration, workload, rounds, calls); `calls` fills with (question ids, step)."""
    calls = []

    def sample(loaded, questions, prompts, config, step, on_tokens=None):
        calls.append(([question.id for question in questions], step))
        return original(loaded, questions, prompts, config, step, on_tokens)

    original = rounds_module.sample
    monkeypatch.setattr(rounds_module, "sample", sample)

    def opened(*overrides, order="shuffled"):
        common = ["group_size=4", "rollout.max_new_tokens=12", "questions_per_step=2", f"data.order={order}", "seed=3"]
        config = load_config(overrides=[f"model={model_folders('qwen3')}", *common, *overrides])
        loaded = replace(
            load_model(config.model, config.engine), end_ids=tuple(range(1, 261, 10))
        )  # one token in ten ends a response
        work = Workload(loaded, QUESTIONS, tuple(tuple(loaded.tokenizer(text).input_ids) for text in TEXTS), {}, {})
        calls.clear()
        return config, work, Rounds(config, work, RANKS, 2), calls

    return opened


def asked(config, step):
    """The places of a step's questions in the workload."""
    return [RANKS[place] for place in question_order(5, 2, step, config.data.order, config.seed)]


def same(one, other, exact=True):
    assert [question.id for question in one.questions] == [question.id for question in other.questions]
    assert one.prompts == other.prompts
    assert one.num_responses == other.num_responses
    assert one.texts == other.texts
    for name in TENSORS:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert torch.equal(a, b) if exact or not a.is_floating_point() else (a - b).abs().max() < 1e-5, name


def shake(work):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in work.loaded.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def sampled_at_once(config, work, step, first):
    """The responses to a step's questions as the sampler gives them, asked nothing else, in the streams of `first`."""
    own = work.only(asked(config, step))
    return sample_responses(work.loaded, own.questions, own.prompts, 4, config.rollout, (config.seed, "train", first))


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_reuse_0_samples_once_and_each_step_gets_its_questions(scene, order):
    config, work, rounds, calls = scene("rollout.reuse=0", "rollout.top_p=0.9", order=order)
    expected = {step: sampled_at_once(config, work, step, 1) for step in range(1, 8)}
    reported, ended, lengths = [], [], {}

    def report(tokens, finished):
        reported.append(tokens)
        ended.append(finished)

    for step in range(1, 8):
        promised, before = 4 * rounds.num_asked(step, 7), sum(ended)
        rollout, age = rounds.draw(step, 7, report)
        assert sum(ended) - before == promised == (20 if step == 1 else 0)
        same(rollout, expected[step], exact=False)
        lengths |= {question.id: rollout.mask[4 * i : 4 * i + 4].sum() for i, question in enumerate(rollout.questions)}
        assert rollout.log_mass is not None
        assert age == step - 1
        drawn = rollout_metrics(rollout)["rollout/num_drawn"]
        if step == 1:
            shake(work)  # what was sampled stays as it is
            all_drawn = drawn
        else:
            assert drawn == 0
    ((ids, step),) = calls
    assert step == 1
    assert sorted(ids) == ["q0", "q1", "q2", "q3", "q4"]
    assert all_drawn == sum(lengths.values()) == sum(reported)


def test_only_questions_that_a_step_takes_are_sampled(scene):
    config, _, rounds, calls = scene("rollout.reuse=0")
    for step in (1, 2):
        rounds.draw(step, 2)
    assert calls == [([QUESTIONS[place].id for step in (1, 2) for place in asked(config, step)], 1)]

    # The one that waits in the first pass waits in the second too: the whole first round does without it.
    def taken(steps, seed):
        return {place for step in steps for place in question_order(5, 2, step, "shuffled", seed)}

    seed = next(seed for seed in range(50) if taken((1, 2), seed) == taken((3, 4), seed))
    _, _, rounds, calls = scene("rollout.reuse=2", f"seed={seed}")
    rounds.draw(1, 8)
    assert sorted(calls[0][0]) == sorted(f"q{RANKS[place]}" for place in taken((1, 2), seed))


@pytest.mark.parametrize(("order", "renewed"), [("shuffled", [1, 5]), ("sequential", [1, 7])])
def test_reuse_2_renews_after_two_passes_by_the_weights_of_then(scene, order, renewed):
    config, work, rounds, calls = scene("rollout.reuse=2", order=order)
    last, drawn, ages = 8, [], []
    for step in range(1, last + 1):
        first = max(begin for begin in renewed if begin <= step)
        if step == renewed[1]:
            shake(work)
        if step == first:
            end = renewed[1] - 1 if first == 1 else last
            expected = {number: sampled_at_once(config, work, number, first) for number in range(first, end + 1)}
        rollout, age = rounds.draw(step, last)
        same(rollout, expected[step], exact=False)
        drawn.append(rollout_metrics(rollout)["rollout/num_drawn"] > 0)
        ages.append(age)
    assert [step for step, some in enumerate(drawn, 1) if some] == renewed
    assert ages == [*range(renewed[1] - 1), *range(last - renewed[1] + 1)]
    assert [step for _, step in calls] == renewed
    taken = {QUESTIONS[place].id for step in range(renewed[1], last + 1) for place in asked(config, step)}
    assert set(calls[1][0]) == taken


def test_trees_are_held_too(scene):
    config, work, rounds, calls = scene("rollout.reuse=0", *TREE)
    own = {}
    for step in (1, 2, 3):
        only = work.only(asked(config, step))
        own[step] = tree_responses(work.loaded, only.questions, only.prompts, config, (config.seed, "train", 1))
    drawn = []
    for step in (1, 2, 3):
        rollout, _ = rounds.draw(step, 3)
        same(rollout, own[step], exact=False)
        drawn.append(rollout_metrics(rollout)["rollout/num_drawn"])
    only = work.only([int(name.removeprefix("q")) for name in calls[0][0]])
    whole = tree_responses(work.loaded, only.questions, only.prompts, config, (config.seed, "train", 1))
    assert drawn == [whole.num_drawn, 0, 0], "shared tokens count once"
    assert whole.num_drawn < int(whole.mask.sum())


@pytest.mark.parametrize(
    "overrides", [["reward=self-certainty", "rollout.top_p=0.8"], TREE], ids=["all figures", "trees"]
)
def test_what_is_saved_and_loaded_is_what_was_held(scene, tmp_path, overrides):
    config, work, rounds, calls = scene("rollout.reuse=2", *overrides)
    rounds.draw(1, 9)
    rounds.save(tmp_path)
    shake(work)
    loaded = Rounds(config, work, RANKS, 2)
    loaded.load(tmp_path)
    for step in (2, 3, 4):
        (rollout, age), (other, other_age) = loaded.draw(step, 9), rounds.draw(step, 9)
        same(rollout, other)
        assert age == other_age == step - 1
        assert rollout.num_drawn == 0
        assert (rollout.certainties is not None) == (rollout.log_mass is not None) == (overrides is not TREE)
    assert len(calls) == 1
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    third = Rounds(config, work, RANKS, 2)
    third.load(again)
    same(third.draw(3, 9)[0], rounds.draw(3, 9)[0])
    for which in (loaded, rounds):  # the next round is sampled again, by these weights
        which.draw(5, 9)
    same(loaded.draw(6, 9)[0], rounds.draw(6, 9)[0])
    assert [step for _, step in calls] == [1, 5, 5]


def test_a_step_amid_a_round_needs_the_rounds_responses(scene):
    for overrides, step in ((["rollout.reuse=0"], 2), (["rollout.reuse=2"], 6)):
        _, _, rounds, calls = scene(*overrides)
        with pytest.raises(CheckpointError, match=r"began at step [15] are not in the checkpoint"):
            rounds.draw(step, 9)
        assert not calls


def test_later_steps_of_a_round_are_off_policy(scene):
    """GSPO's ratios are taken before an update only if the weights have moved: here from the second step on."""
    overrides = [
        "rollout.reuse=0",
        "loss=gspo",
        "method=ttrl",
        "optim.lr=0.002",
        "loss.clip_low=0.9",
        "engine.disable=[]",
    ]
    config, work, rounds, _ = scene(*overrides, "questions_per_step=2")
    optimizer = Optimizer(work.loaded.model.parameters(), config.optim, 2)
    rewards = ((1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0))
    advantages = [a for own in rewards for a in ((r - sum(own) / 4) / torch.tensor(own).std().item() for r in own)]
    with Equivalence() as equivalence:
        for step in (1, 2):
            own = work.only(asked(config, step))
            rollout, _ = rounds.draw(step, 2)
            losses = []
            for row, advantage in enumerate(advantages):  # by the weights as they are before the step
                response, log_ratio = rollout.tokens[row][rollout.mask[row]], 0.0
                for i, p in enumerate(distributions(work.loaded.model, rollout.prompts[row // 4], response, 1.0)):
                    log_ratio += (math.log(p[response[i]]) - rollout.logprobs[row, i].item()) / len(response)
                ratio = math.exp(log_ratio)
                clipped = max(1 - config.loss.clip_low, min(1 + config.loss.clip_high, ratio))
                losses.append(-min(ratio * advantage, clipped * advantage) / 8)
            record, _ = train_step(
                work.loaded, None, optimizer, equivalence, own.questions, own.prompts, config, step, StepState(),
                oracle=lambda *_: rewards, draw=lambda step=step: rounds.draw(step, 2),
            )  # fmt: skip
            assert record.metrics["rollout/age"] == step - 1
            assert record.metrics["loss/policy"] == pytest.approx(sum(losses), abs=1e-4)
            assert (record.metrics["loss/log_ratio_max"] > 1e-2) == (step == 2)
            same(record.rollout, rollout)
    assert abs(sum(losses)) > 0.01, "the second step's ratios are not 1"
    with Equivalence() as equivalence:
        record, _ = train_step(
            work.loaded, None, optimizer, equivalence, own.questions, own.prompts, config, 3, StepState(),
            oracle=lambda *_: rewards,
        )  # fmt: skip
    assert "rollout/age" not in record.metrics


def test_a_stream_has_no_rounds():
    with pytest.raises(InputError, match=r"rollout\.reuse=2 cannot go with stream\.on"):
        load_config(overrides=["rollout.reuse=2", "stream.on=true"])
