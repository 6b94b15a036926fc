"""One process at a time in a folder: an advisory lock on its file `.lock`, which ends with the process holding it."""

from __future__ import annotations

import os
import platform
import weakref
from pathlib import Path

__all__ = ["FolderInUseError", "FolderLock", "lock_file", "who_holds"]


class FolderInUseError(Exception):
    """Another process holds the lock; its text names that process."""


class FolderLock:
    """Held from when it is made until `release`, or until the process ends.

    `held` is False where the system or the file system has no such locks.

    Raises FolderInUseError if another process holds it, OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        # Not through a link: what it leads to would be emptied.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            held = lock_file(handle)
        except BlockingIOError:
            owner = _owner(handle)
            self.release()
            raise FolderInUseError(owner) from None
        if not held:
            return
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        self.held = True


def who_holds(folder: Path) -> str | None:
    """The process that holds a folder's lock, in words; None for none.  Writes nothing."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        lock_file(handle)
    except BlockingIOError:
        return _owner(handle)
    finally:
        os.close(handle)
    return None


def _owner(handle: int) -> str:
    return os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"


def lock_file(handle: int) -> bool:
    """Lock an open file for this process until it is closed; False where the system has no such locks.

    Raises BlockingIOError if another process holds it.
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True
