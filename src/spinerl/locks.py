"""One process at a time in a folder: an advisory lock on its file `.lock`, which ends with the process holding it."""

from __future__ import annotations

import os
import platform
import weakref
from pathlib import Path

__all__ = ["FolderInUseError", "FolderLock"]


class FolderInUseError(Exception):
    """Another process holds the lock; its text names that process."""


class FolderLock:
    """Held from when it is made until `release`, or until the process ends.

    `held` is False where the system or the file system has no such locks.

    Raises FolderInUseError if another process holds it, OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, handle)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            self.release()
            raise FolderInUseError(owner) from None
        except (ImportError, OSError):
            return
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        self.held = True
