"""The run folder: what a run writes, how it is checkpointed, and how it is found again after a crash.

config.yaml     the resolved configuration; running it again repeats the run
manifest.json   versions, seed, device, model and data fingerprints, whether it finished
metrics.jsonl   a line per step          eval.jsonl     a line per evaluation
samples.jsonl   some responses, by token predictions/   a file per evaluation, a line per question
tokens.jsonl    a line per logged step: its token entropies as a histogram, its most frequent forks
labels.jsonl    a line per question and step: its pseudo-label      guard.jsonl  a line per look at the probe
stream.jsonl    with stream.on: a line per question, answered before it was adapted on
checkpoints/    step-N folders           model/         the adapted model, a Hugging Face folder
report.html              questions.jsonl  the questions, where a list of them was given
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinerl.config import Config, dump_yaml, load_config
from spinerl.errors import CheckpointError, InputError, RunError
from spinerl.images import image_key, thumbnail
from spinerl.lines import lines_of, read_text
from spinerl.locks import FolderInUseError, FolderLock
from spinerl.types import ImageRef

if TYPE_CHECKING:
    import torch

    from spinerl.engine.optimizer import Optimizer

__all__ = [
    "QUESTIONS",
    "RunFolder",
    "explain_disk_errors",
    "is_intact",
    "read_lines",
    "total_bytes",
    "write_json",
    "write_rows",
    "write_text",
]

_CHECKSUMS = "checksums.json"
QUESTIONS = "questions.jsonl"  # those of a run that was given a list of them

STREAMS = (
    "metrics.jsonl",
    "eval.jsonl",
    "samples.jsonl",
    "tokens.jsonl",
    "stream.jsonl",
    "labels.jsonl",
    "guard.jsonl",
)


MARK = "# A run of spinerl: its resolved configuration."
"""The first line of a run's config.yaml."""

_OWN = {*STREAMS, "config.yaml", "manifest.json", "report.html", ".lock"}
_OWN_FOLDERS = {"predictions", "checkpoints", "model", "best", "images", "compare"}
"""All that a run writes: --overwrite removes nothing else."""


class RunFolder:
    """One run on disk.  Every write is atomic or a whole appended line, and one process writes at a time (`lock`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, config: Config, overwrite: bool = False) -> RunFolder:
        """A new folder holding config.yaml, locked.  With `overwrite`, a run's files that are there go, and no others.

        Raises InputError if there is something at the path already (with `overwrite`: something that is not a run), or
        if another process writes there.
        """
        path = config.run_folder
        run = cls(path)
        if path.exists() and (not path.is_dir() or _is_taken(path)):
            if not overwrite:
                raise InputError(
                    f"run={path} exists; continue it with `spinerl adapt --resume {path}`, replace it with "
                    "--overwrite, or choose another run=FOLDER"
                )
            if not run.is_marked:
                raise InputError(f"run={path} is not a run of spinerl, so --overwrite does not touch it")
        try:
            path.mkdir(parents=True, exist_ok=True)
            run.lock()
            if overwrite:
                run._remove_own_files()
            write_text(path / "config.yaml", f"{MARK}\n{dump_yaml(config)}")
        except OSError as error:
            run.unlock()
            raise InputError(f"run={path} cannot be written: {error.strerror or error}") from None
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run; InputError if the path is none."""
        if not (Path(path) / "config.yaml").is_file():
            raise InputError(f"{path} is not a run folder: it has no config.yaml")
        return cls(Path(path))

    @property
    def is_marked(self) -> bool:
        """Whether this is a run's folder for sure, and not one that has a config.yaml of somebody's own."""
        try:
            if read_text(self.path / "config.yaml").startswith(MARK):
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
            raise InputError(f"run={self.path} cannot be written: {error.strerror or error}") from None

    def unlock(self) -> None:
        """Let others write here again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _remove_own_files(self) -> None:
        for entry in self.path.iterdir():
            if entry.name in _OWN and entry.name != ".lock" and (entry.is_file() or entry.is_symlink()):
                entry.unlink()
            elif entry.is_dir() and not entry.is_symlink() and entry.name in _OWN_FOLDERS:
                shutil.rmtree(entry)
            elif _is_draft(entry):
                _remove(entry)

    def remove_leftovers(self, keep: int) -> None:
        """Remove what a process that was killed left behind: files and folders in the making, and checkpoints that it
        was about to delete, all but the newest `keep`."""
        for folder in (self.path, *(self.path / name for name in ("checkpoints", "predictions", "images"))):
            for entry in folder.glob(".*.tmp"):
                if folder != self.path or _is_own_draft(entry):
                    _remove(entry)
        for old in self._checkpoints()[keep:]:
            shutil.rmtree(old)

    @property
    def config(self) -> Config:
        """The run's resolved configuration, its `run` being where the folder is now."""
        return load_config(self.path / "config.yaml", [f"run={json.dumps(str(self.path))}"])

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, or {} before it is written.  RunError if it is damaged."""
        file = self.path / "manifest.json"
        if not file.is_file():
            return {}
        try:
            found = json.loads(read_text(file))
            if not isinstance(found, dict):
                raise ValueError(f"it holds {type(found).__name__}")
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{file} is damaged ({' '.join(str(error).split())[:120]}); delete it, and `spinerl adapt --resume "
                f"{self.path}` goes on without"
            ) from None
        return found

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace manifest.json."""
        write_json(self.path / "manifest.json", manifest)

    def append(self, stream: str, *rows: Mapping[str, Any]) -> None:
        """Add lines to a stream and flush them to the disk; numbers that are not finite become null.

        What a crash or a full disk left of a last line goes first.
        """
        _cut_partial_line(self.path / stream)
        with (self.path / stream).open("a", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def keep_image(self, image: ImageRef) -> str:
        """Write a small copy of an image into the run folder, once; its path there."""
        name = f"images/{image_key(image)[:16]}"
        if not (self.path / name).is_file():
            (self.path / "images").mkdir(exist_ok=True)
            draft = _draft_of(self.path / name)
            draft.write_bytes(thumbnail(image))
            draft.replace(self.path / name)
        return name

    def rows(self, stream: str) -> list[dict[str, Any]]:
        """The whole lines of a stream; a last line cut off by a crash is left out.

        RunError for a damaged line, and for one without the number of its step.
        """
        rows = []
        for number, row in enumerate(read_lines(self.path / stream), 1):
            if not isinstance(row.get("step"), int):
                raise RunError(f"{self.path / stream}, line {number}: no `step` in it, so it is not of this run")
            rows.append(row)
        return rows

    def predictions(self, step: int) -> list[dict[str, Any]]:
        """The rows of the evaluation after this step, one per question; [] if there was none."""
        return list(read_lines(self.path / "predictions" / f"step-{step:06d}.jsonl"))

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
        for old in self._checkpoints()[keep:]:
            shutil.rmtree(old)

    def load_checkpoint(
        self, model: torch.nn.Module, optimizer: Optimizer, more: Callable[[Path], object] | None = None
    ) -> dict[str, Any] | None:
        """Restore the newest undamaged checkpoint, `more` taking its own; its state, or None if none was ever written.

        A damaged one (checksums differ, files missing) is renamed to `...damaged` and the one before it is used.
        Raises CheckpointError if all are damaged.
        """
        import torch

        found = self._checkpoints()
        for folder in found:
            if not is_intact(folder):
                folder.rename(_free_name(folder.with_name(folder.name + ".damaged")))
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
                f"every checkpoint in {self.path / 'checkpoints'} is damaged; start again with --overwrite"
            )
        return None

    def write_folder(self, name: str, fill: Callable[[Path], None], *, checksums: bool = False) -> None:
        """Let `fill` write a folder that then appears, whole, under `name`, in place of any before it.

        `checksums`: with a file of them, by which `is_intact` finds damage.
        """
        target = self.path / name
        draft = _draft_of(target)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        fill(draft)
        if checksums:
            write_json(draft / _CHECKSUMS, {file.name: _sha256(file) for file in sorted(draft.iterdir())})
        for file in draft.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync_folder(target.parent)

    def _checkpoints(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        folders = (self.path / "checkpoints").glob("step-*")
        return sorted((f for f in folders if f.name.removeprefix("step-").isdigit()), reverse=True)


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


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file of ours; nothing for a missing file, and not a last line without its end.

    RunError for a line that is no JSON object.
    """
    if not file.is_file():
        return
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(lines_of(whole.decode("utf-8", "replace").removeprefix("\ufeff")), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunError(
                f"{file}, line {number}, is damaged: {line[:40]!r} is no JSON object; delete the line, or what comes "
                "from it on"
            )
        yield row


def _cut_partial_line(file: Path) -> None:
    """Remove what follows the last line feed."""
    try:
        with file.open("r+b") as handle:
            size = handle.seek(0, os.SEEK_END)
            if not size:
                return
            handle.seek(size - 1)
            if handle.read(1) != b"\n":
                handle.seek(0)
                handle.truncate(handle.read().rfind(b"\n") + 1)
    except FileNotFoundError:
        pass


def _draft_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


def _is_draft(entry: Path) -> bool:
    """Whether this is what a process that was killed left of a file or folder in the making."""
    return entry.name.startswith(".") and entry.name.endswith(".tmp")


def _is_own_draft(entry: Path) -> bool:
    """Whether it is one of what a run writes; a report's has a process number too."""
    name = entry.name[1:].removesuffix(".tmp")
    return _is_draft(entry) and (name in _OWN | _OWN_FOLDERS or name.startswith("report.html."))


def _remove(entry: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _is_taken(folder: Path) -> bool:
    """Whether a folder holds more than a new run may find there."""
    return any(entry.name not in (QUESTIONS, ".lock") and not _is_draft(entry) for entry in folder.iterdir())


def _free_name(path: Path) -> Path:
    """The path, or where something is there already the same with a number after it."""
    numbers = itertools.count(2)
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{next(numbers)}")
    return free


def write_text(file: Path, text: str) -> None:
    """Write a file that is either whole or as it was before."""
    draft = _draft_of(file)
    with draft.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)


def write_json(file: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(file, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL atomically."""
    write_text(file, "".join(_line(row) for row in rows))


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into one line: RunError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise RunError(
                f"cannot write to {path}: {error.strerror}; free some space, then `spinerl adapt --resume {path}`"
            ) from None
        raise
    except Exception as error:  # safetensors reports disk errors in a class of its own
        if "No space left" in str(error):
            raise RunError(
                f"cannot write to {path}: no space left; free some space, then `spinerl adapt --resume {path}`"
            ) from None
        raise


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with non-finite numbers as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def is_intact(folder: Path) -> bool:
    """Whether the files of a folder that was written with checksums are as they were."""
    try:
        sums = json.loads(read_text(folder / _CHECKSUMS))
        return all(_sha256(folder / name) == digest for name, digest in sums.items())
    except (OSError, ValueError, AttributeError):
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
