"""scripts/gpu-check at toy size on the rehearsed device, and what it says where it cannot run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
PROGRAM = Path(__file__).parent.parent.parent / "scripts" / "gpu-check"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(PROGRAM))["main"]


def test_it_is_rehearsed(main, capsys):
    code = main(["--rehearse"])
    report = json.loads(capsys.readouterr().out)
    checks = {name: found for name, found in report.items() if isinstance(found, dict) and "check_s" in found}
    assert len(checks) == 9
    assert {name: found for name, found in checks.items() if not found["ok"]} == {}
    assert code == 0
    assert report["rehearsal"]
    assert report["machine"]["gpu"] == "rehearsal"
    assert report["resume"]["bit_equal"]
    assert report["waits"]["per_token"] == 1 / 16
    assert report["waits"]["per_update"] == 3
    assert report["exactness"]["float32"]["logprob_max"] < 1e-4
    assert report["greedy"]["equal_tokens_frac"] == 1.0


def test_a_check_that_fails_is_reported(main, capsys, monkeypatch):
    monkeypatch.setitem(main.__globals__["LIMITS"], "cosine", 2.0)
    assert main(["--rehearse", "--only", "gradient"]) == 1
    assert json.loads(capsys.readouterr().out)["gradient"]["ok"] is False


def test_without_a_gpu(main, capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert "torch sees no CUDA device here; --rehearse runs the same code on a CPU" in said.err
    assert not said.out


def test_a_check_that_there_is_not(main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--rehearse", "--only", "waits,nothing"])
    assert ended.value.code == 2
    assert "no check 'nothing'; there are exactness, greedy," in capsys.readouterr().err
