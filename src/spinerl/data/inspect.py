"""Looking at data before a run: the benchmarks there are, the first prompts, and every row's faults."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from spinerl.config import Config
from spinerl.data.benchmarks import BENCHMARKS
from spinerl.data.definitions import definition_of, read_definition, resolve
from spinerl.data.images import parts_of
from spinerl.data.load import Scan, check_gold_file, load_data, scan
from spinerl.data.prompts import PromptVision, TextTokenizer, render_prompt, render_text
from spinerl.errors import InputError
from spinerl.images import image_facts
from spinerl.types import ImageRef, Question

__all__ = ["Finding", "PreviewRow", "Report", "check", "list_datasets", "preview", "reading_of"]

_LONGEST = 200  # the limit of the processors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL


@dataclass(frozen=True)
class PreviewRow:
    """One question as the model sees it.

    `num_tokens` is None without a tokenizer, `gold` where none is.  `images` is a line for each: file, kind, size.
    """

    id: str
    kind: str
    text: str
    num_tokens: int | None
    gold: str | None
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something about a row: an `error` would stop a run; a `warning` would not, but look."""

    severity: str
    where: str
    what: str


@dataclass(frozen=True)
class Report:
    """What `check` saw.  `ok` is True when a run would start; warnings do not change that."""

    source: str
    num_rows: int
    num_questions: int
    num_gold: int
    kinds: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    reading: str = ""
    """How the rows are read: format, encoding, columns."""

    @property
    def ok(self) -> bool:
        return self.num_questions > 0 and not any(finding.severity == "error" for finding in self.findings)

    def lines(self) -> list[str]:
        """The report to print: a summary, then one line per finding."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        summary = f"{self.source}: {self.num_rows} rows, {self.num_questions} questions ({kinds or 'none'}), "
        return [summary + f"{self.num_gold} with gold"] + [f"{f.severity}: {f.where}: {f.what}" for f in self.findings]


def list_datasets() -> list[dict[str, Any]]:
    """A row per benchmark: name, hub, config, split, rows, kind, images, licence, note.

    >>> list_datasets()[0]["name"]
    'math-500'
    """
    rows = []
    for name, raw in BENCHMARKS.items():
        d = read_definition(raw, f"benchmark {name}")
        rows.append(
            {
                "name": name,
                "hub": d.hub,
                "config": d.config,
                "split": d.split or "test",
                "rows": d.rows,
                "kind": d.kind,
                "images": d.columns.images not in (None, "auto"),
                "licence": d.licence,
                "note": d.note,
            }
        )
    return rows


def preview(
    config: Config, tokenizer: TextTokenizer | None = None, n: int = 3, vision: PromptVision | None = None
) -> list[PreviewRow]:
    """The first n questions as the model will see them; without a tokenizer in the plain form.

    Images stand in the text as the model's own placeholders with `vision`, the part of it that makes prompts with
    images (`spinerl.models.processor`), else as `<image>`.
    Raises as `load_data` and `render_text`.

    >>> preview(Config(), None, 1)[0].kind
    'number'
    """
    config = resolve(config)
    limit = min(n, config.data.max_questions) if config.data.max_questions else n
    data = config.data.model_copy(update={"max_questions": max(1, limit)})
    questions, gold = load_data(data, answer_kind=config.answer.kind)
    rows = []
    for question in questions.questions:
        seen = vision if question.images else None
        shown = question if seen is not None else replace(question, text=_with_marks(question))
        text = render_text(shown, tokenizer, config.prompt, vision=seen)
        counted = seen is not None or not question.images  # a processor says how many tokens an image has
        num_tokens = None
        if tokenizer is not None and counted:
            num_tokens = len(render_prompt(question, tokenizer, config.prompt, vision=seen))
        images = tuple(
            f"image {i}: {image.path or 'in the row'}: {image_facts(image, max_pixels=data.max_image_pixels)}"
            for i, image in enumerate(question.images, start=1)
        )
        rows.append(PreviewRow(question.id, question.answer_kind, text, num_tokens, gold.get(question.id), images))
    return rows


def reading_of(config: Config) -> str:
    """How the rows of a data set are read: format, encoding, columns.  Raises as `load_data`.

    >>> reading_of(Config())
    'jsonl, utf-8: question from question, id from id'
    """
    config = resolve(config)
    return scan(config.data, config.answer.kind).reading


def check(config: Config, tokenizer: TextTokenizer | None = None, vision: PromptVision | None = None) -> Report:
    """Goes through every row and says all that is wrong, where `load_data` stops at the first.

    Errors: bad JSON lines, repeated ids, cells of a wrong type, a gold choice that is none of the options,
    images that do not open (each is decoded), a gold file whose ids belong to no row; with data.on_bad_row=skip those
    of a row are warnings.  Warnings: empty questions, questions asked twice, gold that does
    not parse as its kind, images over 200 times as long as wide, fewer or more rows than the definition expects,
    prompts over `prompt.max_tokens` (with a tokenizer).  With `vision`, the part of a model that makes prompts with
    images, a prompt is made of every question with images, and what the model's processor refuses is an error; a
    tokenizer without it stands for a model that only reads text, and questions with images are a warning.  A source
    that cannot be opened, or a missing column, still raises InputError: there are no rows to go through.

    >>> check(Config()).ok
    True
    """
    config = resolve(config)
    data = config.data.model_copy(update={"max_questions": 0})
    found = scan(data, config.answer.kind, decode=True)
    findings: list[Finding] = []
    kinds: Counter[str] = Counter()
    first_rows: dict[tuple[Any, str, tuple[ImageRef, ...]], str] = {}
    ids: list[str] = []
    num_gold = 0
    num_rows = 0
    num_filtered = 0
    num_shown = 0
    gold_problem = _gold_parser()
    for row, outcome in found.outcomes():
        num_rows += 1
        if outcome.error:
            skips = data.on_bad_row == "skip"
            what = outcome.error + (": left out" if skips else "")
            findings.append(Finding("warning" if skips else "error", row.where, what))
            continue
        question = outcome.question
        if question is None:
            if outcome.skipped == "empty question":
                findings.append(Finding("warning", row.where, "empty question: left out"))
            else:
                num_filtered += 1
            continue
        ids.append(question.id)
        kinds[question.answer_kind] += 1
        same = first_rows.setdefault((question.turns, question.text, question.images), row.where)
        if same != row.where:
            findings.append(Finding("warning", row.where, f"the same question as {same}"))
        if outcome.gold is not None:
            num_gold += 1
            problem = gold_problem(outcome.gold, question.answer_kind)
            if problem:
                findings.append(Finding("warning", row.where, f"gold cannot be read, no answer equals it: {problem}"))
        num_shown += bool(question.images)
        if vision is None:
            findings += [Finding("warning", row.where, what) for what in _odd_shapes(question)]
        if tokenizer is not None and (vision is not None or not question.images):
            fault = _prompt_fault(question, tokenizer, config, vision if question.images else None)
            findings += [] if fault is None else [replace(fault, where=row.where)]
    if num_shown and tokenizer is not None and vision is None:
        what = f"{num_shown} questions show images, and model={config.model.name} only reads text: no run would start"
        findings.append(Finding("warning", "all rows", what))
    findings += _whole_set(found, ids, num_rows - num_filtered)
    return Report(found.table.source, num_rows, kinds.total(), num_gold, dict(kinds), tuple(findings), found.reading)


def _prompt_fault(
    question: Question, tokenizer: TextTokenizer, config: Config, vision: PromptVision | None
) -> Finding | None:
    """What is wrong with a question's prompt, by the model that is to read it: images it refuses, too many tokens."""
    try:
        length = len(render_prompt(question, tokenizer, config.prompt, vision=vision))
    except InputError as error:
        return Finding("error", "", str(error).removeprefix(f"question {question.id!r}: "))
    limit = config.prompt.max_tokens
    if length <= limit:
        return None
    return Finding("warning", "", f"prompt of {length} tokens is over prompt.max_tokens={limit}: left out")


def _odd_shapes(question: Question) -> list[str]:
    """What is to be said of images that some processors refuse for their shape."""
    said = []
    for number, image in enumerate(question.images, start=1):
        facts = image_facts(image, max_pixels=sys.maxsize)  # the reader of rows has held it to the limit
        if max(facts.width, facts.height) > _LONGEST * min(facts.width, facts.height):
            said.append(
                f"image {number} is {facts.width} x {facts.height}: many processors refuse a side over {_LONGEST} "
                "times the other"
            )
    return said


def _with_marks(question: Question) -> str:
    """The question's text with `<image>` wherever an image stands."""
    return "".join(part if isinstance(part, str) else "<image>" for part in parts_of(question))


def _whole_set(found: Scan, ids: list[str], num_rows: int) -> list[Finding]:
    findings = []
    try:
        check_gold_file(found, ids)
    except InputError as error:
        findings.append(Finding("error", "data.gold", str(error)))
    definition = definition_of(found.data)
    if definition is not None and definition.rows is not None and definition.rows != num_rows:
        what = f"{num_rows} rows where {definition.rows} were expected: another version of the data set?"
        findings.append(Finding("warning", "all rows", what))
    return findings


def _gold_parser() -> Callable[[str, str], str]:
    """(gold, kind) -> why it does not read as an answer of that kind, or ''."""
    from spinerl.answers import normalize_answer

    def problem(gold: str, kind: str) -> str:
        try:
            normalize_answer(gold, kind)
        except InputError as error:
            return str(error)
        return ""

    return problem
