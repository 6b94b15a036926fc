"""Responses that decline to answer: "I don't know", "I cannot determine ...".  A plain text function."""

from __future__ import annotations

import re

__all__ = ["is_refusal"]

_TAIL_CHARS = 400  # a response that refuses says so at its end
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'"})
_PHRASES = re.compile(
    r"""
    \b(?:i|we)\ (?:(?:honestly|really|simply|just)\ )?(?:do\ not|don'?t)\ (?:actually\ |really\ )?know\b
  | \b(?:i|we)\ have\ no\ idea\b
  | \b(?:i\ am|i'?m|we\ are|we'?re)\ (?:sorry|unable|not\ able|not\ sure|afraid)\b
  | \b(?:i|we)\ (?:cannot|can\ not|can'?t|could\ not|couldn'?t|am\ not\ able\ to|will\ not|won'?t)
    \ (?:answer|determine|solve|help|assist|provide|give|say|tell|find|see|view|access|identify|do\ that)\b
  | \bas\ an\ ai\b
  | \b(?:answer|it|this|that|question|problem|value|result)\ (?:cannot|can\ not|can'?t|could\ not)\ be
    \ (?:determined|answered|found|known|solved|computed|calculated|identified)\b
  | \b(?:not\ enough|insufficient|too\ little)\ information\b
  | \bno\ (?:answer|solution)\ (?:can|could)\ be\ given\b
  | \bunable\ to\ (?:answer|determine|solve|find)\b
  | 我不知道 | 无法(?:回答|确定|判断) | 不能(?:回答|确定)
  | \bich\ wei(?:ß|ss)\ (?:es\ |das\ )?(?:leider\ )?nicht\b | \bkann\ ich\ (?:leider\ )?nicht\ (?:beantworten|sagen)\b
  | \bje\ ne\ sais\ pas\b | \bje\ ne\ peux\ pas\ (?:répondre|déterminer)\b
  | \bno\ (?:lo\ )?sé\b | \bno\ puedo\ (?:responder|determinar)\b
  | \bn[ãa]o\ (?:o\ )?sei\b | \bn[ãa]o\ posso\ (?:responder|determinar)\b
  | \bnon\ (?:lo\ )?so\b | \bnon\ posso\ (?:rispondere|determinare)\b
  | \bя\ не\ знаю\b | \bне\ могу\ (?:ответить|определить)\b
  | わかりません | 分かりません | 答えられません | 모르겠 | 알\ 수\ 없 | لا\ أعرف | لا\ أستطيع
    """,
    re.IGNORECASE | re.VERBOSE,
)
_BARE = re.compile(
    r"(?:i )?(?:dont|don't|do not) know|idk|no idea|not sure|unknown|n/?a|no answer|unanswerable|undetermined"
)


def is_refusal(text: str) -> bool:
    r"""Whether a response, or an answer read from one, declines to answer.

    Looked at is the last box, where there is one, else the end of the text.

    >>> is_refusal("I'm sorry, but I cannot answer this."), is_refusal("I don't know, perhaps \\boxed{3}.")
    (True, False)
    """
    if "\\boxed{" in text:
        return is_refusal(text.rpartition("\\boxed{")[2].partition("}")[0])
    tail = " ".join(text[-_TAIL_CHARS:].translate(_APOSTROPHES).split())
    return _PHRASES.search(tail) is not None or _BARE.fullmatch(tail.strip(" .!*").lower()) is not None
