"""Processes for work that input decides: its processor time and memory are limited, and it cannot hurt this process.

An isolated process is two.  The *keeper* imports what the work needs once, then forks a *solver* that answers
requests.  A solver that exceeds its processor time or memory dies of it (the kernel sees to that, so a computation
stuck inside one C call is no exception), the keeper reaps it, reports the failure and forks a new one: milliseconds,
not the second that the imports take.  When the parent goes away the keeper's input ends, and both exit.

Nothing here depends on how busy the machine is.  Processor time is the solver's own; where a limit decides about an
answer it is an amount of work (objects made), which is the same on every machine.  The parent waits for as long as the
process has work to do, and gives up only on one that does nothing.

Frames: 4 bytes length (big endian), then JSON.  The first frame configures ({"cpu_s", "memory_bytes", "work"}), then
come requests, one at a time.  A reply has a "status": "ok", "timeout", "memory", "crash", or what the work itself says.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from spinerl.errors import RunError
from spinerl.pipes import python_command, python_environment

__all__ = ["MAX_FRAME", "SLACK", "IsolatedProcess", "read_frame", "serve", "write_frame"]

MAX_FRAME = 64 << 20
"""Bytes of the longest message."""

Work = Callable[[dict[str, Any]], dict[str, Any]]
"""A request's reply; it may raise anything."""

_HEADER = struct.Struct(">I")
_SILENT_S = 30.0  # a process that used no processor time for so long, and wants none, is stuck
_BLIND_S = 600.0  # the same where the system does not say what a process does
SLACK = 3.0
"""Processor time that a request may take, of what its limit in work takes on a quiet machine."""
_UNIT_OBJECTS = 100  # containers made, less those that are gone, to a unit of work


def write_frame(fd: int, message: dict[str, Any]) -> None:
    """Writes one message; `BrokenPipeError` when the other side is gone."""
    body = json.dumps(message).encode()
    data = memoryview(_HEADER.pack(len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(
    fd: int, timeout_s: float | None = None, is_busy: Callable[[], bool] | None = None
) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream.  `TimeoutError` when nothing whole came in time.

    The time limit is per read; whoever writes does so in one go, so a frame that has begun is soon complete.  It
    starts again as long as `is_busy` says so.
    """
    header = _read_exactly(fd, _HEADER.size, timeout_s, is_busy)
    if header is None:
        return None
    (length,) = _HEADER.unpack(header)
    if length > MAX_FRAME:
        return None
    body = _read_exactly(fd, length, timeout_s, is_busy)
    return None if body is None else json.loads(body)


def _read_exactly(fd: int, size: int, timeout_s: float | None, is_busy: Callable[[], bool] | None) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        while timeout_s is not None and not _readable(fd, timeout_s):
            if is_busy is None or not is_busy():
                raise TimeoutError
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _readable(fd: int, timeout_s: float) -> bool:
    poller = select.poll()  # not select.select, which refuses descriptors above 1023
    poller.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))


# ----------------------------------------------------------------------------------------------- the keeper


class _Keeper:
    def __init__(self, work: Work, settings: dict[str, Any]) -> None:
        self.work = work
        self.settings = settings
        self.pid = 0
        self.to_solver = self.from_solver = -1

    def start(self) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (0, 1, request_write, reply_read):
                os.close(fd)
            _solve(request_read, reply_write, self.work, self.settings)
        os.close(request_read)
        os.close(reply_write)
        self.pid, self.to_solver, self.from_solver = pid, request_write, reply_read

    def stop(self) -> int:
        """Kills and reaps the solver; returns the signal it had died of on its own, else 0."""
        os.close(self.to_solver)
        os.close(self.from_solver)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            # its pipe may end an instant before its exit status is there: give it that instant
            for _ in range(20):
                select.select([], [], [], 0.005)
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    break
        if pid == 0:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return 0
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The solver's reply, or the way it failed; None when the parent went away meanwhile."""
        if not self.pid:
            self.start()
        try:
            write_frame(self.to_solver, request)
            poller = select.poll()
            poller.register(self.from_solver, select.POLLIN | select.POLLHUP)
            poller.register(0, select.POLLHUP)
            events = dict(poller.poll())
            reply = read_frame(self.from_solver) if self.from_solver in events else None
            if reply is None and self.from_solver not in events:
                return None
        except OSError:
            reply = None
        if reply is not None and reply["status"] != "memory":
            return reply
        died_of = self.stop()
        self.pid = 0
        if reply is not None:
            return reply
        if died_of == signal.SIGALRM:
            return {"status": "timeout", "work": self.settings["work"]}
        return {"status": "timeout" if died_of == signal.SIGPROF else "crash"}


def serve(prepare: Callable[[], Work]) -> int:
    """Serves requests from standard input until it ends; the whole life of an isolated process.

    Args: `prepare`, which imports what the work needs and returns the work; it runs once.
    """
    _silence()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; we end when it ends
    settings = read_frame(0)
    if settings is None:
        return 0
    keeper = _Keeper(prepare(), settings)
    gc.collect()
    gc.freeze()  # keeps the forked pages shared
    write_frame(1, {"status": "ready"})
    parent = os.getppid()
    while True:
        if not _readable(0, 5.0):
            if os.getppid() != parent:  # the parent died, but a fork of it still holds our pipe open
                break
            continue
        request = read_frame(0)
        if request is None:
            break
        reply = keeper.ask(request)
        if reply is None:
            break
        write_frame(1, reply)
    if keeper.pid:
        keeper.stop()
    return 0


def _silence() -> None:
    """Nothing but frames may leave through the pipe, and nothing at all through the parent's standard
    error."""
    logging.disable(logging.CRITICAL)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


# ----------------------------------------------------------------------------------------------- the solver


def _solve(read_fd: int, write_fd: int, work: Work, settings: dict[str, Any]) -> NoReturn:
    import resource

    cpu_s, memory_bytes = float(settings["cpu_s"]), int(settings["memory_bytes"])
    code = 0
    try:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.setrecursionlimit(2000)
        for ending in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(ending, signal.SIG_DFL)  # default action: the process ends
        count = _Work(int(settings["work"])) if settings["work"] else None
        while (request := read_frame(read_fd)) is not None:
            if count is not None:
                count.begin()
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            began = time.process_time()
            reply: dict[str, Any]
            try:
                reply = work(request)
            except MemoryError:
                reply = {"status": "memory"}
            except Exception:
                reply = {"status": "crash"}
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply["cpu_s"] = time.process_time() - began
            if count is not None:
                reply["work"] = count.done
            write_frame(write_fd, reply)
    except BaseException:  # whatever it is, this process must not return into the keeper's code
        code = 1
    os._exit(code)


class _Work:
    """Counts work: a measure that no other process's load can change, and that costs nothing.

    A unit is a collection of young garbage, which Python does for every so many objects made, and of which it tells.
    A computation beyond the limit ends the process.  One that makes no objects is ended by the clock.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.done = 0
        gc.set_threshold(_UNIT_OBJECTS, 50, 1000)
        gc.callbacks.append(self._count)

    def begin(self) -> None:
        """For a new request."""
        gc.collect(0)  # what is left of the request before counts for nothing
        self.done = 0

    def _count(self, phase: str, _info: dict[str, Any]) -> None:
        if phase == "start":
            self.done += 1
            if self.done > self._limit:
                os.kill(os.getpid(), signal.SIGALRM)  # the process ends, and the keeper knows why


# ----------------------------------------------------------------------------------------------- the parent


class IsolatedProcess:
    """An isolated process, as its parent sees it.  Used by one thread at a time.

    Args: `module`, what runs: a module that calls `serve`; `what`, its name for messages; `cpu_s`, processor seconds
    that a request may take; `memory_bytes`, its address space; `work`, units of work that a request may take (then
    `cpu_s` is what they take on a quiet machine, and the request may take three times it), 0 for no such limit.
    Raises: `RunError` if it does not start.
    """

    def __init__(self, module: str, what: str, *, cpu_s: float, memory_bytes: int, work: int = 0) -> None:
        self.owner = os.getpid()
        self.failure = "crash"
        self.silent_s = _SILENT_S if Path("/proc/self/stat").exists() else _BLIND_S
        self._what, self._module = what, module
        self._used = -1.0
        environment = python_environment()
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        environment["PYTHONHASHSEED"] = "0"  # the order of a set decides how much work a computation is
        try:
            self.process = subprocess.Popen(
                python_command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise RunError(f"{what} did not start: {error}") from None
        self._is_ready = False
        with contextlib.suppress(OSError):  # it is gone already: `wait_until_ready` says so
            self._write({"cpu_s": cpu_s * (SLACK if work else 1.0), "memory_bytes": memory_bytes, "work": work})

    def wait_until_ready(self) -> None:
        """Until its imports are done: it starts by itself, and the time until it is needed need not be lost."""
        if self._is_ready:
            return
        try:
            ready = self._receive()
        except (OSError, TimeoutError):
            ready = None
        except BaseException:
            self.close()
            raise
        if ready is None:
            code = self.process.poll()
            self.close()
            raise RunError(
                f"{self._what} did not start (exit code {code}); try it by hand: "
                f"{sys.executable} -P -m {self._module} < /dev/null"
            )
        self._is_ready = True

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The reply, or None when the process is lost (`failure` says how)."""
        self.wait_until_ready()
        try:
            self._write(request)
            return self._receive()
        except TimeoutError:
            self.failure = "timeout"
        except OSError:
            self.failure = "crash"
        return None

    def close(self) -> None:
        """Ends the process and reaps it; its solver goes with it."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(timeout=1.0)  # the end of its input is its signal to leave
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        write_frame(self.process.stdin.fileno(), message)

    def _receive(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        return read_frame(self.process.stdout.fileno(), self.silent_s, self._is_busy)

    def _is_busy(self) -> bool:
        """Whether the process or its solver wants the processor now, or has used it since the last look."""
        used, waits = _activity(self.process.pid)
        before, self._used = self._used, used
        return waits or used > before >= 0.0


def _activity(pid: int) -> tuple[float, bool]:
    """(processor time used, whether one of them is running, or would if the processor or a disk were free), summed
    over a process and its children; (0.0, False) where /proc does not say."""
    used, waits = 0.0, False
    for one in (pid, *_children(pid)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            used += int(fields[11]) + int(fields[12])
            waits = waits or fields[0] in "RD"
    return used, waits


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found
