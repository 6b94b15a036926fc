"""What declines to answer, and what answers."""

import pytest

from spinerl.answers.refusals import declines


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know the answer to this question.",
        "We do not know.",
        "I honestly don't know",
        "dont know",
        "Idk.",
        "unknown",
        "N/A",
        "I'm sorry, but I can't help with that.",
        "I am unable to answer.",
        "I'm not sure.",
        "Let me think. 3 + 4 is 7, but I cannot determine the answer.",
        "As an AI, I have no access to pictures.",
        "The answer cannot be determined from the picture.",
        "There is not enough information.",
        "Insufficient information is given.",
        "I can't see the image.",
        "So the final answer is \\boxed{unknown}.",
        "\\boxed{I don't know}",
        "我不知道",
        "这个问题无法确定。",
        "Das weiß ich nicht. Ich weiß es nicht.",
        "Je ne sais pas.",
        "No lo sé.",
        "Não sei.",
        "Non lo so.",
        "Я не знаю.",
        "わかりません。",
        "잘 모르겠습니다.",
        "لا أعرف",
    ],
)
def test_refusals(text):
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "The answer is 12.",
        "I know that 3 + 4 = 7.",
        "We know the sum: 12.",
        "I don't know whether it rains, but the answer is \\boxed{3}.",
        "I hope the answer is helpful!",
        "She does not know him. She is sorry.",
        "x is an unknown number, 12",
        "no",
        "no solution",
        "Sorry is what she said, 5 times.",
        "I don't know yet. " + "So we add: 3 + 4 = 7. " * 30 + "The answer is 7.",  # it went on to answer
    ],
)
def test_answers(text):
    assert not declines(text)
