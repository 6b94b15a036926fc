"""Turns, ratios and peaks."""

from __future__ import annotations

import mmap
import time

import pytest

from spinerl.bench.timing import Patience, interleave, peak_memory, ratios


def test_tasks_take_turns_after_an_untimed_call():
    calls = []
    seconds = interleave({"a": lambda i: calls.append(("a", i)), "b": lambda i: calls.append(("b", i))}, Patience(2))
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_patience_ends_after_two_repeats():
    assert len(interleave({"a": lambda _: time.sleep(0.01)}, Patience(50, 0.001))["a"]) == 2
    assert len(interleave({"a": lambda _: time.sleep(0.01)}, Patience(1, 0.001))["a"]) == 1
    assert len(interleave({"a": lambda _: None}, Patience(4, 60.0))["a"]) == 4
    assert len(interleave({"a": lambda _: time.sleep(0.01)}, Patience(3))["a"]) == 3


def test_a_ratio_is_the_median_of_neighbours_ratios():
    found = ratios("r", [2.0, 30.0, 8.0], [1.0, 10.0, 2.0])  # a slow moment in the middle
    assert found == {"r": 3.0, "r_repeats": [2.0, 3.0, 4.0]}


def test_peak_memory_sees_what_was_freed_again():
    def work() -> None:
        with mmap.mmap(-1, 32 * 2**20) as buffer:  # goes back to the system whatever the allocator does
            for start in range(0, len(buffer), 4096):
                buffer[start] = 1

    peak_memory(work)  # imports and the like
    assert peak_memory(lambda: None) < 2**20
    assert peak_memory(work) == pytest.approx(32 * 2**20, rel=0.2)
