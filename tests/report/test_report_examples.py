"""Which example responses a page shows: one question over the steps, and in several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

from spinerl.report import read_run
from spinerl.report.examples import example_views
from spinerl.report.groups import group_runs
from tests.report.synthetic import write_run


def logged(folder: Path, *rows: tuple[int, str], **options) -> Path:
    """A run that logged these (step, question)s, with four responses each."""
    write_run(folder, steps=5, **options)
    response = {"text": "so", "tokens": ["so"], "entropies": [1.0], "forks": [True]}
    samples = [
        {"step": step, "question_id": name, "question": name, "votes": {"1": 4}, "responses": [response] * 4}
        for step, name in rows
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return folder


def shown(*folders: Path):
    return example_views(group_runs([read_run(folder) for folder in folders]))[1]


def outline(strip) -> tuple:
    """(step of the first card, [(label, [step and number of responses of each card])])."""
    moments = [
        (moment.label, [card and (card.sample.step, len(card.responses)) for card in moment.cards])
        for moment in strip.moments
    ]
    return strip.first and (strip.first.sample.step, strip.first.sample.question_id), moments


def test_a_question_that_came_again_is_shown_over_the_steps(tmp_path: Path):
    often = [(step, "often") for step in (1, 6, 11, 16, 21, 26, 31)]
    twice = [(6, "twice"), (60, "twice")]
    found = shown(logged(tmp_path / "run", *sorted([*often, *twice, (1, "x"), (11, "y"), (60, "z")])))
    assert found.abreast == ()
    strips = found.runs[0].strips
    assert [strip.about for strip in strips] == ["question often", "question twice", "a question of each step"]
    moments = [("step 11", [(11, 2)]), ("step 16", [(16, 2)]), ("step 21", [(21, 2)]), ("step 31", [(31, 4)])]
    assert outline(strips[0]) == ((1, "often"), moments), "the first and the last with all of their responses"
    assert outline(strips[1]) == ((6, "twice"), [("step 60", [(60, 4)])])
    assert outline(strips[2]) == ((1, "x"), [("step 11", [(11, 2)]), ("step 60", [(60, 4)])])
    assert found.runs[0].note == "10 of 12 logged questions, from 8 logged steps."


def test_one_logged_step_is_shown_as_it_is(tmp_path: Path):
    strips = shown(logged(tmp_path / "run", (1, "a"), (1, "b"), (1, "c"))).runs[0].strips
    assert [outline(strip) for strip in strips] == [((1, "a"), [("step 1", [(1, 4)])]), ((1, "c"), [])]
    assert {strip.first.when for strip in strips if strip.first} == {"Step 1"}


def test_the_same_question_of_several_runs_stands_side_by_side(tmp_path: Path):
    one = logged(tmp_path / "one", (1, "both"), (5, "other"), (11, "both"), (21, "both"))
    two = logged(tmp_path / "two", (6, "both"), (21, "both"), (31, "both"), method="ttrl")
    (strip,) = shown(one, two).abreast
    assert strip.about == "question both"
    assert outline(strip) == (None, [
        ("step 6", [(1, 2), (6, 2)]),  # where the second run has logged it; the first run's latest is of step 1
        ("step 21", [(21, 2), (21, 2)]),
        ("step 31", [(21, 2), (31, 2)]),
    ])  # fmt: skip
    assert [card.run for card in strip.moments[0].cards if card] == ["one", "two"]


def test_a_run_that_lacks_the_question_keeps_its_place(tmp_path: Path):
    runs = [logged(tmp_path / name, (1, "q"), method=name) for name in ("spine", "ttrl")]
    other = logged(tmp_path / "none", (1, "x"), method="grpo-gold")
    (strip,) = shown(runs[0], other, runs[1]).abreast
    assert [card and card.run for card in strip.moments[0].cards] == ["spine", None, "ttrl"]


def test_seeds_are_side_by_side_too(tmp_path: Path):
    seeds = [logged(tmp_path / f"run-seed{seed}", (1, "q"), (6, "q"), seed=seed) for seed in (0, 1)]
    found = shown(*seeds)
    assert [card.run for card in found.abreast[0].moments[0].cards if card] == ["run-seed0", "run-seed1"]
    assert len(found.runs) == 1
