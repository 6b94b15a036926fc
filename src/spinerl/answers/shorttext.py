"""Reading short text (kind "text", and words in kind "auto"): sentences are reduced to what they say."""

from __future__ import annotations

import re

from spinerl.answers.normalize import MAX_ANSWER_CHARS, canonical_key, normalize_text
from spinerl.answers.refusals import is_no_answer_predicate, is_placeholder, is_refusal
from spinerl.answers.sentences import trim

__all__ = ["complement", "short_text", "strip_articles"]

_ARTICLE = re.compile(
    r"^(?:la|le|les|el|los|las|il|lo|gli|der|die|das|dem|den|ein|eine|einen|einem|un|una|une|uno|um|uma|o|os|as|the"
    r"|a|an|het|de|een)\s+(?=\S)|^l['’]",
    re.I,
)
_CJK_END = re.compile(r"(?:です|である|でした|だ|입니다|이다|이에요|예요|です。|了|的)?[。.\s]*$")
_SUBJECT = (
    r"(?:the|this|that|these|those|it|its|there|he|she|they|what|which|his|her|their|our|my|here|in (?:the"
    r"|this)[^,]{1,40},"
    r"|der|die|das|dies|diese[rs]?|es|le|la|les|ce|cette|cet|c['’]|l['’]|el|los|las|este|esta|esto|ese|il|lo|questo"
    r"|questa|quest['’]|o|a|os|as|isto|isso)"
)
_COPULA = (
    r"(?:is|are|was|were|would be|must be|should be|appears to be|seems to be|looks like|look like|shows|show"
    r"|depicts|depict|displays|display|represents|illustrates|contains|features|is called|is named|is known as"
    r"|ist|sind|war|zeigt|hei[ßs]t|est|sont|montre|était|es|son|era|muestra|è|é|são|sono|mostra|['’]s)"
)
_SENTENCE = re.compile(rf"^[\s*_\"'“>-]*(?:(?:so|thus|hence|therefore|overall|yes|and"
    rf"|then),?\s+)?(?:{_SUBJECT})(?P<middle>(?:\s+|(?<=['’]))[^.!?;:\n]{{0,140}}?|)(?P<copula>(?:(?<=\s)|(?<=['’])"
    rf"|(?<=\bit)|(?<=\bthat)){_COPULA})\s+(?P<rest>[^\n]{{1,120}})$", re.I)  # fmt: skip
_NAMED = re.compile(
    r"^[\s*_\"'“]*(?P<name>[A-Z][\w.'’-]*(?:\s+[\w.'’-]+){0,3}?)\s+(?:is|are|was|were)\s+(?:the|one of the)\s+\w", re.S
)
_ASK = re.compile(
    r"\b(?:not|that|because|which|who|whether|if|when|since|unclear|question|able|going|trying|asked|hard|due)\b", re.I
)
_LEAD_IN = re.compile(
    r"^(?:(?:most |very )?(?:likely|probably|clearly|definitely|simply|therefore|thus|actually|indeed|certainly"
    r"|likely|apparently|called|named|known as|located (?:in|on)|surely|also|basically)\s+|(?:an? )?(?:image"
    r"|picture|photo|photograph|example|view) of\s+)+",
    re.I,
)
_EAST = (
    re.compile(r"(?:是|为|為|叫做|叫|属于|屬於|显示了?|位于|位於)(?P<rest>[^，。,；：:是为]{1,16}?)[。.！\s]*$"),
    re.compile(r"(?:は|が)、?(?P<rest>[^は、。]{1,18}?)(?:です|である|だ|でした|になります)[。.\s]*$"),
    re.compile(
        r"(?:은|는|이|가)\s*(?P<rest>[^\s.。]{1,16}(?:\s[^\s.。]{1,10})?)\s*(?:입니다|이다|예요|이에요|이었습니다)[.。\s]*$"
    ),
    re.compile(r"(?:это|является|называется|—)\s+(?P<rest>[^.,;]{1,40})\.?\s*$"),
    re.compile(r"(?:هو|هي)\s+(?P<rest>[^.,،]{1,40})\.?\s*$"),
)


def short_text(candidate: str, *, cued: bool = False, language: str = "en") -> str | None:
    """The normal form of a short text, or None for a refusal, a placeholder, or too long a text.

    `cued`: it follows an answer cue, so that an aside in brackets at its end goes.
    """
    answer = trim(candidate)
    if not answer or len(answer) > MAX_ANSWER_CHARS or is_refusal(answer) or is_placeholder(answer):
        return None
    if cued:
        answer = trim(re.sub(r"\s*[(（\[][^()（）\[\]]*[)）\]]\s*$", "", answer) or answer)
        if language in ("ja", "ko", "zh"):
            answer = _CJK_END.sub("", answer) or answer
        answer = strip_articles(answer) if language != "en" else answer
    return normalize_text(answer) or None if canonical_key(answer, "text") else None


def strip_articles(text: str) -> str:
    """Without the article in front, in the languages of docs/answers.md."""
    return _ARTICLE.sub("", text) or text


def complement(sentence: str) -> str | None:
    """What a sentence says of its subject: "The modality is MRI." gives MRI; None for another kind of sentence.

    >>> complement("The organ shown in the image is the liver."), complement("Paris is the capital of France.")
    ('liver', 'Paris')
    """
    sentence = trim(sentence[: 2 * MAX_ANSWER_CHARS])
    if "?" in sentence or not sentence:
        return None
    for pattern in _EAST:
        match = pattern.search(sentence)
        if match is not None:
            return match["rest"].strip()
    named = _NAMED.match(sentence)
    if named is not None and not re.match(rf"{_SUBJECT}\b", named["name"], re.I):
        return named["name"]
    match = _SENTENCE.match(sentence)
    if match is None:
        return None
    rest = re.split(rf"(?:^|\s){_COPULA}\s+", match["rest"], flags=re.I)[-1]  # "What is shown is the liver"
    rest = _LEAD_IN.sub("", trim(rest))
    rest = re.sub(r"\s*[(,;:–—].*$", "", rest).strip() or rest
    rest = re.sub(
        r"\s+(?:in|on|of) (?:the|this) (?:image|picture|photo|figure|scan|question|passage|text)$", "", rest, flags=re.I
    )
    if len(strip_articles(rest).split()) > 5 or _ASK.search(rest) or is_no_answer_predicate(rest):
        return None
    return strip_articles(rest)
