"""Synthesis of drafts on the bundled model: what it reads, and what it draws from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spinerl.comparison.synthesis import synthesized_responses
from spinerl.config import load_config

OVERRIDES = ["data=tiny/shift-a", "data.max_questions=3"]
CONFIG = load_config(overrides=OVERRIDES)
DRAFTS = [
    ["3+4=7. 7-2=5. \\boxed{5}", "3+4=8. 8-2=6. \\boxed{6}"],
    ["5*8=40. \\boxed{40}"] * 2,
    ["Step by step: 2+24: 22, 26. 26-13: 16, 13. Answer: \\boxed{13}"] * 16,
]


@pytest.fixture(scope="module")
def written(asked):
    return synthesized_responses(*asked, DRAFTS, CONFIG)


def test_drafts_are_read_as_far_as_they_fit(asked, written):
    def num_tokens(text: str) -> int:
        return len(asked[0].tokenizer(text, add_special_tokens=False).input_ids)

    assert [one.num_read for one in written[:2]] == [2, 2]
    budget = asked[0].model.config.max_position_embeddings - CONFIG.rollout.max_new_tokens
    per_draft = num_tokens(f"Response 8: {DRAFTS[2][0]}\n\n")
    # the request around the drafts fits too, and one draft more would not fit
    assert 0 < budget - written[2].num_read * per_draft < 4 * per_draft


def test_the_question_is_not_read_unless_asked_for(asked, written):
    loaded, questions, prompts = asked
    others = [replace(question, text="What is 1 + 1?") for question in questions]
    assert synthesized_responses(loaded, others, prompts, DRAFTS, CONFIG) == written
    shown = load_config(overrides=[*OVERRIDES, "prompt.reference_question=true"])
    first, second = (synthesized_responses(loaded, own, prompts, DRAFTS, shown) for own in (questions, others))
    assert first != second


def test_draws_are_named_by_seed_and_question(asked, written):
    loaded, questions, prompts = asked
    single = synthesized_responses(loaded, questions[1:2], prompts[1:2], DRAFTS[1:2], CONFIG)
    assert single == written[1:2]
    drawn: list[int] = []

    def report(tokens: int, _finished: int) -> None:
        drawn.append(tokens)

    again = synthesized_responses(*asked, DRAFTS, load_config(overrides=[*OVERRIDES, "seed=1"]), report)
    assert again != written
    assert sum(one.num_tokens for one in again) == sum(drawn), "its own tokens, not those of the drafts"
