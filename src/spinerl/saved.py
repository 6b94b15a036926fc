"""An evaluation that is written to a file as it goes, and goes on from there after an interruption.

FILE               a judged row per question (`spinerl.scoring`), in the order of the questions
FILE.unfinished    while it is not whole: what is asked of which model, then a line per part that is in FILE
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spinerl.config import Config
from spinerl.engine.backend import backend_of
from spinerl.errors import InputError, RunError, cause_of
from spinerl.evaluation import Part
from spinerl.files import kind_of, quoted
from spinerl.locks import lock_file
from spinerl.models.precision import with_dtype
from spinerl.paths import absolute_paths
from spinerl.streams import append_rows, read_lines
from spinerl.workload import Workload, changed_numerics, check_unchanged, versions

__all__ = ["SavedEvaluation", "unfinished_of"]

_ENDING = ".unfinished"
_FACTS = ("model", "data", "engine")


def unfinished_of(path: Path) -> Path:
    """The predictions file of an interrupted evaluation, by its own path, that of its record, or its folder's.

    InputError where there is none, or several.
    """
    if _kind(path, follow=True) == "a folder":
        found = sorted(entry for entry in path.iterdir() if entry.name.endswith(_ENDING) and entry.is_file())
        if len(found) != 1:
            names = ", ".join(entry.name.removesuffix(_ENDING) for entry in found[:5])
            what = f"several evaluations are unfinished: {names}" if found else "no evaluation is unfinished"
            raise InputError(f"{path}: {what}; give the FILE that --predictions named")
        path = found[0]
    return path.with_name(path.name.removesuffix(_ENDING))


class SavedEvaluation:
    """The record of one evaluation (`spinerl.evaluation.Record`); made by `begin` or `resume`.

    `parts`: what is in the file already.  `config`: of an evaluation that goes on.  `dropped`: a line about rows that
    were damaged or gone, "" for none.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.parts: list[Part] = []
        self.config: Config | None = None
        self.dropped = ""
        self._record = file.with_name(file.name + _ENDING)
        self._at_once, self._num_questions = 0, 0
        self._head: dict[str, Any] = {}

    @classmethod
    def begin(cls, file: Path, at_once: int = 0) -> SavedEvaluation:
        """For a new evaluation; nothing is written before `open`.

        InputError where another is unfinished, and where no file can be written.

        Args:
            at_once: questions to a part; 0: as `open` is given.
        """
        self = cls(file)
        self._at_once = at_once
        kind, record_kind = _kind(file, follow=True), _kind(self._record)
        if kind not in (None, "a file"):
            raise InputError(f"--predictions {file} is {kind}; name a file")
        if record_kind is not None:
            raise InputError(
                f"{file} holds an evaluation that was interrupted; go on with `{self.command}`, or delete "
                f"{self._record} to begin again"
            )
        return self

    @classmethod
    def resume(cls, file: Path) -> SavedEvaluation:
        """One that was interrupted, with its configuration and the parts that are whole.

        InputError where none is unfinished there, RunError where its record is damaged.
        """
        self = cls(file)
        kind = _kind(self._record)
        if kind != "a file":
            what = "is whole" if kind is None and file.is_file() else f"has no record {self._record.name} next to it"
            raise InputError(f"{file} {what}: there is nothing to go on with (only with --predictions is any kept)")
        self._lock()
        lines = _lines(self._record)
        head = lines[0] if lines else {}
        try:
            self.config = Config.model_validate(head["config"])
            self._at_once, self._num_questions = int(head["per_part"]), int(head["num_questions"])
            if self._at_once < 1 or not all(isinstance(head[key], Mapping) for key in _FACTS):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise RunError(
                f"{self._record} is damaged, so that this evaluation cannot go on; delete it and begin again (the rows "
                f"in {file} can be scored as they are)"
            ) from None
        self._head = head
        self._keep_whole_parts(lines[1:])
        return self

    @property
    def command(self) -> str:
        """The command that goes on."""
        return f"spinerl eval --resume {quoted(self.file)}"

    @property
    def progress(self) -> str:
        """How far it is, in words; "" before anything was written."""
        if not self._head:
            return ""
        return f"{sum(len(part.rows) for part in self.parts)} of {self._num_questions} questions are in {self.file}"

    def open(self, work: Workload, config: Config, per_part: int) -> int:
        """Take note of what is asked, or check that it is still the same; how many questions make a part."""
        backend = backend_of(work.loaded)
        if self._head:
            check_unchanged(str(self.file), self._head, work)
            changed = changed_numerics(self._head, work.loaded)
            if changed:
                raise InputError(
                    f"{self.file} would end with other numbers here than where it began ({'; '.join(changed)}); go on "
                    f"there, or delete {self._record} and begin again"
                )
            ids = [question.id for question in work.questions[: self._num_questions]]
            known = [row["id"] for part in self.parts for row in part.rows]
            if known != ids[: len(known)]:
                raise RunError(f"{self.file} holds rows of other questions than it should; delete both files")
            work.loaded.capabilities.restore(self._head["engine"])
            return self._at_once
        backend.settle(learns=False)
        threads = torch.get_num_threads()  # a sum's last bit may depend on it
        config = absolute_paths(config).model_copy(update={"threads": threads})
        config = with_dtype(config, work.facts["dtype"])
        self._at_once = self._at_once or per_part
        self._num_questions = len(work.questions)
        if config.eval.max_questions:
            self._num_questions = min(self._num_questions, config.eval.max_questions)
        head = {
            "config": config.model_dump(mode="json"),
            "per_part": self._at_once,
            "num_questions": self._num_questions,
            **{key: work.facts[key] for key in ("model", "data")},
            **versions(),
            "engine": {**backend.machine(), **work.loaded.capabilities.facts()},
        }
        try:
            append_rows(self._record, [head])
            self._lock()
            self.file.write_bytes(b"")
        except OSError as error:
            raise InputError(f"{self.file} cannot be written: {cause_of(error)}") from None
        self._head = head
        return self._at_once

    def add(self, part: Part) -> None:
        """Write the rows of a part, and that they are there."""
        append_rows(self.file, part.rows)
        append_rows(self._record, [{"rows": len(part.rows), "sums": part.sums}])
        self.parts.append(part)

    def finish(self) -> None:
        """The file is whole: its record goes."""
        self._record.unlink()
        self._release()

    def _lock(self) -> None:
        """Be the one process that goes on, until its end."""
        handle = os.open(self._record, os.O_RDWR)
        self._release = weakref.finalize(self, os.close, handle)
        try:
            lock_file(handle)
        except BlockingIOError:
            raise InputError(f"{self.file} is being written by another process; wait for its end, or stop it") from None

    def _keep_whole_parts(self, listed: list[dict[str, Any]]) -> None:
        """Take the parts that record and file agree on, and cut both after them."""
        kind = _kind(self.file, follow=True)
        if kind not in (None, "a file"):
            raise RunError(f"{self.file} is {kind}, where the rows of this evaluation belong; move it away")
        rows = _lines(self.file)
        num_rows, ends = 0, _line_ends(self.file)
        for line in listed:
            size = line.get("rows")
            own = rows[num_rows : num_rows + size] if isinstance(size, int) and size > 0 else []
            is_last = num_rows + len(own) == self._num_questions
            if len(own) != size or not (size == self._at_once or is_last) or not _is_part(own, line.get("sums")):
                break
            self.parts.append(Part(tuple(own), line["sums"]))
            num_rows += len(own)
        lost = sum(line["rows"] for line in listed if isinstance(line.get("rows"), int)) - num_rows
        if lost > 0:
            self.dropped = f"{lost} rows of {self.file} are damaged or gone: their questions are asked again"
        if kind is not None:
            os.truncate(self.file, ends[num_rows - 1] if num_rows else 0)
        os.truncate(self._record, _line_ends(self._record)[len(self.parts)])


def _kind(file: Path, follow: bool = False) -> str | None:
    try:
        return kind_of(file, follow=follow)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be opened: {cause_of(error)}") from None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a file up to the first that is damaged."""
    found: list[dict[str, Any]] = []
    try:
        for row in read_lines(file):
            found.append(row)
    except RunError:
        pass
    return found


def _line_ends(file: Path) -> list[int]:
    """The offset behind each line feed."""
    data = file.read_bytes() if file.is_file() else b""
    return list(itertools.accumulate(len(line) + 1 for line in data.split(b"\n")[:-1]))


def _is_part(rows: list[dict[str, Any]], sums: Any) -> bool:
    """Whether rows and sums are as an evaluation writes them."""
    if not isinstance(sums, Mapping) or not isinstance(sums.get("greedy"), Mapping) or "seconds" not in sums:
        return False
    return all(
        isinstance(row.get("id"), str)
        and isinstance(row.get("greedy"), Mapping)
        and "gold" in row
        and ("responses" in row) == ("sampled" in sums)
        and ("responses" not in row or len(row["responses"]) == len(row.get("classes", ())))
        for row in rows
    )
