"""What the guard makes of its looks: where a run ends, what is said, what is remembered.  The probe is a script."""

import pytest

from spinerl.answers import Equivalence, vote
from spinerl.config import load_config
from spinerl.guard import watch
from spinerl.runs import RunFolder
from spinerl.types import Question

QUESTIONS = [Question(str(i), f"{i} + 1") for i in range(4)]


class Script:
    """A probe whose answers support the initial votes by these shares, look by look."""

    votes = tuple(vote([str(i)] * 4, [0] * 4) for i in range(4))

    def __init__(self, shares):
        self.shares = iter(shares)
        self.num_asked = 2

    def ask(self, *_):
        return {"probe/initial_support": next(self.shares), "probe/concentration": 0.0}


@pytest.fixture
def equivalence():
    with Equivalence() as one:
        yield one


@pytest.fixture
def make_guard(tmp_path, monkeypatch, equivalence):
    def make(*shares, mode="stop", perturbation="none"):
        """A guard that looks after every step; what it says, the texts it renders, the prompts it asks as well."""
        overrides = [f"run={tmp_path / 'r'}", f"guard={mode}", "guard.every=1", f"guard.perturbation={perturbation}"]
        config = load_config(overrides=overrides)
        folder = tmp_path / "r"
        run = RunFolder.open(folder) if folder.exists() else RunFolder.create(config, overwrite=False)
        said, rendered, asked = [], [], []

        def open_script(*args):
            asked.extend(args[5])  # perturbed
            return Script(shares)

        def render(question):
            rendered.append(question.text)
            return (1,)

        monkeypatch.setattr(watch, "open_probe", open_script)
        prompts = [(1,)] * len(QUESTIONS)
        guard = watch.Guard(run, None, QUESTIONS, prompts, config, equivalence, render, said.append)
        return guard, said, rendered, asked

    return make


def test_a_run_that_breaks_no_rule_goes_to_its_end(make_guard):
    guard, said, *_ = make_guard(0.4, 0.4, 0.4)
    assert guard.begin(0, 2) == 2
    assert [guard.look(step, 2) for step in (1, 2)] == [2, 2]
    assert guard.end(2) == watch.GuardOutcome(2, None, "guard: nothing to object to.")
    assert said == []


def test_stop_ends_a_run_where_a_rule_is_broken(make_guard):
    guard, said, *_ = make_guard(0.4, 0.05, 0.05)
    assert guard.begin(0, 9) == 9
    assert [guard.look(step, 9) for step in (1, 2)] == [9, 2]
    outcome = guard.end(2)
    assert (outcome.kept_step, outcome.rule) == (2, "lost")
    assert outcome.text.startswith("guard: stopped after step 2 (lost): ")
    assert said == []
    again, *_ = make_guard()  # resumed after that step: it ends there
    assert again.begin(2, 9) == 2
    assert again.end(2) == outcome


def test_warn_says_once_what_was_broken_first(make_guard):
    guard, said, *_ = make_guard(0.4, 0.05, 0.05, 0.04, mode="warn")
    guard.begin(0, 3)
    assert [guard.look(step, 3) for step in (1, 2, 3)] == [3, 3, 3]
    assert [line.split(":")[0] for line in said] == ["guard (lost)"]
    outcome = guard.end(3)
    assert (outcome.kept_step, outcome.rule) == (3, "lost")
    assert outcome.text.startswith("guard: would have stopped after step 2 (lost): ")
    assert outcome.text.endswith(f"{said[0].removeprefix('guard (lost): ')}.")
    again, repeated, *_ = make_guard(mode="warn")  # resumed: said again, to whoever watches now
    assert again.begin(3, 3) == 3
    assert repeated == said
    assert again.end(3) == outcome


def test_questions_are_asked_differently_only_if_wanted(make_guard):
    *_, rendered, asked = make_guard(0.4)
    assert rendered == asked == []
    *_, rendered, asked = make_guard(0.4, perturbation="blank")
    assert rendered == [f"\n{question.text}\n" for question in QUESTIONS]
    assert asked == [(1,)] * 4
