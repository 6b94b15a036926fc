"""Self-checks: verdicts with reasons, in the log and in facts; strict mode; budgets measured once."""

from __future__ import annotations

import logging

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.backend import Backend, backend_of
from spinerl.engine.self_check import agree, differences, nudged
from spinerl.models.capabilities import Capabilities, Unsupported
from spinerl.models.loading import load_model
from tests.models import without


def raising(error):
    def check():
        raise error

    return check


def test_verdicts_and_reasons(caplog, monkeypatch):
    monkeypatch.delenv("SPINERL_STRICT")
    caplog.set_level(logging.INFO, "spinerl.engine")
    found, calls = Capabilities(), []
    assert found.allows("good", lambda: calls.append(1))
    assert found.allows("good", lambda: calls.append(1))
    assert len(calls) == 1, "checked once"
    assert not found.allows("differs", lambda: "logits differ by 3")
    assert not found.allows("another", raising(Unsupported("no GPU")))
    assert not found.allows("broken", raising(KeyError("rope")))
    assert [found.uses(name) for name in ("good", "differs", "unheard")] == [True, False, False]
    assert found.facts()["paths"]["differs"] == {"used": False, "reason": "logits differ by 3"}
    assert found.facts()["paths"]["another"]["reason"] == "no GPU"
    assert found.facts()["paths"]["broken"]["reason"] == "KeyError: 'rope'"
    assert [record.getMessage() for record in caplog.records][1] == "differs: off (logits differ by 3)"


def test_strict_mode_raises_what_was_not_expected(monkeypatch):
    monkeypatch.setenv("SPINERL_STRICT", "1")
    found = Capabilities()
    assert not found.allows("another", raising(Unsupported("no GPU")))
    with pytest.raises(KeyError, match="rope"):
        found.allows("broken", raising(KeyError("rope")))
    monkeypatch.setenv("SPINERL_STRICT", "0")
    assert not found.allows("broken", raising(KeyError("rope")))


def test_restored_verdicts_and_budgets_are_not_asked_again():
    first = Capabilities()
    first.allows("fast", lambda: "differs")
    assert first.budget("kv_cache", lambda: 40) == 40
    second = Capabilities()
    second.restore(first.facts())
    assert not second.allows("fast", raising(AssertionError))
    assert second.budget("kv_cache", raising(AssertionError)) == 40
    second.clear()
    assert second.allows("fast", lambda: None)


def test_gradients_are_compared_tensor_by_tensor():
    """A small tensor that is wrong does not hide behind the rounding of a large one."""
    expected = {"large": torch.tensor([1000.0, -3.0]), "small": torch.tensor([0.5, 2.0])}
    near = {"large": torch.tensor([1000.01, -3.0]), "small": torch.tensor([0.50001, 2.0])}
    assert differences(near.items(), expected) is None
    wrong = {"large": expected["large"], "small": torch.tensor([0.55, 2.0])}
    assert agree(torch.cat(list(wrong.values())), torch.cat(list(expected.values()))), "together it would hide"
    assert differences(wrong.items(), expected) == "small differs by 0.05 from the plain path's"
    assert differences([("small", torch.tensor([float("nan"), 2.0]))], expected) is not None


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_everything_is_settled_at_once(model_folders, architecture, monkeypatch):
    """After `settle`, a rollout and an update find nothing left to check."""
    monkeypatch.setenv("SPINERL_STRICT", "1")
    config = load_config(overrides=[f"model={model_folders(architecture)}"])
    loaded = load_model(config.model, config.engine)
    backend_of(loaded).settle()
    facts = loaded.capabilities.facts()
    assert facts["paths"]["shared_prefix"]["used"]
    assert facts["tokens"]["kv_cache"] > 0
    from tests.engine.test_update import gradient, prepared

    monkeypatch.setattr("tests.engine.test_update.load_model", lambda *_: loaded)
    gradient(*prepared(model_folders(architecture)))
    assert loaded.capabilities.facts() == facts


def test_the_plain_path_is_another_backend(model_folders):
    loaded = load_model(load_config(overrides=[f"model={model_folders('llama')}"]).model)
    assert type(backend_of(without(loaded, "cpu"))) is Backend
    assert backend_of(loaded).name == "cpu"


def test_a_deep_models_own_rounding_is_the_measure():
    """8 times what one rounding of the norms changes, up to 1 %, where the type's tolerance does not hold."""
    expected = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([100.0])}
    found = {"a": torch.tensor([1.0, -2.001]), "b": torch.tensor([100.0])}  # 5e-4 of the largest number of a
    assert differences(found.items(), expected) is not None
    moved = {"a": torch.tensor([1.0, -2.0002]), "b": torch.tensor([100.0])}  # 1e-4: 8e-4 is allowed
    assert differences(found.items(), expected, lambda: moved) is None
    little = {"a": torch.tensor([1.0, -2.0001]), "b": torch.tensor([100.0])}  # 5e-5: 4e-4
    assert differences(found.items(), expected, lambda: little) == "a differs by 0.001 from the plain path's"
    wild = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([100.0])}
    wrong = {"a": torch.tensor([1.0, -2.1]), "b": torch.tensor([100.0])}  # 5 %
    assert differences(wrong.items(), expected, lambda: wild) is not None
    lost = {"a": torch.tensor([float("nan"), -2.0]), "b": torch.tensor([100.0])}
    assert differences(lost.items(), expected, lambda: wild) is not None


def test_nudged_weights_come_back(model_folders):
    model = load_model(load_config(overrides=[f"model={model_folders('llama')}"]).model).model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with nudged(model):
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert changed == {name for name, parameter in before.items() if parameter.ndim == 1}
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
