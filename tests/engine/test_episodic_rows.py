"""TTAug's decoding, TTAdapt and TT-SI against their formulas by loops, and their recorded steps."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

import spinerl.views
import spinerl.writing
from spinerl.answers import Equivalence, vote
from spinerl.config import RolloutConfig, load_config
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import averaged_responses, sample_responses
from spinerl.engine.update import update
from spinerl.errors import InputError
from spinerl.models.loading import load_model
from spinerl.step import StepState, freeze_targets, rollout_metrics, sample, train_step, trained_rows
from spinerl.types import Question
from spinerl.views import Views
from tests.engine.test_methods import ANSWERS, QUESTIONS, brute_ids, same_as_recorded
from tests.engine.test_update import gradient
from tests.models import compute_norms_in_float64

GROUP = 3  # prompts decoded together
PROMPTS = ("What is 2 + 3?", "Tell: 2 + 3 is what?", "2 + 3", "Hi", "Hello there, you", "Hi\nHi")


def opened(folder, method, *overrides, dtype=torch.float64):
    config = load_config(overrides=[f"model={folder}", f"method={method}", "rollout.max_new_tokens=14", *overrides])
    policy = load_model(config.model, config.engine)
    policy.model.to(dtype)
    if dtype == torch.float64:
        compute_norms_in_float64(policy.model)
    return config, policy, [tuple(policy.tokenizer(question.text).input_ids) for question in QUESTIONS]


def views_of(config, policy, equivalence):
    return Views(config, lambda question: tuple(policy.tokenizer(question.text).input_ids), equivalence)


def gradient_of(policy, loss):
    policy.model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def same_gradient(found, brute):
    scale = max(g.abs().max().item() for g in brute.values())
    assert scale > 1e-6
    for name, value in brute.items():
        assert (found[name] - value).abs().max().item() <= 1e-6 * scale, name


# ---- TTAug: one response to several prompts


def brute_averaged(policy, prompts, longest):
    """argmax_v sum_k softmax(z_k)_v, token by token, each prompt's whole text run again."""
    tokens = []
    while len(tokens) < longest and not (tokens and tokens[-1] in policy.end_ids):
        mean = 0
        for prompt in prompts:
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            mean = mean + torch.softmax(logits.double(), -1) / len(prompts)
        tokens.append(int(mean.argmax()))
    return tokens


@pytest.mark.parametrize(
    "keys", [{}, {"kv_cache_tokens": 1}, {"disable": ["shared-prefix"]}], ids=["", "few", "copies"]
)
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_one_response_is_decoded_from_the_mean_distribution(model_folders, architecture, keys):
    config, policy, _ = opened(model_folders(architecture), "ttrl", dtype=torch.float32)
    policy = dataclasses.replace(policy, settings=config.engine.model_copy(update=keys))
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in PROMPTS]
    asked = [Question(str(i), text) for i, text in enumerate(PROMPTS)]
    rollout = averaged_responses(policy, asked, prompts, GROUP, RolloutConfig(max_new_tokens=9, temperature=0.7))
    own = [brute_averaged(policy, prompts[i : i + GROUP], 9) for i in range(0, len(prompts), GROUP)]
    single = [brute_averaged(policy, [prompt], 9) for prompt in prompts]
    for row in range(len(prompts)):
        tokens = rollout.tokens[row, rollout.mask[row]].tolist()
        assert tokens == own[row // GROUP]
        # Figures are of each prompt's own distribution, at the rollout's temperature.
        ids = torch.tensor([[*prompts[row], *tokens]])
        with torch.no_grad():
            logits = policy.model(ids).logits[0, len(prompts[row]) - 1 : -1].double() / 0.7
        log_dist = torch.log_softmax(logits, -1)
        expected = log_dist[torch.arange(len(tokens)), torch.tensor(tokens)]
        assert torch.allclose(rollout.logprobs[row, : len(tokens)].double(), expected, atol=1e-4)
        entropies = -(log_dist.exp() * log_dist).sum(-1)
        assert torch.allclose(rollout.entropies[row, : len(tokens)].double(), entropies, atol=1e-4)
    assert any(own[row // GROUP] != single[row] for row in range(len(prompts))), "the prompts do not agree"


# ---- TTAdapt


def test_ttadapts_gradient_is_that_of_its_formula(model_folders):
    """L = - (1 / number of tokens) sum over the K inputs of sum_t log pi(y_t), y decoded from all of them."""
    config, policy, prompts = opened(model_folders("qwen3"), "ttadapt")
    with Equivalence() as equivalence:
        rollout, _ = views_of(config, policy, equivalence).draw(policy, QUESTIONS, prompts, 1)
    assert len(rollout.tokens) == 12  # a question and its three views, one response each
    for first in range(0, 12, 4):
        ids = [list(rollout.prompts[row]) for row in range(first, first + 4)]
        expected = brute_averaged(policy, ids, 14)
        assert all(rollout.tokens[row, rollout.mask[row]].tolist() == expected for row in range(first, first + 4))
    assert len(set(rollout.prompts[:4])) == 3, "blank and read again are other prompts; a picture there is not"
    batch, old, entropies = trained_rows(rollout, config)
    rewards = tuple((1.0,) for _ in range(12))
    targets, _ = freeze_targets(None, batch, rewards, old, entropies, config, StepState())
    _, found = gradient(config, policy, None, batch, targets)
    total, num = 0, 0
    for row in range(12):
        start, ids = brute_ids(rollout, row)
        logs = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0], -1)[start - 1 : -1]
        for t, token in enumerate(ids[start:]):
            total, num = total - logs[t, token], num + 1
    same_gradient(found, gradient_of(policy, total / num))


# ---- TT-SI


@pytest.fixture
def said(monkeypatch):
    """Lets the responses to the questions say ANSWERS: their margins are 1/4, 1 and 1/2."""

    def count(rollout, *_, **__):
        votes = []
        with Equivalence() as equivalence:
            for question in rollout.questions:
                given = list(ANSWERS[int(question.id)])
                votes.append(vote(given, equivalence.classes(given, "number")))
        return tuple(votes)

    monkeypatch.setattr(spinerl.views, "count_votes", count)


def writes(monkeypatch, texts):
    """Lets the policy write these, in turn, where it is asked for questions."""
    left = list(texts)

    def written(policy, questions, prompts, num, rollout, seed, on_tokens=None):
        found = sample_responses(policy, questions, prompts, num, rollout, seed, on_tokens)
        new = tuple(left.pop(0) for _ in questions)
        return dataclasses.replace(found, texts=new, finished_mask=torch.ones(len(new), dtype=torch.bool))

    monkeypatch.setattr(spinerl.writing, "sample_responses", written)


SIMILAR = ("What is 4 + 9?", "What is 1 + 1?")


def drawn(config, policy, prompts, equivalence):
    views = views_of(config, policy, equivalence)
    rollout, _ = views.draw(policy, QUESTIONS, prompts, 1)
    return views, rollout


@pytest.mark.usefixtures("said")
def test_only_unsure_questions_get_similar_ones(model_folders, monkeypatch):
    keys = ["group_size=4", "vote.views=[similar,similar]"]
    config, policy, prompts = opened(model_folders("qwen3"), "tt-si", *keys, dtype=torch.float32)
    writes(monkeypatch, SIMILAR)
    with Equivalence() as equivalence:
        views, rollout = drawn(config, policy, prompts, equivalence)
        fresh = [vote(["1", "1"], [0, 0]) for _ in rollout.questions]
        decided, figures = views.vote(rollout, fresh, [], 1, equivalence)
    assert decided == tuple(fresh), "each votes for itself"
    asked = ["0", "0/view 1", "0/view 2", "1", "2"]  # margins 1/4 < 1/2, 1, and 1/2, which is not under it
    assert [question.id for question in rollout.questions] == asked
    assert [question.text for question in rollout.questions[1:3]] == list(SIMILAR)
    assert figures["views/unsure_frac"] == pytest.approx(1 / 3)
    # What each says is what it says when all are asked at once; every token is counted, the written ones too.
    ids = [prompts[0], *(tuple(policy.tokenizer(text).input_ids) for text in SIMILAR), *prompts[1:]]
    at_once = sample(policy, rollout.questions, ids, config, 1)
    assert torch.equal(rollout.tokens, at_once.tokens)
    assert torch.equal(rollout.mask, at_once.mask)
    assert torch.allclose(rollout.logprobs, at_once.logprobs, atol=1e-5)
    assert rollout.total_drawn > at_once.total_drawn


def stepped(config, policy, prompts, views, equivalence):
    optimizer = Optimizer(policy.model.parameters(), config.optim, 1)
    draw = partial(views.draw, policy, QUESTIONS, prompts, 1)
    record, _ = train_step(
        policy, None, optimizer, equivalence, QUESTIONS, prompts, config, 1, StepState(), draw=draw, memory=views
    )
    return record


@pytest.mark.usefixtures("said")
def test_nothing_is_learned_where_all_are_sure(model_folders):
    keys = ["group_size=4", "vote.unsure_margin=0.2", "questions_per_step=3"]
    config, policy, prompts = opened(model_folders("qwen3"), "tt-si", *keys, dtype=torch.float32)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    with Equivalence() as equivalence:
        views = views_of(config, policy, equivalence)
        record = stepped(config, policy, prompts, views, equivalence)
    assert record.metrics["views/unsure_frac"] == 0
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


VIEW_ANSWERS = (("3", "3", "8", None), ("6", "5", "5", "5"))


def tt_si_step(config, policy, prompts, equivalence, step=1):
    """(rollout, rewards, weights of the questions): the similar questions' responses say VIEW_ANSWERS."""
    views = views_of(config, policy, equivalence)
    rollout, _ = views.draw(policy, QUESTIONS[:1], prompts[:1], step)
    rewards = [[0.0] * 4]
    for given in VIEW_ANSWERS:
        one = vote(list(given), equivalence.classes(list(given), "number"))
        rewards.append([float(c == one.winner) for c in one.classes])
    return rollout, rewards, [0.0, 1.0, 1.0]


@pytest.mark.usefixtures("said")
def test_tt_sis_gradient_is_that_of_its_formula(model_folders, monkeypatch):
    """L = - sum over the similar questions' winners of sum_t log pi / all of their tokens; the question has none."""
    config, policy, prompts = opened(model_folders("qwen3"), "tt-si", "group_size=4", "vote.views=[similar,similar]")
    writes(monkeypatch, SIMILAR)
    with Equivalence() as equivalence:
        rollout, rewards, weights = tt_si_step(config, policy, prompts, equivalence)
    batch, old, entropies = trained_rows(rollout, config)
    ones = [[1.0] * 4, *rewards[1:]]  # the question's own would be learned from, were it not for its weight
    targets, _ = freeze_targets(None, batch, ones, old, entropies, config, StepState(), weights)
    _, found = gradient(config, policy, None, batch, targets)
    total, num = 0, 0
    for row in (4, 5, 9, 10, 11):  # 3, 3 of the first similar question; 5, 5, 5 of the second
        start, ids = brute_ids(rollout, row)
        logs = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0], -1)[start - 1 : -1]
        for t, token in enumerate(ids[start:]):
            total, num = total - logs[t, token], num + 1
    same_gradient(found, gradient_of(policy, total / num))


@pytest.mark.usefixtures("said")
def test_a_step_of_tt_si_learns_from_the_views_only(model_folders, monkeypatch):
    """The weights that `freeze_targets` is given in a step are 0 for questions and 1 for their views."""
    keys = [
        "group_size=4",
        "vote.views=[similar,similar]",
        "answer.kind=text",
        "answer.truncated=count",
        "vote.tie=first",
    ]
    config, policy, prompts = opened(model_folders("qwen3"), "tt-si", *keys, dtype=torch.float32)
    writes(monkeypatch, SIMILAR)
    with Equivalence() as equivalence:
        views = views_of(config, policy, equivalence)
        seen = []
        monkeypatch.setattr("spinerl.step.freeze_targets", lambda *args: seen.append(args) or freeze_targets(*args))
        record = stepped(config, policy, prompts, views, equivalence)
    assert seen[0][-1] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert len(record.votes) == len(record.rollout.questions) == 3
    assert (record.targets.advantages == 0).all(), "of the questions themselves nothing is learned"
    assert record.metrics["optim/grad_norm"] > 0


def test_questions_with_options_get_no_similar_ones(model_folders):
    config, policy, _ = opened(model_folders("qwen3"), "tt-si", "group_size=4", dtype=torch.float32)
    question = dataclasses.replace(QUESTIONS[0], choices=("2", "5"), answer_kind="choice")
    assert spinerl.writing.write_questions(policy, [question], "similar", config, ("s",)) == ([None], 0)


# ---- both


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("method", ["ttadapt", "tt-si"])
def test_ten_steps_are_the_recorded_ones(model_folders, monkeypatch, method):
    """An episode of ten steps; to record: as in tests/engine/test_methods.py."""
    keys = ["group_size=4", "vote.views=[similar,similar]"] if method == "tt-si" else []
    config, policy, prompts = opened(model_folders("qwen3"), method, "optim.lr=2e-3", *keys)
    writes(monkeypatch, SIMILAR * 10)
    optimizer, rows = Optimizer(policy.model.parameters(), config.optim, 10), []
    with Equivalence() as equivalence:
        for step in range(10):
            if method == "tt-si":
                rollout, rewards, weights = tt_si_step(config, policy, prompts, equivalence, step)
            else:
                rollout, _ = views_of(config, policy, equivalence).draw(policy, QUESTIONS, prompts, step)
                rewards, weights = [[1.0]] * 12, None
            batch, old, entropies = trained_rows(rollout, config)
            targets, _ = freeze_targets(None, batch, rewards, old, entropies, config, StepState(), weights)
            figures = update(policy, None, batch, targets, optimizer, config, torch.arange(len(batch.tokens)))
            figures.pop("loss/log_ratio_max")  # rounding noise
            rows.append({"reward": sum(map(sum, rewards)), **figures, **rollout_metrics(rollout)})
    same_as_recorded(method, rows)
    assert all(row["optim/grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["method=ttadapt", "group_size=4"], "needs group_size=1"),
        (["vote.views=[blank]", "vote.pool=own"], r"set vote\.train_views=true"),
        (["vote.views=[blank]", "vote.unsure_margin=0.5"], r"needs vote\.pool=own"),
        (["vote.pool=average"], r"set vote\.views"),
    ],
)
def test_keys_that_do_not_fit(keys, says):
    with pytest.raises(InputError, match=says):
        load_config(overrides=keys)
