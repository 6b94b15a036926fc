"""The process in which math-verify runs: `python -m spinerl.answers._worker`, spoken to over its two pipes.

It is two processes.  The *keeper* imports math-verify once, then forks a *solver* that answers requests.  A
solver that exceeds its processor time or memory dies of it (the kernel sees to that, so a computation stuck
inside one C call is no exception), the keeper reaps it, reports the failure and forks a new one:
milliseconds, not the second an import of sympy takes.  When the parent goes away the keeper's input ends, and
both exit.

Frames: 4 bytes length (big endian), then JSON.  The first frame configures: {"cpu_s", "memory_bytes"}; then
one request at a time: {"op": "read", "a"} -> {"status": "ok", "value": can it be read at all, "points": its
value at the reader's sample points, if it has one}, and {"op": "same", "a", "b"} -> {"status": "ok", "value":
verify(a, b) or verify(b, a)}, each with the processor time spent, "cpu_s".  Other statuses: "timeout",
"memory", "crash".

No torch is imported here.  Only the LaTeX grammar of math-verify is used: its other one evaluates Python.
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
import sys
import time
from typing import Any, NoReturn

from spinerl.answers._reader import NUM_POINTS, sample_points

__all__ = ["main", "read_frame", "write_frame"]

_HEADER = struct.Struct(">I")
MAX_FRAME = 1 << 20
# asked once before the fork, so that what sympy imports and builds on first use is there in every solver
_WARM_UP = (
    {"op": "same", "a": r"\frac{1}{2}+\sqrt{x}", "b": r"\sin{x}"},
    {"op": "same", "a": "x^2<4", "b": r"(-2,1]\cup[1,2)"},
    {"op": "same", "a": r"\{1,2\}", "b": r"\begin{pmatrix} 1 & 2 \end{pmatrix}"},
    {"op": "read", "a": r"\int_0^1 x dx+\sum_{k=1}^{n} k"},
)


def write_frame(fd: int, message: dict[str, Any]) -> None:
    """Writes one message; `BrokenPipeError` when the other side is gone."""
    body = json.dumps(message).encode()
    data = memoryview(_HEADER.pack(len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int, timeout_s: float | None = None) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream.  `TimeoutError` when nothing whole came in time.

    The time limit is per read; whoever writes does so in one go, so a frame that has begun is soon complete.
    """
    header = _read_exactly(fd, _HEADER.size, timeout_s)
    if header is None:
        return None
    (length,) = _HEADER.unpack(header)
    if length > MAX_FRAME:
        return None
    body = _read_exactly(fd, length, timeout_s)
    return None if body is None else json.loads(body)


def _read_exactly(fd: int, size: int, timeout_s: float | None) -> bytes | None:
    data = b""
    while len(data) < size:
        if timeout_s is not None and not _readable(fd, timeout_s):
            raise TimeoutError
        chunk = os.read(fd, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def _readable(fd: int, timeout_s: float) -> bool:
    poller = select.poll()  # not select.select, which refuses descriptors above 1023
    poller.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))


# ----------------------------------------------------------------------------------------------- the keeper


class _Keeper:
    def __init__(self, cpu_s: float, memory_bytes: int) -> None:
        self.cpu_s = cpu_s
        self.memory_bytes = memory_bytes
        self.pid = 0
        self.to_solver = self.from_solver = -1

    def start(self) -> None:
        request_read, request_write = os.pipe()
        reply_read, reply_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (0, 1, request_write, reply_read):
                os.close(fd)
            _solve(request_read, reply_write, self.cpu_s, self.memory_bytes)
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
        return {"status": "timeout" if died_of == signal.SIGPROF else "crash"}


def main() -> int:
    """Serves requests from standard input until it ends."""
    import resource  # noqa: F401  (imported before the fork, used in the solver)

    _silence()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; we end when it ends
    settings = read_frame(0)
    if settings is None:
        return 0
    _import_math_verify()
    for request in _WARM_UP:
        _reply(request)
    gc.collect()
    gc.freeze()  # keeps the forked pages shared
    keeper = _Keeper(float(settings["cpu_s"]), int(settings["memory_bytes"]))
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


def _solve(read_fd: int, write_fd: int, cpu_s: float, memory_bytes: int) -> NoReturn:
    import resource

    code = 0
    try:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.setrecursionlimit(2000)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # default action: the process ends
        while (request := read_frame(read_fd)) is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            began = time.process_time()
            reply = _reply(request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply["cpu_s"] = time.process_time() - began
            write_frame(write_fd, reply)
    except BaseException:  # whatever it is, this process must not return into the keeper's code
        code = 1
    os._exit(code)


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if request["op"] == "read":
            expressions = _parse(request["a"])
            return {"status": "ok", "value": bool(expressions), "points": _points_or_none(expressions)}
        elif request["op"] == "same":
            value = _same(request["a"], request["b"])
        else:
            return {"status": "crash"}
    except MemoryError:
        return {"status": "memory"}
    except Exception:
        value = False
    return {"status": "ok", "value": bool(value)}


_parsed: dict[str, list[Any]] = {}
_math_verify: Any = None
_config: list[Any] = []


def _import_math_verify() -> None:
    global _math_verify
    import math_verify

    _math_verify = math_verify
    _config.append(math_verify.LatexExtractionConfig())


def _parse(text: str) -> list[Any]:
    """The sympy expressions of an answer, without the raw string that math-verify adds."""
    if text not in _parsed:
        if len(_parsed) >= 4096:
            _parsed.clear()
        found = _math_verify.parse(
            f"${text}$", extraction_config=_config, fallback_mode="no_fallback", parsing_timeout=None
        )
        _parsed[text] = [item for item in found if not isinstance(item, str)]
    return _parsed[text]


def _points_or_none(expressions: list[Any]) -> list[tuple[str, str]] | None:
    try:
        return _points(expressions)
    except MemoryError:
        raise
    except Exception:  # sympy raises what it likes; a pairwise comparison is then the way
        return None


def _points(expressions: list[Any]) -> list[tuple[str, str]] | None:
    """The one expression's value at the reader's sample points (real and imaginary digits), or None.

    Evaluating here also makes an expression that explodes do so on its own, and take the blame itself.
    """
    from sympy import Expr, Float, I, Symbol

    values: list[tuple[str, str]] | None = []
    for expression in expressions:
        str(expression)
        done = expression.doit() if hasattr(expression, "doit") else expression
        if len(expressions) > 1 or not isinstance(done, Expr):
            values = None
            continue
        symbols = [s for s in done.free_symbols if isinstance(s, Symbol)]
        if any(len(s.name) != 1 or s.name in "eiI" for s in symbols):
            return None
        places = {s: sample_points(s.name) for s in symbols}
        for index in range(NUM_POINTS):
            value = done.subs({s: Float(digits[index], 40) for s, digits in places.items()}).evalf(40)
            real, imaginary = value.as_real_imag()
            if not (real.is_Number and imaginary.is_Number) or not value.is_finite or value.has(I) != (imaginary != 0):
                return None
            if value != 0 and min(_digits_known(real), _digits_known(imaginary)) < 30:
                return None  # terms cancelled: perhaps it is zero
            assert values is not None
            values.append((str(real), str(imaginary)))
    return values or None


def _digits_known(part: Any) -> int:
    """How many digits sympy vouches for; it gives an undecided zero one bit.  Exact numbers count as many."""
    precision = getattr(part, "_prec", None)
    return 40 if precision is None or part == 0 else int(precision * 0.30103)


def _differ_by_size(first: list[Any], second: list[Any]) -> bool:
    """Whether both are constants too small for the tolerance of math-verify, and differ."""
    from sympy import Expr

    if len(first) != 1 or len(second) != 1 or not all(isinstance(e, Expr) for e in (first[0], second[0])):
        return False
    x, y = (e.doit().evalf(30) for e in (first[0], second[0]))
    if not (x.is_Number and y.is_Number) or max(abs(x), abs(y)) > 1e-6 or x == y:
        return False
    return min(_digits_known(x), _digits_known(y)) >= 20 and abs(x - y) > 1e-15 * max(abs(x), abs(y))


def _same(a: str, b: str) -> bool:
    first, second = _parse(a), _parse(b)
    if not first or not second:
        return False
    verify = _math_verify.verify
    if not (verify(first, second, timeout_seconds=None) or verify(second, first, timeout_seconds=None)):
        return False
    return not _differ_by_size(first, second)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
