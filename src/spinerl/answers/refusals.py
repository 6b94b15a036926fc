"""Stage 3 of reading, its tables: what stands where an answer should and is none.  docs/answers.md, "Stage 3"."""

from __future__ import annotations

import re

__all__ = ["declines", "is_doubtful", "is_no_answer_predicate", "is_placeholder", "is_refusal"]

# somebody forgot to fill this in: the search goes on before it
_PLACEHOLDERS = (
    r"(?:your|my|the|final|insert|put|write|correct|numerical|numeric|option|choice|exact)?\s*(?:final |correct "
    r"|numerical |own )?"
    r"(?:answer|result|solution|response|value|number|letter|option|choice|output|text)s?(?: (?:here|goes here"
    r"|letter|number|choice|value|text|only))?",
    r"answer in .{1,30} here",
    r"fill in(?: the blank)?",
    r"to be (?:determined|filled(?: in)?|computed|calculated)",
    r"tbd",
    r"todo",
    r"x{3,}",
    r"\.{2,}",
    r"…+",
    r"_+",
    r"-+",
    r"\?+",
    r"\\(?:c|l)?dots",
    r"\\(?:square|ldots|_+|underline\{\s*\})",
    r"placeholder",
    r"blank",
    r"#+",
    r"\(?insert .{1,40}",
    r"(?:答案|你的答案|最终答案|填写答案|答え|정답|your_answer|final_answer|answer_here)",
    r"a number",
    r"a letter",
    r"letter of (?:the |your )?(?:correct )?(?:answer|choice|option)",
    r"(?:A|B|C|D)(?:/|\|)(?:B|C|D|E).{0,12}",
)
_PLACEHOLDER = re.compile(rf"[\s\[<({{\"'*_`]*(?:{'|'.join(_PLACEHOLDERS)})[\s\])}}>\"'*_`.:!]*\Z", re.I)

# the response says that it has no answer: that gets no vote
_REFUSALS = (
    r"(?:so |well,? |hmm,? )?(?:i['’]?m|i am|we are|we['’]re) (?:really |truly |very |honestly |also |still "
    r")?(?:not (?:\w+ )?(?:sure|certain|able|confident|familiar|aware)|unsure|uncertain|unable|sorry|afraid|stuck"
    r"|unfamiliar)\b.*",
    r"(?:sorry|apologies|my apologies|unfortunately|regrettably)\b(?:,|\.|!| (?:but|i|we|there|it|this|the)\b).*",
    r"(?:do not|don['’]?t|dont) know\b.*",
    r"i apologi[sz]e\b.*",
    r"(?:honestly,? |sorry,? |well,? |actually,? )?(?:i|we)(?: really| simply| honestly| just| also| still)? (?:do "
    r"not|don['’]?t|did not|didn['’]?t|can ?not|can['’]?t|could not|couldn['’]?t|won['’]?t|will not|am unable to"
    r"|have no|lack|would need|need more)\b"
    r"(?! (?:think so|believe so|agree)).*",
    r"no (?:idea|clue|answer(?: (?:given|available|found|provided|possible))?|response|comment|information(?: "
    r"available| given)?|data|answer yet)",
    r"(?:it['’]?s |it is |that is |this is |the answer is |answer is )?(?:not|un)[ -]?(?:sure|certain|clear"
    r"|determined|available|provided|given|applicable|specified|known|determinable|decidable|answerable|stated"
    r"|enough (?:information|data|context)|sufficient)"
    r"(?: (?:from|in|by|based|with|about|what|which|how|if|whether|to|at|for|yet|here)\b.*)?",
    r"(?:it |this |that |the (?:answer|value|result|question|problem|number|solution) )?(?:can ?not|can['’]t|could "
    r"not|couldn['’]t) be (?:\w+ly )?(?:determined|answered|known|found|solved|computed|calculated|inferred"
    r"|established|identified|given|deduced|decided|said|seen)\b.*",
    r"(?:it |this |that )?(?:is )?(?:impossible|not possible|hard|difficult|too early) to (?:say|determine|tell"
    r"|know|answer|find|compute|calculate|be sure|solve)\b.*",
    r"(?:there (?:is|was) )?(?:not enough|insufficient|too little|no sufficient|lack of) (?:information|data"
    r"|context|details?|evidence|info)\b.*",
    r"(?:there is |there are )?no (?:way|means) (?:to|of) (?:know|say|tell|determine|knowing|telling)\b.*",
    r"(?:more|further|additional) (?:information|data|context|details?) (?:is|are|would be) (?:needed|required"
    r"|necessary)\b.*",
    r"as an ai\b.*",
    r"not sure\b.*",
    r"unknown(?: value)?",
    r"indeterminable",
    r"undetermined",
    r"n\.?/?a\.?",
    r"idk",
    r"unanswerable",
    r"none given",
    r"nothing",
    r"who knows\b.*",
    r"(?:unable|cannot|can['’]?t|can not|could not|couldn['’]t) (?:to )?(?:be )?(?:determine|answer|say|tell"
    r"|identify|know|see|assess|solve)\w*\b.*",
    r"(?:please )?(?:provide|clarify|specify)\b.*",
    r"(?:could|can|would) you (?:please )?\w+\b.*",
    r"(?:我|这个问题|这道题|该题|答案|这)?(?:不知道|不确定|不確定|不清楚|无法确定|無法確定|无法回答|無法回答|无法判断|没有足够|抱歉|对不起|無法判斷).*",
    r"未知",
    r"无",
    r"(?:ich )?(?:weiß|weiss) (?:es |ich )?(?:leider )?nicht.*",
    r"keine ahnung.*",
    r"(?:ich bin )?(?:mir )?nicht sicher.*",
    r"unbekannt",
    r"(?:es )?(?:kann|lässt sich) nicht (?:bestimmt|beantwortet|bestimmen|beantworten).*",
    r"(?:es )?tut mir leid.*",
    r"je ne (?:sais|suis) pas.*",
    r"inconnue?",
    r"d[ée]sol[ée]e?.*",
    r"aucune id[ée]e.*",
    r"je ne peux pas.*",
    r"(?:yo )?no (?:lo )?s[ée](?: la respuesta)?",
    r"no estoy segur[oa].*",
    r"lo siento.*",
    r"desconocid[oa]",
    r"no se puede (?:determinar|saber|responder).*",
    r"no puedo.*",
    r"(?:eu )?n[ãa]o (?:sei|tenho certeza|posso|é possível).*",
    r"desculpe.*",
    r"desconhecid[oa]",
    r"non (?:lo )?so",
    r"non sono sicur[oa].*",
    r"mi dispiace.*",
    r"sconosciut[oa]",
    r"non posso.*",
    r"(?:я )?не (?:знаю|уверена?|могу).*",
    r"неизвестно",
    r"извините.*",
    r"к сожалению.*",
    r"(?:わかりません|分かりません|不明|申し訳|すみません|わからない|分からない).*",
    r"(?:모르겠|알 수 없|죄송|모릅니다|잘 모르|불확실).*",
    r"(?:لا أعرف|لا أعلم|غير معروف|آسف|لست متأكد|عذرا).*",
)
_REFUSAL = re.compile(rf"[\s\[<({{\"'*_`#>-]*(?:{'|'.join(_REFUSALS)})[\s\])}}>\"'*_`.:!。]*\Z", re.I | re.S)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|emph)\s*\{|[{}$]|\\\(|\\\)|\\ |~")

# what "the answer is ..." may say about an answer instead of giving it
_PREDICATES = (
    "complete completed correct right wrong incorrect helpful useful clear unclear consistent reasonable sound valid "
    "invalid verified confirmed plausible sensible accurate exact approximate final finished done unique simple "
    "obvious "
    "trivial straightforward given found obtained shown derived based expressed rounded stated written provided known "
    "explained presented displayed boxed listed included needed required expected supported satisfactory acceptable "
    "interesting surprising important relevant logical satisfying understandable easy hard difficult different same as "
    "for because since when if that what which how why where here there also only to of about "
    "satisfied meaningful justified unaffected independent sufficient ready already still now again likely "
    "unlikely possible impossible "
    "obviously dependent dimensionless measured marked highlighted labeled labelled better best worse meant "
    "off close checked well always never good great fine ok okay nice perfect elegant beautiful concise "
    "compelling convincing counterintuitive intuitive subject up out your our my you it this these those "
    "further quite indeed appropriate applicable suitable preferred in-line misleading tempting doubtful"
)
_PREDICATE_WORDS = frozenset(_PREDICATES.split())
# these may also be answers: they count where nothing better stands before them
_DOUBTFUL_WORDS = frozenset(
    [
        "same",
        "different",
        "above",
        "below",
        "possible",
        "impossible",
        "likely",
        "unlikely",
        "independent",
        "up",
        "out",
        "there",
        "here",
        "easy",
        "hard",
        "positive",
        "negative",
        "odd",
        "even",
        "true",
        "false",
        "always",
        "never",
        "now",
        "unique",
        "simple",
        "good",
        "great",
        "better",
        "worse",
        "real",
        "imaginary",
        "whole",
        "integer",
        "in",
        "at",
        "on",
        "above",
        "below",
        "near",
        "under",
        "behind",
        "between",
        "within",
        "outside",
        "inside",
        "beside",
        "from",
        "by",
        "with",
        "against",
        "around",
        "small",
        "large",
        "big",
        "finite",
        "infinite",
        "zero",
        "nonzero",
    ]
)
_ADVERBS = re.compile(
    r"(?:\*|_|\s|also|indeed|really|very|quite|so|thus|now|therefore|hence|both|all|mathematically|logically"
    r"|physically|numerically|fully|completely|perfectly|entirely|not|already|clearly|obviously|pretty|fairly"
    r"|rather|absolutely|definitely|certainly|always|then|just|even|too|more|most|both|typically|usually|generally"
    r"|directly|easily|well|still|much|"
    r"[a-z]+ly)[ ,]+",
    re.I,
)


_END_CHARS = 400  # a response that declines says so at its end
_CLAUSES = re.compile(r"(?<=[.!?。！？])\s*|\n+|,? but ")


def is_placeholder(text: str) -> bool:
    """Whether the text only stands for an answer: "[answer]", "your answer here", "...".

    >>> is_placeholder("[answer]"), is_placeholder("42")
    (True, False)
    """
    return len(text) <= 80 and _PLACEHOLDER.match(_WRAPPER.sub(" ", text).strip()) is not None


def is_refusal(text: str) -> bool:
    """Whether the text says that there is no answer: "I don't know", "cannot be determined".

    "No solution" and "does not exist" are answers.

    >>> is_refusal("I am not sure."), is_refusal("no solution")
    (True, False)
    """
    if len(text) > 400:
        return False
    return _REFUSAL.match(re.sub(r"\s+", " ", _WRAPPER.sub(" ", text)).strip()) is not None


def declines(response: str) -> bool:
    r"""Whether a whole response declines to answer: in its last box, where there is one, else in a clause of its end.

    >>> declines("3 + 4 is 7, but I cannot determine the answer."), declines("I don't know, perhaps \\boxed{3}.")
    (True, False)
    """
    if "\\boxed{" in response:
        return is_refusal(response.rpartition("\\boxed{")[2].partition("}")[0])
    return any(is_refusal(clause) for clause in _CLAUSES.split(response[-_END_CHARS:]) if clause)


def is_no_answer_predicate(text: str) -> bool:
    """Whether words after "the answer is" say something about an answer and are none: "helpful", "in meters".

    >>> is_no_answer_predicate("very helpful"), is_no_answer_predicate("east")
    (True, False)
    """
    rest = text.strip(" *_\"'`\t").rstrip(".!,;:")
    for _ in range(4):
        match = _ADVERBS.match(rest)
        if match is None:
            break
        rest = rest[match.end() :].lstrip()
    first = re.match(r"[A-Za-z-]+", rest)
    if first is None:
        return False
    word = first[0]
    if word in ("Right", "right") and len(rest.split()) == 1:
        return False
    lower = word.casefold()
    return lower in _PREDICATE_WORDS and not (lower in _DOUBTFUL_WORDS and len(rest.split()) == 1)


def is_doubtful(text: str) -> bool:
    """Whether the words may be an answer or say something about one: "positive", "different"."""
    first = re.match(r"[\s*_\"'`]*([A-Za-z]+)", text)
    return first is not None and first[1].casefold() in _DOUBTFUL_WORDS
