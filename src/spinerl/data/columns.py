"""Which columns hold what, where no key names them: the question, the gold answer, the options; and what to offer for
one that is not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase

from spinerl.errors import did_you_mean

__all__ = ["GOLD_RANKS", "QUESTION_RANKS", "find_choices", "find_column", "names_columns", "offer"]

QUESTION_RANKS = (
    ("question",),
    ("problem",),
    ("prompt", "query", "input", "instruction", "messages", "conversations"),
    ("text",),
)
"""Names of question columns in public data sets, the likeliest first; those of a rank are equally likely."""
GOLD_RANKS = (
    ("answer",),
    (
        "gold",
        "goldanswer",
        "correctanswer",
        "finalanswer",
        "expectedanswer",
        "referenceanswer",
        "groundtruth",
        "answerkey",
    ),
    ("solution",),
    ("label", "target"),
)
"""Names of columns of gold answers, likewise."""
QUESTIONS = ("problem", "prompt", "query", "messages", "conversations", "instruction", "input", "text")
"""Those that are offered in place of a named column that is not there."""
GOLD = ("solution", "solutions", "answer", "answers", "gold", "label", "target", "output", "response", "explanation")
"""Never offered as the question."""
LISTS = ("choices", "options")
ONE_EACH = re.compile(r"(?P<stem>|op|opt|options?[_ ]?|choices?[_ ]?)(?P<letter>[a-z])", re.IGNORECASE)


def find_column(ranks: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    """The columns of the first rank that has any: one, several of equal rank, or none; case, _ and - do not count.

    A column that is written as the rank writes it wins over others that only differ in that.

    >>> find_column(QUESTION_RANKS, ["Prompt", "Problem"]), find_column(QUESTION_RANKS, ["input", "prompt"])
    (['Problem'], ['input', 'prompt'])
    >>> find_column(GOLD_RANKS, ["answerKey", "label"]), find_column(GOLD_RANKS, ["Answer", "answer"])
    (['answerKey'], ['answer'])
    """
    for rank in ranks:
        found = [column for column in columns if _plain(column) in rank]
        exact = [column for column in found if column in rank]
        if len({_plain(column) for column in found}) == 1 and len(exact) == 1:
            return exact
        if found:
            return found
    return []


def names_columns(cells: Sequence[str]) -> bool:
    """Whether the cells of a first line are names of columns: one of them is a question's.

    >>> names_columns(["id", " Problem"]), names_columns(["What is 2 + 3?"])
    (True, False)
    """
    return len(find_column(QUESTION_RANKS, [cell.strip() for cell in cells])) > 0


def find_choices(columns: Sequence[str]) -> list[str]:
    """The columns with the options of multiple choice: `choices` or `options`, or one column per letter; [] for none.

    Per letter are read A, B, C, ... (three at least), and two at least of `option_a`, `optionA`, `choice_a`, `opa`.

    >>> find_choices(["question", "options"]), find_choices(["q", "A", "B", "C", "D"]), find_choices(["a", "b"])
    (['options'], ['A', 'B', 'C', 'D'], [])
    """
    lists = [name for name in columns if name.lower() in LISTS]
    if lists:
        return lists[:1]
    stems: dict[str, dict[str, str]] = {}
    for name in columns:
        found = ONE_EACH.fullmatch(name)
        if found and (found["stem"] or found["letter"].isupper()):
            stems.setdefault(found["stem"].lower(), {})[found["letter"].lower()] = name
    for stem, named in stems.items():
        in_order = [named[letter] for letter in ascii_lowercase[: len(named)] if letter in named]
        if len(in_order) == len(named) and len(named) >= (2 if stem else 3):
            return in_order
    return []


def offer(key: str, name: str, columns: Sequence[str]) -> str:
    """' (did you mean "x"?)' for a column that is not there, or ''; for a question no column of gold answers.

    >>> offer("data.columns.question", "question", ["problem", "solution"])
    ' (did you mean "problem"?)'
    >>> offer("data.columns.question", "question", ["solution"]), offer("data.columns.gold", "answr", ["answer"])
    ('', ' (did you mean "answer"?)')
    """
    if key != "data.columns.question":
        return did_you_mean(name, columns)
    likely = [column for column in columns if column.lower().rpartition(".")[2] not in GOLD]
    near = did_you_mean(name, likely)
    known = {column.lower(): column for column in reversed(likely)}
    known_name = next((known[one] for one in (name.lower(), *QUESTIONS) if one in known), None)
    return near or (f' (did you mean "{known_name}"?)' if known_name is not None else "")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
