"""Files and folders that appear whole or not at all, what a kill leaves of them, and what else may be in their place.

A file is written under a draft's name, `.NAME.tmp`, and then takes its own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Draft",
    "draft_of",
    "drafts_in",
    "kind_of",
    "process_runs",
    "quoted",
    "remove",
    "remove_now",
    "write_bytes",
    "write_text",
]

_DRAFT = re.compile(r"\.(?P<name>.+?)(?P<old>\.old)?(?:\.(?P<process>[0-9]+))?\.tmp", re.DOTALL)
_LONGEST = 200  # bytes of a name that leave space for what a draft's name adds; file systems allow 255


class Draft(NamedTuple):
    """What is left of a file or folder in the making: its path, the name it was to take, the process that wrote it."""

    path: Path
    name: str
    process: int | None


def draft_of(file: Path, *, process: int | None = None, old: bool = False) -> Path:
    """The path under which a file is written, or with `old` removed; with `process` for that process only.

    >>> str(draft_of(Path("runs/a.json"))), str(draft_of(Path("a"), process=7)), str(draft_of(Path("a"), old=True))
    ('runs/.a.json.tmp', '.a.7.tmp', '.a.old.tmp')
    """
    name = file.name
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > _LONGEST:
        name = hashlib.sha256(raw).hexdigest()[:32]
    parts = [f".{name}", *(["old"] if old else []), *([str(process)] if process is not None else []), "tmp"]
    return file.with_name(".".join(parts))


def drafts_in(folder: Path, is_ours: Callable[[str], object]) -> Iterator[Draft]:
    """The drafts in a folder whose names, once they had taken them, `is_ours` knows; none where there is no folder."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        found = _DRAFT.fullmatch(entry.name)
        if found is not None and is_ours(found["name"]):
            yield Draft(entry, found["name"], int(found["process"]) if found["process"] else None)


def process_runs(number: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it is another user's, or no number of a process
    return True


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; a kill leaves a draft, and never a part of a folder under its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    draft = draft_of(path, old=True)
    if os.path.lexists(draft):
        remove_now(draft)
    path.rename(draft)
    shutil.rmtree(draft)


def remove_now(path: Path) -> None:
    """Remove a file, a link or a folder under the name it has."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def write_text(file: Path, text: str) -> None:
    r"""Write a file that is either whole or as it was before.

    Characters that UTF-8 does not have (lone surrogates) become `\udcff`, which JSON and quoted YAML read as they were.
    """
    write_bytes(file, text.encode("utf-8", "backslashreplace"))


def write_bytes(file: Path, data: bytes, *, process: int | None = None) -> None:
    """Write a file that is either whole or as it was before; a pipe or a device (/dev/stdout) is written as it is.

    A link is replaced, not followed, unless it is one of the system's.

    Args:
        process: this process's number where several may write the file at a time.
    """
    of_system = os.path.abspath(file).startswith(("/dev/", "/proc/"))
    if kind_of(file, follow=of_system) in ("a named pipe", "a socket", "a device"):
        file.write_bytes(data)
        return
    draft = draft_of(file, process=process)
    if os.path.lexists(draft):  # of a process that was killed, or put there
        remove_now(draft)
    with draft.open("xb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)


def kind_of(path: Path, *, follow: bool = False) -> str | None:
    """What is at a path, for people: "a file", "a folder", "a symbolic link", "a named pipe", ...; None for nothing.

    Opens nothing, so that nothing can block.  With `follow`, what a symbolic link leads to; a link that leads nowhere
    is "a broken symbolic link" in both cases.  OSError for a path that cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return "a broken symbolic link" if path.is_symlink() else None
    if not follow and path.is_symlink():
        return "a symbolic link"
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def quoted(path: Path | str) -> str:
    r"""A path as one types it into a shell, on one line.

    >>> print(quoted("runs/mine"), quoted("runs/my run"), quoted("-x"), quoted("a\nb"))
    runs/mine 'runs/my run' ./-x $'a\nb'
    """
    text = str(path)
    if text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
    shown = []
    for character in text:
        if character in named:
            shown.append(named[character])
        elif character.isprintable():
            shown.append(character)
        else:
            shown += [f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape")]
    return "$'" + "".join(shown) + "'"
