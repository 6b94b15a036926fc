"""Finds the final answer in a response, in stages: visible text, candidates, what each can be, the choice among them.
Every stage's table is in docs/answers.md and has rows in the table tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from spinerl.answers import expressions, yesno
from spinerl.answers.cues import Cue, cues, letter_cues
from spinerl.answers.letters import (
    LETTERS,
    contained_option,
    leading_letter,
    opening_letter,
    option_of,
    option_text,
    plain,
)
from spinerl.answers.marked import MAX_MARKED, box_content, marked_backwards
from spinerl.answers.normalize import MAX_ANSWER_CHARS, check_kind
from spinerl.answers.refusals import is_doubtful, is_no_answer_predicate, is_placeholder, is_refusal
from spinerl.answers.sentences import first_sentence, last_line, last_sentence, trim, without_aside
from spinerl.answers.shorttext import complement, short_text, strip_articles
from spinerl.answers.strip import after_last_thought, run_on_places, strip_pleasantries, strip_thoughts

__all__ = ["Reading", "Refused", "extract_answer", "read_answer"]

_TAIL_CHARS = 32000  # rules other than box and tag look only this far back
_LINE_CHARS = 8000  # and those about the last line this far
_MAX_CUES = 48
_MAX_REFUSED = 8


class Refused(NamedTuple):
    """A candidate that was not taken: the rule that found it, its text, and why it was refused."""

    rule: str
    text: str
    reason: str


class Reading(NamedTuple):
    """How a response was read.

    `answer`: as `extract_answer` returns it.  `rule`: the row of docs/answers.md that found it ("box", "tag", "cue",
    "last line", ...), or why there is none.  `cue`: the words before it.  `text`: what the rule read.  `refused`: the
    candidates after it that were not taken, the last one first.
    """

    answer: str | None
    rule: str
    cue: str = ""
    text: str = ""
    refused: tuple[Refused, ...] = ()

    def explain(self) -> str:
        """One line: the answer, its rule and cue, the text, and what was refused.

        >>> read_answer("The answer is 8. The solution is complete.", "number").explain()
        "8: cue 'answer is', read from '8'; refused cue 'complete' (no answer of kind number)"
        """
        shown = "no answer" if self.answer is None else self.answer
        line = f"{shown}: {self.rule}" + (f" {self.cue!r}" if self.cue else "")
        if self.text:
            line += f", read from {_short(self.text)!r}"
        if self.refused:
            line += "; refused " + ", ".join(f"{r.rule} {_short(r.text)!r} ({r.reason})" for r in self.refused)
        return line


def extract_answer(
    text: str,
    kind: str = "auto",
    *,
    choices: Sequence[str] = (),
    truncated: bool = False,
    in_thought: bool = False,
) -> str | None:
    """The final answer of a response, or None when it has none: None is never a vote.

    Thoughts, an invented next question and closing pleasantries are taken away first.  Then the first of these that
    can be an answer of the kind: the last box or `<answer>` tag; what follows an answer cue ("the answer is",
    "Answer:", "####", in the languages of docs/answers.md), the last one that holds an answer; a last line or
    sentence that states one.  A refusal ("I don't know") is no answer.

    Args: `text`, the decoded response; `kind`, one of `KINDS` ("auto" reads a letter when `choices` are
    given, else maths, yes/no or short text, whatever stands there); `choices`, the options' texts in the
    order of their letters, so that an option's own text counts as its letter; `truncated`, True when the
    response hit the token limit; `in_thought`, True when the prompt ended inside a thought (`<think>`).
    Returns: the answer as written, stripped of box, dollars and final punctuation (kind "choice": an
    upper-case letter; "yesno": lower case, in English; "number": without separators, currency and percent; "text":
    normalized), never empty; None when truncated, unreadable, ambiguous or longer than `MAX_ANSWER_CHARS`.
    Raises: `InputError` for an unknown kind.
    Source: ours; the box convention is that of the MATH data set.

    >>> extract_answer("<think>3? no</think> So the answer is \\\\boxed{\\\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    return read_answer(text, kind, choices=choices, truncated=truncated, in_thought=in_thought).answer


def read_answer(
    text: str,
    kind: str = "auto",
    *,
    choices: Sequence[str] = (),
    truncated: bool = False,
    in_thought: bool = False,
) -> Reading:
    """As `extract_answer`, with the account of how the answer was read.

    >>> read_answer("\\\\boxed{42}", "math").rule
    'box'
    """
    check_kind(kind)
    if truncated:
        return Reading(None, "truncated")
    if not text:
        return Reading(None, "empty")
    if kind == "auto" and choices:
        kind = "choice"
    visible = strip_thoughts(text, in_thought)
    if visible.text is text and (common := _plain_box(text, kind)) is not None:
        return common
    for place in run_on_places(visible.text):
        before = after_last_thought(visible.text[:place])
        reading = _Search(before, kind, choices).read()
        if reading.answer is not None and not before.rstrip().endswith((":", "：")):
            return reading
    if not visible.finished:
        return Reading(None, "unfinished thought")
    return _Search(after_last_thought(visible.text), kind, choices).read()


def _plain_box(text: str, kind: str) -> Reading | None:
    """The common case, read without a search: the last box, with an expression in it, and no other turn or tag."""
    start = text.rfind("\\boxed")
    if start < 0 or kind in ("choice", "yesno", "text") or "</" in text or "fbox" in text:
        return None
    content = box_content(text, start)
    if content is None or next(run_on_places(text), None) is not None:
        return None
    answer = _expression_in_box(content, kind)
    return None if answer is None else Reading(answer, "box", "", content)


@lru_cache(maxsize=16384)
def _expression_in_box(content: str, kind: str) -> str | None:
    """What a box holds that is an expression and no sentence, else None."""
    return None if _SENTENCE_LIKE.search(content) is not None else expressions.in_box(content, kind)


@dataclass
class _Search:
    """The search through one visible text (stages 2 to 4)."""

    text: str
    kind: str
    choices: Sequence[str]
    depth: int = 0
    refused: list[Refused] = field(default_factory=list)

    def read(self) -> Reading:
        """The answer, by the first stage that finds one."""
        found, searched_from = self._marked()
        if found is not None:
            return found
        self.text = strip_pleasantries(self.text)
        tail_start = max(searched_from, len(self.text) - _TAIL_CHARS)
        return (
            self._cued(self.text[tail_start:]) or self._ending(searched_from) or self._result(None, "no rule applies")
        )

    def _result(self, answer: str | None, rule: str, cue: str = "", text: str = "") -> Reading:
        return Reading(answer, rule, cue, text, tuple(self.refused[:_MAX_REFUSED]))

    def _refuse(self, rule: str, text: str, reason: str) -> None:
        self.refused.append(Refused(rule, text[:200], reason))

    # ------------------------------------------------------------------------------------- boxes and tags

    def _marked(self) -> tuple[Reading | None, int]:
        """The last box or tag that holds an answer; else where the search for cues starts."""
        for count, marked in enumerate(marked_backwards(self.text)):
            if count == MAX_MARKED:
                break
            if marked.content is None:
                self._refuse(marked.rule, self.text[marked.start : marked.start + 60], "never closed")
                if count == 0:
                    return None, marked.start + 6  # what stood before it was not the final word
                continue
            answer = self._inside(marked.content, marked.rule)
            if answer is not None:
                return self._result(answer, marked.rule, "", marked.content), 0
            inner = _without_wrappers(marked.content)
            if is_refusal(inner) and not is_placeholder(inner):
                return self._result(None, f"{marked.rule} holds a refusal", "", marked.content), 0
            reason = "a placeholder" if is_placeholder(inner) or not inner.strip() else f"no answer of kind {self.kind}"
            self._refuse(marked.rule, marked.content, reason)
        return None, 0

    def _inside(self, content: str, rule: str) -> str | None:
        """What a box or tag holds, read as the kind."""
        if self.kind in ("math", "number", "auto") and len(content) <= MAX_ANSWER_CHARS:
            if content.isdecimal() and content.isascii():
                return content
            if _SENTENCE_LIKE.search(content) is None:  # the common case
                return expressions.in_box(content, self.kind)
        if len(content) > 4 * MAX_ANSWER_CHARS and rule == "box":
            return None
        inner = _without_wrappers(content)
        if (
            self.depth == 0
            and re.match(r"[\s*_\"']*(?:(?:so|thus|therefore|hence),? )?(?:the |my )?[^\W\d_\\]", inner)
            and len(inner) > 6
        ):
            cued = _Search(inner, self.kind, self.choices, 1)._cued(inner[-_TAIL_CHARS:])
            if (
                cued is not None
                and cued.answer is not None
                and not inner[: inner.find(cued.cue)].strip(" \t\n*_\"'").count(" ") > 3
            ):
                return cued.answer
        if len(content) <= 4 * MAX_ANSWER_CHARS:
            direct = self._direct(content, rule)
            if direct is not None:
                return direct
        if self.depth == 0 and rule == "tag" and not is_refusal(inner) and not is_placeholder(inner):
            return _Search(inner, self.kind, self.choices, 1).read().answer
        return None

    def _direct(self, content: str, rule: str) -> str | None:
        if self.kind == "choice":
            letter = option_text(content, self.choices)
            return letter if self._is_allowed(letter) else None
        if self.kind == "yesno":
            return yesno.leading_word(trim(_without_wrappers(content))) or yesno.opening_word(
                _without_wrappers(content)
            )
        if self.kind == "text":
            said = complement(content) if rule == "tag" and len(content.split()) > 3 else None
            return short_text(said or content)
        return expressions.in_box(content, self.kind)

    def _is_allowed(self, letter: str | None) -> bool:
        return letter is not None and letter in (LETTERS[: len(self.choices)] if self.choices else LETTERS)

    # ------------------------------------------------------------------------------------------------ cues

    def _cued(self, tail: str) -> Reading | None:
        """The best candidate behind a cue: a high score, and of equal ones the last."""
        found = cues(tail)
        if self.kind == "choice":
            found = sorted([*found, *letter_cues(tail)], key=lambda cue: cue.end)
        best: tuple[float, Reading] | None = None
        for cue in found[-_MAX_CUES:][::-1]:
            answer, score, read = self._behind(tail, cue)
            if answer is None:
                if score < 0:  # a refusal: it gets no vote
                    return self._result(None, "refusal", cue.name, read)
                self._refuse("cue", read, f"no answer of kind {self.kind}")
                continue
            if best is None or score > best[0]:
                best = score, self._result(answer, "cue", cue.name, read)
            if score >= 4:
                break
        return best[1] if best else None

    def _behind(self, tail: str, cue: Cue) -> tuple[str | None, float, str]:
        """What stands behind a cue: the answer, its score (docs/answers.md, "Stage 4") and the text read."""
        if cue.letter:
            return (cue.letter if self._is_allowed(cue.letter) else None), 4.0, cue.name
        if (
            cue.rank > 1
            and self.kind == "choice"
            and re.match(r"(?:option|choice|statement|answer|letter|item)\b", cue.name, re.I)
        ):
            negated = re.match(
                r"[\s(\[*\"']*[A-J][)\]*\"']*(?:\s*\([^()]*\))?\s*,?\s+(?:is|are|was|would be|can be|could be|has "
                r"been|gives|does|do|must be|seems)?\s*(?:(?:\w+ly|also|therefore|thus|both)\s+)?"
                r"(?:wrong|incorrect|false|not|n['’]t|cannot|can['’]t|isn['’]t|doesn['’]t|does not|ruled|eliminated"
                r"|excluded|fails|invalid|contradicts|tempting|out|close|a common|a distractor|irrelevant"
                r"|inconsistent|forgets|ignores|misses)\b",
                tail[cue.end : cue.end + 120],
            )  # fmt: skip
            if negated:
                return None, 0.0, (cue.name + " " + negated[0]).strip()
        content = tail[cue.end : cue.end + 4 * MAX_ANSWER_CHARS].lstrip(" \t\r\n*:_：")
        if cue.name.casefold().endswith(("isn't", "isn’t")):
            content = "not " + content
        display = self.kind in ("math", "number", "auto") and content.startswith(("$$", "\\[", "$", "\\("))
        clause = content if display else first_sentence(content, self.kind)
        if not clause.strip():
            return None, 0.0, ""
        if cue.rank == 3 and self.kind in ("text", "choice", "yesno") and is_no_answer_predicate(clause):
            return None, 0.0, clause
        read = trim(first_sentence(content, self.kind) if display else clause)
        if is_placeholder(read):
            return None, 0.0, read
        if self.kind != "choice" and is_refusal(read) and not _is_kept(read):
            return None, -1.0 if cue.rank < 3 else 0.0, read
        answer, is_strong = self._clause(clause, cue)
        if answer is None:
            return None, 0.0, read
        return answer, _score(cue.rank, is_strong, self.kind, answer), read

    def _clause(self, clause: str, cue: Cue) -> tuple[str | None, bool]:
        """The answer in the sentence behind a cue, and whether it stands at the start."""
        if self.kind == "choice":
            return self._choice_clause(clause, cue)
        if self.kind == "yesno":
            return yesno.leading_word(_affirmed(clause)), True
        if self.kind == "text":
            return self._text_clause(clause, cue), True
        return expressions.after_cue(clause, self.kind, cue.language)

    def _choice_clause(self, clause: str, cue: Cue) -> tuple[str | None, bool]:
        clause = _affirmed(plain(clause))
        if re.match(r"\s*(?:not|neither|never)\b", clause):
            return None, False
        if _names_two(clause):
            return None, False
        letter = leading_letter(clause, certain=False)
        if letter is not None:
            return (letter if self._is_allowed(letter) else None), True
        if cue.name[:1].casefold() in "oc" and cue.rank == 2 and not self.choices:
            return None, False
        whole = trim(clause)
        stripped = strip_articles(whole) if cue.language != "en" else whole
        letter = (
            option_of(whole, self.choices)
            or option_of(stripped, self.choices)
            or contained_option(without_aside(whole), self.choices)
        )
        return (letter if self._is_allowed(letter) else None), letter is not None

    def _text_clause(self, clause: str, cue: Cue) -> str | None:
        clause = trim(without_aside(_affirmed(clause)))
        bold = re.match(r"\*{0,2}([^*\n]{1,200}?)\*\*", clause)
        clause = trim(bold[1]) if bold and bold[1].strip() else clause
        if is_no_answer_predicate(clause) or (cue.rank > 1 and len(clause.split()) > 6):
            return None
        clause = re.sub(r"^(?:most |very )?(?:likely|probably|clearly|definitely|simply|therefore|thus)\s+", "", clause)
        return short_text(clause, cued=True, language=cue.language)

    # --------------------------------------------------------------------------------------------- endings

    def _ending(self, searched_from: int) -> Reading | None:
        """A last line or sentence that is or states the answer, or a response that opens with it."""
        if searched_from:
            return None
        end = self.text[-_LINE_CHARS:]
        line = last_line(end)
        if not line:
            return None
        sentence = last_sentence(line, self.kind)
        if self.kind not in ("choice", "yesno") and (
            is_refusal(line) or (is_refusal(sentence) and not _is_kept(sentence))
        ):
            return self._result(None, "refusal", "", line)
        if self.kind == "choice":
            return self._choice_ending(line)
        if self.kind == "yesno":
            return self._yesno_ending(line)
        if self.kind == "text":
            return self._text_ending(line)
        if self.kind == "number":
            found = expressions.number_of_line(line)
            return self._result(found, "last number of the last line", "", line) if found else None
        return self._math_ending(end, line)

    def _choice_ending(self, line: str) -> Reading | None:
        opening = self.text[:MAX_ANSWER_CHARS].strip()
        first = opening.split("\n", 1)[0].strip()
        for rule, place in (("last line", line), ("opening", opening), ("opening", first)):
            letter = option_of(trim(place), self.choices) or opening_letter(place)
            if self._is_allowed(letter):
                return self._result(letter, rule, "", place)
        sentence = last_sentence(line, "choice")
        said = complement(sentence)
        for rule, place in (
            ("statement", said),
            ("first line", first if len(first.split()) <= 12 else None),
            ("last sentence", sentence),
        ):
            if place and not re.search(r"\bnot\b|n['’]t\b", place):
                letter = option_of(place, self.choices) or contained_option(place, self.choices)
                if self._is_allowed(letter):
                    return self._result(letter, rule, "", place)
        return None

    def _yesno_ending(self, line: str) -> Reading | None:
        places = (
            ("opening", self.text[:400]),
            ("last line", line),
            ("last line", re.sub(r"^[^:：]{1,40}[:：]\s*", "", line)),
        )
        for rule, place in places:
            word = yesno.opening_word(place)
            if word is not None:
                return self._result(word, rule, "", place)
        word = yesno.closing_word(line) or yesno.inner_word(line)
        return self._result(word, "closing word", "", line) if word else None

    def _text_ending(self, line: str) -> Reading | None:
        if any(refused.rule == "cue" and refused.text and refused.text in line for refused in self.refused):
            return None  # the line is an answer cue with nothing behind it
        words = len(self.text.split())
        first = self.text.strip().split("\n", 1)[0].strip()
        opens = re.match(r"[\s*_>-]*(yes|no)\*{0,2}\s*[,.;:!\n–—-]", self.text, re.I)
        sentence = last_sentence(line, "text")
        if (
            first != line
            and re.match(r"\*\*[^*]+\*\*\.?$|\S+(?:\s\S+)?$", first)
            and (answer := self._first_line(first))
        ):
            return self._result(answer, "first line", "", first)
        if words > 1 and opens and len(self.text) > len(opens[0]) + 1:
            return self._result(opens[1].lower(), "opening", "", first)
        said = complement(sentence)
        is_short = len(line.split()) <= 3
        about_first = first != line and re.match(r"(?:it|this|they|he|she)\b", sentence, re.I) is not None
        if said is not None and not (about_first and self._first_line(first)) and (answer := short_text(said)):
            return self._result(answer, "statement", "", sentence)
        if is_short:
            answer = short_text(line)
            return self._result(answer, "last line", "", line) if answer else None
        if first != line and (answer := self._first_line(first)):
            return self._result(answer, "first line", "", first)
        if words <= 8:
            answer = short_text(line)
            return self._result(answer, "whole response", "", line) if answer else None
        return None

    def _first_line(self, first: str) -> str | None:
        """A short first line with a blank line behind it: the answer, then its explanation."""
        text = self.text.strip()
        is_paragraph = re.match(r"[ \t]*\r?\n[ \t]*\r?\n", text[len(first) : len(first) + 8]) is not None
        if not is_paragraph or len(first.split()) > 5 or first.endswith((":", "?", "!", "：")) or _HEADING.match(first):
            return None
        return short_text(first)

    def _math_ending(self, end: str, line: str) -> Reading | None:
        found = expressions.display_at_end(end)
        if found is not None:
            return self._result(found, "display maths at the end", "", found)
        found = expressions.bare_line(line)
        if found is not None:
            return self._result(found, "last line", "", line)
        found, cue = expressions.concluding_expression(line)
        if found is not None:
            return self._result(found, "concluding sentence", cue, line)
        if self.kind == "auto" and not any(r.rule == "cue" and r.text and r.text in line for r in self.refused):
            said = complement(line)
            if said is not None and len(said) <= MAX_ANSWER_CHARS and short_text(said):
                return self._result(said, "statement", "", line)
            bare = trim(line)
            opens = re.match(r"(yes|no)\s*[,;–—]", bare, re.I)
            if opens is not None:
                return self._result(opens[1], "opening", "", line)
            if len(self.text.split()) <= 8 and short_text(bare) and expressions.in_box(bare, "auto"):
                return self._result(bare, "last line", "", line)
        return None


_SENTENCE_LIKE = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z'’]{2,}[ :]|[^\x00-\x7f]|\\text|\[[A-Za-z]|_{2}|\?|\.\.|\\dots|\\ldots"
)
_HEADING = re.compile(
    r"(?:#|step\b|sure\b|okay\b|ok\b|let|first\b|reasoning|explanation|solution|analysis|here\b|findings"
    r"|impression|description|overview|"
    r"summary|context|background|answer\b|conclusion|final\b|image\b|to (?:find|solve)"
    r"|we\b|given)",
    re.I,
)


def _score(rank: int, is_strong: bool, kind: str, answer: str) -> float:
    """The score of a candidate: its cue's rank, where it stands behind it, and whether it may be a mere remark."""
    is_words = kind == "text" or (
        kind in ("math", "auto") and re.search(r"[^\W\d_]{3,}", answer) is not None and "\\" not in answer
    )
    if is_words and is_doubtful(answer):
        return 0.5
    table = {
        (1, True): 4.0,
        (2, True): 3.0 if is_words else 4.0,
        (1, False): 2.0,
        (2, False): 1.0,
        (3, True): 1.0,
        (3, False): 0.5,
    }
    return table[rank, is_strong]


def _is_kept(text: str) -> bool:
    """What looks like a refusal and is read as words all the same."""
    return text.strip().casefold() == "not yet known"


def _affirmed(clause: str) -> str:
    """What a clause affirms: "not A but C" gives C."""
    return re.sub(
        r"^[\s*_]*not\s+(?:.{1,60}?)(?:[,;]\s*|\s+)(?:but(?: rather)?|rather|instead|it is|it['’]s|it must be|it "
        r"should be)\s+(?=\S)",
        "",
        clause,
        flags=re.I | re.S,
    )


def _names_two(clause: str) -> bool:
    return (
        re.match(
            r"[\s(\[*\"']*[A-J][)\]*\"']*\s*(?:,|and|or|/|&)\s*(?:also |option |both )?[(\[*]*[A-J](?![A-Za-z0-9'’])",
            clause,
        )
        is not None
    )


_TEXT_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph|boldsymbol)\s*\{([^{}]*)\}")


def _without_wrappers(content: str) -> str:
    """Text commands around words go, so that a sentence inside a box is a sentence."""
    if "\\" not in content:
        return content
    return re.sub(r"(?<!\\)\\ ", " ", _TEXT_WRAPPER.sub(r"\1", content)).replace("~", " ")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
