"""Which answers are the same answer: canonical keys first, math-verify in worker processes for the rest."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from spinerl.answers._reader import Unreadable, from_digits
from spinerl.answers.normalize import Key, canonical_key, check_kind, scalar_key
from spinerl.errors import InputError
from spinerl.isolated import SLACK, IsolatedProcess

__all__ = ["Equivalence", "default_equivalence"]

WORK_PER_S = 800
"""Units of work (`spinerl.isolated`) that count as a second: about what sympy does in one of processor time."""

_FAILURES = {"timeout": "num_timeouts", "memory": "num_memory_exceeded", "crash": "num_crashes"}
_STATS = (
    "num_answers", "num_reads", "num_comparisons", "num_cache_hits", "num_timeouts", "num_memory_exceeded",
    "num_crashes", "num_skipped", "num_over_limit", "num_workers_started",
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
    or `memory_mb` of address space is given up, is counted, and counts as "not equal"; an answer that cannot even
    be read within the limits abstains (class None).  One call spends at most `budget_s` seconds (and the one
    request it is in) in the workers; then unread answers abstain and uncompared pairs are not equal, both counted
    in `stats["num_skipped"]`.

    Seconds are counted in work: one is `WORK_PER_S` units, counted in objects made, however long they take.  Neither
    a busy machine nor a slow one changes a vote.  Only what makes few objects and still takes three times its seconds
    of processor time, such as a power of huge numbers, is ended by the clock, that of its own processor time.

    Args: `cpu_s`, seconds per request; `memory_mb`; `budget_s`, seconds per call; `num_workers`, how many threads
    can compare at once; `cache_size`, remembered reads and pairs each.
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
        self._idle: list[IsolatedProcess] = []
        self._lock = threading.Lock()
        self._reads: _Cache[str, str] = _Cache(cache_size)
        self._pairs: _Cache[tuple[str, str], str] = _Cache(cache_size)
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
        """Counts since the start: answers seen, requests to workers by outcome, cache hits, skipped requests.

        `num_over_limit`: the answers left unread and the pairs left uncompared at a limit, each as often as it was
        asked for, remembered or not; each may be a lost vote.
        """
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
                    _join(root, a, b)
        return _classes(root)

    def _read(self, text: str, budget: _Budget) -> str:
        """The key of its value, or "yes" or "no" (math-verify can read it or not), or one of `_NO_ANSWER`."""
        outcome = self._reads.get(text)
        if outcome is None:
            reply = self._within(budget, "num_reads", {"op": "read", "a": text})
            outcome = reply["status"]
            if outcome == "ok":
                outcome = "yes" if reply["value"] else "no"
                if reply["points"]:
                    with contextlib.suppress(Unreadable):
                        outcome = scalar_key(from_digits(reply["points"]))
            if outcome != "skipped":
                self._reads.put(text, outcome)
        else:
            self._count("num_cache_hits")
        self._count("num_over_limit", outcome in _NO_ANSWER)
        return outcome

    def _same(self, a: str, b: str, budget: _Budget) -> bool:
        pair = (a, b) if a < b else (b, a)
        outcome = self._pairs.get(pair)
        if outcome is None:
            reply = self._within(budget, "num_comparisons", {"op": "same", "a": pair[0], "b": pair[1]})
            outcome = ("yes" if reply["value"] else "no") if reply["status"] == "ok" else reply["status"]
            if outcome != "skipped":
                self._pairs.put(pair, outcome)
        else:
            self._count("num_cache_hits")
        self._count("num_over_limit", outcome in _NO_ANSWER)
        return outcome == "yes"

    def _within(self, budget: _Budget, count: str, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request, or "skipped" where the call has nothing left to spend."""
        if not budget.allows():
            self._count("num_skipped")
            return {"status": "skipped"}
        self._count(count)
        reply = self._ask(request)
        budget.spend(reply, self._cpu_s)
        return reply

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

    def _check_out(self) -> IsolatedProcess:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.owner == os.getpid():  # after a fork, the parent's workers are not ours to speak to
                    return worker
        self._count("num_workers_started")
        return IsolatedProcess(
            "spinerl.answers._worker",
            "the answer-comparison worker",
            cpu_s=self._cpu_s,
            memory_bytes=self._memory_mb << 20,
            work=max(1, round(self._cpu_s * WORK_PER_S)),
        )

    def _check_in(self, worker: IsolatedProcess) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.close()

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._stats[name] += by


class _Budget:
    """The seconds that one call may still spend in the workers; a request counts a millisecond at least."""

    LEAST_S = 0.001

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def allows(self) -> bool:
        return self._left >= self.LEAST_S

    def spend(self, reply: dict[str, Any], cpu_s: float) -> None:
        """A reply says what it cost in work; one that the clock ended, or would have on a slower machine, in time."""
        if "work" not in reply:
            self._left -= SLACK * cpu_s
            return
        spent, clock = reply["work"] / WORK_PER_S, reply.get("cpu_s", 0.0)
        self._left -= max(self.LEAST_S, clock if clock > SLACK * spent + cpu_s else spent)


def _unite(keys: Sequence[Key], joined: dict[str, str | None]) -> dict[str, str | None]:
    """The roots after keys with a further key in common are united; keys that abstain stay None."""
    root: dict[str, str | None] = dict(joined)
    for key in sorted(keys, key=lambda one: (one.text, one.also)):
        own = root.setdefault(key.text, key.text)
        for other in key.also if own is not None else ():
            root.setdefault(other, other)
            _join(root, key.text, other)
    return _classes(root)


def _is_comparable(key: Key) -> bool:
    return not key.opaque and not key.text.startswith("text:")


def _is_inequality(text: str) -> bool:
    return any(sign in text for sign in _INEQUALITY_SIGNS)


def _find(root: dict[str, str | None], text: str) -> str:
    while (parent := root[text]) != text and parent is not None:
        text = parent
    return text


def _join(root: dict[str, str | None], a: str, b: str) -> None:
    first, second = sorted((_find(root, a), _find(root, b)))
    root[second] = first


def _classes(root: dict[str, str | None]) -> dict[str, str | None]:
    """The text that stands for each text's class."""
    return {text: None if parent is None else _find(root, text) for text, parent in root.items()}


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


def _close_all(workers: list[IsolatedProcess]) -> None:
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
