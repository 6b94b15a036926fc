"""The mean cosine between a layer's step and its displacement."""

from __future__ import annotations

import pytest
import torch

from spinerl.alignment import Alignment, layer_of
from spinerl.runs import RunFolder
from tests.commands import exit_code


class Two(torch.nn.Module):
    """Two numbered layers, the first of two weights, and a head; a part that does not learn."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 2, bias=False)])
        self.head = torch.nn.Linear(2, 4, bias=False)
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        self.double()


def test_by_loops():
    """Five random steps, the cosines by loops over single weights."""
    torch.manual_seed(0)
    model = Two()
    alignment = Alignment(model)
    layers = [["layers.0.weight", "layers.0.bias"], ["layers.1.weight"], ["head.weight"]]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(5):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        alignment.begin()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "head.weight" or step != 2:  # in one step the head does not move
                    parameter.add_(torch.randn_like(parameter))
        cosines = []
        for names in layers:
            dot = moved = away = 0.0
            for name in names:
                now = dict(model.named_parameters())[name].detach().flatten().tolist()
                for w, b, s in zip(now, before[name].flatten().tolist(), start[name].flatten().tolist(), strict=True):
                    dot, moved, away = dot + (w - b) * (w - s), moved + (w - b) ** 2, away + (w - s) ** 2
            if moved:
                cosines.append(dot / (moved * away) ** 0.5)
        assert len(cosines) == (2 if step == 2 else 3)
        assert alignment.figures()["optim/alignment"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-12)
        if step == 0:
            assert alignment.figures()["optim/alignment"] == pytest.approx(1.0)


def test_by_hand():
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        alignment = Alignment(model)
        assert alignment.figures() == {}, "nothing moved"
        model.weight.copy_(torch.tensor([[3.0, 0.0]]))
        alignment.begin()
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))  # moved (0, 4), away (3, 4): cos = 16 / (4 * 5)
        assert alignment.figures()["optim/alignment"] == pytest.approx(0.8)
        model.weight.copy_(torch.tensor([[0.0, 0.0]]))
        assert alignment.figures() == {}, "back where it began there is no direction"


def test_layers_of_real_names():
    assert layer_of("transformer.h.11.attn.c_attn.weight") == "transformer.h.11"
    assert layer_of("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight").endswith("layers.3")
    assert layer_of("lm_head.weight") == "lm_head"


def test_a_run_logs_it_if_asked(tmp_path):
    keys = ["steps=3", "questions_per_step=2", "group_size=2", "rollout.max_new_tokens=4", "data.max_questions=4"]
    keys += ["method=upft", "forks.num_tokens=4", "guard=off", "eval.samples=0", "threads=1", "optim.lr=1e-3"]
    assert exit_code(["adapt", f"run={tmp_path / 'on'}", *keys, "log.alignment=true"]) == 0
    rows = RunFolder.open(tmp_path / "on").rows("metrics.jsonl")
    assert rows[0]["optim/alignment"] == pytest.approx(1.0)
    assert all(-1 <= row["optim/alignment"] <= 1 for row in rows)
    assert rows[2]["optim/alignment"] < 0.999
    assert exit_code(["adapt", f"run={tmp_path / 'off'}", *keys]) == 0
    off = RunFolder.open(tmp_path / "off").rows("metrics.jsonl")
    assert not any("optim/alignment" in row for row in off)
    same = [[row["loss/total"], row["optim/grad_norm"]] for row in rows]
    assert [[row["loss/total"], row["optim/grad_norm"]] for row in off] == same, "it changes nothing else"
