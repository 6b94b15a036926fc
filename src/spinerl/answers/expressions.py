"""Reading numbers and expressions (kinds "number", "math" and "auto")."""

from __future__ import annotations

import re

from spinerl.answers.cues import DECIMAL_COMMA, concluding_cue
from spinerl.answers.normalize import MAX_ANSWER_CHARS, canonical_key, tidy_math
from spinerl.answers.numerals import first_numeral, last_numeral, numerals
from spinerl.answers.refusals import is_no_answer_predicate, is_placeholder, is_refusal
from spinerl.answers.sentences import MATHS_RUN, last_sentence, run_content, strip_decoration, trim, without_aside
from spinerl.answers.units import strip_hedge

__all__ = ["after_cue", "bare_line", "concluding_expression", "display_at_end", "in_box", "number_in", "number_of_line"]

_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_JOIN = re.compile(r"\s*(?:,?\s*(?:and|or|und|oder|et|ou|y|o|e|и|或|和)\b|,|、)\s*")
_HEDGE = re.compile(
    r"^(?:[\s*_:=≈~]+|\\approx\s*|(?:clearly|probably|around|about|approximately|approx\.?|roughly|nearly|almost"
    r"|exactly|simply|just|therefore|thus|then|hence|so|indeed|equal to|close to|only|precisely|definitely|likely"
    r"|now|actually|obviously|given by|"
    r"equals?|at least|at most|up to|the number|the value|the integer|the fraction|the expression|still|again"
    r"|always|also|ungefähr|etwa|circa|environ|aproximadamente|cerca de|igual a|égale? à|gleich|примерно|около|大约|约"
    r"|約)(?![a-z])[\s,:]*)+",
    re.I,
)
_NOT_BUT = re.compile(
    r"^\s*not\s+(?:.{1,60}?)(?:[,;]\s*|\s+)(?:but(?: rather)?|rather|instead|it is|it['’]s|it must be|it should "
    r"be)\s+(?=\S)",
    re.I | re.S,
)
_RANGE = re.compile(r"^\s*(?:between|somewhere between|from)\b", re.I)
_CJK_TAIL = re.compile(
    r"(?<=[\d)}$\\\w%])\s*(?:です|である|だ|になります|入니다|입니다|이다|이에요|예요|个|個|只|人|元|米|平方米|度|岁|天|小时|分钟|千克|公斤|厘米|개|명|원|円|つ|枚|歳)[。.]?$"
)
_WORDY = re.compile(r"[A-Za-z]{2,}")
_MAY_REFUSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z'’]{3,}|[^\x00-\x7f]|\\text|\[[A-Za-z]|[_?.]{2}|^\?|dots|[NnAa]/")
_TRAILING_BRACE = re.compile(r"[}\s]+$")
_STATES = re.compile(
    r"(?:\b(?:is|are|equals?|was|be|becomes|of|to|as|at|ist|est|es|é|è|son|sind|beträgt|vaut|равна?о?|равен)\b"
    r"|[=≈:：是为為]|\bhas area\b|\bhave\b)\s*(?:\\approx|about|approximately|exactly|roughly|only|also|therefore|thus"
    r"|equal to|just|now)?\s*$",
    re.I,
)
_CURRENCY_SIGNS = re.compile(r"[,\s$€£¥₹%\\!]|USD|EUR")


def in_box(candidate: str, kind: str) -> str | None:
    """The answer as written inside a tag or box, or None when it cannot be read as `kind` ("math", "auto", "number").

    >>> in_box("$1,234.50", "number"), in_box("\\\\text{your answer here}", "math")
    ('1234.50', None)
    """
    answer = trim(candidate)
    if not answer or len(answer) > MAX_ANSWER_CHARS:
        return None
    if answer.isdecimal() and answer.isascii():
        return answer  # the common case
    if (_MAY_REFUSE.search(answer) is not None) and (is_refusal(answer) or is_placeholder(answer)):
        return None
    if kind == "number":
        return number_of_line(answer)
    return answer if canonical_key(answer, kind) is not None else None


def number_in(text: str, *, last: bool) -> str | None:
    """The whole text if it reads as one number, else its last (or first) number, without separators and currency."""
    if len(text) <= MAX_ANSWER_CHARS:
        if "=" in text and last:
            text = text.rsplit("=", 1)[1]
        whole = _whole_number(text)
        if whole is not None:
            return whole
    found = last_numeral(text) if last else first_numeral(text)
    if found is None or found.has_remainder:
        return None
    return found.shown


def _whole_number(text: str) -> str | None:
    key = canonical_key(text, "number")
    if key is None:
        return None
    plain = _CURRENCY_SIGNS.sub("", strip_hedge(tidy_math(text)))
    if _PLAIN.fullmatch(plain) and "e" not in plain:
        return plain if canonical_key(plain, "number") == key else key.shown
    return key.shown


def number_of_line(line: str) -> str | None:
    """The last number of a line; None where a remainder belongs to it."""
    if any(number.has_remainder for number in numerals(line[-4 * MAX_ANSWER_CHARS :])):
        return None
    return number_in(line[-8000:], last=True)


def after_cue(clause: str, kind: str, language: str = "en") -> tuple[str | None, bool]:
    """What follows an answer cue: the answer, and whether it stands where an answer stands (True) or further on.

    `clause` is the sentence after the cue.  (None, False) where nothing in it can be an answer.

    >>> after_cue("not 6 but 5", "number"), after_cue("about 7 in total", "number")
    (('5', True), ('7', True))
    """
    clause = clause.lstrip(" \t\n*:_").lstrip()
    clause = _NOT_BUT.sub("", clause)
    if re.match(r"\s*(?:not|neither|nor|never)\s+[\d$\\]", clause) or _RANGE.match(clause):
        return None, False
    run = MATHS_RUN.match(clause)
    if run is not None:
        parts, position = [run_content(run)], run.end()
        while (join := _JOIN.match(clause, position)) and (run := MATHS_RUN.match(clause, join.end())):
            parts.append(run_content(run))
            position = run.end()
        joined = ", ".join(parts) + _unit_after(clause[position:], kind)
        return in_box(joined, kind), True
    sentence = _TRAILING_BRACE.sub("", trim(clause)) if clause.count("}") > clause.count("{") else trim(clause)
    if not sentence or len(sentence) > MAX_ANSWER_CHARS or is_refusal(sentence) or is_placeholder(sentence):
        return None, False
    for version in dict.fromkeys((trim(without_aside(sentence)), sentence)):
        found = _expression(version, kind, language)
        if found is not None:
            return found, True
    return _inside(trim(without_aside(sentence)), kind)


def _unit_after(rest: str, kind: str) -> str:
    """Words after a maths run that change its value: "$1.5$ million"."""
    match = re.match(r"\s*(?:hundred|thousand|million|billion|trillion|dozen)s?\b", rest)
    return match[0] if match and kind != "text" else ""


def _decimal_point(text: str, language: str) -> str:
    """ "3,5" after a German, French, ... cue is 3.5; lists and pairs in maths stay."""
    if language in DECIMAL_COMMA:
        return re.sub(r"^([-+]?\d+),(\d{1,2}|\d{4,})(?=$|\s*[^\d\s,;)\]])", r"\1.\2", text)
    return text


def _expression(sentence: str, kind: str, language: str) -> str | None:
    """The whole sentence as an expression, perhaps behind a hedge ("about"), or bold at its start."""
    sentence = _decimal_point(_CJK_TAIL.sub("", sentence), language)
    bold = re.match(r"(?:\*\*|__|`)?([^*`\n]{1,200}?)(?:\*\*|__|`)", sentence)
    versions = [sentence, _HEDGE.sub("", sentence)]
    if bold is not None and bold[1].strip():
        versions.insert(0, trim(bold[1]))
    for version in dict.fromkeys(map(trim, versions)):
        if not version or (version != sentence and _WORDY.search(re.sub(r"\\[A-Za-z]+", "", version))):
            continue
        if kind == "number":
            whole = _whole_number(version)
            if whole is not None:
                return whole
            continue
        key = canonical_key(version, "math")
        if key is None:
            continue
        if not key.text.startswith("text:") and not key.opaque:
            return version
        if key.opaque and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", "", version)) and version == sentence:
            return version
        if key.text.startswith("text:") and _QUALIFIED.match(version):
            return version
    return None


_QUALIFIED = re.compile(
    r"^[\d.,:]+\s*(?:a\.?m\.?|p\.?m\.?|BCE?|AD|CE|[a-z]{1,12}\s+(?:north|south|east|west|more|less)\w*|north\w*"
    r"|south\w*|east\w*|west\w*|more|less|fewer|remainder \d+|R\s?\d+)$",
    re.I,
)


def _inside(sentence: str, kind: str) -> tuple[str | None, bool]:
    """An expression further on in the sentence, or, for "math" and "auto", its words."""
    if kind != "number":
        inner = MATHS_RUN.search(sentence)
        if inner is not None:
            return in_box(run_content(inner), kind), False
    equals = re.match(r"[\d\s+*/().,×·÷$xX=-]*\d\s*=\s*(?=[-$]?[\d.])", sentence)
    rest = sentence[equals.end() :] if equals else sentence
    found = first_numeral(rest)
    if found is not None:
        if found.has_remainder:
            return None, False
        at_start = not re.search(r"[^\W\d_]", _HEDGE.sub("", rest[: found.start] + " "))
        return found.shown, at_start
    if kind == "number" or is_no_answer_predicate(sentence):
        return None, False
    return (sentence if len(sentence.split()) <= (6 if kind == "auto" else 3) else None), False


# ------------------------------------------------------------------------------------- without box or cue


def display_at_end(text: str) -> str | None:
    """Display maths that ends the response."""
    if not text.rstrip(" .\t\r\n").endswith(("$$", "\\]")):
        return None
    text = text[-4 * MAX_ANSWER_CHARS :]
    maths = list(MATHS_RUN.finditer(text))
    if maths and not re.sub(r"[\s.]", "", text[maths[-1].end() :]) and (maths[-1][1] or maths[-1][4]) is not None:
        return in_box(run_content(maths[-1]), "math")
    return None


def bare_line(line: str) -> str | None:
    """A last line that is nothing but an expression (`12 + 7 = 19` gives 19) or an option letter."""
    line = re.sub(
        r"^(?:#+\s+|(?:So|Thus|Hence|Then|Therefore|And|Now|Finally|i\.e\.),?\s+(?=[^A-Za-z]*[\d=]))", "", line
    )
    bare = trim(line)
    if not bare or is_placeholder(bare):
        return None
    key = canonical_key(bare, "math")
    if key is None or (MATHS_RUN.search(bare) and re.search(r"[^\W\d_]", MATHS_RUN.sub(" ", bare))):
        return None
    if key.text.startswith("text:"):
        return bare if re.fullmatch("text:[A-J]", key.text) or _QUALIFIED.match(bare) else None
    if "=" in bare and not key.opaque and not key.text.startswith(("equation:", "assigned:")):
        bare = bare.rsplit("=", 1)[1].strip() or bare
    return bare if not key.opaque or "\\" in bare else None


def concluding_expression(line: str) -> tuple[str | None, str]:
    """The bold or final expression of a concluding last sentence, and the words that conclude.

    "Therefore the value of k is 12." gives 12.  Without such words the expression must end the sentence behind a
    verb or sign that states it ("is", "=").

    >>> concluding_expression("Hence $x = 4$ and the triangle has area $\\\\frac{25}{2}$.")
    ('\\\\frac{25}{2}', 'Hence')
    """
    sentence = last_sentence(line, "math") or line
    if "?" in sentence or len(sentence) > 4 * MAX_ANSWER_CHARS or is_refusal(sentence):
        return None, ""
    cue = concluding_cue(sentence)
    bold = re.findall(r"\*\*([^*\n]{1,200})\*\*|\\textbf\{([^{}]{1,200})\}", sentence)
    if bold:
        found = _expression(trim(bold[-1][0] or bold[-1][1]).rstrip("."), "math", "en")
        if found is not None and any(c.isdigit() or c in "\\$" for c in found):
            return found, cue or "bold"
    runs = list(MATHS_RUN.finditer(sentence))
    if runs:
        return _last_run(sentence, runs, cue)
    plain = trim(without_aside(strip_decoration(sentence)))
    number = last_numeral(plain)
    if number is None or number.has_remainder:
        return None, ""
    before, after = plain[: number.start], plain[number.end :]
    is_final = len(re.findall(r"\w+", after)) <= 3 and not re.search(r"\d", after)
    if is_final and _STATES.search(before[-200:]):  # it ends there
        return number.shown, cue or "statement"
    if cue and is_final and sum(1 for _ in numerals(plain)) == 1:
        return number.shown, cue
    return None, ""


def _last_run(sentence: str, runs: list[re.Match[str]], cue: str) -> tuple[str | None, str]:
    last = runs[-1]
    after = sentence[last.end() :]
    if len(re.findall(r"\w+", after)) > 4 or re.search(r"\d", after):
        return None, ""
    content = re.split(r"\\approx|≈", run_content(last))[0]
    if len(runs) > 1 and _JOIN.fullmatch(sentence, runs[-2].end(), last.start()):
        return in_box(f"{run_content(runs[-2])}, {content}", "math"), cue or "statement"
    if not cue and not (
        "=" in content or _STATES.search(sentence[: last.start()]) or not sentence[: last.start()].strip()
    ):
        return None, ""
    if "=" in content and not re.search(r"\\(?:le|ge|ne|lt|gt)|[<>]", content):
        right = content.rsplit("=", 1)[1].strip()
        left = content.rsplit("=", 1)[0].strip()
        content = right if (right and not re.fullmatch(r"0", right)) or len(left) <= 6 else content
    found = in_box(content, "math")
    return found, (cue or "statement") if found else ""
