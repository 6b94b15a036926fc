"""Classes, the worker processes behind them, and what hostile answers cost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spinerl.answers import Equivalence, default_equivalence, extract_answer
from spinerl.answers import equivalence as module
from spinerl.errors import InputError, RunError

SOURCE = str(Path(module.__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def shared():
    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        yield equivalence


def children(pid: int) -> set[int]:
    """Process ids of the living children of `pid` (zombies included)."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {int(child) for child in task.read_text().split()}
    return found


def is_gone(pid: int, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


# --------------------------------------------------------------------------------------------- the relation


def test_keys_need_no_worker() -> None:
    with Equivalence() as equivalence:
        assert equivalence.classes(["1/2", "7", "0.5", None, r"\frac12"]) == (0, 1, 0, None, 0)
        assert equivalence.classes([]) == ()
        assert equivalence.classes([None, ""]) == (None, None)
        assert equivalence.equivalent(r"2\sqrt{5}", r"\sqrt{20}")
        assert not equivalence.equivalent(None, None)
        assert equivalence.stats["num_workers_started"] == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("x < 2", r"(-\infty, 2)", True),
        ("2 > x", "x < 2", True),
        ("x < 2", "x < 3", False),
        (r"-1 \le x < 2", "[-1, 2)", True),
        (r"-1 \le x < 2", "(-1, 2)", False),
        (r"x \geq 1", r"[1, \infty)", True),
        ("x^2 < 4", r"(-2, 2)", True),
        (r"x \ne 3", r"(-\infty,3)\cup(3,\infty)", True),
        (r"\int_0^3 x\,dx", "9/2", True),
        (r"\int_0^3 x\,dx", "4", False),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}", True),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n-1)}{2}", False),
        (r"\binom{n}{2}", r"\frac{n(n-1)}{2}", True),
        (r"\frac{d}{dx} x^2", "2x", True),
        (r"\mathbb{R}", r"(-\infty, \infty)", True),
        (r"3:2", "3:2", True),
        (r"\clubsuit", r"\heartsuit", False),
        (r"\sqrt{2}", "1.414214", False),
        ("0.333333", "1/3", False),
        ("50%", "0.5", False),
        ("50%", "50", True),
        ("(1,2)", "1,2", False),
        ("(1,2)", "(2,1)", False),
        ("x = 1", "y = 1", True),
        (r"x < y", r"y > x", True),
        (r"1 < 2x", "x < 3", False),
        (r"x > 1 > 0", "x > 1", False),
    ],
)
def test_pairs(shared: Equivalence, a: str, b: str, expected: bool) -> None:
    assert shared.equivalent(a, b) is expected
    assert shared.equivalent(b, a) is expected
    assert shared.equivalent(a, a)


@pytest.mark.parametrize(
    ("kind", "answers", "classes"),
    [
        ("number", ["1,000", "1000.0", "x", "1e3"], (0, 0, None, 0)),
        ("choice", ["B", "(b)", "C", "42"], (0, 0, 1, None)),
        ("yesno", ["Yes", "yes.", "no", "perhaps"], (0, 0, 1, None)),
        ("text", ["The cat", "cat", "dog", "..."], (0, 0, 1, None)),
        ("math", [r"\text{east}", "east", "west", "None"], (0, 0, 1, None)),
    ],
)
def test_kinds(shared: Equivalence, kind: str, answers: list[str], classes: tuple[int | None, ...]) -> None:
    assert shared.classes(answers, kind) == classes


def test_chains_join_and_order_does_not_matter(shared: Equivalence) -> None:
    answers = ["x^2 < 4", "(-2,2)", "-2<x<2", "4 > x^2", "7", None]
    assert shared.classes(answers) == (0, 0, 0, 0, 1, None)
    assert shared.classes(answers[::-1]) == (None, 0, 1, 1, 1, 1)


def test_pairs_are_remembered() -> None:
    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        for _ in range(2):
            assert equivalence.classes(["x^2 < 4", r"x \ne 2", "(-2,2)"]) == (0, 1, 0)
        stats = equivalence.stats
        assert stats["num_reads"] == 2
        assert stats["num_cache_hits"] >= 2
        assert stats["num_workers_started"] == 1


def test_the_cache_is_bounded() -> None:
    cache = module._Cache[int, int](2)
    for i in range(3):
        cache.put(i, i)
    assert [cache.get(i) for i in range(3)] == [None, 1, 2]
    cache.get(1)
    cache.put(4, 4)
    assert cache.get(2) is None


def test_refused() -> None:
    with pytest.raises(InputError, match="must be positive"):
        Equivalence(cpu_s=0)
    equivalence = Equivalence()
    with pytest.raises(InputError, match="kind"):
        equivalence.classes(["1"], "maths")
    equivalence.close()
    equivalence.close()
    with pytest.raises(InputError, match="closed"):
        equivalence.classes(["1"])


def test_the_default_instance_is_shared() -> None:
    assert default_equivalence() is default_equivalence()


# ------------------------------------------------------------------------------------------------ processes


def test_no_torch_and_no_sympy_in_this_process() -> None:
    code = (
        "import sys; import spinerl.answers, spinerl.answers._worker\n"
        "assert not {'torch', 'sympy', 'math_verify', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": SOURCE})


def test_closing_leaves_no_process() -> None:
    before = children(os.getpid())
    equivalence = Equivalence(cpu_s=2.0, budget_s=60.0)
    assert equivalence.classes(["9^{9^{9^{9}}}", "3"]) == (None, 0)
    assert equivalence.stats["num_timeouts"] == 1
    assert equivalence.equivalent("x^2 < 4", "(-2,2)")  # a new solver took over
    keepers = children(os.getpid()) - before
    assert len(keepers) == 1
    solvers = children(next(iter(keepers)))
    assert len(solvers) == 1  # the one that died was reaped
    equivalence.close()
    assert all(is_gone(pid) for pid in keepers | solvers)


def test_a_forgotten_instance_ends_its_workers() -> None:
    before = children(os.getpid())
    equivalence = Equivalence(cpu_s=5.0, budget_s=60.0)
    assert equivalence.equivalent("x^2 < 4", "(-2,2)")
    keepers = children(os.getpid()) - before
    del equivalence
    assert len(keepers) == 1
    assert all(is_gone(pid) for pid in keepers)


def test_memory_is_bounded() -> None:
    with Equivalence(cpu_s=20.0, memory_mb=200, budget_s=60.0) as equivalence:
        assert equivalence.classes(["2^{2^{40}}", "7"]) == (None, 0)
        stats = equivalence.stats
        assert stats["num_memory_exceeded"] + stats["num_crashes"] == 1
        assert equivalence.equivalent("x^2 < 4", "(-2,2)")


def test_the_budget_of_a_call() -> None:
    with Equivalence(cpu_s=5.0, budget_s=1e-9) as equivalence:
        assert equivalence.classes([r"x \ne 3", "4"]) == (None, 0)
        assert equivalence.stats["num_skipped"] == 1
        equivalence._reads.put(r"x\ne 3", "yes")
        assert equivalence.classes([r"x \ne 3", "(1,2)"]) == (0, 1)
        assert equivalence.stats["num_skipped"] == 2
        assert equivalence.stats["num_workers_started"] == 0


def test_a_killed_worker_is_replaced() -> None:
    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        assert equivalence.equivalent("x^2 < 4", "(-2,2)")
        worker = equivalence._idle[0]
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        assert equivalence.classes(["x^2 < 9", "3"]) == (None, 0)
        assert equivalence.stats["num_crashes"] == 1
        assert equivalence.equivalent("x^2 < 16", "(-4,4)")
        assert equivalence.stats["num_workers_started"] == 2


def test_a_silent_worker_is_given_up() -> None:
    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        assert equivalence.equivalent("x^2 < 4", "(-2,2)")
        worker = equivalence._idle[0]
        worker.silent_s = 0.2
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert equivalence.classes(["x^2 < 9", "3"]) == (None, 0)
        assert equivalence.stats["num_timeouts"] == 1
        assert worker.process.returncode is not None


def test_a_worker_of_another_process_is_not_used() -> None:
    with Equivalence(cpu_s=5.0, budget_s=60.0) as equivalence:
        assert equivalence.equivalent("x^2 < 4", "(-2,2)")
        worker = equivalence._idle[0]
        worker.owner = -1
        assert equivalence.equivalent("x^2 < 9", "(-3,3)")
        assert equivalence.stats["num_workers_started"] == 2
        worker.close()


def test_a_worker_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Equivalence() as equivalence, pytest.raises(RunError, match="did not start"):
        equivalence.classes([r"x \ne 3"])


def test_any_thread_may_ask() -> None:
    results: list[bool] = []
    with Equivalence(cpu_s=5.0, budget_s=60.0, num_workers=2) as equivalence:

        def ask(n: int) -> None:
            results.append(equivalence.equivalent(f"x^2 < {n * n}", f"(-{n},{n})"))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(2, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 6
        assert 1 <= equivalence.stats["num_workers_started"] <= 6
        assert len(equivalence._idle) <= 2


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    # no `__main__` guard, a worker started from a thread that has ended, and a request that hangs
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, time\n"
        "from spinerl.answers import Equivalence\n"
        "e = Equivalence(cpu_s=30.0)\n"
        "t = threading.Thread(target=e.equivalent, args=('x^2 < 4', '(-2,2)')); t.start(); t.join()\n"
        "threading.Thread(target=e.classes, args=(['9^{9^{9^{9}}}'],)).start()\n"
        "time.sleep(0.3); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    keepers = children(process.pid)
    solvers = {child for keeper in keepers for child in children(keeper)}
    assert len(keepers) == 1
    assert len(solvers) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    assert all(is_gone(pid) for pid in keepers | solvers)


# -------------------------------------------------------------------------------------------- hostile input


def hostile(count: int) -> list[str]:
    """Answers made to hang, to exhaust memory or stack, or to confuse; all different."""
    makers = [
        lambda n: "9^{9^{9^{" + str(n) + "}}}",
        lambda n: "{" * (n % 200) + str(n) + "}" * (n % 200),
        lambda n: r"\frac{1}{" * (n % 40) + str(n) + "}" * (n % 40),
        lambda n: r"\boxed{" * 30 + str(n),
        lambda n: f"{n + 10**7}!",
        lambda n: r"\int_0^1 e^{x^{x^{" + str(n) + "}}} dx",
        lambda n: r"\sum_{k=1}^{10^{" + str(n) + r"}} \frac{1}{k^k}",
        lambda n: "(" * (n % 90) + "x" + ")" * (n % 70),
        lambda n: "x^{" * (n % 60) + str(n),
        lambda n: r"\sqrt{" * (n % 60) + str(n) + "}" * (n % 60),
        lambda n: f"(x+y+z)^{{{n + 300}}} - (x+y+z)^{{{n + 299}}}",
        lambda n: "\\" * n,
        lambda n: "\x00" * (n % 9 + 1) + str(n),
        lambda n: r"\left" * 40 + str(n),
        lambda n: f"2^{{{n}}}" * 40,
        lambda n: "__import__('os').system('false')" + str(n),
        lambda n: r"\begin{pmatrix}" * (n % 9) + str(n) + "&" * 200,
        lambda n: "\U0001d7ce\u202e\ufeff" + "e" * (n % 500),
        lambda n: "-" * 400 + str(n),
        lambda n: "1," * 200 + str(n),
        lambda n: r"\pm 1" * 90 + str(n),
        lambda n: "|" * (n % 300) + str(n),
        lambda n: r"x < y < z < " * 30 + str(n),
        lambda n: "\ud800" + str(n),
        lambda n: r"\cup" * 100 + str(n),
    ]
    return [makers[i % len(makers)](i) for i in range(count)]


def cpu_of_children() -> float:
    """Processor seconds of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_thousand_hostile_answers_stay_within_the_limits() -> None:
    answers = hostile(1000)
    before = children(os.getpid())
    spent = cpu_of_children()
    with Equivalence(cpu_s=0.1, memory_mb=300, budget_s=1.0) as equivalence:
        equivalence.equivalent(r"x \ne 1", r"x \ne 2")
        for at in range(0, 1000, 100):
            group = [*answers[at : at + 100], "42", "42.0"]
            classes = equivalence.classes(group, "math")
            assert classes[-1] is not None
            assert classes[-1] == classes[-2]  # honest answers still vote
        keepers = children(os.getpid()) - before
        assert all(len(children(keeper)) <= 1 for keeper in keepers)
        stats = equivalence.stats
        assert stats["num_timeouts"] > 0
    assert cpu_of_children() - spent < 40.0  # of ten calls: each the budget and the request it was in, and the start
    assert children(os.getpid()) <= before


def test_hostile_responses_cost_little_to_extract() -> None:
    texts = [
        r"\boxed{" * 100_000,
        r"\boxed{" + "{" * 1_000_000,
        r"\boxed{" + "{" * 1_000_000 + "}" * 1_000_001,
        r"\boxed{" + "\\" * 500_000 + "}",
        "<think>" * 100_000,
        "</think>" * 100_000 + "no answer",
        "<answer>" * 100_000 + "</answer>",
        "the answer is " * 50_000,
        "answer " * 50_000,
        "$" * 500_000,
        "$x" * 200_000,
        "1" * 1_000_000,
        "1," * 300_000,
        "(" * 300_000,
        "\n" * 1_000_000,
        "**" * 300_000,
        "\\[" * 200_000,
        "yes " * 200_000,
        "A, B " * 200_000,
        *hostile(200),
    ]
    start = time.process_time()
    for text in texts:
        for kind in ("auto", "math", "number", "choice", "yesno", "text"):
            answer = extract_answer(text, kind, choices=("yes", "1") if kind == "choice" else ())
            assert answer is None or 0 < len(answer) <= 512
    assert time.process_time() - start < 20.0
