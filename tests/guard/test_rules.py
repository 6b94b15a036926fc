"""When a run should go no further, and which of its looks was best."""

import inspect
import re
from pathlib import Path

import pytest

from spinerl.config import load_config
from spinerl.guard import rules
from spinerl.guard.rules import best_look, judge, look_score

KEYS = load_config().guard


def looks(*scores, **last):
    rows = [
        {"step": 5 * i, "score": s, "probe/initial_support": s, "probe/concentration": 0.01}
        for i, s in enumerate(scores)
    ]
    rows[-1] |= last
    return rows


def test_score_is_support_times_kept_relative_to_its_best():
    def look(support, kept=None):
        return {"probe/initial_support": support} | ({} if kept is None else {"label/kept_frac": kept})

    assert look_score(look(0.4), []) == 0.4
    assert look_score(look(0.4, 0.6), [look(0.3)]) == pytest.approx(0.4)  # the first kept is its own best
    assert look_score(look(0.4, 0.6), [look(0.3), look(0.3, 0.8)]) == pytest.approx(0.3)
    assert look_score(look(0.4, 0.9), [look(0.3, 0.8)]) == pytest.approx(0.4)
    assert look_score(look(0.4, 0.0), []) == 0.0


def test_the_best_look_is_the_latest_of_equals():
    assert best_look(looks(0.3, 0.4, 0.4, 0.2))["step"] == 10


def test_within_a_tolerance_the_last_look_is_kept():
    seen = looks(0.3, 0.5, 0.4, 0.44, 0.1)
    assert [best_look(seen, share)["step"] for share in (0.0, 0.1, 0.12, 0.2, 0.79, 0.8)] == [5, 5, 15, 15, 15, 20]


def test_a_quiet_run_breaks_no_rule():
    assert judge(looks(0.3, 0.25, 0.35, 0.34), KEYS) is None


def test_no_go_is_said_before_step_1():
    verdict = judge(looks(0.1, verdict="no-go", reason="noise"), KEYS)
    assert (verdict.rule, verdict.reason) == ("no-go", "noise")
    assert judge(looks(0.1, verdict="caution", reason="hm"), KEYS) is None


def test_lost_takes_two_looks_in_a_row():
    assert judge(looks(0.4, 0.05, 0.3), KEYS) is None
    assert judge(looks(0.4, 0.3, 0.05), KEYS) is None
    assert judge(looks(0.4, 0.05, 0.05), KEYS).rule == "lost"


def test_alike_compares_with_the_beginning():
    rows = looks(0.4, 0.4, **{"probe/concentration": 0.5})
    assert judge(rows, KEYS).rule == "alike"
    rows[0]["probe/concentration"] = 0.45  # choices: four letters collide anyway
    assert judge(rows, KEYS) is None


def test_past_peak_needs_patience_and_an_epoch():
    falling = [0.3, 0.4, *[0.2] * KEYS.patience]
    assert judge(looks(*falling), KEYS) is None  # no question was met twice: the initial dip looks like this
    assert judge(looks(*falling, **{"label/kept_frac": 0.5}), KEYS).rule == "past-peak"
    assert judge(looks(*falling[:-1], 0.39, **{"label/kept_frac": 0.9}), KEYS) is None


def spoken(*rows):
    """Looks whose score stays as it is, with these figures about what is said."""
    return [
        {"step": 5 * i, "score": 0.4, "probe/initial_support": 0.4, "probe/concentration": 0.01, **row}
        for i, row in enumerate(rows)
    ]


def test_one_answer_to_most_questions_ends_a_run_at_any_look():
    helpful = {"probe/shared_frac": 0.51, "shared_answer": "helpful"}
    verdict = judge(spoken(helpful), KEYS)  # the initial model already: there is no rise to see
    assert verdict.rule == "shared"
    assert verdict.reason == "51 % of different questions have the answer 'helpful'"
    assert judge(spoken({}, {}, helpful), KEYS).rule == "shared"
    assert judge(spoken({}, {"probe/shared_frac": 0.5, "shared_answer": "helpful"}), KEYS) is None


def test_unreadable_takes_two_looks_in_a_row_under_three_quarters_of_the_beginning():
    def rule(*shares):
        verdict = judge(spoken(*({"probe/readable_frac": share} for share in shares)), KEYS)
        return verdict and verdict.rule

    assert rule(1.0, 0.74, 0.74) == "unreadable"
    assert rule(1.0, 0.74, 0.8) is None
    assert rule(1.0, 0.8, 0.74) is None
    assert rule(0.74, 0.6, 0.6) is None
    assert rule(13 / 16, 9 / 16, 9 / 16) == "unreadable"
    assert rule(0.0, 0.0, 0.0) is None


def test_refusals_compare_with_the_beginning():
    def rule(*shares):
        verdict = judge(spoken(*({"probe/refused_frac": share} for share in shares)), KEYS)
        return verdict and verdict.rule

    assert rule(0.0, 0.26) == "refusals"
    assert rule(0.0, 0.25) is None
    assert rule(0.5, 0.7) is None
    assert rule(0.5) is None


def test_looks_written_before_these_figures_existed_break_none_of_their_rules():
    assert judge(spoken({}, {}, {}), KEYS) is None


def test_every_rule_is_documented():
    named = {*re.findall(r'Verdict\(\s*"([a-z-]+)"', inspect.getsource(rules)), "diverged"}
    assert named == {"no-go", "lost", "alike", "shared", "unreadable", "refusals", "past-peak", "diverged"}
    page = (Path(__file__).parents[2] / "docs" / "guard.md").read_text()
    for rule in named:
        assert f"| {rule} |" in page
