"""The worker's own functions in this process, and its frames; its life as a process: test_equivalence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from spinerl.answers import Equivalence, bench
from spinerl.answers._reader import evaluate as evaluate_text
from spinerl.answers._reader import from_digits, sample_points, value_key
from spinerl.answers._worker import _import_math_verify, _parsed, _reply
from spinerl.isolated import MAX_FRAME, IsolatedProcess, read_frame, write_frame


@pytest.fixture(scope="module", autouse=True)
def math_verify() -> None:
    _import_math_verify()


def ask(op: str, a: str, b: str = "") -> dict[str, Any]:
    return _reply({"op": op, "a": a, "b": b})


def test_replies() -> None:
    assert ask("same", "x<2", r"(-\infty,2)") == {"status": "ok", "value": True}
    assert ask("same", r"(-\infty,2)", "x<2") == {"status": "ok", "value": True}  # verify by itself is one-sided
    assert ask("same", "x<2", "x<3") == {"status": "ok", "value": False}
    assert ask("same", "", "1") == {"status": "ok", "value": False}
    assert ask("read", r"\clubsuit {{") == {"status": "ok", "value": False, "points": None}
    assert ask("read", "x<2") == {"status": "ok", "value": True, "points": None}
    assert ask("tell", "x") == {"status": "crash"}
    assert _reply({"op": "same"}) == {
        "status": "ok",
        "value": False,
    }  # whatever it raises, it does not spread


def test_memory_errors_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_text: str) -> None:
        raise MemoryError

    monkeypatch.setattr("spinerl.answers._worker._parse", exhausted)
    assert ask("same", "1", "1") == {"status": "memory"}


def test_memory_errors_while_evaluating(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_expressions: list[Any]) -> None:
        raise MemoryError

    monkeypatch.setattr("spinerl.answers._worker._points", exhausted)
    assert ask("read", "1") == {"status": "memory"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (r"\int_0^3 x\,dx", "9/2"),
        (r"\sum_{k=1}^{n} k", "n(n+1)/2"),
        (r"\sum_{k=1}^{\infty} \frac{1}{k^2}", r"\pi^2/6"),
    ],
)
def test_a_value_at_the_sample_points_is_the_readers(text: str, same: str) -> None:
    points = ask("read", text)["points"]
    assert value_key(from_digits(points)) == value_key(evaluate_text(same))


@pytest.mark.parametrize("text", [r"x_{1}+\int_0^1 t\,dt", r"\sum_{k=1}^{\infty} k", r"\int_0^1 e^{i t}\,dt"])
def test_no_value_where_names_or_limits_are_in_doubt(text: str) -> None:
    assert ask("read", text)["points"] is None


def test_the_memory_of_parsed_answers_is_bounded() -> None:
    _parsed.update({f"fill {i}": [] for i in range(5000)})
    ask("read", "x<7")
    assert len(_parsed) == 1


def test_sample_points_have_both_signs() -> None:
    for name in ("x", "y", "a", "alpha_1"):
        signs = {p.startswith("-") for p in sample_points(name)}
        assert signs == {True, False}


def test_frames() -> None:
    read_fd, write_fd = os.pipe()
    write_frame(write_fd, {"a": "\ud800é"})
    assert read_frame(read_fd) == {"a": "\ud800é"}
    with pytest.raises(TimeoutError):
        read_frame(read_fd, timeout_s=0.01)
    os.write(write_fd, (MAX_FRAME + 1).to_bytes(4, "big"))
    assert read_frame(read_fd) is None
    os.write(write_fd, b"\0\0\0\5ab")
    os.close(write_fd)
    assert read_frame(read_fd) is None
    assert read_frame(read_fd) is None
    os.close(read_fd)


def test_a_worker_without_a_parent_leaves_at_once() -> None:
    code = [sys.executable, "-P", "-m", "spinerl.answers._worker"]
    subprocess.run(code, stdin=subprocess.DEVNULL, check=True, timeout=60)


# -------------------------------------------------------------------------------- what may happen meanwhile


def test_an_interrupt_while_waiting_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        assert equivalence.equivalent("x^2 < 4", "(-2,2)")
        worker = equivalence._idle[0]
        monkeypatch.setattr(IsolatedProcess, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            equivalence.classes(["x^2 < 9"])
        assert worker.process.returncode is not None
        monkeypatch.setattr(IsolatedProcess, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            equivalence.classes(["x^2 < 9"])  # while a worker starts


def test_closing_while_another_thread_asks() -> None:
    equivalence = Equivalence(cpu_s=1.0, budget_s=60.0)
    assert equivalence.equivalent("x^2 < 4", "(-2,2)")
    asking = threading.Event()
    original = IsolatedProcess.ask

    class Slow(IsolatedProcess):
        def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
            asking.set()
            return original(self, request)

    worker = equivalence._idle[0]
    worker.__class__ = Slow
    thread = threading.Thread(target=equivalence.classes, args=(["9^{9^{9^{9}}}"],))
    thread.start()
    assert asking.wait(30)
    equivalence.close()
    thread.join()
    assert worker.process.returncode is not None


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--groups", "2", "--responses", "8", "--hard-frac", "0.2"]) == 0
    assert "answers/s" in capsys.readouterr().out
