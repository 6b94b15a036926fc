"""Questions with images through every command, with random models of two families."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from spinerl.config import load_config
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from tests.e2e.test_commands import run

SHORT = [
    "questions_per_step=3", "group_size=3", "rollout.max_new_tokens=10", "steps=2", "threads=1", "guard=warn",
    "eval.samples=2", "answer.truncated=count", "log.sample_every=1", "checkpoint.every=1", "vote.memory=sum",
    "vote.memory_start=3",
]  # fmt: skip


def draw(seed: int, width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def questions(tmp_path) -> Path:
    """One image, a placeholder, two images, one in the row itself, and none; some with gold answers."""
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        draw(i, 16 + 8 * i).save(tmp_path / "pictures" / f"{i}.png")
    file = io.BytesIO()
    draw(9).save(file, "PNG")
    inside = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    rows = [
        {"id": "one", "question": "How many?", "images": ["pictures/0.png"], "answer": "3"},
        {"id": "placed", "question": "Is <image> blue?", "images": ["pictures/1.png"]},
        {"id": "two", "question": "Which is larger?", "images": ["pictures/2.png", "pictures/3.png"], "answer": "B"},
        {"id": "inside", "question": "How many?", "images": [inside]},
        {"id": "text", "question": "What is 2 + 3?", "images": None, "answer": "5"},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "questions.jsonl"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_adapt_eval_preflight_report(vision_model_folders, family, questions, tmp_path, capsys):
    model = vision_model_folders(family)
    made = tmp_path / "run"
    code, _, error = run(["adapt", f"model={model}", f"data={questions}", f"run={made}", *SHORT], capsys)
    assert code == 0, error
    assert len(RunFolder(made).rows("metrics.jsonl")) == 2
    adapted = AutoModelForImageTextToText.from_pretrained(made / "model")
    before = AutoModelForImageTextToText.from_pretrained(model)
    seeing = [name for name, _ in before.named_parameters() if re.search("visual|vision|connector", name)]
    changed = {name for (name, a), b in zip(before.named_parameters(), adapted.parameters(), strict=True)
               if not torch.equal(a, b)}  # fmt: skip
    assert changed
    assert not changed & set(seeing)  # frozen unless model.train_vision says otherwise
    again = load_model(load_config(overrides=[f"model={made}"]).model)
    assert again.vision is not None  # the processor's files came along
    page = (made / "report.html").read_text()
    named = {name for row in RunFolder(made).rows("samples.jsonl") for name in row["images"]}
    assert named
    copies = {base64.b64encode((made / name).read_bytes()).decode() for name in named}
    assert set(re.findall(r'<img src="data:image/png;base64,([^"]*)"', page)) == copies
    assert "img-src data:" in page

    code, out, error = run(["eval", str(made), str(questions), "eval.samples=2", *SHORT[2:3]], capsys)
    assert code == 0, error
    assert "5 questions, 3 with gold answers" in out
    code, out, error = run(["preflight", str(model), str(questions), "group_size=3", *SHORT[2:3]], capsys)
    assert code == 0, error
    code, out, error = run(["data", "show", str(questions), "-n", "5"], capsys)
    assert code == 0, error
    assert "image 2: " in out
    code, out, error = run(["data", "check", str(questions)], capsys)
    assert code == 0, error


def test_compare(vision_model_folders, questions, tmp_path, capsys):
    overrides = [w for w in SHORT if not w.startswith(("log", "guard", "checkpoint"))]
    out_folder = tmp_path / "side-by-side"
    code, _, error = run(
        ["compare", "methods=none,ttrl,spine", f"model={vision_model_folders('idefics3')}", f"data={questions}",
         "seeds=0", f"out={out_folder}", *overrides],
        capsys,
    )  # fmt: skip
    assert code == 0, error
    assert list(out_folder.glob("*.html"))


@pytest.mark.parametrize(
    "overrides",
    [["method=ettrl"], ["model.train_vision=true"], ["engine.disable=[shared-images]"], ["anchor.weight=0.1"]],
)
def test_options_with_images(vision_model_folders, questions, overrides, tmp_path, capsys):
    made = tmp_path / "run"
    model = vision_model_folders("qwen2_5_vl")
    code, _, error = run(["adapt", f"model={model}", f"data={questions}", f"run={made}", *SHORT, *overrides], capsys)
    assert code == 0, error


def test_a_resumed_run_with_images_repeats_the_whole_one(vision_model_folders, questions, tmp_path, capsys):
    model, whole, cut = vision_model_folders("idefics3"), tmp_path / "whole", tmp_path / "cut"
    for made in (whole, cut):
        assert run(["adapt", f"model={model}", f"data={questions}", f"run={made}", *SHORT], capsys)[0] == 0
    (cut / "checkpoints" / "step-000002" / "model.safetensors").write_bytes(b"damaged")
    assert run(["adapt", "--resume", str(cut)], capsys)[0] == 0
    weights = [(made / "model" / "model.safetensors").read_bytes() for made in (whole, cut)]
    assert weights[0] == weights[1]


def test_images_and_a_model_that_only_reads(model_folders, questions, tmp_path, capsys):
    code, _, error = run(
        ["adapt", f"model={model_folders('qwen2')}", f"data={questions}", f"run={tmp_path / 'r'}", *SHORT], capsys
    )
    assert code == 2
    assert "question 'one' shows an image, and this model only reads text" in " ".join(error.split())
    assert error.count("\n") <= 2
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_image_stops_the_run_or_is_skipped(vision_model_folders, questions, policy, tmp_path, capsys):
    file = tmp_path / "pictures" / "1.png"
    file.write_bytes(file.read_bytes()[:200])  # its header is whole
    code, out, error = run(
        ["adapt", f"model={vision_model_folders('idefics3')}", f"data={questions}", f"data.on_bad_row={policy}",
         f"run={tmp_path / 'r'}", *SHORT],
        capsys,
    )  # fmt: skip
    said = " ".join((out + error).split())
    if policy == "stop":
        assert code == 2
        assert "question 'placed'" in said
        assert "1.png" in said
        assert not (tmp_path / "r").exists()
    else:
        assert code == 0, error
        assert "skipped 1 question: broken image" in said


def test_a_family_that_cannot_be_given_features_is_refused_in_a_line(vision_model_folders, monkeypatch):
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Model

    from spinerl.errors import InputError

    monkeypatch.delattr(Idefics3Model, "get_image_features")
    with pytest.raises(InputError, match="update transformers"):
        load_model(load_config(overrides=[f"model={vision_model_folders('idefics3')}"]).model)
