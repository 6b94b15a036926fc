"""Gold answers of public data sets, written as models write them, are read back; skipped where there are
none."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from spinerl.answers import Equivalence, extract_answer, normalize_answer

FOLDER = Path(os.environ.get("SPINERL_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

WRAPPERS = {
    "box": "So we get \\boxed{%s}.",
    "phrase": "Work: 3 + 4 = 7.\n\nThe answer is $%s$.",
    "final answer, box": "**Final Answer**\n\nThe final answer is $\\boxed{%s}$",
    "thinking, display box": "<think>maybe \\boxed{99}</think>\nHence\n\\[\n\\boxed{%s}\n\\]",
    "display": "We find\n$$%s$$",
    "hope": "Final Answer: The final answer is $%s$. I hope it is correct.",
    "bold answer": "**Answer:** \\(%s\\)",
    "header, display": "**Final Answer**\n\n\\[%s\\]",
    "tag": "<think>hm</think><answer>%s</answer>",
}


# what real models put around an answer, before and behind it, in five languages; maths stands in dollars outside boxes
CONVERSATION = {
    "pleasantry behind a box": "So we get \\boxed{%s}. I hope this helps!",
    "attractor": "The answer is %s. I hope the answer is helpful!",
    "markdown, remark": "**Final Answer:** %s\n\nThis result is consistent with the estimate. Let me know "
    "if you have any questions!",
    "tag": "<think>maybe \\boxed{99}</think>\n<answer>%s</answer>",
    "sentence in a tag": "<reasoning>First 12, then 7.</reasoning>\n<answer>\nThe answer is %s.\n</answer>",
    "run-on": "First 3 + 4 = 7.\nAnswer: %s\n\nQuestion: What is 12 + 30?\nAnswer: 42",
    "German": "Also gilt 3 + 4 = 7. Die Antwort ist %s. Ich hoffe, das hilft!",
    "French": "On a donc 3 + 4 = 7. La réponse est %s.",
    "Spanish": "Sumamos 3 + 4 = 7.\n\nRespuesta: %s",
    "Chinese": "因为 3 + 4 = 7，所以答案是 %s。",
    "bold answer, remark": "Adding up, 3 + 4 = 7.\n\n**Answer: %s**\n\nThe steps above show that this is right.",
    "hashes": "3 + 4 = <<3+4=7>>7\n#### %s\n\nLet me know if you need another solution!",
}
KINDS = {
    "math500": "math",
    "amc": "math",
    "aime2024": "math",
    "gsm8k": "number",
    "svamp": "number",
    "pubmedqa": "yesno",
}
SAMPLE = 120  # of each data set, evenly spread


def golds(name: str) -> list[str]:
    path = FOLDER / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "least"), [("math500", 0.99), ("amc", 1.0), ("aime2024", 1.0)])
def test_a_wrapped_gold_answer_is_read_back(name: str, least: float, wrapper: str) -> None:
    answers = golds(name)
    with Equivalence() as equivalence:
        right = [
            equivalence.equivalent(extract_answer(WRAPPERS[wrapper].replace("%s", gold), "math"), gold, "math")
            for gold in answers
        ]
    assert sum(right) / len(right) >= least, [g for g, ok in zip(answers, right, strict=True) if not ok]


def test_every_gold_answer_has_a_normal_form() -> None:
    for name in ("math500", "amc", "aime2024"):
        for gold in golds(name):
            assert normalize_answer(normalize_answer(gold)) == normalize_answer(gold)


def test_different_gold_answers_are_not_merged() -> None:
    distinct = sorted(set(golds("math500") + golds("amc") + golds("aime2024")))
    with Equivalence() as equivalence:
        classes = equivalence.classes(distinct, "math")
    groups = defaultdict(list)
    for gold, number in zip(distinct, classes, strict=True):
        groups[number].append(gold)
    assert None not in groups
    for group in groups.values():
        # one number but for zeros, separators, unit signs and "x =", or checked by hand
        if len(group) > 1:
            digits = {
                g.replace("\\frac14", "1/4").replace("\\frac{1}{4}", "1/4")
                .replace(",\\!", "").replace("x=", "")
                .replace("^\\circ", "").replace("\\$", "").replace("\\mbox{ cm}^2", "").replace(" ", "")
                .removesuffix(".0").lstrip("0") or "0"
                for g in group
            }  # fmt: skip
            assert len(digits) == 1 or digits == {"-2,1", "1,-2"}, group


@pytest.mark.parametrize("wrapper", CONVERSATION)
@pytest.mark.parametrize("name", KINDS)
def test_a_gold_answer_in_conversation_is_read_back(name: str, wrapper: str) -> None:
    answers, kind = golds(name), KINDS[name]
    sample = answers[:: max(1, len(answers) // SAMPLE)]
    in_dollars = kind == "math" and wrapper not in ("pleasantry behind a box", "tag")
    with Equivalence() as equivalence:
        wrong = [
            gold
            for gold in sample
            if not equivalence.equivalent(
                extract_answer(CONVERSATION[wrapper].replace("%s", f"${gold}$" if in_dollars else gold), kind),
                gold,
                kind,
            )
        ]
    assert len(wrong) <= 0.005 * len(sample), wrong


@pytest.mark.parametrize("name", ["gsm8k", "svamp"])
def test_distinct_numbers_are_never_equal(name: str) -> None:
    distinct = sorted(set(golds(name)))
    with Equivalence() as equivalence:
        classes = equivalence.classes(distinct, "number")
    groups = defaultdict(set)
    for gold, number in zip(distinct, classes, strict=True):
        groups[number].add(float(gold.replace(",", "")))
    assert None not in groups
    assert all(len(values) == 1 for values in groups.values())
