"""A model that is written as a GGUF file and read again is the same model; what would not be is not written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("gguf", reason="GGUF files need the extra spinerl[gguf]")

import gguf
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from spinerl.config import load_config
from spinerl.errors import InputError
from spinerl.models.gguf_header import read_header
from spinerl.models.gguf_writer import ARCHITECTURES, export_gguf, kind_of_weights
from spinerl.models.loading import load_model
from tests.faults.commands import run_command
from tests.gguf_files import MERGES, TEXTS, greedy, merging_tokenizer, opened, write_gguf
from tests.models import write_model


def changed(loaded, **settings):
    """The same model with other settings."""
    for key, value in settings.items():
        setattr(loaded.model.config, key, value)
    return loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_is_read_as_the_same_model(gguf_folders, architecture, tmp_path):
    expected = opened(gguf_folders(architecture))
    written = export_gguf(expected, tmp_path / "model.gguf", "f32", "mine", {"license": "mit"})
    assert written.size == (tmp_path / "model.gguf").stat().st_size
    assert [("(NFC)" in note) for note in written.notes] == [True] * (architecture == "qwen2")  # its tokenizer's own
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    found = opened(tmp_path / "model.gguf")
    assert greedy(found) == greedy(expected)
    assert set(found.end_ids) == set(expected.end_ids)
    assert found.pad_id == expected.pad_id
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(found.model.get_parameter(name), parameter), name
    for text in TEXTS:
        assert found.tokenizer(text).input_ids == expected.tokenizer(text).input_ids
    assert found.tokenizer.chat_template == expected.tokenizer.chat_template
    fields = read_header(tmp_path / "model.gguf").fields
    assert (fields["general.name"], fields["general.license"]) == ("mine", "mit")
    if architecture == "qwen3":  # transformers does not read the size of its heads
        return
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)  # on its own
    plain = torch.tensor([[3, 40, 50, 60, 70]])
    assert torch.equal(again(plain).logits, expected.model(plain).logits)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_tensors_are_those_that_llama_cpp_s_converter_writes(gguf_folders, architecture, tmp_path):
    """As tests/gguf_files.py has them, which permutes by its own formula."""
    export_gguf(opened(gguf_folders(architecture)), tmp_path / "a.gguf", "f32", "x")
    write_gguf(gguf_folders(architecture), tmp_path / "b.gguf")
    ours, theirs = (
        {one.name: one for one in gguf.GGUFReader(tmp_path / name).tensors} for name in ("a.gguf", "b.gguf")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert np.array_equal(tensor.data, theirs[name].data), name
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_every_type_holds_what_its_blocks_can(gguf_folders, tmp_path, kind):
    source = opened(gguf_folders("llama"))
    export_gguf(source, tmp_path / "model.gguf", kind, "x")
    found = opened(tmp_path / "model.gguf")
    for name, parameter in source.model.named_parameters():
        values, expected = found.model.get_parameter(name), parameter.detach()
        if expected.ndim > 1 and kind == "q8_0":
            blocks = gguf.quants.quantize(expected.numpy(), gguf.GGMLQuantizationType.Q8_0)
            assert (values - expected).abs().max() < expected.abs().max() / 100
            if not name.endswith(("q_proj.weight", "k_proj.weight")):  # whose rows are in another order there
                assert np.array_equal(
                    values.detach().numpy(), gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
                )
        elif expected.ndim > 1:
            dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
            assert torch.equal(values, expected.to(dtype).float()), name
        else:
            assert torch.equal(values, expected), name


def test_weights_in_bfloat16_come_back_in_every_bit(tmp_path):
    write_model("qwen3", tmp_path / "model", dtype=torch.bfloat16)
    merging_tokenizer().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(len(merging_tokenizer()), mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    source = opened(tmp_path / "model", "model.dtype=bfloat16")
    export_gguf(source, tmp_path / "model.gguf", kind_of_weights("bfloat16"), "x")
    found = opened(tmp_path / "model.gguf", "model.dtype=bfloat16")
    for name, parameter in source.model.named_parameters():
        assert torch.equal(found.model.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_positions_come_back(gguf_folders, tmp_path, rope):
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(gguf_folders("llama"))
    model.config.rope_parameters = rope
    model.save_pretrained(folder)
    merging_tokenizer().save_pretrained(folder)
    source = opened(folder)
    export_gguf(source, tmp_path / "model.gguf", "f32", "x")
    found = opened(tmp_path / "model.gguf")
    assert {key: found.model.config.rope_parameters[key] for key in rope} == rope
    assert torch.equal(found.model.model.rotary_emb.inv_freq, source.model.model.rotary_emb.inv_freq)
    assert greedy(found) == greedy(source)


def tokenizer(pre_tokenizer, *, normalizer=None, adds=None, ignore_merges=False, **marks) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens, which splits texts so."""
    vocab = dict(merging_tokenizer().get_vocab())
    core = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, ignore_merges=ignore_merges))
    core.pre_tokenizer, core.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    if adds is not None:
        core.post_processor = processors.TemplateProcessing(
            single=adds, special_tokens=[(token, vocab[token]) for token in ("<|user|>", "<|end|>")]
        )
    specials = ["<|user|>", "<|assistant|>", "<|system|>", "<|im_end|>"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=specials,
        **({"bos_token": "<|user|>"} if adds else {}),
    )  # fmt: skip
    if marks:
        from tokenizers import AddedToken

        made.add_tokens([AddedToken("the", **marks)])
    return made


def split(kind, **options):
    way = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[kind]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer(way, **options)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("made", "name", "note"),
    [
        (lambda: tokenizer(BYTES), "gpt-2", None),
        (lambda: tokenizer(BYTES, adds="<|user|> $A"), "gpt-2", None),
        (lambda: split("qwen2", normalizer=normalizers.NFC()), "qwen2", "composes letters and accents (NFC)"),
        (lambda: split("llama-bpe", ignore_merges=True), "llama-bpe", None),
        (lambda: split("tekken"), "tekken", None),
        (lambda: split("gpt-4o"), "gpt-4o", None),
    ],
    ids=["gpt-2", "first token", "qwen2", "llama-bpe", "tekken", "gpt-4o"],
)
def test_vocabularies_whose_way_to_split_has_a_name_come_back(gguf_folders, tmp_path, made, name, note):
    source = dataclasses.replace(opened(gguf_folders("qwen3")), tokenizer=made())
    written = export_gguf(source, tmp_path / "model.gguf", "f32", "x")
    assert [note in one for one in written.notes] == ([True] if note else [])
    assert read_header(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"] == name
    read = opened(tmp_path / "model.gguf").tokenizer
    for text in (*TEXTS, "I'LL say 12345 <|im_end|>\n\n x"):
        assert read(text).input_ids == source.tokenizer(text).input_ids
        assert read.decode(read(text, add_special_tokens=False).input_ids) == text
    if name == "llama-bpe":  # a word that is a token is one, whatever the merges
        source.tokenizer.backend_tokenizer.model.ignore_merges = False
        assert read.backend_tokenizer.model.ignore_merges


REFUSED = {
    "another architecture": ("gemma2", None, "architecture gemma2 is not written here (llama, qwen2, qwen3 are)"),
    "another activation": ("llama", lambda one: changed(one, hidden_act="gelu"), "its hidden_act='gelu' would be read"),
    "heads of a size of their own": (
        "qwen2",
        lambda one: changed(one, head_dim=16),
        "(head_dim=16), which a qwen2 file",
    ),
    "windows": ("qwen2", lambda one: changed(one, layer_types=["sliding_attention"] * 2), "its layer_types="),
    "other positions": (
        "llama",
        lambda one: changed(one, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "(rope_type=dynamic)",
    ),
    "a way to split of its own": (
        "llama",
        lambda one: dataclasses.replace(one, tokenizer=tokenizer(pre_tokenizers.ByteLevel(use_regex=False))),
        "splits texts in a way that has no name there",
    ),
    "a normalizer": (
        "llama",
        lambda one: dataclasses.replace(one, tokenizer=tokenizer(BYTES, normalizer=normalizers.Lowercase())),
        "changes texts before it splits them",
    ),
    "a token with spaces": (
        "llama",
        lambda one: dataclasses.replace(one, tokenizer=tokenizer(BYTES, lstrip=True)),
        "its token 'the' takes the spaces around it with it",
    ),
    "a last token": (
        "llama",
        lambda one: dataclasses.replace(one, tokenizer=tokenizer(BYTES, adds="$A <|end|>")),
        "its tokenizer would split '' otherwise",
    ),
    "several templates": (
        "llama",
        lambda one: setattr(one.tokenizer, "chat_template", {"default": "x", "rag": "y"}) or one,
        "it has several chat templates",
    ),
    "many ends": (
        "llama",
        lambda one: dataclasses.replace(one, end_ids=(1, 40, 50, 60)),
        "responses end at more tokens than the format has places for ([60])",
    ),
    "no bytes": (
        "llama",
        lambda one: dataclasses.replace(one, tokenizer=_words()),
        "is not a byte-level BPE",
    ),
}


def _words() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_come_back_is_not_written(gguf_folders, tmp_path, case):
    architecture, change, line = REFUSED[case]
    source = opened(gguf_folders(architecture))
    source = change(source) if change is not None else source
    with pytest.raises(InputError) as refused:
        export_gguf(source, tmp_path / "model.gguf", "f32", "x")
    assert line in str(refused.value)
    assert "llama.cpp's own converter may" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_values_beyond_a_type_are_refused(gguf_folders, tmp_path):
    source = opened(gguf_folders("llama"))
    with torch.no_grad():
        source.model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"--type f16 cannot hold the values of blk\.1\.ffn_down\.weight"):
        export_gguf(source, tmp_path / "model.gguf", "f16", "x")
    assert not list(tmp_path.iterdir())


def test_more_rows_than_tokens_are_filled_up(gguf_folders, tmp_path):
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(gguf_folders("qwen2"))
    tokens = merging_tokenizer()
    model.resize_token_embeddings(len(tokens) + 5, mean_resizing=False)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    source = opened(folder)
    export_gguf(source, tmp_path / "model.gguf", "f32", "x")
    header = read_header(tmp_path / "model.gguf")
    assert len(header.tokens) == header.tensors["token_embd.weight"].shape[0] == len(tokens) + 5
    (found, _), (expected, _) = greedy(opened(tmp_path / "model.gguf")), greedy(source)
    assert found == expected  # texts may differ: the file has names for the rows beyond the tokens


def test_the_command_writes_adapters_added_in_and_refuses_in_one_line(gguf_folders, tmp_path, capsys):
    pytest.importorskip("peft")
    keys = [
        "data=tiny/shift-a", "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=1", "threads=1",
        "rollout.max_new_tokens=6", "eval.samples=0", "guard=off", "answer.truncated=count", "optim.lr=1e-2",
    ]  # fmt: skip
    run = tmp_path / "run"
    code, printed = run_command(["adapt", f"model={gguf_folders('llama')}", *keys, "lora.rank=2", f"run={run}"], capsys)
    assert code == 0, printed
    code, printed = run_command(["export", "gguf", run, "--out", tmp_path / "run.gguf"], capsys)
    assert code == 0, printed
    assert "run.gguf: f32, " in printed
    assert greedy(opened(tmp_path / "run.gguf")) == greedy(load_model(load_config(overrides=[f"model={run}"]).model))
    for arguments, line in (
        (["tiny-reasoner", "--out", tmp_path / "x.gguf"], "splits texts in a way that has no name there"),
        ([run, "--out", tmp_path / "run.gguf"], "run.gguf exists; name a new file"),
        ([run, "--out", tmp_path / "x.gguf", "--type", "q8"], 'is unknown (did you mean "q8_0"?); allowed: f32'),
        ([run, "--out", tmp_path / "none" / "x.gguf"], "its folder does not exist"),
    ):
        code, printed = run_command(["export", "gguf", *arguments], capsys)
        assert code == 2, printed
        assert line in printed
        assert len(printed) < 500
