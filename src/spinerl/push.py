"""Uploading a model to the Hugging Face hub: what would be uploaded, and the upload, as one commit.

Uploaded are a model's own files by their names: weights, settings, tokenizer, card.  Never optimizer states,
checkpoints, data, pickles, or what a symbolic link leads to.  The token comes from where huggingface_hub keeps it
(HF_TOKEN, `hf auth login`), and is in no file and no message of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    logging,
    validate_repo_id,
)

from spinerl.cards import CARD
from spinerl.errors import InputError, RunError, SpinerlError, reason_of
from spinerl.files import kind_of, quoted
from spinerl.hub import LOG_IN, TransportError, answer_of, host, one_try, status_of, why_away, without_token
from spinerl.runs import RunFolder

__all__ = ["Destination", "Upload", "find_destination", "format_size", "plan_upload", "push"]

_NAMES = re.compile(
    r"(?:model|adapter_model|pytorch_model)[\w.-]*\.safetensors(?:\.index\.json)?"
    r"|(?:config|generation_config|adapter_config|added_tokens|special_tokens_map|vocab|processor_config)\.json"
    r"|(?:video_)?preprocessor_config\.json|chat_template\.(?:jinja|json)|merges\.txt|vocab\.txt"
    r"|tokenizer[\w.-]*\.(?:json|model)|(?:spiece|sentencepiece[\w.-]*)\.model"
    r"|(?:configuration|modeling|tokenization|processing|image_processing)_\w+\.py"
    rf"|{re.escape(CARD)}|LICENSE(?:\.\w+)?|NOTICE(?:\.\w+)?"
)
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = ".safetensors"
_OF_RUN = ("report.html", "config.yaml")
_MESSAGE = "Upload a model adapted with spinerl"


class File(NamedTuple):
    """A file to upload: its name in the repository, where it is, its size in bytes."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Upload:
    """What is to be uploaded, what of the folder is not, and what its owner should know before."""

    files: tuple[File, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Destination:
    """A repository of models: its full name, whether it is there already, and who can read it."""

    repo: str
    exists: bool
    private: bool

    @property
    def address(self) -> str:
        return f"{constants.ENDPOINT}/{self.repo}"


def plan_upload(source: Path, with_report: bool = False) -> Upload:
    """The files of a run's model, or of a model's folder.

    Args:
        with_report: the run's report and configuration, too.

    Raises InputError for a run that is not finished, or has no model, and for a folder that holds none.
    """
    folder, extra = source, []
    if not source.is_dir():
        raise InputError(f"{source} is no folder; give a run, or the folder of a model")
    if (source / "config.yaml").is_file() and RunFolder(source).is_marked:
        run, folder = RunFolder(source), source / "model"
        if not folder.is_dir() or "finished" not in run.manifest:
            raise InputError(
                f"{source} is a run that has no finished model; `spinerl adapt --resume {quoted(source)}` goes on with "
                "it (a run of steps=0 has none)"
            )
        extra = [_file(name, source / name) for name in _OF_RUN] if with_report else []
    elif with_report:
        raise InputError(f"--with-report belongs to a run, and {source} is the folder of a model")
    files, left_out = _chosen(folder)
    names = {file.name for file in files}
    if not names & {"config.json", "adapter_config.json"} or not any(name.endswith(_WEIGHTS) for name in names):
        raise InputError(
            f"{folder} holds no model: it needs config.json or adapter_config.json, and weights ({_WEIGHTS}), as files "
            "and not as links"
        )
    return Upload((*files, *extra), tuple(left_out), tuple(_notes(folder, names, bool(extra))))


def _chosen(folder: Path) -> tuple[list[File], list[str]]:
    """The model's own files in a folder, and the names of what else there is."""
    files, left_out = [], []
    for path in sorted(folder.iterdir()):
        kind = kind_of(path)
        if kind == "a file" and _NAMES.fullmatch(path.name):
            files.append(_file(path.name, path))
        elif kind == "a folder" and path.name == _TEMPLATES:
            files += [
                _file(f"{_TEMPLATES}/{one.name}", one)
                for one in sorted(path.iterdir())
                if kind_of(one) == "a file" and one.suffix == ".jinja"
            ]
        else:
            left_out.append(f"{path.name} ({kind})" if kind != "a file" else path.name)
    return files, left_out


def _file(name: str, path: Path) -> File:
    kind = kind_of(path)
    if kind != "a file":
        raise InputError(f"{path} cannot be uploaded: it is {kind or 'missing'}")
    return File(name, path, path.stat().st_size)


def _notes(folder: Path, names: set[str], with_report: bool) -> Iterator[str]:
    from spinerl.models.adapters import base_of

    if CARD not in names:
        yield f"there is no {CARD}: the model has no card"
    base = base_of(str(folder)) if "adapter_config.json" in names else None
    if base is not None and Path(base).is_absolute():
        yield (
            f"these adapters name a folder of this machine as their model ({base}), which others lack: upload the "
            "merged model (`spinerl merge`), or correct base_model_name_or_path in adapter_config.json"
        )
    if with_report:
        yield "report.html holds questions and responses, config.yaml the paths of this machine"


def find_destination(repo: str, private: bool) -> Destination:
    """Ask the hub who owns the token and whether the repository is there.

    Raises InputError for a name that cannot be one, without a token, for a token that the hub refuses, and where
    `private` is asked of a repository that is public; RunError where the hub cannot be reached or fails.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository, owner/name: {reason_of(error)}") from None
    if get_token() is None:
        raise InputError(f"no token for the hub: {LOG_IN}")
    api = HfApi()
    with _explained(repo):
        me = api.whoami()["name"]
        full = repo if "/" in repo else f"{me}/{repo}"
        try:
            found = api.model_info(full)
        except RepositoryNotFoundError:
            return Destination(full, False, private)
        if private and not found.private:
            raise InputError(f"{full} is public already, and --private would not change it: choose another name")
        return Destination(full, True, bool(found.private))


def push(upload: Upload, to: Destination, revision: str | None, message: str | None, *, bars: bool = False) -> str:
    """Create the repository (and the branch) if it is not there, and upload all files as one commit: its address.

    Args:
        bars: whether huggingface_hub may draw its progress.

    Raises as `find_destination`; a repository stays as it was unless all files have arrived.
    """
    api = HfApi()
    operations = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.path)) for file in upload.files]
    with _explained(to.repo), _quiet(bars):
        if not to.exists:
            api.create_repo(to.repo, private=to.private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(to.repo, branch=revision, exist_ok=True)
        commit = api.create_commit(to.repo, operations, commit_message=message or _MESSAGE, revision=revision)
    return str(commit.commit_url)


def format_size(size: int) -> str:
    """A number of bytes for people.

    >>> format_size(12), format_size(2_300_000), format_size(5_000_000_000)
    ('12 bytes', '2.3 MB', '5.0 GB')
    """
    for unit, value in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= value:
            return f"{size / value:.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the hub and the network raise into one line."""
    if (why := why_away()) is not None:
        raise RunError(f"nothing was uploaded: {why}")
    try:
        with one_try():
            yield
    except SpinerlError:
        raise
    except Exception as error:
        raise _line(error, repo) from None


def _line(error: Exception, repo: str) -> SpinerlError:
    status, answer = status_of(error), answer_of(error)
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{repo} has no such revision ({answer}); see --revision")
    if status == 401:
        return InputError(f"the hub refuses the token ({answer}); {LOG_IN}")
    if status == 403:
        return InputError(f"the token may not write to {repo} ({answer}); it needs write access there")
    if status == 404:
        return InputError(f"{repo} is not on the hub, or the token may not see it ({answer})")
    if status in (409, 412):
        return RunError(f"{repo} was changed by someone else meanwhile ({answer}); push again")
    if status is not None:
        return RunError(f"the hub answers {answer}; nothing was committed, and the same command tries again")
    if isinstance(error, TransportError | OSError | ConnectionError):
        why = without_token(reason_of(error, 200))
        return RunError(f"the connection to the hub ({host()}) failed ({why}); the same command tries again")
    if isinstance(error.__cause__, Exception):  # the library wraps what a file's upload raises
        return _line(error.__cause__, repo)
    return RunError(f"the upload to {repo} failed: {without_token(reason_of(error))}")


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Without the library's log lines, which name addresses, and its bars unless they are wanted."""
    before, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown and not bars:
            enable_progress_bars()
