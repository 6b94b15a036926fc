"""Reading yes, no or maybe, in eleven languages (kind "yesno").  docs/answers.md, "Yes, no, maybe"."""

from __future__ import annotations

import re

from spinerl.answers.sentences import last_line, last_sentence, strip_decoration

__all__ = ["closing_word", "inner_word", "leading_word", "opening_word"]

_WORDS = {
    "yes": "yes yeah yep ja oui sí si sim sì да はい 예 네 نعم 是 是的 对 對 正确 正確 对的 有 会 可以 能"
    " evet có vâng हाँ tak affirmative",
    "no": "no nope nah nein nee non não nao нет いいえ いや 아니요 아니오 아니 لا كلا 否 不 不是 没有 沒有 不对 不對"
    " 不会 不能 hayır không नहीं nie",
    "maybe": "maybe perhaps vielleicht peut-être peut-etre quizás quizá tal_vez talvez forse возможно может_быть "
    "多分 たぶん おそらく 아마 아마도 ربما 可能 也许 也許 或许 不确定 不確定"
    " belki có_thể शायद może misschien possibly uncertain",
}
_VALUE = {word.replace("_", " "): value for value, words in _WORDS.items() for word in words.split()}
_LATIN = sorted((re.escape(w) for w in _VALUE if ord(w[0]) < 0x2000), key=len, reverse=True)
_CJK = sorted((re.escape(w) for w in _VALUE if ord(w[0]) >= 0x2000), key=len, reverse=True)
_WORD = rf"(?:(?P<latin>{'|'.join(_LATIN)})(?![^\W_]|['’]\w|-\w)|(?P<cjk>{'|'.join(_CJK)})(?=[^\w]|$|的|です|입니다))"
_HEDGE = (
    r"(?:(?:most |very |quite |more |almost )?(?:in (?:summary|conclusion|short|brief|general)|overall|to "
    r"(?:summarize|conclude)|probably|likely|definitely|clearly|certainly|simply|therefore|thus"
    r"|so|hence|then|indeed|possibly|surely|of course|apparently|presumably|tentatively|a|an|also|just|generally"
    r"|overall|"
    r"wahrscheinlich|also|donc|probablement|probablemente|provavelmente|probabilmente|вероятно|clear|cautious"
    r"|qualified|resounding|likely to be)[,:]?\s+)"
)
_LEAD = re.compile(
    rf"^(?:[\s*_\"'“(`:,\[{{<–—-]|\\text\{{)*(?:[(\[]?[A-Ja-j][).\]:]\s+)?{_HEDGE}{{0,3}}[\s*_\"'“(`]*{_WORD}", re.I
)
_AFTER = re.compile(
    r"[*_\"'”)`\]}>]*(?:\s*$|\s*[.,;:!?。，；！、\n–—(]|\s+-|-\s|\s+(?:because|since|as|but|and|for|due"
    r"|given|based|according|there (?:is|are|was|were)|it (?:is|does|can|was|has)|they|this|the (?:study|data"
    r"|results|evidence|authors|findings|paper)|"
    r"[A-Z0-9]|car|weil|porque|perché|mais|aber|pero|mas|ma)|\s*[^\x00-\x7f])"
)
_CLOSE = re.compile(rf"(?<![^\W_]){_WORD}[*_\"'”)`\]]{{0,4}}[.!?。！]?\s*$", re.I)
_SAYS = re.compile(
    r"\b(?:say|says|said|is|be|answer|answered|conclude|therefore|thus|so|hence|likely|probably|conclusion"
    r"|definitely|clearly|answering|suggest|suggests|indicates?|then|was|lean|leans|towards?|est|ist|es|é|è|likely"
    r"|a|an|of|with|to|it['’]s|that['’]s)\s*[:,]?\s*$",
    re.I,
)


def leading_word(text: str) -> str | None:
    """Yes, no or maybe at the start of what a cue introduces; "no evidence" is none.

    >>> leading_word("probably no."), leading_word("Yes - both"), leading_word("no evidence of it")
    ('no', 'yes', None)
    """
    match = _LEAD.match(text[:400])
    if match is None or _AFTER.match(text, match.end()) is None:
        return None
    return None if _offers_both(text, match.end()) else _value(match)


def opening_word(text: str) -> str | None:
    """Yes, no or maybe that opens a response or line, also after a list mark or option letter."""
    return leading_word(strip_decoration(text[:400]))


def closing_word(text: str) -> str | None:
    """Yes, no or maybe that ends the last sentence: "..., therefore yes", "The data support it: yes."

    >>> closing_word("It is unclear whether it helps; maybe.")
    'maybe'
    """
    sentence = last_sentence(last_line(text))
    match = _CLOSE.search(sentence[-300:])
    if match is None:
        return None
    sentence = sentence[-300:]
    word_start = match.start("latin") if match["latin"] else match.start("cjk")
    lead = sentence[:word_start].rstrip(" *_\"'“`(")
    if not lead or re.search(r"(?:/|\||\bor|\band|oder|ou|或)\s*$", lead, re.I):
        return None
    return _value(match) if lead[-1] in ",;:。，；：、.–—-" or _SAYS.search(lead + " ") else None


def inner_word(line: str) -> str | None:
    """Yes or no that a last sentence reports: "The results suggest that yes, it does."

    >>> inner_word("The results suggest that yes, it does.")
    'yes'
    """
    match = re.search(r"\b(?:that|say|conclude)\s+(?P<latin>yes|no)(?P<cjk>)\s*,\s+(?!no\b|or\b)", line[-300:], re.I)
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> str:
    word = match["latin"] or match["cjk"]
    return _VALUE[word.casefold()]


def _offers_both(text: str, end: int) -> bool:
    """ "yes/no", "yes or no": the question's options, not an answer."""
    return (
        re.match(rf"[*_\"'”)`]*\s*(?:/|\||,?\s*or\s+|,\s*(?=no[,/]))\s*{_WORD}", text[end : end + 30], re.I) is not None
    )
