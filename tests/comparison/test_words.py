"""What is said of a table, and that nothing is claimed that the intervals do not carry."""

from __future__ import annotations

from dataclasses import replace

from spinerl.comparison.figures import ElsewhereFigures, Estimate, Figures, Gain
from spinerl.comparison.words import sentences

LINE = Figures(
    name="spine", kind="adapted", note="", seeds=(0, 1), right=Estimate(0.6, 0.5, 0.7, {0: 0.5, 1: 0.7}), mean=None,
    majority=None, against_none=None, against_reference=None, against_votes=None, votes=None, num_votes=None,
    votes_capped=False, best=None, last=None, elsewhere=(), tokens=None, seconds=None, length=None, entropy=None,
)  # fmt: skip


def gain(value: float, low: float, high: float) -> Gain:
    return Gain(value, low, high, 0.01, 100, {0: value, 1: -value}, None, None)


def test_better_worse_or_not_distinguishable():
    for one, how in ((gain(0.1, 0.02, 0.2), "better than"), (gain(-0.1, -0.2, -0.02), "WORSE than"),
                     (gain(0.1, -0.02, 0.2), "not distinguishable from")):  # fmt: skip
        said = sentences([replace(LINE, against_none=one)])[0]
        assert f"{how} no adaptation" in said
        assert "above 0 in 1 of 2 seeds" in said


def test_not_beating_the_vote_is_said_first():
    votes = {"votes": Estimate(0.58, 0.5, 0.6, {0: 0.58}), "num_votes": 41.23}
    loses = replace(LINE, name="a", against_votes=gain(0.02, -0.01, 0.05), **votes)
    wins = replace(LINE, name="b", against_votes=gain(0.1, 0.01, 0.2), **votes)
    first, *rest = sentences([loses, wins])
    assert first == "At equal tokens b beats majority voting of the unadapted model; these do NOT: a."
    assert "does NOT clearly beat voting at equal tokens (58.0 % with 41.2 votes)" in rest[0]
    assert "NONE beats" in sentences([loses])[0]
    capped = replace(loses, votes_capped=True)
    assert "its tokens would buy more" in sentences([capped])[1]


def test_a_decline_and_what_was_forgotten():
    place = ElsewhereFigures("original", "tiny/in-domain", Estimate(0.5, 0.4, 0.6, {}), gain(-0.2, -0.3, -0.1))
    kept = ElsewhereFigures("unseen", "u", Estimate(0.5, 0.4, 0.6, {}), gain(0.0, -0.1, 0.1))
    line = replace(LINE, best=(30, 0.8), last=(60, 0.6), elsewhere=(place, kept))
    said = sentences([line])[0]
    assert "DECLINES: best at step 30 (80.0 %), 20.0 points lower at step 60" in said
    assert "loses 20.0 points [−30.0, −10.0] on the original tiny/in-domain" in said
    assert "unseen" not in said, "no change worth a word"
    assert "DECLINES" not in sentences([replace(line, best=(60, 0.6))])[0]


def test_what_seeds_do_not_carry_is_said():
    one = replace(gain(0.1, 0.02, 0.2), seeds_low=-0.05, seeds_high=0.25)
    assert "but other seeds might differ: [−5.0, +25.0]" in sentences([replace(LINE, against_reference=one)])[0]
    sure = replace(one, seeds_low=0.01)
    assert "might differ" not in sentences([replace(LINE, against_reference=sure)])[0]


def test_gold_is_named():
    votes = {"votes": Estimate(0.58, 0.5, 0.6, {0: 0.58}), "num_votes": 41.23, "against_votes": gain(0.1, 0.01, 0.2)}
    said = sentences([replace(LINE, uses_gold=True, **votes)])
    assert "uses gold answers: an upper bound" in said[0], "and nothing before it praises the row for beating the vote"
