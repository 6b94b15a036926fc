"""Rewards that need more than a vote, through the loop that gives them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from spinerl import rewards as rewards_module
from spinerl.answers import Equivalence, vote
from spinerl.config import load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import sample_responses
from spinerl.errors import InputError
from spinerl.methods import METHODS
from spinerl.models.loading import load_model
from spinerl.plugins import register
from spinerl.rewards import STEP_REWARDS, RewardContext, check_reward, give_rewards, reference_prompt
from spinerl.step import StepState, train_step
from spinerl.types import Question

TEXTS = ("What is 2 + 3?", "Hi")
QUESTIONS = tuple(Question(str(i), text, answer_kind="number") for i, text in enumerate(TEXTS))


def opened(folder, *overrides):
    config = load_config(overrides=[f"model={folder}", "group_size=4", "rollout.max_new_tokens=12", *overrides])
    loaded = load_model(config.model, config.engine)
    return config, loaded, [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("none", "ttadapt", "tt-si")])
def test_every_method_takes_a_step(model_folders, method):
    overrides = ["answer.kind=text", "answer.truncated=count", "vote.tie=first", "optim.lr=0.01"]
    config, policy, prompts = opened(model_folders("llama"), f"method={method}", *overrides)
    anchor = load_model(config.model, config.engine)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    oracle = None
    if method == "grpo-gold":

        def oracle(questions, votes):
            return tuple((1.0, 0.0, 0.0, 1.0) for _ in zip(questions, votes, strict=True))

    with Equivalence() as equivalence:
        optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
        record, _ = train_step(
            policy, anchor, optimizer, equivalence, QUESTIONS, prompts, config, 1, StepState(), oracle=oracle
        )
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())
    changed = any(not torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    # The answers of a random model all differ: the first wins.  Their shares are equal, none has it twice, and no
    # reference agrees with one, no majority is large enough for a pair, no vote certain: these rewards teach nothing.
    silent = ("frequency", "empo", "ttrv", "ttrl-loo", "cat", "entropic", "scpo", "eata-fisher")
    assert changed == (record.metrics["optim/grad_norm"] > 0) == (method not in silent)
    assert len(record.rewards[0]) == 4


def test_reference_rewards_agreement_with_what_the_initial_model_wrote(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"), "method=cat")
    anchor = load_model(config.model, config.engine)
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    answers = [["4", "5", None, "4"], ["7", "7", "8", "9"]]
    with Equivalence() as equivalence:
        votes = tuple(vote(own, equivalence.classes(own, "number")) for own in answers)
        rewards = give_rewards(RewardContext(config, 3, policy, anchor, rollout, votes, equivalence))
    # The reference is digits drawn from a random model: what it says is read off its text by hand.
    asked = [
        reference_prompt(anchor, q, prompts[p], rollout.texts[4 * p : 4 * p + 4], config)
        for p, q in enumerate(QUESTIONS)
    ]
    written = sample_responses(anchor, QUESTIONS, asked, 1, config.rollout, (config.seed, "reference", 3))
    for text, finished, own, given in zip(written.texts, written.finished_mask.tolist(), answers, rewards, strict=True):
        said = re.findall(r"-?\d+", text) if finished else []
        expected = said[-1] if said else None
        assert given == tuple(float(answer is not None and answer == expected) for answer in own)


def test_a_reference_that_agrees_pays_those_who_said_so(model_folders, monkeypatch):
    """The same with a reference whose text is known."""
    config, policy, prompts = opened(model_folders("qwen3"), "method=cat")
    anchor = load_model(config.model, config.engine)
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    answers = [["4", "5", None, "4"], ["7", "7", "8", "9"]]

    def written(*given):
        drawn = sample_responses(*given)
        return replace(drawn, texts=("so it is 4.0", "it is 8"), finished_mask=torch.tensor([True, True]))

    monkeypatch.setattr(rewards_module, "sample_responses", written)
    with Equivalence() as equivalence:
        votes = tuple(vote(own, equivalence.classes(own, "number")) for own in answers)
        context = RewardContext(config, 3, policy, anchor, rollout, votes, equivalence)
        assert give_rewards(context) == ((1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0))


def test_a_reward_gets_what_it_names(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"))
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    votes = tuple(vote(["1", "1", "2", None], (0, 0, 1, None)) for _ in QUESTIONS)
    seen = []

    def reward(one, *, texts, question, num_tokens, entropies, mask, embeddings, finished=None, other=7):
        seen.append((one, texts, question, num_tokens, entropies, mask, embeddings, finished, other))
        return [float(n) for n in num_tokens]

    def everything(one, **known):
        seen.append(known)
        return (0.0,) * len(one.classes)

    with Equivalence() as equivalence:
        rewards_module.STEP_REWARDS["mine"] = reward
        rewards_module.STEP_REWARDS["all of it"] = everything
        try:
            for name in ("mine", "all of it"):
                own = config.model_copy(update={"reward": name})
                given = give_rewards(RewardContext(own, 5, policy, None, rollout, votes, equivalence))
                if name == "mine":
                    lengths = rollout.mask.sum(dim=1).tolist()
                    assert given == (tuple(lengths[:4]), tuple(lengths[4:]))
        finally:
            del rewards_module.STEP_REWARDS["mine"], rewards_module.STEP_REWARDS["all of it"]
    one, texts, question, num_tokens, entropies, mask, embeddings, finished, other = seen[1]
    assert (one, texts, question, other) == (votes[1], rollout.texts[4:], QUESTIONS[1], 7)
    assert num_tokens == rollout.mask[4:].sum(dim=1).tolist()
    assert torch.equal(entropies, rollout.entropies[4:])
    assert torch.equal(mask, rollout.mask[4:])
    assert embeddings.shape[0] == 4
    assert finished == rollout.finished_mask[4:].tolist()
    assert seen[2]["step"] == 5
    assert seen[2]["tie"] == "abstain"
    assert "embeddings" not in seen[2]  # what costs a pass of the model must be named


def needs_more(vote, *, gold):  # noqa: ARG001
    return (0.0,)


def returning(value):
    """A plug-in that returns this for the second question; for the first what it should."""
    return lambda vote, *, question: [0.0] * len(vote.classes) if question.id == "0" else value


def test_a_reward_that_asks_too_much_is_refused():
    with pytest.raises(InputError, match="asks for 'gold'; offered are question, texts"):
        check_reward(f"{__name__}:needs_more")


@pytest.fixture(scope="module")
def rewards_of(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"))
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    votes = tuple(vote(["1", "1", "2", None], (0, 0, 1, None)) for _ in QUESTIONS)

    def give(value):
        own = config.model_copy(update={"reward": register(returning(value))})
        with Equivalence() as equivalence:
            return give_rewards(RewardContext(own, 0, policy, None, rollout, votes, equivalence))

    return give


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0.0, math.nan, 0.0, 0.0], "response 1 got nan (float)"),
        ([0.0, 0.0, math.inf, 0.0], "response 2 got inf (float)"),
        ([None, 0.0, 0.0, 0.0], "response 0 got None"),
        ([0.0, "1", 0.0, 0.0], "response 1 got '1' (str)"),
        ([0.0, 0.0, 0.0, [1.0]], "response 3 got [1.0] (list)"),
        ([0.0], "it returned 1 numbers"),
        ([0.0] * 5, "it returned 5 numbers"),
        ([], "it returned 0 numbers"),
        ("1111", "it returned '1111' (str)"),
        (b"1111", "it returned b'1111' (bytes)"),
        (None, "it returned None"),
        (0.5, "it returned 0.5 (float)"),
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "it returned {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0} (dict)"),
        (torch.zeros(4, 1), "(Tensor)"),
        (torch.tensor(1.0), "it returned tensor(1.) (Tensor)"),
        (torch.tensor([0.0, 0.0, math.nan, 0.0]), "response 2 got tensor(nan) (Tensor)"),
    ],
)
def test_what_a_reward_returns_is_named_with_its_question(rewards_of, value, says):
    with pytest.raises(InputError) as refused:
        rewards_of(value)
    line = str(refused.value)
    assert f"reward={__name__}:returning" in line
    assert f" on question '1': {says}" in line or (says == "(Tensor)" and says in line)
    assert line.endswith("; it must return a sequence of 4 finite numbers, one per response")
    assert "\n" not in line


@pytest.mark.parametrize("value", [[1, 0, 1, 0], (True, False, True, False), torch.tensor([1.0, 0.0, 1.0, 0.0])])
def test_any_sequence_of_numbers_is_a_reward(rewards_of, value):
    assert rewards_of(value) == ((0.0,) * 4, (1.0, 0.0, 1.0, 0.0))


def test_an_array_or_an_iterator_of_numbers_is_a_reward(rewards_of):
    import numpy

    assert rewards_of(numpy.array([1.0, 0.0, 1.0, 0.0]))[1] == (1.0, 0.0, 1.0, 0.0)
    assert rewards_of(iter([1.0, 0.0, 1.0, 0.0]))[1] == (1.0, 0.0, 1.0, 0.0)


def test_without_reward_everyone_gets_nothing(model_folders):
    config, policy, prompts = opened(model_folders("qwen3"), "method=entropy-min-loss")
    rollout = sample_responses(policy, QUESTIONS, prompts, 4, config.rollout, ("r",))
    with Equivalence() as equivalence:
        votes = tuple(vote(["1", "1", "2", None], (0, 0, 1, None)) for _ in QUESTIONS)
        rewards = give_rewards(RewardContext(config, 0, policy, None, rollout, votes, equivalence))
    assert rewards == ((0.0,) * 4,) * 2


def test_names_are_checked_before_a_run():
    for name in (*STEP_REWARDS, "majority", "gold"):
        check_reward(name)
    with pytest.raises(InputError, match="entropy"):
        check_reward("entropi")


def test_gold_is_refused_unless_asked_for_by_name():
    with pytest.raises(InputError, match="grpo-gold"):
        load_config(overrides=["method=ttrl", "reward=gold"])
    with pytest.raises(InputError, match="grpo-gold"):
        load_config(overrides=["method=grpo-gold", "reward=majority"])
    assert load_config(overrides=["method=grpo-gold"]).reward == "gold"
