"""Which answers are the same answer: canonical keys first, math-verify in worker processes for the rest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from spinerl.answers._reader import Unreadable, from_digits
from spinerl.answers._worker import read_frame, write_frame
from spinerl.answers.normalize import Key, canonical_key, check_kind, scalar_key
from spinerl.errors import InputError, RunError
from spinerl.pipes import python_command, python_environment

__all__ = ["Equivalence", "default_equivalence"]

_START_S = 120.0
_FAILURES = {"timeout": "num_timeouts", "memory": "num_memory_exceeded", "crash": "num_crashes"}
_STATS = (
    "num_answers", "num_reads", "num_comparisons", "num_cache_hits", "num_timeouts", "num_memory_exceeded",
    "num_crashes", "num_skipped", "num_workers_started",
)  # fmt: skip
_NO_ANSWER = {"skipped", *_FAILURES}
_INEQUALITY_SIGNS = ("<", ">", "\\le", "\\ge", "\\ne")

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Equivalence:
    """Sorts answers into equivalence classes, and remembers what it has compared.

    Two answers are in one class when their canonical keys are equal, or when one of them is an expression
    that the fast reader does not understand and math-verify takes either one for the other, or by a chain of
    such pairs within one call.  So the relation is symmetric and, within a call, transitive whatever
    math-verify says.

    math-verify runs in worker processes that start when first needed.  A request that exceeds `cpu_s` seconds
    of processor time or `memory_mb` of address space ends its worker, is counted, and counts as "not equal";
    an answer that cannot even be read within the limits abstains (class None).  One call spends at most
    `budget_s` processor seconds (and the one request it is in) in the workers; then unread answers abstain and
    uncompared pairs are not equal, both counted in `stats["num_skipped"]`.

    Args: `cpu_s`, processor seconds per request (processor, not wall-clock time: a busy machine changes no
    vote); `memory_mb`; `budget_s`, processor seconds per call; `num_workers`, how many threads can compare
    at once; `cache_size`, remembered reads and pairs each.
    Raises: `InputError` for limits that are not positive.

    Safe to use from any thread.  Workers are plain subprocesses that end with this object or this process,
    so a script needs no `if __name__ == "__main__"` guard and a process with torch threads forks nothing.

    >>> with Equivalence() as equivalence:
    ...     equivalence.classes(["1/2", "7", "0.5", None, "\\\\frac12"])
    (0, 1, 0, None, 0)
    """

    def __init__(
        self,
        *,
        cpu_s: float = 1.0,
        memory_mb: int = 1024,
        budget_s: float = 10.0,
        num_workers: int = 2,
        cache_size: int = 65536,
    ) -> None:
        for name, value in (
            ("cpu_s", cpu_s),
            ("memory_mb", memory_mb),
            ("budget_s", budget_s),
            ("num_workers", num_workers),
            ("cache_size", cache_size),
        ):
            if not value > 0:
                raise InputError(f"Equivalence({name}={value}) is refused; {name} must be positive")
        self._cpu_s = cpu_s
        self._memory_mb = memory_mb
        self._budget_s = budget_s
        self._slots = threading.BoundedSemaphore(num_workers)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._reads: _Cache[str, str] = _Cache(cache_size)
        self._pairs: _Cache[tuple[str, str], bool] = _Cache(cache_size)
        self._stats: Counter[str] = Counter()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._idle)  # also when Python exits

    def classes(self, answers: Sequence[str | None], kind: str = "auto") -> tuple[int | None, ...]:
        """One class number per answer, numbered by first appearance; None for an answer that abstains.

        Args: `answers`, as `extract_answer` returns them (or bare gold answers); `kind`, one of `KINDS`.
        Returns: a tuple as long as `answers`; () for none.
        Raises: `InputError` for an unknown kind or a closed instance, `RunError` if no worker can be started.

        >>> default_equivalence().classes(["2\\\\sqrt{5}", "\\\\sqrt{20}", "4.47"])
        (0, 0, 1)
        """
        check_kind(kind)
        if self._closed:
            raise InputError("this Equivalence is closed; make a new one or use default_equivalence()")
        keys = [canonical_key(answer, kind) for answer in answers]
        distinct = {key.text: key for key in keys if key is not None}
        self._count("num_answers", len(keys))
        joined = self._join(distinct) if any(key.opaque for key in distinct.values()) else {}
        if any(key is not None and key.also for key in keys):
            joined = _unite([key for key in keys if key is not None], joined)
        numbers: dict[str, int] = {}
        result: list[int | None] = []
        for key in keys:
            root = None if key is None else joined.get(key.text, key.text)
            result.append(None if root is None else numbers.setdefault(root, len(numbers)))
        return tuple(result)

    def equivalent(self, a: str | None, b: str | None, kind: str = "auto") -> bool:
        """Whether `classes([a, b], kind)` puts both in one class; an answer that abstains equals nothing.

        >>> default_equivalence().equivalent("142", "142.0")
        True
        """
        first, second = self.classes([a, b], kind)
        return first is not None and first == second

    @property
    def stats(self) -> dict[str, int]:
        """Counts since the start: answers seen, requests to workers by outcome, cache hits, skipped
        requests."""
        with self._lock:
            return {name: self._stats[name] for name in _STATS}

    def close(self) -> None:
        """Ends the workers.  Closing twice is fine; a closed instance refuses further calls."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def __enter__(self) -> Equivalence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- the rest

    def _join(self, distinct: dict[str, Key]) -> dict[str, str | None]:
        """The root key of each distinct key; None for one that cannot be read within the limits.

        Keys are visited in sorted order, so the outcome does not depend on the order of the answers.
        """
        budget = _Budget(self._budget_s)
        root: dict[str, str | None] = {text: text for text in distinct}
        opaque: list[str] = []
        for text in sorted(distinct):
            if distinct[text].opaque:
                outcome = self._read(distinct[text].shown, budget)
                if outcome == "yes":
                    opaque.append(text)
                elif outcome in _NO_ANSWER:
                    root[text] = None
                elif outcome != "no":  # it has a value after all; "no" means that only its own spelling equals it
                    root.setdefault(outcome, outcome)
                    root[text] = outcome
        opaque_set = set(opaque)
        others = [text for text in sorted(distinct) if text in opaque_set or _is_comparable(distinct[text])]
        for a in opaque:
            for b in others:
                if b == a or (b in opaque_set and b < a) or _find(root, a) == _find(root, b):
                    continue
                if _is_inequality(a) and b.startswith(("number:", "value:")):
                    continue
                if self._same(distinct[a].shown, distinct[b].shown, budget):
                    first, second = sorted((_find(root, a), _find(root, b)))
                    root[second] = first
        return {text: None if parent is None else _find(root, text) for text, parent in root.items()}

    def _read(self, text: str, budget: _Budget) -> str:
        """The key of its value, or "yes" or "no" (math-verify can read it or not), or one of `_NO_ANSWER`."""
        known = self._reads.get(text)
        if known is not None:
            self._count("num_cache_hits")
            return known
        if not budget.allows():
            self._count("num_skipped")
            return "skipped"
        self._count("num_reads")
        reply = self._ask({"op": "read", "a": text})
        budget.spend(reply, self._cpu_s)
        outcome = reply["status"]
        if outcome == "ok":
            outcome = "yes" if reply["value"] else "no"
            if reply["points"]:
                with contextlib.suppress(Unreadable):
                    outcome = scalar_key(from_digits(reply["points"]))
        self._reads.put(text, outcome)
        return outcome

    def _same(self, a: str, b: str, budget: _Budget) -> bool:
        pair = (a, b) if a < b else (b, a)
        known = self._pairs.get(pair)
        if known is not None:
            self._count("num_cache_hits")
            return known
        if not budget.allows():
            self._count("num_skipped")
            return False
        self._count("num_comparisons")
        reply = self._ask({"op": "same", "a": pair[0], "b": pair[1]})
        budget.spend(reply, self._cpu_s)
        outcome = bool(reply.get("value", False))
        self._pairs.put(pair, outcome)
        return outcome

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._slots:
            worker = self._check_out()
            try:
                reply = worker.ask(request)
            except BaseException:
                worker.close()
                raise
            if reply is None:
                worker.close()
                reply = {"status": worker.failure}
            else:
                self._check_in(worker)
        if reply["status"] in _FAILURES:
            self._count(_FAILURES[reply["status"]])
        return reply

    def _check_out(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.owner == os.getpid():  # after a fork, the parent's workers are not ours to speak to
                    return worker
        self._count("num_workers_started")
        return _Worker(self._cpu_s, self._memory_mb)

    def _check_in(self, worker: _Worker) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.close()

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._stats[name] += by


class _Budget:
    """The processor seconds that one call may still spend in the workers; a request counts a millisecond at least."""

    LEAST_S = 0.001

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def allows(self) -> bool:
        return self._left >= self.LEAST_S

    def spend(self, reply: dict[str, Any], cpu_s: float) -> None:
        """A reply says what it cost; a worker that was lost spent all that a request may."""
        self._left -= max(self.LEAST_S, reply.get("cpu_s", cpu_s))


def _unite(keys: Sequence[Key], joined: dict[str, str | None]) -> dict[str, str | None]:
    """The roots after keys with a further key in common are united; keys that abstain stay None."""
    root: dict[str, str | None] = dict(joined)
    for key in sorted(keys, key=lambda one: (one.text, one.also)):
        own = root.setdefault(key.text, key.text)
        for other in key.also if own is not None else ():
            root.setdefault(other, other)
            first, second = sorted((_find(root, key.text), _find(root, other)))
            root[second] = first
    return {text: None if parent is None else _find(root, text) for text, parent in root.items()}


def _is_comparable(key: Key) -> bool:
    return not key.opaque and not key.text.startswith("text:")


def _is_inequality(text: str) -> bool:
    return any(sign in text for sign in _INEQUALITY_SIGNS)


def _find(root: dict[str, str | None], text: str) -> str:
    while (parent := root[text]) != text and parent is not None:
        text = parent
    return text


class _Cache(Generic[K, V]):
    """A bounded dictionary that forgets what was used longest ago; safe between threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            while len(self._items) > self._size:
                self._items.popitem(last=False)


class _Worker:
    """One worker process (see `_worker`).  Used by one thread at a time."""

    def __init__(self, cpu_s: float, memory_mb: int) -> None:
        self.owner = os.getpid()
        self.failure = "crash"
        # the solver enforces the processor time; this only catches a worker that is stuck for another reason
        self._wall_s = 20.0 * cpu_s + 10.0
        environment = python_environment()
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        self._process = subprocess.Popen(
            python_command("spinerl.answers._worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        try:
            self._write({"cpu_s": cpu_s, "memory_bytes": memory_mb << 20})
            ready = self._receive(_START_S)
        except (OSError, TimeoutError):
            ready = None
        except BaseException:
            self.close()
            raise
        if ready is None:
            code = self._process.poll()
            self.close()
            raise RunError(
                f"the answer-comparison worker did not start (exit code {code}); try it by hand: "
                f"{sys.executable} -m spinerl.answers.bench"
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The reply, or None when the worker is lost (`failure` says how)."""
        try:
            self._write(request)
            return self._receive(self._wall_s)
        except TimeoutError:
            self.failure = "timeout"
        except OSError:
            self.failure = "crash"
        return None

    def close(self) -> None:
        """Ends the process and reaps it; its solver goes with it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=1.0)  # the end of its input is its signal to leave
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        write_frame(self._process.stdin.fileno(), message)

    def _receive(self, timeout_s: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        return read_frame(self._process.stdout.fileno(), timeout_s)


def _close_all(workers: list[_Worker]) -> None:
    while workers:
        worker = workers.pop()
        if worker.owner == os.getpid():
            worker.close()


_default: Equivalence | None = None
_default_lock = threading.Lock()


def default_equivalence() -> Equivalence:
    """The instance shared by this process, with default limits; closed when Python exits.

    >>> default_equivalence() is default_equivalence()
    True
    """
    global _default
    with _default_lock:
        if _default is None:
            _default = Equivalence()
        return _default
