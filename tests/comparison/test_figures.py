"""A table's figures from made-up run folders, each worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from scipy.stats import t as student

from spinerl.comparison.baselines import at_equal_tokens, baselines
from spinerl.comparison.collect import collect
from spinerl.comparison.command import tables_of
from spinerl.comparison.figures import figure_lines
from spinerl.comparison.output import as_csv, as_json, as_markdown
from spinerl.comparison.state import ASKED
from spinerl.runs import write_rows
from tests.comparison.synthetic import made_up, sampled, write_task

Y, N = True, False

# Four questions.  Without adaptation the greedy answer is right on the first; the classes of four responses are
# such that the majority of four is right on questions 0 and 1, wrong on 2, tied (so wrong) on 3.
NONE = [Y, N, N, N]
VOTES = [[0, 0, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 1]]


@pytest.fixture
def comparison(tmp_path):
    made = made_up(tmp_path)
    for seed in (0, 1):
        elsewhere = {"unseen": [Y, N], "original": [Y, Y]}
        write_task(made.task("none", "tiny/shift-a", seed), [NONE], classes=VOTES, elsewhere=elsewhere)
    write_task(
        made.task("ttrl", "tiny/shift-a", 0), [NONE, [Y, Y, Y, N], [Y, Y, N, N]],
        classes=[[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]],
        elsewhere={"unseen": [Y, Y], "original": [Y, N]}, tokens=(40, 40),
    )  # fmt: skip
    write_task(
        made.task("ttrl", "tiny/shift-a", 1), [NONE, [Y, Y, Y, Y], [Y, N, N, N]],
        classes=[[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        elsewhere={"unseen": [N, Y], "original": [Y, N]}, tokens=(40, 40),
    )  # fmt: skip
    for seed in (0, 1):
        right = [Y, Y, Y, bool(seed)]
        write_task(made.task("spine", "tiny/shift-a", seed), [NONE, NONE, right], tokens=(60, 20), elsewhere={})
    return made


@pytest.fixture
def lines(comparison):
    outcomes = collect(comparison, comparison.tasks)
    return {line.name: line for line in figure_lines([outcomes["tiny/shift-a"]], 4)}


def test_pass_at_one_is_the_mean_over_seeds_then_questions(lines):
    assert lines["none"].right.value == 1 / 4
    # ttrl: seed 0 has 2 of 4, seed 1 has 1 of 4
    assert lines["ttrl"].right.value == pytest.approx(3 / 8)
    assert lines["ttrl"].right.by_seed == {0: 0.5, 1: 0.25}
    assert lines["spine"].right.value == pytest.approx(7 / 8)
    assert lines["ttrl"].right.low <= 3 / 8 <= lines["ttrl"].right.high
    assert lines["ttrl"].seeds == (0, 1)


def test_samples_and_their_majority(lines):
    # seed 0: 4, 2, 0 and 1 of 4 right; seed 1: 4, 0, 0, 0
    assert lines["ttrl"].mean.by_seed == {0: 7 / 16, 1: 4 / 16}
    # majorities: seed 0 right, tied, wrong, wrong; seed 1 right, then wrong thrice
    assert lines["ttrl"].majority.by_seed == {0: 0.25, 1: 0.25}
    assert lines["none"].majority.value == 0.5
    assert lines["none"].mean.value == pytest.approx((3 + 3 + 1 + 2) / 16)
    assert lines["spine"].mean is None, "nothing was sampled"


def test_paired_differences_by_hand(lines):
    gain = lines["spine"].against_none
    # by question, mean over seeds minus none: 1-1, 1-0, 1-0, 0.5-0
    assert gain.value == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert gain.num_questions == 4
    assert gain.by_seed == {0: 0.5, 1: 0.75}
    # Student over the two seeds: mean 0.625, deviation 0.125 * sqrt(2), half-width t(1) * 0.125 * sqrt(2) / sqrt(2)
    reach = student.ppf(0.975, 1) * 0.125
    assert gain.seeds_low == pytest.approx(0.625 - reach)
    assert gain.seeds_high == pytest.approx(0.625 + reach)
    # resampled means of four of {0, 1, 1, 0.5}: their 2.5 % and 97.5 % quantiles are 0.125 (or one step off) and 1
    assert 0.1 <= gain.low <= 0.25
    assert gain.high == 1.0
    against = lines["spine"].against_reference
    assert against.value == pytest.approx(7 / 8 - 3 / 8)
    assert against.by_seed == {0: 0.25, 1: 0.75}
    assert lines["ttrl"].against_reference is None
    assert lines["none"].against_none is None


def test_a_difference_that_is_the_same_everywhere_has_no_width(tmp_path):
    made = made_up(tmp_path, "seeds=0")
    write_task(made.task("none", "tiny/shift-a", 0), [[N] * 4])
    for name in ("ttrl", "spine"):
        write_task(made.task(name, "tiny/shift-a", 0), [[N] * 4, [Y] * 4], tokens=(4, 4))
    lines = {line.name: line for line in figure_lines([collect(made, made.tasks)["tiny/shift-a"]], 4)}
    gain = lines["ttrl"].against_none
    assert (gain.value, gain.low, gain.high) == (1.0, 1.0, 1.0)
    assert gain.p_value == pytest.approx(2 * 0.5**4), "exact McNemar: 4 of 4"
    assert (gain.seeds_low, gain.seeds_high) == (None, None), "one seed shows no spread"


def test_best_and_last_step_of_the_mean_course(lines):
    # means over seeds: 0.25 at 0, (0.75 + 1) / 2 at 1, 0.375 at 2
    assert lines["ttrl"].best == (1, 0.875)
    assert lines["ttrl"].last == (2, 0.375)
    assert lines["spine"].best == lines["spine"].last == (2, 0.875)
    assert lines["none"].best is None


def test_cost_length_and_entropy(lines):
    assert lines["ttrl"].tokens == 80 / 4, "drawn in both steps, per question"
    assert lines["ttrl"].seconds == 4.0
    assert (lines["ttrl"].length, lines["ttrl"].entropy) == (25.0, 0.25), "of the final model's samples"
    assert (lines["spine"].length, lines["spine"].entropy) == (30.0, 0.3), "of its last evaluation, without samples"
    assert lines["none"].tokens == 20.0, "its greedy answer"


def test_elsewhere_with_the_change_against_no_adaptation(lines):
    unseen, original = lines["ttrl"].elsewhere
    # unseen: seeds [Y, Y] and [N, Y] -> 3/4, none [Y, N] -> 1/2; by question 0.5-1 and 1-0
    assert (unseen.role, unseen.name) == ("unseen", "tiny/shift-a-unseen")
    assert unseen.right.value == 0.75
    assert unseen.gain.value == pytest.approx(0.25)
    assert original.right.value == 0.5
    assert original.gain.value == pytest.approx(-0.5)
    assert lines["none"].elsewhere[0].gain is None


def test_majority_at_equal_tokens(comparison, lines):
    # 20 tokens a question buy 2 responses of 10: the majority of the first two is right where both are 0, or tied
    # (wrong): question 0 right, 1 tied, 2 wrong, 3 tied
    assert lines["ttrl"].num_votes == 2.0
    assert lines["ttrl"].votes.value == 0.25
    assert not lines["ttrl"].votes_capped
    # against it, by question: ttrl's means are 1, 0.5, 0, 0
    assert lines["ttrl"].against_votes.value == pytest.approx((0 + 0.5 + 0 + 0) / 4)
    assert lines["equal-token vote"].right.value == 0.25
    none = collect(comparison, comparison.tasks)["tiny/shift-a"][0]
    between = at_equal_tokens(none, 25.0)  # 2.5 votes: half of two votes' outcome, half of three votes'
    # three votes: 000 right, 100 right, 110 wrong, 010 right
    assert between.num_votes == 2.5
    assert between.outcome.right[0] == {"q0": 1.0, "q1": 0.5, "q2": 0.0, "q3": 0.5}
    likeliest = at_equal_tokens(
        none, 25.0, "likeliest"
    )  # the second response's answer, and the third's: 00, 00, 10, 10
    assert likeliest.outcome.right[0] == {"q0": 1.0, "q1": 1.0, "q2": 0.5, "q3": 0.5}
    assert (likeliest.outcome.name, likeliest.outcome.note) == ("equal-token likeliest", "likeliest of 2.5")
    # 100 tokens in all: two responses each are 80, then the second and the fourth, which differ, get one more: 100, 010
    routed = at_equal_tokens(none, 25.0, "routed")
    assert routed.outcome.right[0] == {"q0": 1.0, "q1": 1.0, "q2": 0.0, "q3": 1.0}
    assert (routed.outcome.name, routed.num_votes) == ("equal-token vote, routed", 2.5)
    assert (routed.outcome.tokens, routed.outcome.note) == ({0: 25.0, 1: 25.0}, "majority of 2.5")
    # two votes are worth 0.5 and 0.51, or 5 and 4, so none is tied
    weighted = [
        at_equal_tokens(none, 20.0, f"by {what}").outcome.right[0] for what in ("probability", "self-certainty")
    ]
    assert weighted == [{"q0": 1, "q1": 1, "q2": 0, "q3": 0}, {"q0": 1, "q1": 0, "q2": 0, "q3": 1}]
    beyond = at_equal_tokens(none, 1000.0)
    assert (beyond.num_votes, beyond.capped) == (4.0, True)
    assert at_equal_tokens(none, 1.0).num_votes == 1.0, "one vote is the least there is"


def test_the_strongest_baseline_at_equal_tokens(lines):
    # at 20 tokens: the vote of two is right on 0; the likeliest of two (the second) on 0 and 1, as often as weighted
    # votes and the first confident one, which come later
    assert lines["ttrl"].strongest == lines["spine"].strongest == "equal-token likeliest"
    # by question against 1, 1, 0, 0: ttrl's means are 1, 0.5, 0, 0, spine's 1, 1, 1, 0.5
    assert lines["ttrl"].against_strongest.value == pytest.approx(-0.5 / 4)
    assert (lines["ttrl"].against_strongest.num_won, lines["ttrl"].against_strongest.num_lost) == (0, 1)
    assert (lines["spine"].against_strongest.num_won, lines["spine"].against_strongest.num_lost) == (2, 0)
    # against the vote (1, 0, 0, 0) ttrl wins question 1
    assert (lines["ttrl"].against_votes.num_won, lines["ttrl"].against_votes.num_lost) == (1, 0)
    assert lines["majority of 4"].strongest is None


def test_each_budget_on_its_way(lines):
    first, second = lines["ttrl"].budgets
    # step 1, 10 tokens: any rule has one response, 0, 1, 1, 0; ttrl's means are 1, 1, 1, 0.5
    assert (first.step, first.tokens, first.strongest, first.baseline) == (1, 10.0, "equal-token vote", 0.5)
    assert (first.right, first.num_won, first.num_lost) == (0.875, 2, 1)
    assert (second.step, second.tokens, second.strongest) == (2, 20.0, "equal-token likeliest")
    assert (second.right, second.baseline, second.num_won, second.num_lost) == (0.375, 0.5, 0, 1)
    assert lines["none"].budgets == ()


def test_a_baseline_of_fewer_tokens_may_be_the_strongest(comparison):
    asked = comparison.task("none", "tiny/shift-a", 0).folder / ASKED
    rows = [{"id": f"q{i}", "correct": True, "num_read": 1, "num_tokens": 20 + i} for i in range(4)]
    for spent, strongest in ((20, "equal-token likeliest"), (18, "synthesis of 4")):  # 21.5 tokens, then 19.5
        write_rows(asked / "synthesis.jsonl", [row | {"num_tokens": row["num_tokens"] - 20 + spent} for row in rows])
        outcomes = collect(comparison, comparison.tasks)["tiny/shift-a"]
        assert {line.name: line for line in figure_lines([outcomes], 4)}["ttrl"].strongest == strongest


def test_seconds_of_rows_without_an_update(comparison):
    asked = comparison.task("none", "tiny/shift-a", 0).folder / ASKED
    write_rows(asked / "synthesis.jsonl", [
        {"id": f"q{i}", "correct": True, "num_read": 4, "num_tokens": 50} for i in range(4)
    ])  # fmt: skip
    (asked / "figures.json").write_text(
        json.dumps({"votes": {"time/asking_s": 8.0}, "synthesis": {"time/asking_s": 3.0}})
    )
    lines = {line.name: line for line in figure_lines([collect(comparison, comparison.tasks)["tiny/shift-a"]], 4)}
    # four responses of 10 tokens to each question took 8 seconds
    assert (lines["majority of 4"].seconds, lines["first confident of 4"].seconds) == (8.0, 2.0)
    assert lines["equal-token vote"].seconds == 4.0, "20 tokens a question"
    assert lines["synthesis of 4"].seconds == 11.0, "its drafts too"
    assert lines["none"].seconds is None, "not noted"


def test_rows_without_an_update(lines):
    assert "synthesis of 4" not in lines, "there is no file of it"
    assert lines["majority of 4"].right.value == 0.5
    assert lines["majority of 4"].tokens == 40.0
    assert lines["majority of 4"].kind == "no update"
    # the last response is the likeliest (0.53): 1, 0, 1, 1 -> right only on question 1
    assert lines["best of 4, likeliest"].right.value == 0.25
    # the first is the most certain: 0, 1, 1, 0 -> right on 0 and 3
    assert lines["best of 4, self-certain"].right.value == 0.5
    # equal lengths: the first drawn finishes first
    assert lines["first of 4 done"].right.value == 0.5
    # 0001 and 1000 need three and four responses until nothing can change, 1101 four (a tie was possible), 0101 four
    assert lines["stopped when decided"].right.value == lines["majority of 4"].right.value
    assert lines["stopped when decided"].tokens == pytest.approx((30 + 40 + 40 + 40) / 4)
    assert lines["stopped when likely"].tokens <= lines["stopped when decided"].tokens
    # 000 is enough; 1000 and 1101 have 3 of 4 at the end, 0101 is tied: right on 0 and 1
    for name in ("stopped at 80%", "stopped at 80%, by probability"):
        assert (lines[name].right.value, lines[name].tokens) == (0.5, (30 + 40 + 40 + 40) / 4)
    # only 0101 differs from the vote: 0.5 + 0.52 against 0.51 + 0.53, wrong; 5 + 3 against 4 + 2, right
    assert lines["majority of 4, by probability"].right.value == 0.5
    assert lines["majority of 4, by self-certainty"].right.value == 0.75
    # every first response has 0.5, which is then its quantile: the first answers, right on 0 and 3
    assert (lines["first confident of 4"].right.value, lines["first confident of 4"].tokens) == (0.5, 10.0)
    assert "majority of 4, routed" not in lines, "no more than four responses were saved"
    assert {"equal-token vote, by probability", "equal-token vote, by self-certainty"} <= set(lines)


def test_responses_routed_to_questions_that_differ(comparison):
    outcomes = collect(comparison, comparison.tasks)
    line = {line.name: line for line in figure_lines([outcomes["tiny/shift-a"]], 3)}["majority of 3, routed"]
    # of 120 tokens, two responses each take 80; the second and the fourth question get both that are left: 1000, 0101
    assert line.right.by_seed == {0: 0.5, 1: 0.5}
    assert (line.tokens, line.note) == (30.0, "2 first, more where they differ; 3 on average")


def test_gold_answers_decide_nothing(comparison):
    """A question without a gold answer has no figure, but its responses count for the threshold and the budget."""
    folder = comparison.task("none", "tiny/shift-a", 0).folder / ASKED
    rows = [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
    rows[0] |= {"gold": None, "responses_correct": None, "probabilities": [0.9] * 4}
    write_rows(folder / "votes.jsonl", rows)
    none = collect(comparison, [comparison.task("none", "tiny/shift-a", 0)])["tiny/shift-a"][0]
    by_name = {one.name: one for one in baselines(none, 3)}
    # the threshold is the 75 % quantile of 0.9, 0.5, 0.5, 0.5: 0.6 - none reaches it, so the likeliest of three counts
    assert by_name["first confident of 3"].right[0] == {"q1": 1.0, "q2": 1.0, "q3": 1.0}
    assert by_name["first confident of 3"].tokens[0] == 30.0
    assert by_name["majority of 3, routed"].right[0] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


def test_synthesis_of_the_drafts(comparison):
    asked = comparison.task("none", "tiny/shift-a", 0).folder / ASKED
    rows = [
        {"id": f"q{i}", "correct": right, "num_read": read, "num_tokens": 40 + own}
        for i, (right, read, own) in enumerate(zip([Y, Y, N, Y], [4, 3, 4, 2], [10, 12, 8, 6], strict=True))
    ]
    write_rows(asked / "synthesis.jsonl", rows)
    lines = {line.name: line for line in figure_lines([collect(comparison, comparison.tasks)["tiny/shift-a"]], 4)}
    line = lines["synthesis of 4"]
    assert (line.kind, line.note) == ("no update", "reads 3.25 of 4, writes one more")
    assert line.right.by_seed == {0: 0.75}, "asked with the first seed only"
    assert line.tokens == 49.0, "four drafts of 10 tokens and 9 of its own on average"
    # without adaptation only the first question is right, with both seeds: by question 1-1, 1-0, 0-0, 1-0
    assert line.against_none.value == 0.5


def test_the_vote_of_corrected_responses(comparison):
    asked = comparison.task("none", "tiny/shift-a", 0).folder / ASKED
    rows = [
        sampled(i, classes, [9, 9]) | {"num_corrections": corrections, "num_tokens": 30 + i}
        for i, (classes, corrections) in enumerate(zip([[0, 0], [0, 1], [1, 1], [0, None]], [0, 1, 2, 0], strict=True))
    ]
    write_rows(asked / "refined.jsonl", rows)
    lines = {line.name: line for line in figure_lines([collect(comparison, comparison.tasks)["tiny/shift-a"]], 4)}
    line = lines["verified majority of 2"]
    assert line.note == "corrects 0.75 of 2, then votes (SETS)"
    assert (line.right.by_seed, line.tokens) == ({0: 0.5}, 31.5), "right, tied, wrong, right"


def test_several_data_sets_weigh_the_same(tmp_path):
    made = made_up(tmp_path, "data=tiny/shift-a,tiny/shift-b", "seeds=0", "original=none", "unseen=none")
    for data, num in (("tiny/shift-a", 2), ("tiny/shift-b", 4)):
        write_task(made.task("none", data, 0), [[N] * num])
        for name in ("ttrl", "spine"):
            right = [Y] * (num // 2) + [N] * (num - num // 2) if name == "ttrl" or num == 4 else [Y] * num
            write_task(made.task(name, data, 0), [[N] * num, right], tokens=(4,))
    outcomes = collect(made, made.tasks)
    lines = {line.name: line for line in figure_lines([outcomes["tiny/shift-a"], outcomes["tiny/shift-b"]], 4)}
    # spine: 2 of 2 and 2 of 4 -> mean of 1 and 0.5, not 4 of 6
    assert lines["spine"].right.value == 0.75
    assert lines["spine"].against_reference.value == 0.25
    assert lines["spine"].against_reference.by_seed == {0: 0.25}
    tables = tables_of(made, outcomes)
    assert [table.title for table in tables] == ["tiny/shift-a", "tiny/shift-b", "All 2 data sets together"]


def test_another_reference(comparison):
    keys = comparison.keys.model_copy(update={"reference": "spine"})
    (table,) = tables_of(replace(comparison, keys=keys), collect(comparison, comparison.tasks))
    lines = {line.name: line for line in table.lines}
    assert lines["ttrl"].against_reference.by_seed == {0: -0.25, 1: -0.75}
    assert lines["spine"].against_reference is None
    assert "against spine" in [column.head for column in table.columns]
    assert any("behind spine" in said or "distinguishable from spine" in said for said in table.sentences)


def test_a_missing_seed_is_left_out_of_the_pairs(comparison):
    tasks = [task for task in comparison.tasks if (task.row.name, task.seed) != ("ttrl", 1)]
    lines = {line.name: line for line in figure_lines([collect(comparison, tasks)["tiny/shift-a"]], 4)}
    assert lines["ttrl"].seeds == (0,)
    # only spine's seed 0 stands against ttrl's seed 0
    assert lines["spine"].against_reference.by_seed == {0: 0.25}
    assert lines["spine"].against_reference.value == 0.25
    assert lines["spine"].against_none.value == pytest.approx(0.625), "against no adaptation both seeds count"


def test_without_gold_nothing_is_claimed(tmp_path):
    made = made_up(tmp_path, "seeds=0", "unseen=none", "original=none")
    for task in made.tasks:
        write_task(task, [[N, N]] if not task.config.steps else [[N, N], [N, N]], tokens=(4,))
        for file in (task.folder / "predictions").iterdir():
            file.write_text(file.read_text().replace("false", "null"))
        (task.folder / "eval.jsonl").write_text((task.folder / "eval.jsonl").read_text().replace("eval/pass@1", "x"))
    (table,) = tables_of(made, collect(made, made.tasks))
    assert all(line.right is None and line.against_none is None for line in table.lines)
    assert "accuracy is unknown" in table.sentences[0]


def test_the_outputs_hold_the_figures(comparison):
    tables = tables_of(comparison, collect(comparison, comparison.tasks))
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(as_csv(tables)))}
    assert float(rows["spine"]["against_reference"]) == 0.5
    assert rows["spine"]["against_reference_by_seed"] == "0.25 0.75"
    assert rows["majority of 4"]["kind"] == "no update"
    assert float(rows["ttrl"]["unseen:tiny/shift-a-unseen_gain"]) == 0.25
    saved = as_json(tables, {"words": []})
    (ttrl,) = (line for line in saved["tables"][0]["lines"] if line["name"] == "ttrl")
    assert ttrl["right"]["by_seed"] == {0: 0.5, 1: 0.25}
    page = as_markdown("T", tables, ["a note"])
    assert "| ttrl | 37.5 [" in page
    assert (rows["spine"]["against_strongest_num_won"], rows["ttrl"]["step_1_num_lost"]) == ("2", "1")
    (heads,) = (line for line in page.splitlines() if line.startswith("|  | Pass@1"))
    assert heads.count("won : lost") == 2
    assert all(head in heads for head in ("tokens (per question)", "time (s, that took)", "by step 1", "by step 2"))
    assert "majority of 4 (no update, the vote)" in page
    said = " ".join(tables[0].sentences)
    assert "the strongest baseline at its tokens (equal-token likeliest): +37.5" in said
    assert "2 questions won, 0 lost" in said
    assert "ttrl: 37.5 % at the end" in said
    assert "DECLINES: best at step 1 (87.5 %), 50.0 points lower at step 2" in said
    assert "At equal tokens spine beats majority voting of the unadapted model; these do NOT: ttrl." in said
    assert not any(math.isnan(line.right.value) for line in tables[0].lines if line.right)
