"""Budget forcing on the bundled model: what is appended where, and what is counted."""

from __future__ import annotations

import pytest

from spinerl.comparison.forcing import forced_responses
from spinerl.config import load_config
from spinerl.engine.sampler import greedy_responses

CUE, ANSWER = " Wait", " The answer is"
CONFIG = load_config(overrides=["data=tiny/shift-a", "data.max_questions=3"])


@pytest.fixture(scope="module")
def greedy(asked):
    found = greedy_responses(*asked, CONFIG.rollout)
    assert found.finished_mask.all()
    return found


def force(asked, budget: int, answer_tokens: int = 16):
    return forced_responses(*asked, CONFIG.rollout, budget, CUE, ANSWER, answer_tokens)


def test_a_response_that_ends_early_is_sent_on(asked, greedy):
    length = int(greedy.mask.sum(1).max())
    for (text, _, num_tokens), first in zip(force(asked, 3 * length), greedy.texts, strict=True):
        assert text.startswith(first + CUE)
        assert num_tokens > len(asked[0].tokenizer(first)["input_ids"])


def test_a_budget_that_ends_first_asks_for_the_answer(asked, greedy):
    budget = int(greedy.mask.sum(1).min()) - 4
    for i, (text, _, num_tokens) in enumerate(force(asked, budget)):
        start = asked[0].tokenizer.decode(greedy.tokens[i, :budget].tolist())
        assert text.startswith(start + ANSWER)
        assert CUE not in text
        assert budget < num_tokens <= budget + 16


def test_no_tokens_left_for_going_on_leaves_the_greedy_response(asked, greedy):
    for i in range(3):
        length = int(greedy.mask[i].sum())
        one = (asked[0], asked[1][i : i + 1], asked[2][i : i + 1])
        assert force(one, length) == [(greedy.texts[i], False, length)]


def test_what_is_counted_is_what_the_model_wrote(asked):
    """All tokens within the budget but the cues, and those of the answer."""
    loaded, budget = asked[0], 60
    for text, truncated, num_tokens in force(asked, budget):
        before, cut, after = text.partition(ANSWER)
        cues = before.count(CUE) * len(loaded.tokenizer(CUE)["input_ids"])
        assert cut
        # An end token that was dropped was written too: one before each cue.  One more ends the answer.
        assert num_tokens - len(loaded.tokenizer(after)["input_ids"]) - (not truncated) <= budget
        assert num_tokens >= budget - cues
        assert before.count(CUE) >= 1


def test_an_answer_that_needs_more_is_truncated(asked, greedy):
    budget = int(greedy.mask.sum(1).min()) - 4
    assert all(truncated for _, truncated, _ in force(asked, budget, answer_tokens=1))


def test_questions_do_not_depend_on_their_neighbours(asked):
    loaded, questions, prompts = asked
    together = force(asked, 50)
    single = [force((loaded, questions[i : i + 1], prompts[i : i + 1]), 50)[0] for i in range(3)]
    assert together == single
