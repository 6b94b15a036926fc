"""`--dry-run` says what a run or a comparison would do, refuses what they refuse, and writes nothing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spinerl.comparison.plan import plan
from spinerl.config import load_config
from spinerl.data import load_data
from spinerl.locks import FolderLock, who_holds
from spinerl.models import precision
from spinerl.models.headers import count, model_facts
from spinerl.models.loading import load_model
from spinerl.plan import count_phases
from spinerl.runs import RunFolder, write_json
from spinerl.tiny import model_path
from tests.commands import exit_code

SHORT = ["questions_per_step=2", "group_size=2", "rollout.max_new_tokens=4", "data.max_questions=4", "threads=1",
         "eval.samples=0", "guard=off", "answer.truncated=count", "steps=1"]  # fmt: skip


def run(arguments, capsys) -> tuple[int, str, str]:
    code = exit_code(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files(folder: Path) -> dict[Path, object]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "good.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "1 + " * 600}) + "\n")
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "question": "x"}\n{"id": "a", "question": "y"}\n')
    (tmp_path / "mine.py").write_text("def reward(vote):\n    return [1.0] * len(vote.classes)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Weights cannot be read: only the headers of their files."""
    monkeypatch.setattr("spinerl.models.loading._read_model", lambda *_: pytest.fail("weights are read"))


def cached_model(folder: Path, names, monkeypatch) -> Path:
    """The bundled model's files of these names, as a hub's own/tiny in the cache of a folder; the files' folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    snapshot = folder / "cache/models--own--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text("abc")
    for name in names:
        (snapshot / name).write_bytes((model_path() / name).read_bytes())
    return snapshot


@pytest.mark.usefixtures("no_weights")
def test_a_run_that_can_begin(place, capsys):
    before = files(place)
    code, out, err = run(
        ["adapt", "--dry-run", "data=good.jsonl", "run=new", "reward=mine:reward", "method=ttrl", "steps=3"], capsys
    )
    assert (code, err) == (0, "")
    assert "tiny-reasoner: qwen3, 851.7 k parameters, float32 on cpu, context of 512 tokens" in out
    assert "2 of good.jsonl" in out
    assert "1 with gold answers, for figures only" in out
    assert f"reward=mine:reward: {place / 'mine.py'}" in out
    assert "run        new, free" in out
    assert "it runs with: spinerl adapt data=good.jsonl run=new reward=mine:reward method=ttrl steps=3" in out
    config = load_config(overrides=["data=good.jsonl", "method=ttrl", "steps=3"])
    for phase in count_phases(config, 2):
        assert any(line.startswith(phase.name) and f"{phase.tokens:,}" in line for line in out.splitlines()), phase
    assert files(place) == before


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=nowhere.jsonl"], "there is no such file"),
        (["data=twice.jsonl"], "'a'"),
        (["data=good.jsonl", "data.columns.question=q"], "there are question"),
        (["model=./nowhere"], "no such folder or file"),
        (["model=broken"], "model.safetensors"),
        (["model=owner/unknown"], "model=owner/unknown: "),
        (["model.device=cuda:9"], "cuda:9"),
        (["reward=mine:gone"], "mine:gone"),
        (["forks.selector=top"], "top-entropy"),
        (["method=grpo-gold", "data=good.jsonl"], "good.jsonl have none"),
        (["prompt.max_tokens=1"], "prompt.max_tokens"),
        (["data=long.jsonl"], "its context has 512"),
        (["run=good.jsonl"], "run=good.jsonl is a file"),
        (["run=taken"], "run=taken exists"),
        (["run=mine", "--overwrite"], "is not a run of spinerl"),
        (["--resume", "taken"], "--dry-run looks at a run that has not begun"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_run_would_refuse_is_refused(overrides, said, place, capsys):
    for name in ("taken", "mine", "broken"):
        (place / name).mkdir()
    (place / "taken/config.yaml").write_text("# A run of spinerl: its resolved configuration.\n")
    (place / "mine/config.yaml").write_text("mine: 1\n")
    (place / "broken/config.json").write_bytes((model_path() / "config.json").read_bytes())
    before = files(place)
    code, out, err = run(["adapt", "--dry-run", *overrides], capsys)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert files(place) == before


def test_a_run_folder_in_use(place, capsys):
    (place / "busy").mkdir()
    lock = FolderLock(place / "busy")
    code, _, err = run(["adapt", "--dry-run", "run=busy"], capsys)
    assert code == 2
    assert "busy is being written by process" in err
    lock.release()
    assert who_holds(place / "busy") is None
    assert run(["adapt", "--dry-run", "run=busy", "data=good.jsonl"], capsys)[0] == 0


def test_a_plug_in_of_a_recipe_needs_leave(place, capsys):
    (place / "r.yaml").write_text("reward: mine:reward\ndata: good.jsonl\n")
    code, _, err = run(["adapt", "--dry-run", "r.yaml"], capsys)
    assert code == 2
    assert "--allow-plugins" in err
    code, out, _ = run(["adapt", "--dry-run", "r.yaml", "--allow-plugins"], capsys)
    assert code == 0
    assert "spinerl adapt r.yaml --allow-plugins" in out


def test_the_number_of_parameters_is_that_of_the_model(model_folders, vision_model_folders, tmp_path):
    for folder in (model_folders("qwen2"), vision_model_folders("qwen2_vl")):
        config = load_config(overrides=[f"model={folder}"]).model
        facts, loaded = model_facts(config), load_model(config)
        held = {p.data_ptr(): p.numel() for p in loaded.model.parameters()}
        assert facts.parameters == sum(held.values())
        assert (facts.context, facts.num_embeddings) == (loaded.context, loaded.num_embeddings)
        assert facts.reads_images == (loaded.vision is not None)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert model_facts(load_config(overrides=[f"model={tmp_path}"]).model).parameters == facts.parameters


@pytest.mark.parametrize("faster", [0.0, math.inf], ids=["fast", "slow"])
def test_the_type_is_the_one_that_loading_chooses(monkeypatch, tmp_path, faster):
    """On a CPU whose bfloat16 is fast enough for the model, and on one where it is not; without weights too."""
    monkeypatch.setattr(precision, "bfloat16_support", lambda: "AMX")
    monkeypatch.setattr(precision, "_LARGE", 1000)
    monkeypatch.setattr(precision, "_FASTER", faster)
    config = load_config(overrides=[f"model={model_path()}", "model.dtype=auto", "model.device=cpu"]).model
    expected = "mixed" if faster == 0 else "float32"
    assert load_model(config).mixed == (expected == "mixed")
    assert model_facts(config).dtype == expected
    cached_model(tmp_path, ["config.json"], monkeypatch)
    facts = model_facts(config.model_copy(update={"name": "own/tiny"}))
    assert (facts.dtype, facts.parameters) == (expected, None)


@pytest.mark.usefixtures("no_weights")
def test_a_model_of_the_hub_whose_weights_are_elsewhere(place, capsys, monkeypatch):
    """Its cache holds what `config.json` and tokenizer are; then its weights too."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    snapshot = cached_model(place, names, monkeypatch)
    arguments = ["adapt", "--dry-run", "model=own/tiny", "data=good.jsonl"]
    assert "own/tiny: qwen3, weights not on this machine yet, float32" in run(arguments, capsys)[1]
    (snapshot / "model.safetensors").write_bytes((model_path() / "model.safetensors").read_bytes())
    assert "own/tiny: qwen3, 851.7 k parameters, float32" in run(arguments, capsys)[1]


@pytest.mark.usefixtures("no_weights")
def test_a_gguf_file(place, capsys, gguf_folders):
    folder = gguf_folders("qwen2")
    file = Path(shutil.copy(f"{folder}.gguf", place / "m.gguf"))
    held = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    capsys.readouterr()
    code, out, _ = run(["adapt", "--dry-run", f"model={file}", "data=good.jsonl"], capsys)
    assert code == 0
    assert f"qwen2, {count(held)} parameters" in out
    file.write_bytes(file.read_bytes()[:2000])
    code, _, err = run(["adapt", "--dry-run", f"model={file}", "data=good.jsonl"], capsys)
    assert code == 2
    assert "cut off or damaged" in err


def test_a_comparison(place, capsys):
    """Before it has begun, and after its first row is there."""
    keys = ["methods=ttrl", "data=good.jsonl", "out=c", "samples=2", "votes=4", "synthesis=false", "jobs=1", *SHORT]
    code, out, _ = run(["compare", "--dry-run", *keys, "seeds=0,1"], capsys)
    assert code == 0
    assert not (place / "c").exists()
    table = [line.split("│") for line in out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in table]
    assert [row[:5] for row in cells[:4]] == [
        ["none", "good.jsonl", "0", "new", "0"],
        ["ttrl", "good.jsonl", "0", "new", "1"],
        ["none", "good.jsonl", "1", "new", "0"],
        ["ttrl", "good.jsonl", "1", "new", "1"],
    ]
    assert "4 of 4 to run" in out
    assert "votes of up to 4 responses, best and first of 2, budget forcing (4 tokens)" in out
    # none: 2 greedy + 2 questions x 4 votes + 2 forced; seed 1: 2 greedy + 2 x 2 samples
    assert (cells[0][5], cells[2][5]) == ("12", "6")
    # ttrl: 2 x 2 greedy, 2 questions x 2 responses in the step, 2 x 2 samples of the final model
    assert cells[1][5] == "12"
    for task in plan([*keys, "seeds=0"]).tasks:  # as finished runs leave them
        finished = RunFolder.create(task.config)
        finished.write_manifest({"finished": "now"})
        prints = {str(place / "good.jsonl"): load_data(task.config.data)[0].fingerprint}
        (task.folder / "compare").mkdir()
        write_json(task.folder / "compare" / "state.json", {"after": task.after, "fingerprints": prints})
        (task.folder / "report.html").write_text("")
        finished.unlock()
    before = files(place / "c")
    code, out, _ = run(["compare", "--dry-run", *keys, "seeds=0,1"], capsys)
    assert code == 0
    assert [line.split("│")[3].strip() for line in out.splitlines() if "│" in line][:4] == [
        "done",
        "done",
        "new",
        "new",
    ]
    assert "2 of 4 to run" in out
    assert files(place / "c") == before
    with (place / "good.jsonl").open("a") as file:
        file.write('{"question": "3 + 3?"}\n')
    assert run(["compare", "--dry-run", *keys, "seeds=0"], capsys)[1].count("asked again") == 2
    code, _, err = run(["compare", "--dry-run", *keys, "seeds=0", "optim.lr=0.5"], capsys)
    assert code == 2
    assert "begun with other settings" in err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["out=good.jsonl"], "out=good.jsonl cannot be written: Not a directory"),
        (["methods=spin"], "neither a method nor a variant"),
        (["data=nowhere.jsonl"], "there is no such file"),
        (["model=./nowhere"], "no such folder or file"),
        (["methods=grpo-gold", "data=good.jsonl"], "have none"),
    ],
)
def test_a_comparison_that_is_refused(overrides, said, place, capsys):
    code, out, err = run(["compare", "--dry-run", "out=c", "methods=ttrl", *overrides], capsys)
    assert (code, out.count("│")) == (2, 0)
    assert said in err
    assert not (place / "c").exists()
