"""Where sentences end, what surrounds an answer, and the last line: the small tools of the reading stages."""

from __future__ import annotations

import re

from spinerl.answers.normalize import MAX_ANSWER_CHARS

__all__ = [
    "MATHS_RUN",
    "first_sentence",
    "last_line",
    "last_sentence",
    "run_content",
    "strip_decoration",
    "trim",
    "without_aside",
]

MATHS_RUN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
"""Maths in dollars or LaTeX brackets; `run_content` gives what it holds."""

_SENTENCE_END = re.compile(
    r"\.(?=(?:\*\*|[\"”)])*(?:\s+[^\sa-z0-9]|\s*$))|(?<!\\)[!?](?=\s(?!\s*[=*+/-])|\s*$)|\n|[。！？；]"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“])(?:dr|st|ste|mt|mts|mr|mrs|ms|prof|jr|sr|ft|gen|col|capt|lt|sgt|rev|hon|gov|sen|rep|pres|vs"
    r"|approx|rs|fig|eq"
    r"|cf|e\.g|i\.e|ca|bzw|z\.b|nr|inc|corp|ltd|bros|ave|blvd|no|vol|op|p|pp|sta|sto|cmdr|adm|maj|messrs|mme|mlle"
    r"|esq)$",
    re.I,
)
_INITIALS = re.compile(r"(?:\b[A-Z]\.)+[A-Z]$")
_STARTERS = re.compile(
    r"\s+(?:The|It|This|That|These|Those|Because|In|A|An|If|So|We|As|Since|Thus|Hence|Therefore|Option|Answer|You|I"
    r"|He|She|They|There|Here|For|"
    r"To|On|At|By|And|But|However|Its|All|Both|Other|None|Only|Note|Explanation|Reason|Let|When|While|With|Choice)\b"
)
_PAIRS = (
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ('"', '"'),
    ("“", "”"),
    ("‘", "’"),
    ("「", "」"),
    ("《", "》"),
)
_WRAPPED = re.compile(
    r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|boldsymbol|bm|fbox|boxed|emph|textit)\s*\{([^{}]*)\}"
)
_ASIDE = re.compile(
    r"\s+(?:because|since|as required|as shown|as expected|as desired)\b.*$|[,;]?\s+(?:not|rather than|instead of"
    r"|as opposed to|and not|unlike)\b(?! only).*$|\s*[,;]\s*(?:which|where|because|since|as|so|while|when|if"
    r"|but)\b.*$"
    r"|\s*[,;]?\s*[(（](?:(?:or|not|i\.e\.|that is|which|about|approximately|approx\.?|since|because|the other"
    r"|option|rather|in|as|see|rounded|from) |[≈=给或即])[^()（）]*[)）]\s*\.?$",
    re.S,
)


def first_sentence(text: str, kind: str = "") -> str:
    """The text up to the end of its first sentence; full stops of abbreviations and initials end none.

    >>> first_sentence("St. Louis. It lies in Missouri.", "text")
    'St. Louis'
    """
    text = text[: 4 * MAX_ANSWER_CHARS]
    for match in _SENTENCE_END.finditer(text):
        if match[0] == "." and _goes_on(text, match.start(), kind):
            continue
        return text[: match.start()]
    return text


def _goes_on(text: str, stop: int, kind: str) -> bool:
    before, after = text[max(0, stop - 24) : stop], text[stop + 1 :]
    if not after.strip():
        return False
    if _ABBREVIATION.search(before):
        return kind in ("text", "auto", "") or before.rsplit(None, 1)[-1].casefold() in (
            "approx",
            "rs",
            "ca",
            "e.g",
            "i.e",
            "vs",
        )
    if kind not in ("text", "auto"):
        return False
    if _INITIALS.search(before):
        return _STARTERS.match(after) is None
    initial = re.search(r"(?:^|\s)[A-Z]$", before)  # "John F. Kennedy", "J. Smith"
    return kind == "text" and initial is not None and _STARTERS.match(after) is None


def last_line(text: str) -> str:
    """The last line that is not blank and holds more than a code fence or a rule."""
    text = text.rstrip()
    end = len(text)
    for _ in range(64):
        if end <= 0:
            break
        start = max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1
        line = text[start:end].strip()
        if line and line.strip("`-=_~* \t") and not line.startswith("```"):
            return line
        end = start - 1
    return ""


def last_sentence(line: str, kind: str = "") -> str:
    """The last sentence of a line."""
    line = line[-4 * MAX_ANSWER_CHARS :]
    start = 0
    for match in _SENTENCE_END.finditer(line):
        if match.end() < len(line.rstrip(' *_"”)`')) and not (match[0] == "." and _goes_on(line, match.start(), kind)):
            start = match.end()
    return line[start:].strip()


def run_content(match: re.Match[str]) -> str:
    """What a match of `MATHS_RUN` holds."""
    return next(group for group in match.groups() if group is not None)


def strip_decoration(text: str) -> str:
    """Without list marks, quotes and markdown in front.

    >>> strip_decoration("- **Yes**")
    'Yes**'
    """
    return re.sub(r"^(?:[\s*_`>#~\"“‘'{]+|[-–—•·]\s+|\d{1,2}[.)]\s+(?=\D))+", "", text)


_BARE_ENDS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def trim(text: str) -> str:
    """Strips what surrounds an answer: spaces, markdown, dollars, a lone \\text{...}, final punctuation."""
    text = text.strip()
    if text and text[0] in _BARE_ENDS and text[-1] in _BARE_ENDS:
        return text
    for _ in range(64):
        before = text
        text = text.strip("*`_ \t\n").strip()
        if (
            text.endswith((".", ",", ";", ":", "。", "，"))
            and not text.endswith("\\,")
            and not re.search(r"\d\.{3}$", text)
        ):
            text = text[:-1]
        for opening, closing in _PAIRS:
            if (
                text.startswith(opening) and text.endswith(closing) and not text.endswith("\\$")
                and len(text) > len(opening + closing) and opening not in text[len(opening) : -len(closing)]
            ):  # fmt: skip
                text = text[len(opening) : -len(closing)]
        if text.startswith("\\"):
            match = _WRAPPED.fullmatch(text)
            if match:
                text = match[1]
        if text == before:
            return text
    return text


def without_aside(text: str) -> str:
    """Without what compares or explains: "5, not 6", "0.5 (or 50%)", "8, because ..."; all of it if nothing is left.

    >>> without_aside("0.5 (or 50%)"), without_aside("5, not 6")
    ('0.5', '5')
    """
    shorter = _ASIDE.sub("", text).strip()
    return shorter if shorter.strip("*_`\"' ") else text
