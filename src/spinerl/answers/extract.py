"""Finds the final answer in a response.  Every rule is listed in docs/answers.md and has rows in one table
test."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spinerl.answers.normalise import (
    MAX_ANSWER_CHARS,
    canonical_key,
    check_kind,
    normalise_text,
    read_letter,
    tidy_math,
)

__all__ = ["extract_answer"]

_TAIL_CHARS = 8000  # rules other than the box look only this far back

_PHRASE = re.compile(
    r"####"
    r"|\b(?:final\s+|correct\s+|best\s+|right\s+)?(?:answer|solution|result|option|choice)\b(?:[^\n.:=$\\]{0,60}?)"
    r"(?:\s*\*{0,2}\s*:\s*\*{0,2}|\b(?:is|are|would\s+be|=)(?![A-Za-z])\s*:?)"
    r"|\*\*\s*final\s+answer\s*\*\*",
    re.I,
)
_CHOICE_PHRASE = re.compile(
    r"\b(?:option|choice)\s+(?=[(*\"']*[A-J]\b)"
    # after a verb or a conclusion only a capital or a bracketed letter: "so a dog" chooses nothing
    r"|\b(?:choose|chose|pick|select|go\s+with|so|thus|hence|therefore),?\s+(?=[(*\"']*(?-i:[A-J])\b|\([a-j]\))",
    re.I,
)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.I | re.S)
_THINK_OPEN = re.compile(r"<(?:think|thinking)>", re.I)
_THINK_CLOSE = re.compile(r"</(?:think|thinking)>", re.I)
_MATHS_RUN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\\$|[^$\n])+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_JOIN = re.compile(r"\s*(?:,?\s*(?:and|or)\b|,)\s*")
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z\\*\"(]|\s*$)|[!?](?=\s|$)|\n")
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?\s?(?:[$€£¥]\s?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?(?![\w])"
    r"|(?<![\w.])[-+−]?(?:[$€£¥]\s?)?\.\d+"
    r"|(?<![\w.])[-+−]?(?:[$€£¥]\s?)?\d[\d,]*(?:\.\d+)?(?=[A-Za-z%°])"
)


def extract_answer(
    text: str, kind: str = "auto", *, choices: Sequence[str] = (), truncated: bool = False
) -> str | None:
    """The final answer of a response, or None when it has none: None is never a vote.

    Only the text after the last `</think>` counts, and a `<think>` left open means that there is no answer
    yet.  Then the first rule that applies: an `<answer>` tag; the last \\boxed{...} (the innermost, if they
    are nested; an unclosed last box is no answer); what follows the last "the answer is", "Answer:" or
    "####"; a last line that is nothing but an answer.  Kind "number" also takes the last number of the last
    line, "choice" a letter that opens the response or stands alone, "yesno" the word that opens the response.

    Args: `text`, the decoded response; `kind`, one of `KINDS` ("auto" reads a letter when `choices` are
    given, else maths, yes/no or short text, whatever stands there); `choices`, the options' texts in the
    order of their letters, so that an option's own text counts as its letter; `truncated`, True when the
    response hit the token limit.
    Returns: the answer as written, stripped of box, dollars and final punctuation (kind "choice": an
    upper-case letter; "yesno": lower case; "number": without separators, currency and percent; "text":
    normalised), never empty; None when truncated, unreadable, ambiguous or longer than `MAX_ANSWER_CHARS`.
    Raises: `InputError` for an unknown kind.
    Source: ours; the box convention is that of the MATH data set.

    >>> extract_answer("<think>3? no</think> So the answer is \\\\boxed{\\\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    check_kind(kind)
    if truncated or not text:
        return None
    final = _after_thinking(text)
    if final is None:
        return None
    if kind == "auto" and choices:
        kind = "choice"
    candidate, certain = _marked(final, kind)
    if kind == "choice":
        return _choice(final, candidate, certain, choices)
    if kind == "yesno":
        return _yesno(final, candidate, certain)
    if certain:
        return None if candidate is None else _read(candidate, kind)
    return _unmarked(final, candidate, kind)


def _after_thinking(text: str) -> str | None:
    """The text after the last closing tag; None when an opening tag has no closing one after it."""
    if "<" not in text:
        return text
    start = 0
    for match in _THINK_CLOSE.finditer(text):
        start = match.end()
    return None if _THINK_OPEN.search(text, start) else text[start:]


def _marked(text: str, kind: str) -> tuple[str | None, bool]:
    """What stands in an answer tag or box (True), or what follows the last answer phrase (False)."""
    box = text.rfind("\\boxed")
    if "</answer>" in text:
        tags = list(_ANSWER_TAG.finditer(text))
        if tags and tags[-1].end() > box:
            inside = tags[-1][1]
            box = inside.rfind("\\boxed")
            return (_box(inside, box) if box >= 0 else inside), True
    if box >= 0:
        return _box(text, box), True
    tail = text[-_TAIL_CHARS:]
    last = None
    for match in _PHRASE.finditer(tail):
        last = match
    if kind == "choice":
        for match in _CHOICE_PHRASE.finditer(tail, last.end() if last else 0):
            last = last if last and tail[last.end() : match.start()].strip(" *(\"'") == "" else match
    if last is None:
        return None, False
    return tail[last.end() :], False


def _box(text: str, start: int) -> str | None:
    """The content of the \\boxed at `start`: its balanced braces, or one token without braces; None if
    unclosed."""
    index = start + len("\\boxed")
    while index < len(text) and text[index] == " ":
        index += 1
    if index >= len(text):
        return None
    if text[index] != "{":
        match = re.compile(r"[^\s${}]+").match(text, index)
        apart = index > start + len("\\boxed") or text[index].isdigit()
        return match[0].rstrip(".,;") if match and apart else None
    depth = 0
    for position in range(index, min(len(text), index + 4 * MAX_ANSWER_CHARS)):
        c = text[position]
        if c == "{":
            depth += not _escaped(text, position)
        elif c == "}" and not _escaped(text, position):
            depth -= 1
            if depth == 0:
                return text[index + 1 : position]
    return None


def _escaped(text: str, position: int) -> bool:
    count = 0
    while text[position - 1 - count] == "\\":
        count += 1
    return count % 2 == 1


# ------------------------------------------------------------------------------------- maths, numbers, text


def _read(candidate: str, kind: str) -> str | None:
    """The answer as written inside a tag or box, or None when it cannot be read as `kind`."""
    answer = _trim(candidate)
    if not answer or len(answer) > MAX_ANSWER_CHARS:
        return None
    if answer.isdecimal() and answer.isascii():
        return answer  # the common case
    if kind == "number":
        return _number(answer, last=True)
    if kind == "text":
        return normalise_text(answer) or None if canonical_key(answer, "text") else None
    return answer if canonical_key(answer, kind) is not None else None


def _trim(text: str) -> str:
    """Strips what surrounds an answer: spaces, markdown, dollars, a lone \\text{...}, final punctuation."""
    text = text.strip()
    while True:
        before = text
        text = text.strip("*`_ \t\n").strip()
        if text.endswith((".", ",", ";", ":")) and not text.endswith("\\,"):
            text = text[:-1]
        for opening, closing in (
            ("$$", "$$"),
            ("$", "$"),
            ("\\(", "\\)"),
            ("\\[", "\\]"),
            ('"', '"'),
            ("“", "”"),
        ):
            if (
                text.startswith(opening) and text.endswith(closing) and not text.endswith("\\$")
                and len(text) > len(opening + closing) and opening not in text[len(opening) : -len(closing)]
            ):  # fmt: skip
                text = text[len(opening) : -len(closing)]
        match = re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}", text)
        if match:
            text = match[1]
        if text == before:
            return text


def _unmarked(text: str, phrase_tail: str | None, kind: str) -> str | None:
    """Without tag or box: what the answer phrase introduces, else a bare last line."""
    if phrase_tail is not None:
        found = _after_phrase(phrase_tail, kind)
        if found is not None:
            return found
    line = _last_line(text[-_TAIL_CHARS:])
    if kind == "text":
        is_whole = len(text.split()) <= 8 or len(line.split()) <= 3
        return _read(line, kind) if is_whole and phrase_tail is None else None
    if kind == "number":
        return _number(line, last=True)
    maths = list(_MATHS_RUN.finditer(text[-_TAIL_CHARS:]))
    if maths and not re.sub(r"[\s.]", "", text[-_TAIL_CHARS:][maths[-1].end() :]) and _is_display(maths[-1]):
        return _read(_run_content(maths[-1]), "math")  # the response ends in display maths
    bare = _trim(line)
    key = canonical_key(bare, "math")
    if key is None:
        return None
    if not key.text.startswith("text:"):
        if "=" in bare and not key.opaque and not key.text.startswith("equation:"):
            bare = bare.rsplit("=", 1)[1].strip() or bare
        return bare if not key.opaque or "\\" in bare else None
    if kind == "auto" and phrase_tail is None and len(text.split()) <= 8:
        return bare  # a response that is nothing but a few words
    return bare if re.fullmatch("text:[A-J]", key.text) else None


def _after_phrase(tail: str, kind: str) -> str | None:
    """The answer that an answer phrase introduces: maths runs joined by "and", else the rest of the
    sentence."""
    tail = tail.lstrip(" \t\n*:_").lstrip()
    run = _MATHS_RUN.match(tail)
    if run is not None and kind != "text":
        parts = [_run_content(run)]
        position = run.end()
        while (join := _JOIN.match(tail, position)) and (run := _MATHS_RUN.match(tail, join.end())):
            parts.append(_run_content(run))
            position = run.end()
        return _read(", ".join(parts), kind)
    end = _SENTENCE_END.search(tail)
    sentence = _trim(tail[: end.start()] if end else tail)
    if not sentence or len(sentence) > MAX_ANSWER_CHARS:
        return None
    if kind == "text":
        return _read(sentence, kind)
    if kind == "number":
        return _number(sentence, last=False)
    key = canonical_key(sentence, "math")
    if key is None:
        return None
    if not key.text.startswith("text:") and not key.opaque:
        return sentence
    inner = _MATHS_RUN.search(sentence)
    if inner is not None:
        return _read(_run_content(inner), kind)
    if key.opaque and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", sentence)):
        return sentence
    number = _number(sentence, last=False)
    if number is not None:
        return number
    return sentence if len(sentence.split()) <= (6 if kind == "auto" else 3) else None


def _run_content(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _is_display(match: re.Match[str]) -> bool:
    return match[1] is not None or match[4] is not None


def _last_line(text: str) -> str:
    for line in reversed(text.splitlines()):
        if line.strip():
            return line.strip()
    return ""


def _number(text: str, *, last: bool) -> str | None:
    """The whole text if it reads as one number, else its last (or first) number, without commas and
    currency."""
    if len(text) <= MAX_ANSWER_CHARS:
        if "=" in text and last:
            text = text.rsplit("=", 1)[1]
        key = canonical_key(text, "number")
        if key is not None:
            plain = re.sub(r"[,\s$€£¥%\\!]|USD", "", tidy_math(text))
            return plain if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", plain) else key.shown
    found = list(_NUMBER.finditer(text[-_TAIL_CHARS:]))
    if not found:
        return None
    token = (found[-1] if last else found[0])[0].replace("−", "-")
    token = re.sub(r"[,\s$€£¥]", "", token)
    key = canonical_key(token, "number")
    if key is None:
        return None
    return token if re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", token) else key.shown


# ------------------------------------------------------------------------------------------ choices, yes/no

_OPENS_WITH_LETTER = re.compile(r"^[\s*_]*(?:\(([A-Ja-j])\)|\[([A-J])\]|([A-J])(?=[).:]|\s*\*\*|\s*$))")
_LETTER_IN_BRACKETS = re.compile(r"^[\s*_\"'$]*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?\s*[(\[]\s*([A-Ja-j])\s*[)\]]")
_BARE_LETTER = re.compile(
    r"^[\s*_\"'$]*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?\s*(?:(?:option|choice|letter)\s+[(\"'*]*)?([A-Ja-j])(?![A-Za-z0-9'’])",
)
_AFTER_LETTER = re.compile(r"[\s*_\"'$}]*(?:$|[.,;:)\]\n–—-]|(?:because|since|as|is|for|which|with)\b)")
_SECOND_LETTER = re.compile(r"^[\s*)\]]*(?:,|and|or|/|&)\s*[(\[*]*([A-J])(?![A-Za-z0-9'’])")


def _choice(text: str, candidate: str | None, certain: bool, choices: Sequence[str]) -> str | None:
    letters = "ABCDEFGHIJ"[: len(choices)] if choices else "ABCDEFGHIJ"
    if certain:
        if candidate is None or len(candidate) > 4 * MAX_ANSWER_CHARS:
            return None
        answer = _trim(candidate)
        letter = _by_text(answer, choices) or read_letter(answer) or _bare_letter(candidate, certain=True)
        return letter if letter and letter in letters else None
    if candidate is not None:
        sentence = candidate[: 2 * MAX_ANSWER_CHARS].lstrip(" \t\n*:_")
        end = _SENTENCE_END.search(sentence)
        whole = _trim(sentence[: end.start()] if end else sentence)
        letter = _bare_letter(sentence, certain=False) or _by_text(whole, choices) or _contained(whole, choices)
        if letter is not None or _SECOND_LETTER.search(sentence[1:]):
            return letter if letter and letter in letters else None
    for line in (_last_line(text[-_TAIL_CHARS:]), text[:MAX_ANSWER_CHARS].strip()):
        letter = _by_text(_trim(line), choices)
        match = _OPENS_WITH_LETTER.match(line)
        if letter is None and match is not None and not _SECOND_LETTER.match(line[match.end() :]):
            letter = next(g for g in match.groups() if g).upper()
        if letter is not None and letter in letters:
            return letter
    return None


def _bare_letter(text: str, *, certain: bool) -> str | None:
    """The letter at the start of an answer; never the article "a" nor the pronoun "I" of a sentence."""
    match = _LETTER_IN_BRACKETS.match(text) or _BARE_LETTER.match(text)
    if match is None or _SECOND_LETTER.match(text[match.end() :]):
        return None
    letter, rest = match[1], text[match.end() :]
    if match.re is _BARE_LETTER:
        ends = _AFTER_LETTER.match(rest) is not None
        if letter.islower() and (not ends or re.match(r"\s+[a-z]", rest)):
            return None
        if letter in "AI" and not ends:
            return None
        if not ends and certain and rest.strip():
            return None
    return letter.upper()


def _by_text(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the one option whose text, or letter and text, the answer is."""
    if not choices or len(answer) > 4 * MAX_ANSWER_CHARS:
        return None
    normal = normalise_text(answer)
    if not normal:
        return None
    found = {
        letter
        for letter, choice in zip("ABCDEFGHIJ", choices, strict=False)
        if normal in (normalise_text(choice), normalise_text(f"({letter}) {choice}"))
    }
    if not found and len(answer) <= MAX_ANSWER_CHARS:
        key = canonical_key(answer, "math")
        if key is not None and not key.opaque:
            keys = [canonical_key(choice, "math") for choice in choices[:10]]
            found = {
                letter for letter, other in zip("ABCDEFGHIJ", keys, strict=False) if other and other.text == key.text
            }
    return found.pop() if len(found) == 1 else None


def _contained(sentence: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose whole text occurs in the sentence (longest first, so none hides
    another)."""
    padded = f" {normalise_text(sentence)} "
    found = []
    options = [(normalise_text(choice), letter) for letter, choice in zip("ABCDEFGHIJ", choices, strict=False)]
    for normal, letter in sorted(options, key=lambda item: -len(item[0])):
        if normal and f" {normal} " in padded:
            found.append(letter)
            padded = padded.replace(f" {normal} ", " \x00 ")
    return found[0] if len(found) == 1 else None


_YESNO = re.compile(r"^[\s*_\"'(]*(yes|no|maybe)\b(?!\s*-)", re.I)


def _yesno(text: str, candidate: str | None, certain: bool) -> str | None:
    if certain:
        match = None if candidate is None else _YESNO.match(_trim(candidate))
        return match[1].lower() if match else None
    line = _last_line(text[-_TAIL_CHARS:])
    places = [candidate] if candidate is not None else []
    places += [text[:200]] if _YESNO.match(text[:200]) else []
    places += [line]
    for place in places:
        match = _YESNO.match(place.lstrip(" \t\n*:_"))
        if match is not None and not re.match(r"\s+[a-z]", place.lstrip(" \t\n*:_")[match.end() :]):
            return match[1].lower()
    return None
