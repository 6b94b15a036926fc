"""A guarded run from its beginning to its end, and again after an interruption."""

import json

import pytest
import torch
from safetensors.torch import load_file

from spinerl.cli import main
from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.guard.select import rank_runs
from spinerl.runs import RunFolder
from spinerl.train import adapt

OVERRIDES = [
    "data=tiny/shift-a",
    "data.max_questions=24",
    "questions_per_step=4",
    "group_size=4",
    "eval.samples=0",
    "threads=1",
    "guard.every=1",
    "guard.questions=8",
    "guard.samples=4",
    "checkpoint.every=1",
    "checkpoint.keep=9",
]


class Quiet:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def phase(self, *_):
        pass

    tokens = step = evaluation = look = checkpoint = phase


def run(folder, *overrides, resume=None):
    observer = Quiet()
    config = load_config(overrides=[*OVERRIDES, f"run={folder}", *overrides])
    return adapt(config, observer, resume=resume), observer.notes


def command(*overrides):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in overrides])
    assert not ended.value.code


def remembered(run):
    """What the guard wrote down, its own speed aside."""
    looks = [{key: value for key, value in look.items() if key != "time/look_s"} for look in run.rows("guard.jsonl")]
    return looks, run.rows("labels.jsonl")


def weights(run, name="model"):
    return load_file(run.path / name / "model.safetensors")


def test_a_no_go_trains_nothing_and_says_so(tmp_path):
    finished, notes = run(tmp_path / "r", "data=tiny/shift-hard", "steps=3")
    assert finished.rows("metrics.jsonl") == []
    guard = finished.manifest["guard"]
    assert (guard["kept_step"], guard["rule"]) == (0, "no-go")
    assert "The unadapted model was kept" in guard["text"]
    assert guard["text"] in notes
    assert "The unadapted model was kept" in (finished.path / "report.html").read_text()
    assert [row["step"] for row in finished.rows("eval.jsonl")] == [0]


@pytest.mark.parametrize(
    ("lr", "share", "overrides"),
    [(5e-4, 0.0, []), (0.02, 0.0, []), (5e-4, 0.05, ["vote.memory=sum"])],
    ids=["usual", "destructive", "remembered"],
)
def test_the_weights_of_the_best_look_come_back(tmp_path, lr, share, overrides):
    finished, _ = run(tmp_path / "r", "steps=5", f"optim.lr={lr}", "guard.no_go=0", *overrides)
    looks = finished.rows("guard.jsonl")
    guard = finished.manifest["guard"]
    highest = max(look["score"] for look in looks)
    best = [look for look in looks if look["score"] >= (1 - share) * highest][-1]
    assert guard["kept_step"] == best["step"]
    assert guard["rule"] == ("alike" if lr > 0.01 else None) == looks[-1]["rule"]
    assert not guard["kept_step"] or lr < 0.01
    checkpoint = f"checkpoints/step-{best['step']:06d}" if best["step"] else "best"
    kept, expected = weights(finished), weights(finished, checkpoint)
    both = kept.keys() & expected.keys()  # of tied weights either is written
    assert len(both) > 5
    assert all(torch.equal(kept[name], expected[name]) for name in both)
    assert any(row["step"] == guard["kept_step"] for row in finished.rows("eval.jsonl"))


@pytest.mark.parametrize("mode", ["warn", "stop"])
def test_other_modes_keep_the_last_weights(tmp_path, mode):
    finished, notes = run(tmp_path / "r", "steps=5", "optim.lr=0.02", "guard.no_go=0", f"guard={mode}")
    done = len(finished.rows("metrics.jsonl"))
    assert done == (5 if mode == "warn" else finished.rows("guard.jsonl")[-1]["step"])
    assert finished.manifest["guard"]["kept_step"] == done
    assert finished.manifest["guard"]["rule"] == "alike"
    assert any("alike" in note for note in notes)
    assert not (finished.path / "best").exists()


def test_the_guard_changes_no_weight_and_a_resumed_run_repeats_it(tmp_path):
    unwatched, _ = run(tmp_path / "off", "steps=4", "guard=off")
    watched, _ = run(tmp_path / "warn", "steps=4", "guard=warn", "guard.no_go=0")
    assert all(torch.equal(a, b) for a, b in zip(weights(unwatched).values(), weights(watched).values(), strict=True))
    assert "label/halves_agree" in watched.rows("metrics.jsonl")[0]
    assert not (unwatched.path / "guard.jsonl").exists()
    half, _ = run(tmp_path / "half", "steps=4", "guard.no_go=0")
    whole = remembered(half)
    for step in (3, 4):
        (half.path / "checkpoints" / f"step-{step:06d}" / "checksums.json").unlink()
    half.write_manifest({k: v for k, v in half.manifest.items() if k not in ("finished", "guard")})
    again = adapt(half.config, Quiet(), resume=RunFolder.open(half.path))
    assert remembered(again) == whole


def test_a_question_asked_differently(tmp_path):
    finished, _ = run(tmp_path / "r", "steps=1", "guard=warn", "guard.perturbation=blank")
    assert all(0 <= look["probe/perturbed_agreement"] <= 1 for look in finished.rows("guard.jsonl"))
    with pytest.raises(InputError, match='did you mean "blank"'):
        run(tmp_path / "s", "steps=1", "guard.perturbation=blnk")


def test_held_out_questions_are_never_adapted_to(tmp_path):
    finished, _ = run(tmp_path / "r", "steps=8", "guard=warn", "guard.holdout=12")
    met = {row["id"] for row in finished.rows("labels.jsonl")}
    assert len(met) == 12
    with pytest.raises(InputError, match="leaves none"):
        run(tmp_path / "s", "steps=1", "guard.holdout=24")


def test_runs_are_ranked_by_the_score_of_what_they_kept(tmp_path):
    for seed in (0, 1):
        run(tmp_path / "runs" / f"s{seed}", "steps=2", f"seed={seed}", "guard.no_go=0")
    run(tmp_path / "runs" / "none", "steps=0", "method=none")  # as `compare` has it
    ranked = rank_runs([tmp_path / "runs"])
    assert len(ranked) == 2
    assert ranked[0]["score"] >= ranked[1]["score"]
    command("select", tmp_path / "runs", "--json", tmp_path / "ranking.json")
    assert json.loads((tmp_path / "ranking.json").read_text()) == ranked
    run(tmp_path / "off", "steps=1", "guard=off")
    with pytest.raises(InputError, match="was not watched"):
        rank_runs([tmp_path / "off"])


def test_preflight_says_no_go_on_the_hard_shift_and_go_on_the_easy_one(tmp_path, capsys):
    for suite, verdict in (("shift-hard", "no-go"), ("shift-a", "go")):
        target = tmp_path / f"{suite}.json"
        overrides = ["threads=1", "guard.preflight_questions=32"]
        command("preflight", "tiny-reasoner", f"tiny/{suite}", *overrides, "--json", target)
        figures = json.loads(target.read_text())
        assert figures["verdict"] == verdict
        assert len(figures["questions"]) == 32
        assert verdict in capsys.readouterr().out
