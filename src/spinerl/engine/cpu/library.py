"""Compiles the C files of `native/` at first use, keeps the library in the user's cache folder, and loads it.

The library is loaded only from a folder and a file that belong to the user (owner, no one else may write, no
symbolic links) and only if its checksum is right.  Otherwise it is compiled again, in a private temporary folder where
the cache folder cannot be used: `library_note` says why.  What was compiled is first tried out in a process of its own.
Without a compiler there is no library: `library_error` says why, and torch's operators do the work.  Both are logged
(`spinerl.engine`, level WARNING) in one line.

Environment variables:
    CC: the compiler; else cc, gcc or clang, whichever is found first.
    SPINERL_NATIVE_FLAGS: more flags for the compiler, such as "-O1 -g -fsanitize=address".
    SPINERL_NATIVE_SECONDS: seconds after which a compiler is stopped; else 60.
    XDG_CACHE_HOME: where cache folders are; else ~/.cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from spinerl.engine.cpu import bindings
from spinerl.engine.cpu.bindings import Library, LibraryMismatchError, bind
from spinerl.errors import cause_of

__all__ = [
    "COMPILE_SECONDS",
    "BuildError",
    "LoadedLibrary",
    "build",
    "library",
    "library_error",
    "library_note",
    "library_override",
    "load_library",
]

COMPILE_SECONDS = 60.0
"""A compiler that takes longer is stopped, where SPINERL_NATIVE_SECONDS says nothing else."""

_TRIAL_SECONDS = 20.0  # for loading what was compiled, and calling it once
_STALE_SECONDS = 3600.0  # after which a folder in which something was compiled is of a process that was killed
_MOST_BYTES = 2**26  # that a compiler may write to any file
_BUILDING = "building-"

_log = logging.getLogger("spinerl.engine")

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-fvisibility=hidden", "-w", "-Wno-psabi")
_TUNING = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # what compilers know, best first
_MOST_LINES, _LONGEST_LINE, _MOST_WORDS = 8, 300, 2**16  # of a compiler's words: lines, characters of each, bytes read

_overrides: list[Library | None] = []


class BuildError(Exception):
    """No library could be made; the message says why, in the compiler's words where it has some."""


class _TrialError(OSError):
    """What was compiled cannot be loaded, or ends the process that calls it."""


class LoadedLibrary(NamedTuple):
    """The compiled loops, or why there are none.

    error: why there is no library: no compiler, or its own words.
    note: why the cache folder's was not the one to load, though there should have been one.
    """

    library: Library | None
    error: str | None = None
    note: str | None = None


def library() -> Library | None:
    """The compiled loops; None where there are none, for the reason that `library_error` gives."""
    return _overrides[-1] if _overrides else _loaded().library


def library_error() -> str | None:
    """Why there are no compiled loops: no compiler, or its own words; None where there are some."""
    return _loaded().error


def library_note() -> str | None:
    """What is wrong with the cache folder, or was with the library in it, so that it had to be compiled once more."""
    return _loaded().note


@contextlib.contextmanager
def library_override(found: Library | None) -> Iterator[None]:
    """Inside, `library` returns this: for tests."""
    _overrides.append(found)
    try:
        yield
    finally:
        _overrides.pop()


@functools.cache
def _loaded() -> LoadedLibrary:
    found = load_library()
    if found.error is not None:
        _log.warning("no compiled loops, so runs on this CPU are slower: %s", " ".join(found.error.split()))
    elif found.note is not None:
        _log.warning("compiled loops: %s", found.note)
    return found


def load_library(seconds: float | None = None) -> LoadedLibrary:
    """The library of the cache folder, else one compiled within so many seconds (None: SPINERL_NATIVE_SECONDS)."""
    if sys.platform == "win32":
        return LoadedLibrary(None, "not on Windows")
    note = None
    try:
        seconds = _seconds() if seconds is None else seconds
        compiler = _compiler()
        folder, note = _cache_folder()
        if folder is None:
            note = f"compiled by every process again: {note}"
            return LoadedLibrary(_built_in(None, compiler, None, seconds), note=note)
        file = folder / f"kernels-{_key(compiler)}.so"
        found, note = _cached(file)
        if found is not None:
            return LoadedLibrary(found)
        try:
            note = note and f"compiled again: {note}"
            return LoadedLibrary(_built_in(folder, compiler, file, seconds), note=note)
        except OSError as error:  # no space, or nothing may be run from there
            note = f"compiled by every process again: {folder} cannot be used ({cause_of(error)})"
            return LoadedLibrary(_built_in(None, compiler, None, seconds), note=note)
    except (BuildError, LibraryMismatchError) as error:
        return LoadedLibrary(None, str(error), note)
    except OSError as error:
        return LoadedLibrary(None, cause_of(error), note)


def _seconds() -> float:
    given = os.environ.get("SPINERL_NATIVE_SECONDS", "")
    try:
        return float(given) if given else COMPILE_SECONDS
    except ValueError:
        raise BuildError(f"SPINERL_NATIVE_SECONDS={given} is no number of seconds") from None


def build(file: Path, compiler: Sequence[str] = (), tuned: bool = True, seconds: float = COMPILE_SECONDS) -> None:
    """Compile all C files into the library `file`, with the flags for this processor that the compiler knows.

    Args:
        file: in a folder that exists.
        compiler: the command's first words; (): the one that `library` takes.
        tuned: False compiles for any processor of this architecture, without threads.
        seconds: for all attempts together.

    Raises BuildError where the compiler is missing, fails, writes nothing or takes too long.
    """
    compiler = tuple(compiler) or _compiler()
    sources = sorted(str(path) for path in _SOURCES.glob("*.c"))
    code, errors = 0, ""
    end = time.monotonic() + seconds
    for tuning in _TUNING if tuned else ((),):
        command = [*compiler, *_FLAGS, *tuning, *_more_flags(), "-o", str(file), *sources, "-lm"]
        code, errors = _run(command, file.parent, max(0.0, end - time.monotonic()))
        if code == 0 and file.is_file():
            return
    ended = "wrote no library" if code == 0 else f"failed{_by_signal(code)}"
    raise BuildError(f"{shlex.join(compiler)} {ended}: {errors or 'without a word'}")


def _by_signal(code: int) -> str:
    return f" (signal {-code})" if code < 0 else ""


def _run(command: list[str], scratch: Path, seconds: float) -> tuple[int, str]:
    """Exit code and some lines of what a compiler says; it and all that it started end with the limit."""
    with tempfile.TemporaryFile(dir=scratch) as said:  # a pipe would be waited for, whoever else holds it
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            _limit_files(process.pid)
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} was stopped: it took longer than {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        text = said.read(_MOST_WORDS).decode(errors="replace")
    lines = ["".join(filter(str.isprintable, line))[:_LONGEST_LINE] for line in text.split("\n") if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return code, "\n".join(errors[:_MOST_LINES])


def _limit_files(pid: int) -> None:
    """Let a process, and what it starts from now on, write no more than `_MOST_BYTES` to a file."""
    import resource

    if hasattr(resource, "prlimit"):  # Linux
        with contextlib.suppress(OSError):  # it has ended
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_MOST_BYTES, _MOST_BYTES))


def _compiler() -> tuple[str, ...]:
    """The words a compiler's command begins with.  Raises BuildError where there is none."""
    for words in (_split("CC"), ["cc"], ["gcc"], ["clang"]):
        found = shutil.which(words[0]) if words else None
        if found is not None:
            return (found, *words[1:])
    raise BuildError("no C compiler: install gcc or clang")


def _more_flags() -> list[str]:
    return _split("SPINERL_NATIVE_FLAGS")


def _split(variable: str) -> list[str]:
    """An environment variable's words, as a shell splits them.  Raises BuildError where it cannot."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f"{variable}={value} cannot be split into words: {error}") from None


def _key(compiler: Sequence[str]) -> str:
    """What the library depends on: sources, compiler, flags, and the processor, as machines may share a folder."""
    key = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        if path.suffix in (".c", ".h"):
            key.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    for fact in (*compiler, *_FLAGS, *_more_flags(), platform.machine(), _processor(), torch.__version__):
        key.update(fact.encode() + b"\0")
    return key.hexdigest()[:16]


def _processor() -> str:
    """What distinguishes processors for which code was compiled."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return platform.processor()


def _cache_folder() -> tuple[Path | None, str | None]:
    """(a folder that only the user may write, made where it is missing, None), or (None, why there can be none)."""
    folder = None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():
            base = Path.home() / ".cache"
        folder = base / "spinerl" / "native"
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        facts = base.stat()
        if facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX:
            return None, f"{base}: others may write to it (mode {facts.st_mode & 0o777:o})"
        for one in (folder.parent, folder):
            if fault := _not_private(one, stat.S_ISDIR):
                return None, fault
    except (RuntimeError, KeyError):  # no HOME, and no entry in the list of users
        return None, "there is no home folder to keep it in (HOME, XDG_CACHE_HOME)"
    except OSError as error:
        return None, f"{error.filename or folder} cannot be used ({cause_of(error)})"
    return (folder, None) if os.access(folder, os.W_OK) else (None, f"{folder} cannot be written to")


def _not_private(path: Path, is_kind: Callable[[int], bool]) -> str | None:
    """Why this is not a folder, or file (`stat.S_ISDIR`, `S_ISREG`), of this user's that no other may write to."""
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a symbolic link"
    if not is_kind(facts.st_mode):
        return f"{path} is of another kind"
    if facts.st_uid != os.geteuid():
        return f"{path} belongs to another user (number {facts.st_uid})"
    return f"{path}: others may write to it (mode {facts.st_mode & 0o777:o})" if facts.st_mode & 0o022 else None


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _cached(file: Path) -> tuple[Library | None, str | None]:
    """(the library in a file of the cache folder, None), or (None, why it is not trusted; None where it is missing)."""
    checksum = _checksum_file(file)
    try:
        file.lstat()
    except OSError:
        return None, None
    try:
        if fault := _not_private(file, stat.S_ISREG) or _not_private(checksum, stat.S_ISREG):
            return None, fault
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != checksum.read_text(encoding="ascii").strip():
            return None, f"{file} was damaged: its checksum is not that of {checksum.name}"
        return replace(bind(ctypes.CDLL(str(file))), checksum=digest), None
    except FileNotFoundError as error:
        return None, f"{error.filename} was missing"
    except UnicodeDecodeError:
        return None, f"{checksum} was damaged"
    except OSError as error:
        return None, f"{file} could not be loaded ({cause_of(error)})"
    except LibraryMismatchError as error:
        return None, f"{file} was another library ({error})"


def _built_in(parent: Path | None, compiler: Sequence[str], cached: Path | None, seconds: float) -> Library:
    """Compile in a new private folder of `parent` (None: where temporary folders are), load, and put what was loaded
    where the next process looks for it, if `cached` is given.

    A library is loaded before it is moved: under the name of one that is loaded, the loader would not look at the file.
    """
    if parent is not None:
        _remove_stale(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_BUILDING) as folder:
        file = Path(folder) / "kernels.so"
        build(file, compiler, seconds=seconds)
        _try_out(file, compiler)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found = replace(bind(ctypes.CDLL(str(file))), checksum=digest)
        if cached is not None:
            with contextlib.suppress(OSError):
                file.chmod(0o700)
                checksum = Path(folder) / "checksum"
                checksum.write_text(digest + "\n", encoding="ascii")
                checksum.chmod(0o600)
                checksum.replace(_checksum_file(cached))
                file.replace(cached)
        return found


def _remove_stale(folder: Path) -> None:
    """Remove folders in which processes that were killed compiled something."""
    for old in folder.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)


def _try_out(file: Path, compiler: Sequence[str]) -> None:
    """Load and call the library in a process of its own.  Raises _TrialError where that fails or ends the process."""
    if not sys.executable or getattr(sys, "frozen", False):  # no Python to be had
        return
    command = [sys.executable, "-I", str(Path(bindings.__file__)), str(file)]
    try:
        code, words = _run(command, file.parent, _TRIAL_SECONDS)
    except BuildError as error:
        code, words = 1, str(error)
    if code:
        last = words.splitlines()[-1] if words else "without a word"
        raise _TrialError(f"what {shlex.join(compiler)} wrote cannot be used{_by_signal(code)}: {last}")
