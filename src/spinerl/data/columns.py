"""Which columns hold what, where no key names them: the question, the options; and what to offer for one not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase

from spinerl.errors import did_you_mean

__all__ = ["find_choices", "offer"]

QUESTIONS = ("problem", "prompt", "query", "messages", "conversations", "instruction", "input", "text")
"""Names of question columns in public data sets, the likeliest first; offered, never taken without being named."""
GOLD = ("solution", "solutions", "answer", "answers", "gold", "label", "target", "output", "response", "explanation")
"""Never offered as the question."""
LISTS = ("choices", "options")
ONE_EACH = re.compile(r"(?P<stem>|op|opt|options?[_ ]?|choices?[_ ]?)(?P<letter>[a-z])", re.IGNORECASE)


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
