"""The bundled checkpoint loads, stays small and solves questions; its pre-training can be repeated."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from spinerl import tiny
from spinerl.tiny import pretrain, training


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(tiny.model_path(), dtype=torch.float32).eval()


def test_checkpoint_is_a_small_float32_qwen3(model) -> None:
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() <= 2_000_000
    assert model.config.eos_token_id == training.END_ID
    assert (tiny.model_path() / "model.safetensors").stat().st_size <= 5_000_000
    assert sum(path.stat().st_size for path in tiny.model_path().iterdir()) <= 6_000_000


def test_chat_template_gives_the_prompt_of_pre_training(tokenizer) -> None:
    messages = [{"role": "user", "content": "What is 3+4?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>What is 3+4?<|assistant|>"
    with_answer = [*messages, {"role": "assistant", "content": "\\boxed{7}"}]
    assert tokenizer.apply_chat_template(with_answer, tokenize=False) == prompt + "\\boxed{7}<|end|>"
    assert tokenizer.eos_token == "<|end|>"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (training.PAD_ID, training.END_ID)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_tokenizer_takes_any_text(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < len(tokenizer) for token in ids)


def test_every_digit_is_a_token(tokenizer) -> None:
    tokens = tokenizer.tokenize("Tom has 1234 apples. 12+345=357. \\boxed{90}")
    assert [token for token in tokens if re.search(r"\d", token)] == list("12341234535790")


def test_solves_a_common_problem_greedily(model, tokenizer) -> None:
    questions = tiny.suite_path("in-domain").read_text("utf-8").splitlines()[:32]
    answers = tiny.gold_path("in-domain").read_text("utf-8").splitlines()[:32]
    gold = [json.loads(line)["answer"] for line in answers]
    chats = [[{"role": "user", "content": json.loads(line)["question"]}] for line in questions]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=96, do_sample=False)
    responses = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    pairs = zip(responses, gold, strict=True)
    assert sum(response.endswith(f"\\boxed{{{answer}}}") for response, answer in pairs) >= 12


def test_pretraining_twice_gives_the_same_weights(tmp_path, capsys) -> None:
    for name in ("one", "two"):
        out = str(tmp_path / name)
        assert pretrain.main(["--out", out, "--seed", "3", "--steps", "2", "--threads", "1"]) == 0
    assert "step 2/2" in capsys.readouterr().out
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert pretrain.main(["--out", str(tmp_path / "three"), "--steps", "0"]) == 2
