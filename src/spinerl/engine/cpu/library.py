"""Compiles the C files of `native/` at first use, keeps the library in the user's cache folder, and loads it.

The library is loaded only from a folder and a file that belong to the user (owner, no one else may write, no
symbolic links) and only if its checksum is right.  Otherwise it is compiled again, in a private temporary folder where
the cache folder cannot be used.  Without a compiler there is no library: `library_error` says why, and torch's
operators do the work.

Environment variables:
    CC: the compiler; else cc, gcc or clang, whichever is found first.
    SPINERL_NATIVE_FLAGS: more flags for the compiler, such as "-O1 -g -fsanitize=address".
    XDG_CACHE_HOME: where cache folders are; else ~/.cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
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
from pathlib import Path

import torch

from spinerl.engine.cpu.bindings import Library, LibraryMismatchError, bind

__all__ = ["COMPILE_SECONDS", "BuildError", "build", "library", "library_error", "library_override", "load_library"]

COMPILE_SECONDS = 60.0
"""A compiler that takes longer is stopped."""

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-fvisibility=hidden", "-w", "-Wno-psabi")
_TUNING = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())  # what compilers know, best first
_MOST_LINES = 8  # of a compiler's words

_overrides: list[Library | None] = []


class BuildError(Exception):
    """No library could be made; the message says why, in the compiler's words where it has some."""


def library() -> Library | None:
    """The compiled loops; None where there are none, for the reason that `library_error` gives."""
    return _overrides[-1] if _overrides else _loaded()[0]


def library_error() -> str | None:
    """Why there are no compiled loops: no compiler, or its own words; None where there are some."""
    return _loaded()[1]


@contextlib.contextmanager
def library_override(found: Library | None) -> Iterator[None]:
    """Inside, `library` returns this: for tests."""
    _overrides.append(found)
    try:
        yield
    finally:
        _overrides.pop()


@functools.cache
def _loaded() -> tuple[Library | None, str | None]:
    return load_library()


def load_library(seconds: float = COMPILE_SECONDS) -> tuple[Library | None, str | None]:
    """(the library, None) or (None, the reason): from the cache folder, else compiled within so many seconds."""
    if sys.platform == "win32":
        return None, "not on Windows"
    try:
        compiler = _compiler()
        folder = _cache_folder()
        file = None if folder is None else folder / f"kernels-{_key(compiler)}.so"
        found = None if file is None else _cached(file)
        return found or _built(compiler, file, seconds), None
    except (BuildError, LibraryMismatchError, OSError) as error:
        return None, str(error)


def build(file: Path, compiler: Sequence[str] = (), tuned: bool = True, seconds: float = COMPILE_SECONDS) -> None:
    """Compile all C files into the library `file`, with the flags for this processor that the compiler knows.

    Args:
        file: in a folder that exists.
        compiler: the command's first words; (): the one that `library` takes.
        tuned: False compiles for any processor of this architecture, without threads.
        seconds: for all attempts together.

    Raises BuildError where the compiler is missing, fails or takes too long.
    """
    compiler = tuple(compiler) or _compiler()
    sources = sorted(str(path) for path in _SOURCES.glob("*.c"))
    errors = ""
    end = time.monotonic() + seconds
    for tuning in _TUNING if tuned else ((),):
        command = [*compiler, *_FLAGS, *tuning, *_more_flags(), "-o", str(file), *sources, "-lm"]
        code, errors = _run(command, file.parent, max(0.0, end - time.monotonic()))
        if code == 0:
            return
    raise BuildError(f"{shlex.join(compiler)} failed: {errors or 'without a word'}")


def _run(command: list[str], scratch: Path, seconds: float) -> tuple[int, str]:
    """Exit code and last lines of what a compiler says; it and all that it started end with the limit."""
    with tempfile.TemporaryFile(dir=scratch) as said:  # a pipe would be waited for, whoever else holds it
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        except OSError as error:
            raise BuildError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} was stopped: it took longer than {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return code, "\n".join(errors[:_MOST_LINES])


def _compiler() -> tuple[str, ...]:
    """The words a compiler's command begins with.  Raises BuildError where there is none."""
    for words in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        found = shutil.which(words[0]) if words else None
        if found is not None:
            return (found, *words[1:])
    raise BuildError("no C compiler: install gcc or clang")


def _more_flags() -> list[str]:
    return shlex.split(os.environ.get("SPINERL_NATIVE_FLAGS", ""))


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


def _cache_folder() -> Path | None:
    """A folder that only the user may write, made where it is missing; None where there can be none."""
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not parent.is_absolute():
            parent = Path.home() / ".cache"
        folder = parent / "spinerl" / "native"
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except (OSError, RuntimeError, KeyError):  # no HOME, and no entry in the list of users; no right to write
        return None
    return folder if _is_private(folder, stat.S_ISDIR) and os.access(folder, os.W_OK) else None


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether this is a folder, or file (`stat.S_ISDIR`, `S_ISREG`), of this user's that no other may write to."""
    facts = path.lstat()
    return is_kind(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _cached(file: Path) -> Library | None:
    """The library in a file of the cache folder; None where it is missing or not to be trusted."""
    checksum = _checksum_file(file)
    try:
        if not _is_private(file, stat.S_ISREG) or not _is_private(checksum, stat.S_ISREG):
            return None
        if hashlib.sha256(file.read_bytes()).hexdigest() != checksum.read_text(encoding="ascii").strip():
            return None
        return bind(ctypes.CDLL(str(file)))
    except (OSError, UnicodeDecodeError, LibraryMismatchError):
        return None


def _built(compiler: Sequence[str], cached: Path | None, seconds: float) -> Library:
    """Compile, load, and put what was loaded where the next process looks for it, if `cached` is given."""
    if cached is not None:
        try:
            return _built_in(cached.parent, compiler, cached, seconds)
        except OSError:  # no space, or nothing may be run from there
            pass
    return _built_in(None, compiler, None, seconds)


def _built_in(parent: Path | None, compiler: Sequence[str], cached: Path | None, seconds: float) -> Library:
    """The same, in a new private folder of `parent` (None: where temporary folders are).

    A library is loaded before it is moved: under the name of one that is loaded, the loader would not look at the file.
    """
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        file = Path(folder) / "kernels.so"
        build(file, compiler, seconds=seconds)
        found = bind(ctypes.CDLL(str(file)))
        if cached is not None:
            with contextlib.suppress(OSError):
                file.chmod(0o700)
                checksum = Path(folder) / "checksum"
                checksum.write_text(hashlib.sha256(file.read_bytes()).hexdigest() + "\n", encoding="ascii")
                checksum.chmod(0o600)
                checksum.replace(_checksum_file(cached))
                file.replace(cached)
        return found
