"""The bundled vision-language checkpoint loads, stays small and sees; its pre-training can be repeated."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from random import Random

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from spinerl import tiny
from spinerl.tiny import training
from spinerl.tiny.vqa import pretrain
from spinerl.tiny.vqa.corpus import corpus, with_choices
from spinerl.tiny.vqa.pictures import COLOURS, SHAPES, Chart, Look, Scene, Thing, draw

FOLDER = tiny.model_path("tiny-vlm")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


def suite(name: str, n: int) -> tuple[list[str], list[Image.Image], list[str]]:
    """The first questions with their options, their pictures and their answers."""
    rows = [json.loads(line) for line in tiny.suite_path(name, "tiny-vqa").read_text("utf-8").splitlines()[:n]]
    gold = tiny.gold_path(name, "tiny-vqa").read_text("utf-8").splitlines()[:n]
    pictures = [Image.open(io.BytesIO(base64.b64decode(row["images"][0].partition(",")[2]))) for row in rows]
    questions = [with_choices(row["question"], row.get("choices", ())) for row in rows]
    return questions, pictures, [json.loads(line)["answer"] for line in gold]


def prompt(processor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_checkpoint_is_a_small_float32_idefics3(model) -> None:
    assert model.config.model_type == "idefics3"
    assert model.config.spinerl_profile == "tiny-vlm"
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.num_parameters() <= 1_500_000
    assert model.generation_config.eos_token_id == training.END_ID
    assert (FOLDER / "model.safetensors").stat().st_size <= 6_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_500_000


def test_chat_template_takes_text_and_parts(processor) -> None:
    assert prompt(processor, "How many?") == "<|user|><image>How many?<|assistant|>"
    plain = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "<image>How many?"}]
    assert processor.apply_chat_template(plain, add_generation_prompt=True) == prompt(processor, "How many?")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert text == prompt(processor, "How many?")
    answered = [*plain, {"role": "assistant", "content": "\\boxed{7}"}]
    assert processor.apply_chat_template(answered) == "<|user|><image>How many?<|assistant|>\\boxed{7}<|end|>"


def test_tokenizer_takes_any_text_and_splits_digits(processor, model) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer("Row 12: ünseen, 3. \\boxed{45}").input_ids
    assert tokenizer.decode(ids) == "Row 12: ünseen, 3. \\boxed{45}"
    assert [t for t in tokenizer.convert_ids_to_tokens(ids) if re.search(r"\d", t)] == list("12345")
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (training.PAD_ID, training.END_ID)


def test_pretraining_sees_pixels_and_prompts_as_the_processor_gives_them(processor) -> None:
    documents = list(itertools.islice(corpus(11), 12))
    pictures = [[Image.fromarray(document.picture.rgb())] for document in documents]
    texts = [prompt(processor, document.question) for document in documents]
    batch = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
    assert torch.equal(batch.pixel_values, pretrain.pixel_values(document.picture for document in documents))
    assert batch.pixel_attention_mask.all()
    for ids, attended, document in zip(batch.input_ids, batch.attention_mask, documents, strict=True):
        written = pretrain.prompt_text(document.question)
        assert ids[attended.bool()].tolist() == processor.tokenizer(written).input_ids


def test_questions_stacked_give_the_logits_of_each_by_itself(processor, model) -> None:
    questions, pictures, _ = suite("shift-dev", 6)
    texts = [prompt(processor, question) for question in questions]
    processor.tokenizer.padding_side = "right"
    stacked = processor(text=texts, images=[[p] for p in pictures], return_tensors="pt", padding=True)
    with torch.no_grad():
        together = model(**stacked).logits
        for row, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
            single = model(**processor(text=text, images=picture, return_tensors="pt")).logits[0]
            torch.testing.assert_close(together[row, : len(single)], single, atol=2e-4, rtol=1e-4)
    processor.tokenizer.padding_side = "left"


def test_sees_what_is_asked_greedily(processor, model) -> None:
    questions, pictures, gold = suite("in-domain", 48)
    texts = [prompt(processor, question) for question in questions]
    batch = processor(text=texts, images=[[p] for p in pictures], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(**batch, max_new_tokens=64, do_sample=False)
    responses = processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [response.endswith(f"\\boxed{{{answer}}}") for response, answer in zip(responses, gold, strict=True)]
    assert sum(right) >= 20


def test_pretraining_twice_gives_the_same_weights(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(pretrain, "EYES_STEPS", 3)
    for name in ("one", "two"):
        out = str(tmp_path / name)
        assert pretrain.main(["--out", out, "--seed", "3", "--steps", "2", "--threads", "1"]) == 0
    assert "step 2/2" in capsys.readouterr().out
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in FOLDER.iterdir()}
    assert pretrain.main(["--out", str(tmp_path / "three"), "--steps", "0"]) == 2


def test_what_eyes_are_taught_by_hand() -> None:
    red, small = Thing("ring", "red"), Thing("square", "blue", small=True)
    scene = Scene((red, None, None, None, small, None, None, None, None))
    shapes, colours, sizes, heights = pretrain.cells_of(scene)
    assert shapes == [1 + SHAPES.index("ring"), 0, 0, 0, 1 + SHAPES.index("square"), 0, 0, 0, 0]
    assert colours == [1 + COLOURS.index("red"), 0, 0, 0, 1 + COLOURS.index("blue"), 0, 0, 0, 0]
    assert sizes == [0, -1, -1, -1, 1, -1, -1, -1, -1]
    assert heights == [-1] * 9
    chart = Chart((("red", 4), ("blue", 7)))
    shapes, colours, sizes, heights = pretrain.cells_of(chart)
    assert shapes == sizes == [-1] * 9
    assert colours == [1 + COLOURS.index("red"), 1 + COLOURS.index("blue"), 0] * 3
    assert heights == [4, 7, 0] * 3
    # A square of 14 pixels, one off the middle at most, covers the inner four of its cell's 16 blocks in any case.
    picture = draw(Random(0), Scene((Thing("square", "red"), *[None] * 8)), Look(sizes=(14, 14)))
    blocks = pretrain.blocks_of(picture)
    assert blocks.shape == (9, 16)
    assert {int(blocks[0][place]) for place in (5, 6, 9, 10)} == {1 + COLOURS.index("red")}
    assert not blocks[1:].any()


@pytest.mark.slow
def test_eyes_open_in_a_few_steps() -> None:
    model = pretrain.new_model(0, 5)
    threads = torch.get_num_threads()
    shape, colour, _, height = pretrain.open_eyes(model, 0, 120)
    assert torch.get_num_threads() == threads
    assert shape > 0.6  # a guess is right in half the cells, which are empty
    assert colour > 0.85
    assert height > 0.5
