"""Verify, correct, vote: by a sampler that follows a script, and on the bundled model."""

from __future__ import annotations

import dataclasses

import pytest

from spinerl.comparison.plan import plan
from spinerl.comparison.refine import Refined, refined_responses
from spinerl.config import load_config
from spinerl.engine.rollouts import rollout_of

CONFIG = load_config(overrides=["data=tiny/shift-a", "data.max_questions=3"])


class Script:
    """Finds every response wrong that does not hold \\boxed{5}, and corrects the n-th time to what it is given."""

    def __init__(self, *corrections: str, verdict: str = "no", finished: bool = True) -> None:
        self.corrections, self.verdict, self.finished = list(corrections), verdict, finished
        self.asked: list[tuple[object, ...]] = []

    def respond(self, loaded, questions, prompts, num_responses, rollout, seed, limits, on_tokens):  # noqa: ARG002
        texts = []
        for question, prompt in zip(questions, prompts, strict=True):
            request = loaded.tokenizer.decode(prompt)
            assert question.text in request
            self.asked.append((*seed[1:], question.id))
            if "Correct what is wrong" in request:
                assert f"Answer: {self.verdict}" in request, "the check is read"
                texts.append(self.corrections.pop(0))
            else:
                texts.append("Answer: yes" if "\\boxed{5}" in request else f"Answer: {self.verdict}")
        responses = [loaded.tokenizer(text)["input_ids"] for text in texts]
        on_tokens(sum(map(len, responses)))
        ended = [self.finished] * len(texts)
        return rollout_of(questions, prompts, num_responses, responses, ended, loaded.tokenizer, 0)


def refine(asked, script, texts, rounds=1):
    """(the drafts of each question afterwards, tokens sampled) of these texts, 10 tokens each."""
    loaded, questions, prompts = asked
    drafts = [[Refined(text, False, 10) for text in own] for own in texts]
    counted: list[int] = []
    scripted = dataclasses.replace(loaded, sampler=script)
    refined_responses(scripted, questions, prompts, drafts, CONFIG, rounds, counted.append)
    return drafts, sum(counted)


def test_what_a_check_finds_wrong_is_written_again(asked):
    script = Script("So \\boxed{7}")
    drafts, num_tokens = refine(asked, script, [["\\boxed{5}", "\\boxed{6}"], ["\\boxed{5}"], []])
    assert [[one.text for one in own] for own in drafts] == [["\\boxed{5}", "So \\boxed{7}"], ["\\boxed{5}"], []]
    first, second = (question.id for question in asked[1][:2])
    assert script.asked == [("verify", 0, 0, first), ("verify", 0, 0, second), ("verify", 1, 0, first),
                            ("correct", 1, 0, first)]  # fmt: skip
    kept, corrected = drafts[0]
    assert (kept.length, kept.num_corrections, corrected.num_corrections) == (10, 0, 1)
    assert corrected.num_tokens > corrected.length > 0, "its check is paid for too"
    assert sum(one.num_tokens for own in drafts for one in own) == num_tokens


def test_a_correction_is_checked_in_the_next_round(asked):
    texts = [["\\boxed{6}"], [], []]
    drafts, _ = refine(asked, Script("\\boxed{7}", "\\boxed{5}", "never asked for"), texts, rounds=4)
    assert (drafts[0][0].text, drafts[0][0].num_corrections) == ("\\boxed{5}", 2)
    drafts, _ = refine(asked, Script("\\boxed{7}", "\\boxed{8}"), texts, rounds=2)
    assert drafts[0][0].text == "\\boxed{8}", "no rounds are left to check it"


@pytest.mark.parametrize("script", [Script(verdict="maybe"), Script(verdict="who knows"), Script(finished=False)])
def test_without_a_clear_no_a_response_stays(asked, script):
    drafts, num_tokens = refine(asked, script, [["\\boxed{6}"], [], []])
    assert (drafts[0][0].text, drafts[0][0].num_corrections) == ("\\boxed{6}", 0)
    assert drafts[0][0].num_tokens == num_tokens > 0


def test_what_there_is_no_space_for_is_not_checked(asked):
    script = Script()
    drafts, num_tokens = refine(asked, script, [["so " * 3000], [], []])
    assert (drafts[0][0].num_corrections, num_tokens, script.asked) == (0, 0, [])


def test_the_bundled_model_is_asked_and_repeats_itself(asked):
    loaded, questions, prompts = asked

    def once(num):
        drafts = [[Refined("3+4=8. \\boxed{8}", False, 10) for _ in range(num)] for _ in questions]
        refined_responses(loaded, questions, prompts, drafts, CONFIG)
        return drafts

    two, one = once(2), once(1)
    assert [own[:1] for own in two] == one, "what becomes of a draft does not depend on the others"
    assert all(draft.num_tokens > 0 for own in two for draft in own)


def test_only_on_request_and_without_images():
    assert "refine" not in plan(["methods=none"]).tasks[0].after
    assert "refine" not in plan(["methods=none", "refine=4", "data=tiny-vqa/shift-a"]).tasks[0].after
    first, second = plan(["methods=none", "refine=32", "votes=4", "samples=8", "seeds=0,1"]).tasks
    assert first.after["refine"] == {"responses": 32, "rounds": 1}
    assert first.after["votes"] == 32, "as many are sampled as are checked"
    assert "refine" not in second.after
