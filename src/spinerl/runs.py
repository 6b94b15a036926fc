"""The run folder: what a run writes, how it is checkpointed, and how it is found again after a crash.

config.yaml     the resolved configuration; running it again repeats the run
manifest.json   versions, seed, device, model and data fingerprints, whether it finished
metrics.jsonl   a line per step          eval.jsonl     a line per evaluation
samples.jsonl   some responses, by token predictions/   a file per evaluation, a line per question
tokens.jsonl    a line per logged step: its token entropies as a histogram, most frequent forks and followers
labels.jsonl    a line per question and step: its pseudo-label      guard.jsonl  a line per look at the probe
stream.jsonl    with stream.on: a line per question, answered before or after it was adapted on
checkpoints/    step-N folders           model/         the adapted model, a Hugging Face folder
trackers/       a folder per experiment tracker (`track`)
compare/        what `spinerl compare` asked of the final model (asking/: what is done of that)
report.html              questions.*    the questions, where a list of them or standard input was given
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinerl.config import Config, dump_yaml, load_config, read_recipe
from spinerl.errors import CheckpointError, InputError, RunError, SpinerlError, cause_of, memory_line
from spinerl.files import (
    Draft,
    draft_of,
    drafts_in,
    kind_of,
    process_runs,
    quoted,
    remove,
    remove_now,
    write_bytes,
    write_text,
)
from spinerl.images import image_key, thumbnail
from spinerl.lines import read_text
from spinerl.locks import FolderInUseError, FolderLock
from spinerl.streams import STREAMS, append_rows, json_line, json_text, read_lines, read_rows, type_name
from spinerl.types import ImageRef

if TYPE_CHECKING:
    import torch

    from spinerl.engine.optimizer import Optimizer

__all__ = [
    "QUESTIONS",
    "RunFolder",
    "explain_failures",
    "is_intact",
    "read_lines",
    "total_bytes",
    "write_json",
    "write_rows",
    "write_text",
]

_CHECKSUMS = "checksums.json"
QUESTIONS = "questions.jsonl"  # those of a run that was given a list of them
_QUESTIONS = re.compile(r"questions\.[a-z]+(\.(gz|zst))?")  # those of one that read them from standard input, too

MARK = "# A run of spinerl: its resolved configuration."
"""The first line of a run's config.yaml."""

_OWN = {*STREAMS, "config.yaml", "manifest.json", "report.html", ".lock"}
_WHOLE = {"model", "best", "compare", "trackers"}  # folders that are written as a whole, in place of those before
_INSIDE = {  # folders to which files and folders are added, and the names of those
    "predictions": re.compile(r"step-[0-9]+\.jsonl"),
    "checkpoints": re.compile(r"step-[0-9]+"),
    "images": re.compile(r"[0-9a-f]{16}"),
    "asking": re.compile(r"[a-z]+\.jsonl"),
}
"""All that a run writes: --overwrite removes nothing else."""

_FACTS = {"model": dict, "data": dict, "engine": dict, "guard": dict}
"""What of a manifest is read back, and its type."""


class RunFolder:
    """One run on disk.  Every write is atomic or a whole appended line, and one process writes at a time (`lock`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @classmethod
    def create(
        cls,
        config: Config,
        overwrite: bool = False,
        path: Path | None = None,
        write_questions: Callable[[], None] | None = None,
    ) -> RunFolder:
        """A new folder holding config.yaml, locked.  With `overwrite`, a run's files that are there go, and no others.

        Raises InputError if there is something at the path already (with `overwrite`: something that is not a run), if
        another process writes there, or if it cannot be written.

        Args:
            path: where, if not where the configuration says.
            write_questions: writes the file of questions that the configuration names, into the folder.
        """
        path = config.run_folder if path is None else path
        run = cls(path)
        run.check_free(overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.lock()
            run._remove_own_files()
            if (wrong := run._misplaced()) is not None:
                raise InputError(f"{wrong}; move it away, or choose another run=FOLDER")
            if write_questions is not None:
                write_questions()
            write_text(path / "config.yaml", f"{MARK}\n{dump_yaml(config)}")
        except InputError:
            run.unlock()
            raise
        except OSError as error:
            run.unlock()
            raise InputError(f"run={path} cannot be written: {cause_of(error)}; choose another run=FOLDER") from None
        return run

    def check_free(self, overwrite: bool = False) -> None:
        """InputError if no new run can be written here, as `create` raises it; nothing is written."""
        path = self.path
        try:
            str(path).encode("utf-8")
            kind = kind_of(path, follow=True)
            if kind not in (None, "a folder"):
                raise InputError(f"run={path} is {kind}; choose another run=FOLDER")
            parent = path.absolute().parent
            while kind_of(parent, follow=True) is None:
                parent = parent.parent
            if not parent.is_dir():
                raise InputError(f"run={path} cannot be written: Not a directory: {parent}; choose another run=FOLDER")
            taken = kind == "a folder" and self._is_taken()
        except UnicodeEncodeError:  # not all libraries that write there take such a name
            raise InputError(
                f"run={path} cannot be written: its name is no UTF-8 text; choose another run=FOLDER"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"run={path} cannot be written: {cause_of(error)}; choose another run=FOLDER") from None
        if taken and not overwrite:
            raise InputError(
                f"run={path} exists; continue it with `spinerl adapt --resume {quoted(path)}`, replace it with "
                "--overwrite, or choose another run=FOLDER"
            )
        if taken and not self.is_marked:
            raise InputError(f"run={path} is not a run of spinerl, so --overwrite does not touch it")

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run; InputError if the path is none."""
        file = Path(path) / "config.yaml"
        try:
            kind = kind_of(file, follow=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be opened: {cause_of(error)}") from None
        if kind is None:
            raise InputError(f"{path} is not a run folder: it has no config.yaml")
        if kind != "a file":
            raise InputError(f"{path} is not a run folder: its config.yaml is {kind}")
        return cls(Path(path))

    @property
    def is_marked(self) -> bool:
        """Whether this is a run's folder for sure, and not one that has a config.yaml of somebody's own."""
        try:
            file = self.path / "config.yaml"
            if kind_of(file, follow=True) == "a file" and read_text(file).startswith(MARK):
                return True
        except (OSError, UnicodeDecodeError):
            pass
        # Runs of 0.1.0 have no mark.
        return any((self.path / name).is_file() for name in ("manifest.json", "metrics.jsonl", "eval.jsonl"))

    def lock(self) -> None:
        """Be the one process that writes here, until `unlock` or the end of the process.

        InputError if there is another, naming it, or if the folder cannot be written.
        """
        try:
            self._lock = FolderLock(self.path)
        except FolderInUseError as owner:
            raise InputError(f"{self.path} is being written by {owner}; wait for its end, or stop it") from None
        except OSError as error:
            raise InputError(f"run={self.path} cannot be written: {cause_of(error)}") from None

    def unlock(self) -> None:
        """Let others write here again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _remove_own_files(self) -> None:
        for entry in self.path.iterdir():
            is_folder = entry.is_dir() and not entry.is_symlink()
            if entry.name != ".lock" and entry.name in (_WHOLE | _INSIDE.keys() if is_folder else _OWN):
                remove(entry)
        self.sweep()

    def sweep(self) -> None:
        """Remove what processes that were killed left of files and folders in the making: drafts of a run's own."""
        for draft in self._drafts():
            if draft.process is None or not process_runs(draft.process):
                remove_now(draft.path)

    def remove_checkpoints(self, keep: int) -> None:
        """Remove all checkpoints but the newest `keep`."""
        for old in self._checkpoints()[keep:]:
            remove(old)

    def _drafts(self) -> Iterator[Draft]:
        yield from drafts_in(self.path, (_OWN | _WHOLE | _INSIDE.keys()).__contains__)
        for name, own in _INSIDE.items():
            yield from drafts_in(self.path / name, own.fullmatch)

    def _is_taken(self) -> bool:
        """Whether the folder holds more than a new run may find there."""
        free = {".lock", *(draft.path.name for draft in self._drafts())}
        return any(entry.name not in free and not _QUESTIONS.fullmatch(entry.name) for entry in self.path.iterdir())

    def check_places(self) -> None:
        """RunError if something else is where the run writes: a folder in a file's place, a pipe, a link."""
        wrong = self._misplaced()
        if wrong is not None:
            raise RunError(
                f"{wrong}; move it away, then `spinerl adapt --resume {quoted(self.path)}` {self.still} (`spinerl "
                "report` leaves it out as it is)"
            )

    def _misplaced(self) -> str | None:
        """What is in the place of a file or folder of the run's, in words; None for nothing."""
        for name in sorted(_OWN | _WHOLE | _INSIDE.keys()):
            wanted = "a file" if name in _OWN else "a folder"
            # Links are followed only where a folder is added to: they may lead to a larger disk.
            kind = kind_of(self.path / name, follow=name in _INSIDE)
            if kind not in (None, wanted):
                return f"{self.path / name} is {kind}, where {wanted} of the run belongs"
        return None

    @property
    def needs_no_more(self) -> bool:
        """Whether the run is finished, has its model, and no checkpoint to write it from again."""
        return (self.path / "model").is_dir() and "finished" in self.manifest and not self._checkpoints()

    @property
    def still(self) -> str:
        """From where a resumed run goes on, in words."""
        found = self._checkpoints()
        return f"goes on after step {_step_of(found[0])}" if found else "begins again at step 1"

    @property
    def config(self) -> Config:
        """The run's resolved configuration, its `run` being where the folder is now, and so are questions in it."""
        found = load_config({**read_recipe(self.path / "config.yaml"), "run": str(self.path)})
        moved = self.path / Path(found.data.name).name
        if _QUESTIONS.fullmatch(moved.name) and moved.is_file() and not os.path.exists(found.data.name):
            data = found.data.model_copy(update={"name": str(moved.absolute())})
            found = found.model_copy(update={"data": data})
        return found

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, or {} before it is written.  RunError if it is damaged."""
        file = self.path / "manifest.json"
        if kind_of(file, follow=True) != "a file":
            return {}
        try:
            found = json.loads(read_text(file))
            if not isinstance(found, dict):
                raise ValueError(f"it holds {type(found).__name__}")
            for key, kind in _FACTS.items():
                if key in found and not isinstance(found[key], kind):
                    raise ValueError(f"`{key}` is {type_name(found[key])}, where an object belongs")
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{file} is damaged ({' '.join(str(error).split())[:120]}); delete it, and `spinerl adapt --resume "
                f"{quoted(self.path)}` {self.still} without it"
            ) from None
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace manifest.json."""
        write_json(self.path / "manifest.json", manifest)

    def append(self, stream: str, *rows: Mapping[str, Any]) -> None:
        """Add lines to a stream and flush them to the disk; numbers that are not finite become null.

        What a crash or a full disk left of a last line goes first.
        """
        append_rows(self.path / stream, rows)

    def keep_image(self, image: ImageRef) -> str:
        """Write a small copy of an image into the run folder, once; its path there."""
        name = f"images/{image_key(image)[:16]}"
        if not (self.path / name).is_file():
            (self.path / "images").mkdir(exist_ok=True)
            write_bytes(self.path / name, thumbnail(image))
        return name

    def rows(self, stream: str) -> list[dict[str, Any]]:
        """The whole lines of a stream; a last line cut off by a crash is left out.

        RunError for a damaged line, which says what can still be had (`spinerl.streams.read_rows`).
        """
        try:
            return read_rows(self.path / stream)
        except RunError as error:
            raise RunError(
                f"{error}; delete the line, or what comes from it on: then `spinerl adapt --resume "
                f"{quoted(self.path)}` {self.still} (`spinerl report` leaves it out as it is)"
            ) from None

    def predictions(self, step: int) -> list[dict[str, Any]]:
        """The rows of the evaluation after this step, one per question.

        RunError if they are damaged, or are gone although eval.jsonl has the evaluation.
        """
        file = self.path / "predictions" / f"step-{step:06d}.jsonl"
        try:
            rows = list(read_lines(file))
            wrong = next((row for row in rows if not isinstance(row.get("id"), str)), None)
            if wrong is not None:
                raise RunError(f"{file} is damaged: `id` is {type_name(wrong.get('id'))}, where a text belongs")
            if not rows and any(row["step"] == step for row in self.rows("eval.jsonl")):
                raise RunError(f"{file} is {'empty' if file.exists() else 'missing'}")
        except RunError as error:
            raise RunError(
                f"{error}; delete the line of step {step} in {self.path / 'eval.jsonl'}, and a resumed run evaluates "
                "again"
            ) from None
        return rows

    def rewind(self, step: int) -> None:
        """Forget every line written after `step`, so that a resumed run writes it again."""
        for stream in STREAMS:
            file = self.path / stream
            if file.is_file():
                write_rows(file, [row for row in self.rows(stream) if row["step"] <= step])

    def save_checkpoint(
        self,
        step: int,
        model: torch.nn.Module,
        optimizer: Optimizer,
        state: Mapping[str, Any],
        keep: int,
        more: Callable[[Path], object] | None = None,
    ) -> None:
        """Write checkpoints/step-N, with what `more` writes there, and delete all but the newest `keep`.

        The folder appears under its name only when every byte of it is on the disk.
        """
        import torch

        def fill(folder: Path) -> None:
            save_learned(model, folder / "model.safetensors")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            if more is not None:
                more(folder)
            write_json(folder / "state.json", {"step": step, **state})

        self.write_folder(f"checkpoints/step-{step:06d}", fill, checksums=True)
        self.remove_checkpoints(keep)

    def load_checkpoint(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        more: Callable[[Path], object] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any] | None:
        """Restore the newest undamaged checkpoint, `more` taking its own; its state, or None if none was ever written.

        A damaged one (checksums differ, files missing) is renamed to `...damaged`, `note` gets a line about it, and the
        one before it is used.  Raises CheckpointError if all are damaged.
        """
        import torch

        found = self._checkpoints()
        for folder in found:
            if not is_intact(folder):
                aside = folder.rename(_free_name(folder.with_name(folder.name + ".damaged")))
                note(f"checkpoint {folder} is damaged: it was set aside as {aside.name}, and the one before it is used")
                continue
            load_learned(model, folder / "model.safetensors")
            # To the CPU first: the device it was saved from may be another, or full.
            state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state)
            if more is not None:
                more(folder)
            return json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if found:
            raise CheckpointError(
                f"every checkpoint in {self.path / 'checkpoints'} is damaged, and was set aside; `spinerl adapt "
                f"--resume {quoted(self.path)}` once more begins again at step 1"
            )
        return None

    def write_folder(self, name: str, fill: Callable[[Path], None], *, checksums: bool = False) -> None:
        """Let `fill` write a folder that then appears, whole, under `name`, in place of any before it.

        `checksums`: with a file of them, by which `is_intact` finds damage.
        """
        target = self.path / name
        draft = draft_of(target)
        if os.path.lexists(draft):
            remove_now(draft)
        draft.mkdir(parents=True)
        fill(draft)
        if checksums:
            write_json(draft / _CHECKSUMS, {file.name: _sha256(file) for file in sorted(draft.iterdir())})
        for file in draft.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        remove(target)
        draft.rename(target)
        _sync_folder(target.parent)

    def _checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        folders = (f for f in (self.path / "checkpoints").glob("step-*") if _INSIDE["checkpoints"].fullmatch(f.name))
        return sorted(folders, key=_step_of, reverse=True)


def save_learned(model: torch.nn.Module, file: Path) -> None:
    """Write the parameters that learn: of a model with adapters only these, of a frozen vision part nothing."""
    from safetensors.torch import save_file

    save_file({name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}, file)


def load_learned(model: torch.nn.Module, file: Path) -> None:
    """Bring back what `save_learned` wrote; CheckpointError if it is of another model."""
    from safetensors.torch import load_file

    tensors = load_file(file)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    if learned != tensors.keys():
        raise CheckpointError(f"{file} holds {len(tensors)} tensors, and {len(learned)} others learn in this model")
    model.load_state_dict(tensors, strict=False)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _free_name(path: Path) -> Path:
    """The path, or where something is there already the same with a number after it."""
    numbers = itertools.count(2)
    free = path
    while os.path.lexists(free):
        free = path.with_name(f"{path.name}-{next(numbers)}")
    return free


def write_json(file: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(file, json_text(value))


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL atomically."""
    write_text(file, "".join(map(json_line, rows)))


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_DISK_TEXTS = ("No space left", "File too large", "PytorchStreamWriter", "inline_container", "iostream error")


@contextmanager
def explain_failures(path: Path, go_on: str) -> Iterator[None]:
    """Turn a full or failing disk, and memory that does not suffice, into one line: RunError.

    Args:
        path: what is written meanwhile.
        go_on: the command with which to go on.
    """
    try:
        yield
    except SpinerlError:
        raise
    except Exception as error:
        line = memory_line(error)
        if line is not None:
            raise RunError(f"{line}; with more of it, or less else in it, `{go_on}`") from None
        # safetensors and torch report disk errors in classes of their own
        if (isinstance(error, OSError) and error.errno in _DISK) or any(text in str(error) for text in _DISK_TEXTS):
            why = (
                error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:120]
            )
            raise RunError(f"cannot write to {path}: {why}; free some space, then `{go_on}`") from None
        raise


def is_intact(folder: Path) -> bool:
    """Whether the files of a folder that was written with checksums are as they were."""
    try:
        if kind_of(folder / _CHECKSUMS, follow=True) != "a file":  # a pipe would block
            return False
        sums = json.loads(read_text(folder / _CHECKSUMS))
        return bool(sums) and all(
            kind_of(folder / name, follow=True) == "a file" and _sha256(folder / name) == digest
            for name, digest in sums.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of these tensors, in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
