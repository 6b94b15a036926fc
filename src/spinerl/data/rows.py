"""One row -> its question and, apart, its gold answer; or the reasons why not."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from string import ascii_uppercase as LETTERS
from typing import Any

from spinerl.answers.options import choice_lines, shows_choices
from spinerl.config import ColumnsConfig
from spinerl.data.chats import BadChatError, is_chat, last_reply, read_chat
from spinerl.data.columns import GOLD_RANKS, QUESTION_RANKS, find_choices, find_column, offer
from spinerl.data.definitions import Definition
from spinerl.data.images import ImageReader, place_images
from spinerl.data.tables import SourceRow, Table, name_list
from spinerl.errors import InputError
from spinerl.images import BadImageError
from spinerl.solutions import final_answer
from spinerl.types import ImageRef, Question

__all__ = ["RowReader", "RowResult", "gold_letter", "parse_choices", "plain_text"]

MAX_TEXT_CHARS = 1_000_000
"""A longer question, option or gold answer is a fault of its row: no model reads so much."""
MAX_NAME_CHARS = 1000
"""A longer id or subject is one too."""
MAX_PACKED_CHARS = 100_000
"""Options written as text, in JSON or Python, are read up to here."""
_MAX_FIELDS = 64
"""Dots in the name of a field; one with more is a column's own name."""

PLACE = re.compile(r"\{([^{}]+)\}")
OPTION_MARK = re.compile(r"^\s*\(?([A-Za-z])\s*[).:]\s*")


@dataclass(frozen=True)
class RowResult:
    """What a row gave: a question, or why not.

    `error` stops a load, or leaves the row out with data.on_bad_row=skip, counted under `reason`; `skipped` leaves it
    out in any case.
    """

    question: Question | None = None
    gold: str | None = None
    error: str = ""
    reason: str = ""
    skipped: str = ""


class BadCellError(ValueError):
    """A cell holds what cannot be used; the message says what."""


@dataclass(frozen=True)
class RowReader:
    """Reads rows by a resolved set of columns.  Made by `RowReader.of(table, columns, definition, kind)`."""

    id: str | None
    question: str | None
    gold: str | None
    choices: tuple[str, ...]
    subject: str | None
    images: str | None
    image_reader: ImageReader
    definition: Definition
    kind: str
    gold_extract: str = "auto"
    found_choices: bool = False  # the columns of options were found, and not named
    found_gold: bool = False  # so was that of gold answers, and it is not `answer`
    flat: bool = False  # all cells are texts
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        table: Table,
        columns: ColumnsConfig,
        definition: Definition | None,
        kind: str,
        image_reader: ImageReader,
        *,
        read_gold: bool = True,
        gold_extract: str = "auto",
    ) -> RowReader:
        """Raises InputError for a named column that is not there, listing those that are, and where several columns may
        hold the question."""
        definition = definition or Definition()
        question = None if definition.template is not None else columns.question or _find_question(table)
        gold, open_gold = columns.gold, []
        if gold == "auto":
            open_gold = find_column(GOLD_RANKS, [name for name in table.columns if name != question])
            gold = open_gold[0] if len(open_gold) == 1 else None
        choices: str | list[str] = columns.choices if columns.choices is not None else []
        found_choices = choices == "auto"
        if found_choices:
            choices = find_choices(table.columns)
        reader = cls(
            id=columns.id if columns.id is not None else ("id" if "id" in table.columns else None),
            question=question,
            gold=gold if read_gold else None,
            choices=(choices,) if isinstance(choices, str) else tuple(choices),
            subject=columns.subject,
            images=columns.images if columns.images != "auto" else _first_of(("images", "image"), table.columns),
            image_reader=image_reader,
            definition=definition,
            kind=kind,
            gold_extract=gold_extract,
            found_choices=found_choices,
            found_gold=bool(open_gold) and gold != "answer",
            flat=table.flat,
            notes=_notes(None if columns.question else question, open_gold if read_gold else []),
        )
        if table.columns:
            for key, name in reader._named():
                if not any(part in table.columns for part in _prefixes(name)):
                    near = offer(key, name, table.columns)
                    raise InputError(
                        f"{table.source} has no column {name!r}{near}; there are {name_list(table.columns)}: set {key}"
                    )
        return reader

    def wanted(self) -> set[str]:
        """The columns to read, top level only."""
        return {part for _, name in self._named() for part in _prefixes(name)}

    @property
    def taken(self) -> str:
        """Which columns are taken for what, for people."""
        named = {
            "question": self.question or "a template",
            "gold": self.gold,
            "choices": " ".join(self.choices),
            "id": self.id,
            "subject": self.subject,
            "images": self.images,
        }
        return ", ".join(f"{what} from {name_list([name])}" for what, name in named.items() if name)

    def read(self, row: SourceRow, gold: Any = None) -> RowResult:
        """The row's question and gold; `gold` is a cell from a gold file, used instead of a gold column."""
        if row.cells is None:
            return RowResult(error=row.problem, reason="unreadable row")
        cells = row.cells
        try:
            for name, value in self.definition.where.items():
                if _text_cell(_lookup(cells, name), name) != value:
                    return RowResult(skipped=f"{name} is not {value}")
            turns, text = self._question_text(cells)
            if not text:
                return RowResult(skipped="empty question")
            row_id = self._id(row, cells)
            labels, options = self._choices(cells)
            _check_size((text, *options, *(said for _, said in turns)))
            if self.definition.shuffle_choices:
                order = sorted(range(len(options)), key=lambda i: _hash(f"{row_id}/{i}"))
                labels, options = tuple(LETTERS[: len(order)]), tuple(options[i] for i in order)
            kind = self.kind
            if kind == "auto":
                kind = "choice" if options else self.definition.kind
            answer = self._gold(cells if gold is None else {"answer": gold}, labels, options, kind, gold is not None)
            if not (self.found_choices and shows_choices(text, options)):
                text += "".join(f"\n{line}" for line in choice_lines(options))
            images: tuple[ImageRef, ...] = ()
            if self.images is not None:
                images = self.image_reader.read(self._cell(cells, self.images))
                text, images = place_images(text, images, merged=self.definition.merged_images)
            question = Question(
                id=row_id,
                text=text,
                choices=options,
                subject=self._subject(cells),
                answer_kind=kind,
                images=images,
                turns=turns,
            )
        except BadCellError as error:
            return RowResult(error=str(error), reason="bad cell")
        except BadImageError as error:
            return RowResult(error=str(error), reason=error.reason)
        return RowResult(question, answer)

    def _cell(self, cells: Mapping[str, Any], name: str) -> Any:
        """The cell of a column; where all cells are texts, a list that is written as JSON as that list."""
        cell = _lookup(cells, name)
        if self.flat and isinstance(cell, str) and cell.lstrip()[:1] == "[" and len(cell) <= MAX_TEXT_CHARS:
            value = _from_json(cell)
            if is_chat(value) or (name == self.images and isinstance(value, list)):
                return value
        return cell

    def _named(self) -> list[tuple[str, str]]:
        """(configuration key, column) of every column this reader needs."""
        named = [(f"data.columns.{key}", getattr(self, key)) for key in ("id", "question", "gold", "subject", "images")]
        named += [("data.columns.choices", name) for name in self.choices]
        named += [("the definition's template", name) for name in PLACE.findall(self.definition.template or "")]
        named += [("the definition's where", name) for name in self.definition.where]
        return [(key, name) for key, name in named if name is not None]

    def _question_text(self, cells: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], str]:
        """(the messages before the question, where the cell is a chat; the question)."""
        turns: tuple[tuple[str, str], ...] = ()
        template = self.definition.template
        if template is not None:
            parts = {name: _lookup(cells, name) for name in PLACE.findall(template)}
            if any(_is_blank(value) for value in parts.values()):
                return turns, ""
            text = PLACE.sub(lambda place: _joined(parts[place[1]], place[1]), template)
        else:
            assert self.question is not None
            cell = self._cell(cells, self.question)
            if is_chat(cell):
                try:
                    turns, cell = read_chat(cell)
                except BadChatError as error:
                    raise BadCellError(f"column {self.question!r}: {error}; see data.columns.question") from None
            text = _text_cell(cell, self.question)
        if self.definition.cut_after is not None:
            text = text.partition(self.definition.cut_after)[0]
        return turns, text.strip()

    def _choices(self, cells: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        try:
            return parse_choices(self._choice_cell(cells))
        except BadCellError as error:
            out = "; data.columns.choices=null reads no options" if self.found_choices else ""
            raise BadCellError(f"{error}{out}") from None

    def _id(self, row: SourceRow, cells: Mapping[str, Any]) -> str:
        if self.id is None:
            return str(row.number)
        value = _text_cell(_lookup(cells, self.id), self.id, MAX_NAME_CHARS).strip()
        if not value:
            raise BadCellError(f"column {self.id!r} is empty; every row needs an id, or set data.columns.id to another")
        return value

    def _subject(self, cells: Mapping[str, Any]) -> str | None:
        if not self.subject:
            return None
        return _text_cell(_lookup(cells, self.subject), self.subject, MAX_NAME_CHARS) or None

    def _choice_cell(self, cells: Mapping[str, Any]) -> Any:
        if len(self.choices) == 1:
            return _lookup(cells, self.choices[0])
        parts = [_lookup(cells, name) for name in self.choices]
        while self.found_choices and parts and _is_blank(parts[-1]):  # a row with fewer options than columns
            parts.pop()
        return parts

    def _gold(
        self,
        cells: Mapping[str, Any],
        labels: Sequence[str],
        options: Sequence[str],
        kind: str,
        from_file: bool,
    ) -> str | None:
        name = "answer" if from_file else self.gold
        if name is None:
            return None
        try:
            return self._gold_text(self._cell(cells, name), name, labels, options, kind)
        except BadCellError as error:
            out = "; data.columns.gold=null reads no gold answers" if self.found_gold and not from_file else ""
            raise BadCellError(f"{error}{out}") from None

    def _gold_text(self, cell: Any, name: str, labels: Sequence[str], options: Sequence[str], kind: str) -> str | None:
        if is_chat(cell):  # named by its key: no chat is taken for gold otherwise
            cell = last_reply(cell)
        if _is_blank(cell):
            return None
        if kind == "choice" and options:
            # The options say what an answer is; a text of any length may be one.
            found = self._final(cell, "text") if isinstance(cell, str) else cell
            try:
                return gold_letter(found, labels, options, self.definition.gold_form)
            except BadCellError as error:
                out = "; data.columns.choices=null reads no options" if self.found_choices else ""
                raise BadCellError(f"{error}{out}") from None
        if isinstance(cell, bool) and kind == "yesno":
            return "yes" if cell else "no"
        return self._final(_text_cell(cell, name), kind) or None

    def _final(self, text: str, kind: str) -> str:
        """The answer in a gold text, by the definition's gold_after and data.gold_extract."""
        mark = self.definition.gold_after
        if mark is not None:
            return text.rpartition(mark)[2].strip()
        try:
            return final_answer(text, self.gold_extract, kind)
        except InputError as error:
            raise BadCellError(str(error)) from None


def parse_choices(cell: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels, options) of a cell: labels as the data set writes them, options' texts in order.

    Read are a list of texts; a list of {letter, content}; {"A": text, ...}; {"text": [...], "label":
    [...]}; any of these written as JSON or as a Python literal.  Marks like "A. " or "(A) " before every
    option are dropped. None, "" and [] are no choices.

    >>> parse_choices({"A": "red", "B": "blue"})
    (('A', 'B'), ('red', 'blue'))
    """
    if isinstance(cell, str):
        cell = _unpack(cell)
    if cell is None or (isinstance(cell, list | tuple | dict) and len(cell) == 0):
        return (), ()
    labels: list[str] | None = None
    texts: list[Any]
    if isinstance(cell, Mapping):
        lists = [key for key, value in cell.items() if isinstance(value, list | tuple)]
        if lists:
            texts = list(cell[_first(cell, ("text", "texts", "content", "options", "choices"), "options")])
            label_key = next((key for key in ("label", "labels", "letter", "letters") if key in cell), None)
            labels = [str(label) for label in cell[label_key]] if label_key is not None else None
        else:
            kept = {str(key): value for key, value in cell.items() if value is not None}
            labels = sorted(kept) if all(len(key) == 1 for key in kept) else list(kept)
            texts = [kept[label] for label in labels]
    elif isinstance(cell, list | tuple):
        texts = list(cell)
        if all(isinstance(part, Mapping) for part in texts):
            label_key = next((key for key in ("letter", "label", "key", "id") if key in texts[0]), None)
            text_key = _first(texts[0], ("content", "text", "value", "option"), "an option")
            if label_key is not None:
                labels = [str(part.get(label_key)) for part in texts]
            texts = [part.get(text_key) for part in texts]
    else:
        raise BadCellError(f"options must be a list, found {type(cell).__name__}; see data.columns.choices")
    if not 2 <= len(texts) <= len(LETTERS) or (labels is not None and len(labels) != len(texts)):
        raise BadCellError(f"{len(texts)} option(s): multiple choice takes 2 to {len(LETTERS)}, each with its label")
    options = [_text_cell(text, "options").strip() for text in texts]
    marks = [OPTION_MARK.match(option) for option in options]
    if all(mark is not None and mark[1].upper() == letter for mark, letter in zip(marks, LETTERS, strict=False)):
        options = [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark is not None]
    return tuple(labels or LETTERS[: len(options)]), tuple(options)


def gold_letter(cell: Any, labels: Sequence[str], options: Sequence[str], form: str = "auto") -> str:
    """The letter of the right option, given as an index from 0, a letter or label, or the option's own text.

    `form="auto"`: a number is an index; a text is a label ("B", "(b)", "B."), else an option's text, else
    an index in digits.  A text that is one option's label and another's text is refused: say which by
    gold_form.

    >>> gold_letter(1, "ABC", ["red", "blue", "red"]), gold_letter("blue", "ABC", ["red", "blue", "green"])
    ('B', 'B')
    """
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    number = int(cell) if is_number and cell == cell // 1 else None
    text = _text_cell(cell, "gold").strip()
    by = _readings(text, labels, options)
    if form == "letter" and number is not None:
        order = ["letter", "index"]
    elif form != "auto":
        order = [form]
    elif number is not None and text not in labels:
        order = ["index", "text"]
    else:
        order = ["letter", "text", "index"]
        if None not in (by["letter"], by["text"]) and by["letter"] != by["text"]:
            raise BadCellError(
                f"gold {text!r} is option {LETTERS[by['letter'] or 0]} by its letter and option "
                f"{LETTERS[by['text'] or 0]} by its text; set gold_form to letter or text in a definition"
            )
    found = next((by[reading] for reading in order if by[reading] is not None), None)
    if found is None:
        raise BadCellError(
            f"gold {text[:60]!r} is none of the options: allowed are an index from 0 to {len(options) - 1}, "
            f"a letter from A to {LETTERS[len(options) - 1]}, or an option's text; see data.columns.gold"
        )
    return LETTERS[found]


def _readings(text: str, labels: Sequence[str], options: Sequence[str]) -> dict[str, int | None]:
    """Which option a text is as an index, as a letter and as an option's text; None where it is none."""
    mark = OPTION_MARK.match(text)
    bare = mark[1] if mark and mark.end() == len(text) else text.strip("() ")
    letter = next((i for i, label in enumerate(labels) if label.casefold() == bare.casefold()), None)
    same = _same_text(text, options)
    if same is None and mark is not None and mark[1].upper() in labels:  # "B. blue"
        index = list(labels).index(mark[1].upper())
        same = index if _same_text(text[mark.end() :], [options[index]]) == 0 else None
    index = int(text) if text.isdecimal() and len(text) < 4 and int(text) < len(options) else None
    return {"index": index, "letter": letter, "text": same}


def plain_text(cell: Any) -> str | None:
    """A cell as text: 142.0 -> "142", 0.5 -> "0.5", True -> "true", None and NaN -> None.

    Raises BadCellError for lists and objects.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, int | float | Decimal):
        return str(cell)
    raise BadCellError(f"must be text or a number, found {type(cell).__name__}")


def _text_cell(cell: Any, name: str, most: int = MAX_TEXT_CHARS) -> str:
    try:
        text = plain_text(cell) or ""
        if len(text) > most:
            raise BadCellError(f"has {len(text):,} characters, over {most:,}: shorten it, or leave the row out")
        text.encode()
    except BadCellError as error:
        raise BadCellError(f"column {name!r} {error}") from None
    except UnicodeEncodeError:
        raise BadCellError(f"column {name!r} holds half a character (a lone surrogate); write it again") from None
    return text


def _check_size(texts: Iterable[str]) -> None:
    size = sum(map(len, texts))
    if size > MAX_TEXT_CHARS:
        raise BadCellError(
            f"the question with its options and earlier messages has {size:,} characters, over {MAX_TEXT_CHARS:,}: "
            "shorten it, or leave the row out"
        )


def _is_blank(cell: Any) -> bool:
    return (
        cell is None or (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and not cell.strip())
    )


def _joined(cell: Any, name: str) -> str:
    parts = cell if isinstance(cell, list | tuple) else [cell]
    return "\n".join(_text_cell(part, name).strip() for part in parts)


def _lookup(cells: Mapping[str, Any], name: str) -> Any:
    """The cell of a column; "a.b" also reaches field b of column a, "a.0" its first item.  None where there is none.

    A column of the whole name wins, and one of a longer beginning over one of a shorter.  Text on the way is read as
    JSON.

    >>> row = {"chat": [{"content": "2 + 3?"}], "a.b": 1, "a": {"b": 2}}
    >>> _lookup(row, "chat.0.content"), _lookup(row, "a.b")
    ('2 + 3?', 1)
    """
    start = next((part for part in _prefixes(name) if part in cells), None)
    if start is None:
        return None
    value: Any = cells[start]
    for part in name[len(start) + 1 :].split(".") if start != name else ():
        if isinstance(value, str):
            value = _from_json(value)
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and re.fullmatch(r"-?[0-9]{1,6}", part):
            value = value[int(part)] if -len(value) <= int(part) < len(value) else None
        else:
            return None
    return value


def _prefixes(name: str) -> list[str]:
    """A column's name and what it may be a field of, the longest first: "a.b.c", "a.b", "a"."""
    parts = name.split(".") if name.count(".") < _MAX_FIELDS else [name]
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _from_json(text: str) -> Any:
    """What a text is as JSON; None where it is none, or too long."""
    try:
        return json.loads(text) if len(text) <= MAX_TEXT_CHARS else None
    except (ValueError, RecursionError):
        return None


def _find_question(table: Table) -> str:
    """The column that holds the questions, where no key names it; InputError where several may."""
    found = find_column(QUESTION_RANKS, table.columns)
    if len(found) < 2:
        return found[0] if found else "question"
    pair = {name.lower() for name in found} == {"instruction", "input"}
    both = "; a definition's `template` joins both (docs/data.md)" if pair else ""
    raise InputError(
        f"{table.source}: the questions may be in any of the columns {name_list(found)}; say which with "
        f"data.columns.question={name_list(found[:1])}{both}"
    )


def _notes(question: str | None, gold: Sequence[str]) -> tuple[str, ...]:
    """What was guessed, a line each; nothing of `question` and `answer`."""
    said = []
    if question not in (None, "question"):
        said.append(f"questions from column {question!r}; data.columns.question=NAME names another")
    if len(gold) == 1 and gold[0] != "answer":
        said.append(
            f"gold answers, for figures only, from column {gold[0]!r}; data.columns.gold=NAME names another, null none"
        )
    if len(gold) > 1:
        said.append(f"no gold answers: columns {name_list(gold)} may all hold them; data.columns.gold=NAME names one")
    return tuple(said)


def _first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _unpack(text: str) -> Any:
    if not text.strip():
        return None
    if len(text) > MAX_PACKED_CHARS:
        raise BadCellError(
            f"options are text of {len(text):,} characters, over {MAX_PACKED_CHARS:,}: give them as a list; "
            "see data.columns.choices"
        )
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadCellError(f"options {text[:40]!r} are text that is no list; see data.columns.choices")


def _first(cell: Mapping[str, Any], keys: Sequence[str], what: str) -> str:
    found = next((key for key in keys if key in cell), None)
    if found is None:
        raise BadCellError(f"{what} must hold one of the fields {', '.join(keys)}; found {name_list(cell)}")
    return found


def _same_text(text: str, options: Sequence[str]) -> int | None:
    """The first option with this text: as it is, else apart from case and spaces."""
    if text in options:
        return list(options).index(text)
    folded = [" ".join(option.casefold().split()) for option in options]
    wanted = " ".join(text.casefold().split())
    return folded.index(wanted) if wanted in folded else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
