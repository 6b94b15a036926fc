"""How far a phase or a run is, and how long the rest will take.  No torch, no terminal."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

from spinerl.config import Config

__all__ = ["Meter", "RunClock", "format_clock"]

_RECENT = 11  # steps whose median stands for those to come
_HASTE = 0.95  # share done at which the tokens are sampled that the phases before let expect
_KNOWN_FRAC, _KNOWN = 0.25, 2000  # finished responses, a share or a number, from which on a phase's end can be foreseen


class Meter:
    """One phase that samples `num_responses` of at most `total_tokens` tokens in all; 0 for what is not known.

    The share done is that of the finished responses, or that of the tokens where it is larger: of the most there can
    be, or of what is likely, by the tokens sampled for each finished response once enough have finished, before that by
    `mean_length`, a response's tokens in the phases before (0: not known).  Seconds are of any clock that does not go
    back.
    """

    def __init__(self, name: str, total_tokens: int, num_responses: int, now: float, mean_length: float = 0.0) -> None:
        self.name = name
        self.num_responses = num_responses
        self.num_tokens, self.num_finished = 0, 0
        self._total, self._likely = total_tokens, mean_length * num_responses / _HASTE
        self._known = min(_KNOWN, _KNOWN_FRAC * num_responses)
        self._is_measured = False
        self._first: tuple[float, float, int] | None = None  # when the first tokens came, share and tokens then
        self._now = self.began = now

    def add(self, num_tokens: int, num_finished: int, now: float) -> None:
        """So many tokens were sampled, and so many responses finished, since the last time."""
        self.num_tokens += num_tokens
        self.num_finished += num_finished
        self._now = now
        if num_finished and self.num_finished >= self._known > 0:
            likely = self.num_tokens / self.num_finished * self.num_responses
            self._likely = min(self._likely, likely) if self._is_measured else likely
            self._is_measured = True
        if self._first is None:  # what went before, reading prompts and compiling, does not come again
            self._first = now, self.share, self.num_tokens

    @property
    def share(self) -> float:
        """The share done, 0 to 1; 0 where nothing is known."""
        shares = [
            done / whole
            for done, whole in (
                (self.num_finished, self.num_responses),
                (self.num_tokens, self._total),
                (self.num_tokens, self._likely),
            )
            if whole
        ]
        most = 0.99 if self.num_finished < self.num_responses else 1.0
        return min(most, max(shares, default=0.0))

    @property
    def tokens_per_second(self) -> float:
        """Since the first tokens; 0 before a second time."""
        if self._first is None or self._now <= self._first[0]:
            return 0.0
        return (self.num_tokens - self._first[2]) / (self._now - self._first[0])

    @property
    def seconds_left(self) -> float | None:
        """Of the sampling; None while too few responses have finished to foresee it."""
        if self._first is None or not self._likely:
            return None
        began, share, _ = self._first
        if self.share <= share or self._now <= began:
            return None
        return (self._now - began) * (1 - self.share) / (self.share - share)

    def figures(self) -> dict[str, float | None]:
        """The same as numbers, `None` for what is not known."""
        return {
            "share": self.share,
            "num_responses": self.num_finished,
            "num_tokens": self.num_tokens,
            "tokens_per_s": self.tokens_per_second,
            "seconds_left": self.seconds_left,
        }

    def line(self) -> str:
        """Share, speed and time left, as far as they are known."""
        said = [f"{100 * self.share:.0f} %"] if self.share else []
        if self.num_finished and self.num_responses:
            said[-1] += f" ({self.num_finished:,} of {self.num_responses:,} responses)"
        elif self.num_tokens:
            said.append(f"{self.num_tokens:,} tokens")
        if self.tokens_per_second:
            said.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None:
            said.append(f"left {format_clock(self.seconds_left)}")
        return ", ".join(said)


class RunClock:
    """How long the rest of a run takes: what steps, evaluations and looks took, times those that are to come.

    A step to come takes the median of the latest but for the first, which pays for what is compiled and allocated.
    Evaluations and looks at the guard's probe come at the intervals that the configuration says; `took`: seconds of
    these, by name, in a run that goes on.
    """

    def __init__(self, config: Config, took: Mapping[str, float] | None = None) -> None:
        self._every = {"evaluate": config.eval.every, "guard": config.guard.every}
        self._took: defaultdict[str, list[float]] = defaultdict(list)
        for name, seconds in (took or {}).items():
            self._took[name].append(seconds)
        self._open: tuple[str, float] | None = None
        self._left: tuple[float, float] | None = None

    def begin(self, name: str, now: float) -> None:
        """A phase begins, and with it the one before ends."""
        self.end(now)
        self._open = name, now

    def end(self, now: float) -> None:
        """The phase that is open ends."""
        if self._open is not None:
            name, began = self._open
            self._took[name].append(now - began)
            self._open = None

    def step(self, step: int, num_steps: int, now: float) -> None:
        """A step of `num_steps` has ended; what is due after it is still to come."""
        self.end(now)
        took = self._took["step"]
        if len(took) < 2 and step < num_steps:
            return
        left = (num_steps - step) * statistics.median(took[1:][-_RECENT:] or took)
        for name, every in self._every.items():
            if self._took[name]:
                left += self._took[name][-1] * _times(every, step, num_steps)
        self._left = left, now

    def seconds_left(self, now: float) -> float | None:
        """Of the run; None before two steps have ended."""
        if self._left is None:
            return None
        left, then = self._left
        return max(0.0, left - (now - then))


def _times(every: int, step: int, last: int) -> int:
    """How often something comes from the end of `step` on that comes every so many steps (0: never) and after the last.

    >>> _times(5, 5, 12), _times(5, 6, 12), _times(0, 1, 12)
    (3, 2, 1)
    """
    regular = last // every - (step - 1) // every if every else 0
    return regular + (not every or last % every != 0)


def format_clock(seconds: float) -> str:
    """ "1:05" from 65 seconds, "1:00:05" from 3605."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
