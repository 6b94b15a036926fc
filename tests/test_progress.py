"""How long is left, against phases and runs whose course is known; and what the commands print of it."""

from __future__ import annotations

import json
import random

import pytest

from spinerl import display, events
from spinerl.config import load_config
from spinerl.progress import Meter, RunClock
from tests.commands import exit_code
from tests.faults.commands import SMALL, run_command


def course(lengths, at_once, step_s=0.05, warm_up=5.0):
    """(time, tokens, finished) of sampling responses of these lengths, so many at once; others enter as they end."""
    waiting, active, now, events = list(lengths), [], warm_up, []
    while waiting or active:
        while waiting and len(active) < at_once:
            active.append(waiting.pop())
        now += step_s
        active = [length - 1 for length in active]
        events.append((now, len(active), active.count(0)))
        active = [length for length in active if length]
    return events


@pytest.mark.parametrize(("spread", "at_once"), [(10, 50), (60, 50), (60, 400), (0, 100)])
def test_the_time_left_of_a_phase_is_foreseen_within_a_factor_of_three(spread, at_once):
    drawn = random.Random(0)
    lengths = [max(1, min(1000, round(drawn.gauss(150, spread)))) for _ in range(400)]
    steps = course(lengths, at_once)
    meter, end, seen = Meter("evaluate", 400 * 1000, 400, 0.0), steps[-1][0], []
    for now, tokens, finished in steps:
        meter.add(tokens, finished, now)
        if meter.seconds_left is not None and end - now > 0.05 * end:
            seen.append((meter.seconds_left + 1) / (end - now + 1))
    assert seen or spread == 0
    assert all(1 / 3 < ratio < 3 for ratio in seen[:1])
    assert all(1 / 5 < ratio < 3 for ratio in seen), (
        min(seen),
        max(seen),
    )  # the last responses have the batch to themselves
    assert meter.share == 1
    assert meter.num_tokens == sum(lengths)


def test_a_phase_says_nothing_of_its_end_while_the_first_responses_are_under_way():
    meter = Meter("evaluate", 100 * 1000, 100, 0.0)
    for second in range(1, 60):
        meter.add(500, 0, float(second))
    assert meter.seconds_left is None
    assert meter.tokens_per_second == pytest.approx(500)
    assert "left" not in meter.line()


def test_known_lengths_tell_the_end_of_a_phase_from_its_beginning():
    meter = Meter("evaluate", 100 * 1000, 100, 0.0, mean_length=200)
    meter.add(400, 0, 10.0)
    meter.add(400, 0, 11.0)
    assert meter.seconds_left == pytest.approx((20_000 / 0.95 - 800) / 400, rel=0.05)


def ran(config, evaluation, first, step, look, last):
    """(estimate, truth) after each step of a run whose parts take so many seconds."""
    clock, now = RunClock(config), 0.0
    said = []

    def phase(name, seconds):
        nonlocal now
        clock.begin(name, now)
        now += seconds
        clock.end(now)

    phase("evaluate", evaluation)
    phase("guard votes", 10 * look)
    phase("guard", look)
    for number in range(1, last + 1):
        clock.begin("step", now)
        now += first if number == 1 else step
        clock.step(number, last, now)
        said.append((now, clock.seconds_left(now)))
        if number % config.guard.every == 0 or number == last:
            phase("guard", look)
        if number == last or (config.eval.every and number % config.eval.every == 0):
            phase("evaluate", evaluation)
    return [(left, now - then) for then, left in said]


@pytest.mark.parametrize("every", [0, 7])
def test_the_time_left_of_a_run_counts_what_is_to_come(every):
    config = load_config(overrides=[f"eval.every={every}", "guard.every=5"])
    ends = ran(config, evaluation=60.0, first=25.0, step=5.0, look=3.0, last=30)
    assert ends[0][0] is None
    for left, truth in ends[1:]:
        assert left == pytest.approx(truth, abs=0.1)


def test_a_slow_step_now_and_then_does_not_move_the_estimate():
    config = load_config(overrides=["guard=off"])
    clock, now = RunClock(config), 0.0
    for number in range(1, 21):
        clock.begin("step", now)
        now += 40.0 if number % 6 == 0 else 2.0
        clock.step(number, 100, now)
    assert clock.seconds_left(now) == pytest.approx(2.0 * 80)
    assert clock.seconds_left(now + 30) == pytest.approx(2.0 * 80 - 30)


# ---- what is printed ----

ASKED = ["eval", "tiny-reasoner", "tiny/shift-a", "data.max_questions=4", "threads=1", "rollout.max_new_tokens=40"]


def test_a_long_evaluation_says_how_far_it_is_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(display, "_SECONDS_BETWEEN", 0.0)
    assert exit_code([*ASKED, "eval.samples=2"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate:")]
    assert "100 % (12 of 12 responses)" in lines[-1]
    shares = [float(line.split()[1]) for line in lines]
    assert shares == sorted(shares)
    assert len(shares) > 2
    assert any("tokens/s" in line for line in lines)


def test_a_long_phase_of_a_run_and_a_preflight_say_how_far_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(display, "_SECONDS_BETWEEN", 0.0)
    keys = [one for one in SMALL if one != "guard=off"]
    assert exit_code(["adapt", *keys, "guard.no_go=0", "guard.questions=2", f"run={tmp_path / 'run'}"]) == 0
    said = {line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if "responses)" in line}
    assert {"evaluate", "guard votes", "guard", "step"} <= said
    code = exit_code(["preflight", "tiny-reasoner", "tiny/shift-a", *SMALL])
    assert code == 0
    assert "preflight: 100 %" in capsys.readouterr().err


def test_quiet_prints_the_result_only(tmp_path, capsys):
    assert exit_code(["adapt", *SMALL, "--quiet", f"run={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.strip()]
    assert lines[-1].startswith("run: ")
    assert "before" in lines[0]
    assert not [line for line in lines if line.startswith(("step", "after step", "evaluating", "no response"))]
    assert printed.err == ""
    assert exit_code([*ASKED, "-q"]) == 0
    printed = capsys.readouterr()
    assert "greedy Pass@1" in printed.out
    assert printed.err == ""


def lines_of_json(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_all_events_of_a_run_as_lines_of_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(events, "_SECONDS_BETWEEN", 0.0)
    run = tmp_path / "run"
    keys = [*(one for one in SMALL if one != "guard=off"), "guard.no_go=0", "guard.questions=2", "checkpoint.every=1"]
    assert exit_code(["adapt", *keys, "--log-format", "json", f"run={run}"]) == 0
    said = lines_of_json(capsys)
    of = {name: [one for one in said if one["event"] == name] for name in {one["event"] for one in said}}
    for event, stream, field in (
        ("step", "metrics", "metrics"),
        ("evaluation", "eval", "metrics"),
        ("guard", "guard", "look"),
    ):
        rows = [json.loads(line) for line in (run / f"{stream}.jsonl").read_text().splitlines()]
        assert [one[field] for one in of[event]] == rows, event
    assert {one["phase"] for one in of["phase"]} >= {"evaluate", "step", "guard votes", "guard"}
    assert of["progress"]
    assert all(0 <= one["share"] <= 1 for one in of["progress"])
    assert len(of["checkpoint"]) == 2
    assert said[-1]["event"] == "end"
    assert said[-1]["after"] == of["evaluation"][-1]["metrics"]
    assert said[-1]["guard"]["text"]


def test_a_step_says_that_it_samples_responses_to_views_too(tmp_path, capsys):
    keys = ["vote.views=[reread,reread]", "--log-format", "json"]
    assert exit_code(["adapt", *SMALL, *keys, f"run={tmp_path / 'run'}"]) == 0
    said = lines_of_json(capsys)
    asked = [one["num_responses"] for one in said if one["event"] == "phase" and one["phase"] == "step"]
    answered = [one["metrics"]["rollout/num_responses"] for one in said if one["event"] == "step"]
    assert asked == answered
    assert asked[0] % 3 == 0


def test_an_evaluation_and_an_error_as_lines_of_json(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert exit_code([*ASKED, "--log-format", "json", "--json", out]) == 0
    *_, last = lines_of_json(capsys)
    assert {key: value for key, value in last.items() if key not in ("event", "time")} == json.loads(out.read_text())
    assert exit_code(["adapt", "stepps=2", "--log-format", "json"]) == 2
    printed = capsys.readouterr()
    (only,) = [json.loads(line) for line in printed.out.splitlines()]
    assert (only["event"], only["exit_code"]) == ("error", 2)
    assert "stepps" in only["text"]
    assert "spinerl: unknown key stepps" in " ".join(printed.err.split())


def test_quiet_and_json_exclude_each_other(capsys):
    code, printed = run_command(["adapt", "--quiet", "--log-format", "json"], capsys)
    assert code == 2
    assert "exclude each other" in printed
