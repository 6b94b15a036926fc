"""What is broken in a model's folder is named in one line, runs nothing, writes nothing and touches nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spinerl.comparison.forcing import forced_responses
from spinerl.config import RolloutConfig, load_config
from spinerl.data import resolve
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.errors import InputError
from spinerl.models.adapters import add_adapters, save_adapters
from spinerl.models.context import fit, limits_within
from spinerl.models.loading import load_model
from spinerl.runs import RunFolder
from spinerl.tiny import model_path
from spinerl.types import Question
from spinerl.workload import open_workload
from tests.faults.test_run_folder import contents, run_command
from tests.models import write_model

KEYS = [
    "data=tiny/shift-a", "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=1", "threads=1",
    "rollout.max_new_tokens=12", "answer.truncated=count", "guard=off", "eval.samples=0", "checkpoint.every=0",
]  # fmt: skip

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3411696\n"


class Payload:
    """A pickle that writes a file when it is read."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def witness(folder: Path) -> Path:
    """What a pickle in the folder would make."""
    return folder.parent / "the-pickle-ran"


def pickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({"lm_head.weight": Payload(witness(folder))}))


def read(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is about to be written again: none of them is a view of it."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def weights(folder: Path, change, name: str = WEIGHTS) -> None:
    """Write the folder's tensors again, changed in place by `change`."""
    tensors = read(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def drop(*names: str, file: str = WEIGHTS):
    def damage(folder: Path) -> None:
        weights(folder, lambda tensors: [tensors.pop(name) for name in names], file)

    return damage


def settings(file: str = "config.json", part: str | None = None, **changes):
    """Damage: these keys of a JSON file are changed (None: removed)."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        inside = found if part is None else found[part]
        for key, value in changes.items():
            inside.pop(key, None)
            if value is not None:
                inside[key] = value
        (folder / file).write_text(json.dumps(found))

    return damage


def holds(name: str, data: bytes | str):
    """Damage: a file with this in it."""
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def lacks(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def index(*shards: str, then=None):
    """Damage: an index over these shards in place of the one file, which is the first of them."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / shards[0])
        names = sorted(load_file(folder / shards[0]))
        found = {name: shards[i % len(shards)] for i, name in enumerate(names)}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": found}))
        if then is not None:
            then(folder)

    return damage


def both(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def fill(name: str, value: float):
    return lambda folder: weights(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(value))


def cut(name: str, size: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def more_tokens(folder: Path) -> None:
    """The tokenizer has words that the embeddings have no rows for."""
    found = json.loads((folder / "tokenizer.json").read_text())
    size = len(found["model"]["vocab"])
    found["model"]["vocab"] |= {f"word{i}": size + i for i in range(8)}
    (folder / "tokenizer.json").write_text(json.dumps(found))


LAYER = "model.layers.2.mlp.up_proj.weight"
OTHERS = "config.json and weights are of different models"

# (what is done to a copy of the bundled model, what the line says)
MODELS = {
    "a weight is missing": (drop(LAYER), f"the weights lack 1 tensor: {LAYER};"),
    "the embeddings are missing": (drop("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "a layer is missing": (
        lambda f: weights(f, lambda t: [t.pop(n) for n in list(t) if n.startswith("model.layers.3.")]),
        "the weights lack 11 tensors: model.layers.3.input_layernorm.weight, model.layers.3.mlp.down_proj.weight, "
        "model.layers.3.mlp.gate_proj.weight, ...",
    ),
    "a shape is another": (
        lambda f: weights(f, lambda t: t.update({LAYER: torch.zeros(384, 64)})),
        f"1 tensor of the weights has another shape than config.json describes: {LAYER} is 384 x 64, not 384 x 128",
    ),
    "more layers than described": (
        settings(num_hidden_layers=3, layer_types=None),
        "that config.json does not describe",
    ),
    "a bias that is not described": (
        lambda f: weights(f, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)})),
        f"the weights hold 1 tensor that config.json does not describe: model.layers.0.self_attn.q_proj.bias; {OTHERS}",
    ),
    "weights are cut": (cut(WEIGHTS, 100_000), f"{WEIGHTS} cannot be read: damaged"),
    "weights are cut in the header": (cut(WEIGHTS, 100), f"{WEIGHTS} cannot be read: damaged"),
    "weights are empty": (holds(WEIGHTS, b""), f"{WEIGHTS} cannot be read: it is empty"),
    "weights are noise": (holds(WEIGHTS, bytes(range(7, 256)) * 9), f"{WEIGHTS} cannot be read: damaged"),
    "a header without an end": (holds(WEIGHTS, b"\xff" * 8 + b"{"), f"{WEIGHTS} cannot be read: damaged"),
    "weights are a pointer of git-lfs": (holds(WEIGHTS, LFS), "run `git lfs pull` in its folder"),
    "weights are a pickle": (lambda f: pickled(f, WEIGHTS), f"{WEIGHTS} cannot be read: it is a pickle"),
    "weights are torch's format": (
        lambda f: torch.save(read(f / WEIGHTS), f / WEIGHTS),
        f"{WEIGHTS} cannot be read: it is a pickle",
    ),
    "weights are gone": (lacks(WEIGHTS), "no model.safetensors (only safetensors weights are read"),
    "only a pickle": (
        both(lacks(WEIGHTS), lambda f: pickled(f, "pytorch_model.bin")),
        "no model.safetensors, only pytorch_model.bin (only safetensors weights are read: pickles can run code)",
    ),
    "an index names a pickle": (
        index("model-1.safetensors", "model-2.bin", then=lambda f: pickled(f, "model-2.bin")),
        f"{INDEX} names model-2.bin; only safetensors weights are read",
    ),
    "an index names pickles only": (
        both(index("m.safetensors"), holds(INDEX, '{"weight_map": {"a": "x.bin"}}'), lambda f: pickled(f, "x.bin")),
        f"{INDEX} names x.bin; only safetensors",
    ),
    "a shard is missing": (
        index("model-1.safetensors", "model-2.safetensors"),
        f"{INDEX} names model-2.safetensors, which is missing",
    ),
    "a shard is a pickle": (
        index("model-1.safetensors", "model-2.safetensors", then=lambda f: pickled(f, "model-2.safetensors")),
        "model-2.safetensors cannot be read: it is a pickle",
    ),
    "a shard lies elsewhere": (index("model-1.safetensors", "../model-2.safetensors"), "outside of the model's folder"),
    "a shard lies at the root": (index("model-1.safetensors", "/tmp/x.safetensors"), "outside of the model's folder"),
    "an index is half": (
        both(index("model-1.safetensors"), holds(INDEX, '{"weight_map": {')),
        f"{INDEX} cannot be read",
    ),
    "an index is a list": (both(index("model-1.safetensors"), holds(INDEX, "[1]")), "it holds list, not an object"),
    "an index without a map": (both(index("model-1.safetensors"), holds(INDEX, "{}")), f"{INDEX}: no `weight_map`"),
    "config.json names a pickle": (
        both(settings(transformers_weights="adapter_model.bin"), lambda f: pickled(f, "adapter_model.bin")),
        "config.json names adapter_model.bin; only safetensors weights are read",
    ),
    "NaN": (fill(LAYER, float("nan")), f"NaN or infinite numbers in 1 of its weights: {LAYER};"),
    "infinite": (
        fill("model.norm.weight", float("-inf")),
        "NaN or infinite numbers in 1 of its weights: model.norm.weight",
    ),
    "wide beyond memory": (settings(hidden_size=10**9), "Embedding.weight is 499 x 1000000000;"),
    "wide beyond numbers": (
        settings(hidden_size=10**18),
        "could not be loaded: RuntimeError: Storage size",
    ),
    "a vocabulary beyond memory": (settings(vocab_size=10**10), "Embedding.weight is 10000000000 x 128;"),
    "a million layers": (
        settings(num_hidden_layers=10**6, layer_types=None),
        "num_hidden_layers=1000000, and the weights hold only 46 tensors",
    ),
    "a trillion layers": (settings(num_hidden_layers=10**12, layer_types=None), "num_hidden_layers=1000000000000"),
    "two layers more": (settings(num_hidden_layers=6, layer_types=None), "the weights lack 22 tensors"),
    "no heads": (settings(num_attention_heads=0), "num_attention_heads=0 is not a whole number over 0"),
    "negative width": (settings(hidden_size=-128), "hidden_size=-128 is not a whole number over 0"),
    "no vocabulary": (settings(vocab_size=0), "vocab_size=0 is not a whole number over 0"),
    "half a layer": (settings(num_hidden_layers=3.5), "num_hidden_layers=3.5 is not a whole number over 0"),
    "a width in words": (settings(hidden_size="wide"), "hidden_size='wide' is not a whole number over 0"),
    "a context of nothing": (settings(max_position_embeddings=0), "max_position_embeddings=0 is not a whole number"),
    "heads that do not share": (settings(num_attention_heads=3), "another shape than config.json describes"),
    "a smaller vocabulary": (settings(vocab_size=200), "is 499 x 128, not 200 x 128"),
    "another architecture": (
        settings(model_type="gpt2"),
        "the weights lack 53 tensors: lm_head.weight, transformer.h.0",
    ),
    "an unknown architecture": (settings(model_type="hal9000"), "hal9000"),
    "no architecture": (settings(model_type=None), "Should have a `model_type` key in its config.json"),
    "an unknown activation": (settings(hidden_act="tanhx"), "KeyError: 'tanhx'"),
    "a strange type": (settings(dtype="float99"), "float99"),
    "config.json is empty": (holds("config.json", b""), "config.json cannot be read: it is empty"),
    "config.json is half": (cut("config.json", 200), "config.json cannot be read: it is no JSON (Unterminated string"),
    "config.json is a list": (holds("config.json", "[]"), "config.json cannot be read: it is no JSON (it holds list"),
    "config.json is binary": (holds("config.json", b"\xff\xfe\0"), "config.json cannot be read"),
    "config.json is deep": (holds("config.json", '{"a":' * 100_000), "config.json cannot be read"),
    "code of its own": (
        both(
            settings(auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, model_type="own"),
            holds("own.py", "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"),
        ),
        "model.trust_remote_code=true",
    ),
    "no tokenizer": (lacks("tokenizer.json", "tokenizer_config.json"), "it has no tokenizer.json, and no tokenizer"),
    "no tokenizer.json": (lacks("tokenizer.json"), "it has no tokenizer.json, and no tokenizer"),
    "tokenizer.json is half": (cut("tokenizer.json", 9000), "tokenizer.json cannot be read: it is no JSON"),
    "tokenizer.json is empty": (holds("tokenizer.json", b""), "tokenizer.json: it is empty"),
    "tokenizer.json is a pointer": (holds("tokenizer.json", LFS), "tokenizer.json: it is a pointer of git-lfs"),
    "tokenizer.json of something": (holds("tokenizer.json", '{"a": 1}'), "its tokenizer could not be loaded: KeyError"),
    "tokenizer_config.json is half": (
        cut("tokenizer_config.json", 100),
        "tokenizer_config.json cannot be read: it is no",
    ),
    "a tokenizer of another model": (
        more_tokens,
        "its embeddings have 499 rows, and its tokenizer 507 tokens: 8 cannot",
    ),
    "an end that never comes": (
        both(
            settings("generation_config.json", eos_token_id=[900, 901]),
            settings("tokenizer_config.json", eos_token=None),
        ),
        "none has the eos_token_id 900, 901; correct generation_config.json",
    ),
    "a chat template of something": (holds("chat_template.jinja", "{% for m in %}"), "chat template"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(model_path(), tmp_path / "model"))


def refused(folder: Path, line: str, capsys, *command) -> None:
    """The command fails with code 2 and a line; the model is as it was, nothing ran, nothing was written."""
    before = contents(folder)
    around = sorted(folder.parent.iterdir())
    code, printed = run_command(command, capsys)
    assert (code, line in printed) == (2, True), printed
    assert printed.count("spinerl: ") == 1, printed
    assert "Traceback" not in printed
    assert len(printed) < 1000, printed
    assert contents(folder) == before
    assert sorted(folder.parent.iterdir()) == around


@pytest.mark.parametrize("case", MODELS)
def test_a_broken_model_is_refused_in_a_line(folder, tmp_path, capsys, case):
    damage, line = MODELS[case]
    damage(folder)
    refused(folder, line, capsys, "adapt", f"model={folder}", f"run={tmp_path / 'run'}", *KEYS)


COMMANDS = {
    "eval": lambda f: ["eval", f, "tiny/shift-a", "data.max_questions=2", "eval.samples=0"],
    "preflight": lambda f: ["preflight", f, "tiny/shift-a", "guard.preflight_questions=2"],
    "doctor": lambda f: ["doctor", f],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ["a weight is missing", "an index names a pickle", "NaN", "a million layers"])
def test_whatever_opens_it_refuses_it(folder, capsys, command, case):
    damage, line = MODELS[case]
    damage(folder)
    refused(folder, line, capsys, *COMMANDS[command](folder))


VISION = {
    "a weight of the vision part is missing": (
        lambda f: weights(f, lambda t: t.pop(next(n for n in sorted(t) if "vision_model" in n))),
        "the weights lack 1 tensor: model.vision_model",
    ),
    "a weight of the decoder is missing": (
        lambda f: weights(f, lambda t: t.pop(next(n for n in sorted(t) if "text_model.layers.1" in n))),
        "the weights lack 1 tensor: model.text_model.layers.1",
    ),
    "a million layers in the vision part": (settings(part="vision_config", num_hidden_layers=10**6), "=1000000, and"),
    "a wide decoder": (settings(part="text_config", hidden_size=10**9), "config.json describes a model far larger"),
    "no processor": (lacks("processor_config.json"), "its processor could not be loaded"),
    "processor_config.json is half": (cut("processor_config.json", 90), "processor_config.json cannot be read"),
    "NaN in the vision part": (
        lambda f: weights(f, lambda t: t[next(n for n in sorted(t) if "vision_model" in n)].fill_(float("nan"))),
        "NaN or infinite numbers in 1 of its weights: model.vision_model",
    ),
}


@pytest.mark.parametrize("case", VISION)
def test_a_broken_vision_language_model_is_refused_in_a_line(tmp_path, capsys, case):
    folder = Path(shutil.copytree(model_path("tiny-vlm"), tmp_path / "model"))
    damage, line = VISION[case]
    damage(folder)
    keys = [key for key in KEYS if not key.startswith("data=")]
    refused(folder, line, capsys, "adapt", f"model={folder}", f"run={tmp_path / 'run'}", "data=tiny-vqa/shift-a", *keys)


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="adapters need the extra spinerl[lora]"
)


def write_adapters(model: str | Path, folder: Path, seed: int = 0) -> Path:
    """Adapters of rank 4 that change what the model says."""
    config = load_config(overrides=[f"model={model}", "lora.rank=4"])
    loaded = load_model(config.model, config.engine)
    add_adapters(loaded.model, config.lora, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
    folder.mkdir(exist_ok=True)
    save_adapters(loaded.model, folder, str(model))
    return folder


@pytest.fixture(scope="module")
def some_adapters(tmp_path_factory) -> Path:
    return write_adapters("tiny-reasoner", tmp_path_factory.mktemp("made") / "adapters")


AW, AC = "adapter_model.safetensors", "adapter_config.json"
A, B = (f"base_model.model.model.layers.2.mlp.up_proj.lora_{side}.weight" for side in "AB")

# (what is done to a folder of adapters of the bundled model, what the line says)
ADAPTERS = {
    "their model is gone": (settings(AC, base_model_name_or_path="/no/model"), "belong to /no/model, which cannot be"),
    "their model is no model": (settings(AC, base_model_name_or_path="/"), "belong to /, which cannot be opened"),
    "no model is named": (
        settings(AC, base_model_name_or_path=None),
        "does not say which model its adapters belong to",
    ),
    "a number for a model": (
        settings(AC, base_model_name_or_path=7),
        "does not say which model its adapters belong to",
    ),
    "adapter_config.json is half": (cut(AC, 60), f"{AC} cannot be read"),
    "adapter_config.json is empty": (holds(AC, ""), f"{AC} cannot be read: it is empty"),
    "adapter_config.json is a list": (holds(AC, "[3]"), f"{AC} cannot be read: it is no JSON (it holds list"),
    "they belong to themselves": (
        lambda f: settings(AC, base_model_name_or_path=str(f))(f),
        "name themselves as their model",
    ),
    "of another architecture": (settings(AC, base_model_name_or_path="GPT2"), "do not fit the model they name"),
    "of a wider model": (
        lambda f: weights(f, lambda t: t.update({A: torch.zeros(4, 256)}), AW),
        "do not fit the model they name (tiny-reasoner)",
    ),
    "of a deeper model": (
        lambda f: weights(f, lambda t: t.update({A.replace("layers.2", "layers.9"): torch.zeros(4, 128)}), AW),
        "it has no place for 1 of their weights",
    ),
    "a weight is missing": (drop(A, file=AW), f"lack 1 of their weights: {A}; copy them again"),
    "all weights are missing": (lambda f: weights(f, lambda t: t.clear(), AW), "no weight of the adapters"),
    "weights are gone": (lacks(AW), f"have no {AW}; save them again"),
    "a pickle": (
        both(lacks(AW), lambda f: pickled(f, "adapter_model.bin")),
        f"have no {AW}, only adapter_model.bin (only safetensors weights are read: pickles can run code)",
    ),
    "a pickle by another name": (lambda f: pickled(f, AW), f"{AW} cannot be read: it is a pickle"),
    "weights are cut": (cut(AW, 5000), f"{AW} cannot be read: damaged"),
    "weights are a pointer": (holds(AW, LFS), "run `git lfs pull`"),
    "NaN": (lambda f: weights(f, lambda t: t[B].fill_(float("nan")), AW), "hold NaN or infinite numbers"),
    "a model that is not on this machine": (
        settings(AC, base_model_name_or_path="org/no-model"),
        "belong to org/no-model: ",
    ),
    "a rank beyond memory": (settings(AC, r=10**9), "r=1000000000, and no weight of the adapters is as large as that"),
    "a rank of nothing": (settings(AC, r=0), "r=0, and no weight"),
    "of another kind": (settings(AC, peft_type="PREFIX_TUNING"), "are of type 'PREFIX_TUNING'; those read are LORA"),
    "of no kind": (settings(AC, peft_type=None), "are of type None"),
    "a module to import": (
        settings(AC, megatron_config={"a": 1}, megatron_core="antigravity"),
        "name a module to import",
    ),
    "layers that are not there": (settings(AC, target_modules=["nowhere"]), "do not fit the model they name"),
}


@needs_peft
@pytest.mark.parametrize("case", ADAPTERS)
def test_broken_adapters_are_refused_in_a_line(some_adapters, model_folders, tmp_path, capsys, case):
    damage, line = ADAPTERS[case]
    folder = Path(shutil.copytree(some_adapters, tmp_path / "adapters"))
    damage(folder)
    text = (folder / AC).read_text(errors="replace")
    if "GPT2" in text:
        (folder / AC).write_text(text.replace("GPT2", str(model_folders("gpt2"))))
    refused(folder, line, capsys, "adapt", f"model={folder}", f"run={tmp_path / 'run'}", *KEYS)


@needs_peft
def test_adapters_learn_on_as_a_whole_model_and_as_adapters_of_adapters(some_adapters, tmp_path, capsys):
    """Without lora.rank the merged model learns, all of it; with it, adapters that belong to adapters open again."""
    whole, more = tmp_path / "whole", tmp_path / "more"
    learning = ["optim.lr=1e-2", "method=spine", "band.weight=1"]
    code, printed = run_command(["adapt", f"model={some_adapters}", f"run={whole}", *KEYS, *learning], capsys)
    assert code == 0, printed
    first = load_model(load_config(overrides=[f"model={some_adapters}"]).model).model.state_dict()
    learned = load_model(load_config(overrides=[f"model={whole}"]).model).model.state_dict()
    assert sum(not torch.equal(first[name], learned[name]) for name in first) > 40
    code, printed = run_command(
        ["adapt", f"model={some_adapters}", f"run={more}", "lora.rank=2", *KEYS, *learning], capsys
    )
    assert code == 0, printed
    tensors = load_file(more / "model" / AW)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight".format
    added = 2 * tensors[name("B")] @ tensors[name("A")]
    assert added.abs().max() > 1e-3
    found = load_model(load_config(overrides=[f"model={more}"]).model).model.state_dict()
    own = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(found[own], first[own] + added, atol=1e-6)
    code, printed = run_command(["merge", more, "--out", tmp_path / "merged"], capsys)
    assert code == 0, printed
    merged = load_file(tmp_path / "merged" / WEIGHTS)
    assert torch.equal(merged[own], found[own])


def test_a_model_of_which_nothing_learns_is_refused():
    loaded = load_model(load_config().model)
    loaded.model.requires_grad_(False)
    with pytest.raises(InputError, match="no weight of the model learns"):
        Optimizer(loaded.model.parameters(), load_config().optim, 1)


def test_harmless_faults_are_no_reason_to_refuse(folder, capsys):
    """A pad token past the embeddings only fills rows up; tensors of a head that the model lacks are said, not read; of
    several end tokens those count that the model can write."""
    weights(folder, lambda tensors: tensors.update({"v_head.summary.weight": torch.zeros(1, 128)}))
    settings("generation_config.json", eos_token_id=[1, 900])(folder)
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"].append({
        "id": 499, "content": "<|new-pad|>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    })  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(found))
    settings("tokenizer_config.json", pad_token="<|new-pad|>")(folder)
    loaded = load_model(load_config(overrides=[f"model={folder}"]).model)
    assert (loaded.tokenizer.pad_token_id, loaded.pad_id, loaded.end_ids) == (499, 0, (1,))
    code, printed = run_command(["eval", folder, "tiny/shift-a", "data.max_questions=2", "threads=1"], capsys)
    assert code == 0, printed
    assert "1 tensor of the weights not used: v_head.summary.weight" in printed


# Weights and losses that stop being numbers.

STEPS = [*[key for key in KEYS if not key.startswith(("guard", "steps"))], "guard.every=1", "guard.questions=2",
         "guard.samples=2", "guard.no_go=0", "steps=4", "method=spine", "band.weight=1"]  # fmt: skip


def huge_rewards(vote):
    """Finite numbers whose gradient is not."""
    return [1e30 if i % 2 else -1e30 for i in range(len(vote.classes))]


# (keys, which step is blamed of those that were made, what for)
DIVERGED = {
    "a step beyond float32": (["optim.lr=1e38"], "in step {next}, the update left weights that are not finite"),
    "a learning rate beyond float32": (
        ["optim.lr=1e39"],
        "in step {next}, the update left weights that are not finite",
    ),
    "weights decay away": (
        ["optim.lr=1e30", "optim.weight_decay=0.1"],
        "in step {next}, the update left weights that are not finite",
    ),
    "logits are NaN": (["optim.lr=1e15"], "after step {done}, the model's logits are not finite numbers"),
    "huge rewards": (
        ["reward=tests.faults.test_models:huge_rewards", "advantage.scale=raw"],
        "in step {next}, the gradient norm is",
    ),
}


@pytest.mark.parametrize(
    ("case", "mode"),
    [*((case, "rollback") for case in DIVERGED), ("weights decay away", "off"), ("logits are NaN", "warn")],
)
def test_a_run_whose_numbers_are_finite_no_more_names_the_step(tmp_path, capsys, case, mode):
    """It fails, and writes no model; or the guard ends it with the best weights."""
    run = tmp_path / "run"
    keys, line = DIVERGED[case]
    code, printed = run_command(["adapt", f"run={run}", *STEPS, f"guard={mode}", *keys], capsys)
    done = len(RunFolder(run).rows("metrics.jsonl"))
    assert line.format(done=done, next=done + 1) in printed, printed
    if mode == "rollback":
        assert code == 0, printed
        guard = RunFolder(run).manifest["guard"]
        assert guard["rule"] == "diverged"
        assert f"guard: stopped after step {done} (diverged): " in printed
        assert json.loads((run / "best" / "step.json").read_text())["step"] == guard["kept_step"] <= done
        best, kept = (load_file(run / name / WEIGHTS) for name in ("best", "model"))
        assert all(torch.equal(kept[name], best[name]) for name in kept.keys() & best.keys())
        assert all(tensor.isfinite().all() for tensor in kept.values())
    else:
        assert code == 1, printed
        assert not (run / "model").exists()


def test_weights_after_a_good_step_come_back(tmp_path, capsys):
    """Rewards that are numbers in steps 1 and 2 only: the weights of a step that was good are kept."""
    run = tmp_path / "run"
    keys = [
        "reward=tests.faults.test_models:late_rewards",
        "advantage.scale=raw",
        "guard=rollback",
        "guard.tolerance=0.99",
    ]
    code, printed = run_command(["adapt", f"run={run}", *STEPS, "optim.lr=1e-4", *keys], capsys)
    assert code == 0, printed
    assert "(diverged): in step 3, the gradient norm is" in printed
    assert "The weights after step 2 were brought back" in printed
    kept, best = (load_file(run / name / WEIGHTS) for name in ("model", "best"))
    assert all(torch.equal(kept[name], best[name]) for name in kept.keys() & best.keys())
    assert any(not torch.equal(kept[name], tensor) for name, tensor in load_file(model_path() / WEIGHTS).items())


def late_rewards(vote, *, step):
    return huge_rewards(vote) if step > 2 else [float(i % 2) for i in range(len(vote.classes))]


# The context.


def small_context(architecture: str, folder: Path, context: int, **more) -> Path:
    """A tiny random model made for so many tokens."""
    write_model(architecture, folder)
    if architecture == "gpt2":
        weights(folder, lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"][:context].clone()}))
        settings(n_positions=context)(folder)
    else:
        settings(max_position_embeddings=context, **more)(folder)
    return folder


def asked(folder: Path, *lengths: int) -> Path:
    """A file of questions with texts of these lengths, of which the tokenizer makes a token per letter."""
    file = folder / "questions.jsonl"
    rows = [{"id": f"q{length}", "question": "x" * length, "answer": "1"} for length in lengths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


PLAIN = ['prompt.instruction=""', "threads=1", "eval.samples=0", "rollout.stop_at_next=false"]
AROUND = 3  # tokens of the template around a question


@pytest.mark.parametrize(
    ("command", "architecture"), [("adapt", "llama"), ("adapt", "gpt2"), ("eval", "gpt2"), ("preflight", "llama")]
)
def test_what_a_context_cannot_hold_is_said_before(tmp_path, capsys, command, architecture):
    """Of 64 tokens the prompts leave 51, 21 and 4; a quarter of 40 must be left.  Learned positions would crash."""
    folder = small_context(architecture, tmp_path / "model", 64)
    file = asked(tmp_path, 10, 40, 57)
    keys = [*PLAIN, "rollout.max_new_tokens=40", "group_size=2"]
    words = {
        "eval": ["eval", folder, file],
        "preflight": ["preflight", folder, file],
        "adapt": ["adapt", f"model={folder}", f"data={file}", f"run={tmp_path / 'r'}", "steps=1",
                  "questions_per_step=2", "guard=off", "answer.truncated=count"],
    }  # fmt: skip
    code, printed = run_command([*words[command], *keys], capsys)
    assert code == 0, printed
    assert "skipped 1 question: of the model's context of 64 tokens the prompt leaves fewer than 10" in printed
    assert "(q57)" in printed
    assert "the model's context has 64 tokens: the prompts of 1 of 2 questions leave 21 of them" in printed
    assert "rollout.max_new_tokens=40" in printed


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_responses_end_where_the_context_does(tmp_path, architecture):
    """Greedy ones and sampled ones, and an update of them: no position past the last."""
    loaded = load_model(load_config(overrides=[f"model={small_context(architecture, tmp_path / 'm', 32)}"]).model)
    loaded = replace(loaded, end_ids=())
    questions, prompts = (Question("a", "a"), Question("b", "b")), ((7,) * 20, (9,) * 31)
    rollout = RolloutConfig(max_new_tokens=16)
    for found in (
        sample_responses(loaded, questions, prompts, 3, rollout, ("c",)),
        greedy_responses(loaded, questions, prompts, rollout),
    ):
        lengths = found.mask.sum(dim=1).view(2, -1).tolist()
        assert {*lengths[0]} == {12}
        assert {*lengths[1]} == {1}
        assert not found.finished_mask.any()
    with pytest.raises(InputError, match="a prompt of 32 tokens leaves nothing for a response"):
        greedy_responses(loaded, questions[:1], ((7,) * 32,), rollout)


class OtherSampler:
    """Another sampler, which only takes down how many tokens it may sample."""

    def respond(self, *args):
        self.limits = list(args[6])


def test_another_sampler_is_given_no_more_than_the_context(tmp_path):
    loaded = load_model(load_config(overrides=[f"model={small_context('llama', tmp_path / 'm', 32)}"]).model)
    other = OtherSampler()
    loaded = replace(loaded, sampler=other)
    questions, prompts = (Question("a", "a"), Question("b", "b")), ((7,) * 20, (9,) * 31)
    for limits, given in ((None, [12, 1]), ([5, 5], [5, 1])):
        sample_responses(loaded, questions, prompts, 2, RolloutConfig(max_new_tokens=16), ("c",), limits=limits)
        assert other.limits == given
    greedy_responses(loaded, questions, prompts, RolloutConfig(max_new_tokens=16))
    assert other.limits == [12, 1]


def test_a_forced_budget_ends_with_the_context(tmp_path):
    """Learned positions: one token more would crash.  The answer keeps its tokens."""
    loaded = load_model(load_config(overrides=[f"model={small_context('gpt2', tmp_path / 'm', 64)}"]).model)
    ((_, _, num_tokens),) = forced_responses(
        loaded, (Question("a", "a"),), ((7,) * 20,), RolloutConfig(), 500, " Wait", " So", 5
    )
    assert 30 <= num_tokens <= 64 - 20 - 3


def test_prompts_that_all_fill_the_context_are_refused(tmp_path, capsys):
    folder, file = small_context("llama", tmp_path / "model", 64), asked(tmp_path, 58, 60)
    code, printed = run_command(["eval", folder, file, *PLAIN], capsys)
    assert code == 2
    assert "its context has 64 tokens, and the shortest of 2 prompts 61, which leaves fewer than 16" in printed
    assert "lower rollout.max_new_tokens=1024" in printed


ROPE = {"rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 64),
        ({"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}, 256),
        ({"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 32}}, 256),
        (
            {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 8}},
            64,
        ),
    ],
    ids=["none", "linear", "dynamic", "yarn", "llama3"],
)  # fmt: skip
def test_scaled_positions_are_counted_as_the_configuration_says(tmp_path, changes, context):
    folder = small_context("llama", tmp_path / "model", 64, **changes)
    assert load_model(load_config(overrides=[f"model={folder}"]).model).context == context


def test_a_sliding_window_is_no_limit(model_folders):
    loaded = load_model(load_config(overrides=[f"model={model_folders('mistral')}"]).model)
    assert loaded.model.config.sliding_window == 16
    assert loaded.context == 512


def test_image_tokens_count(tmp_path, capsys):
    """Prompts of the bundled vision-language model hold 9 tokens per picture."""
    folder = Path(shutil.copytree(model_path("tiny-vlm"), tmp_path / "model"))
    work = open_workload(resolve(load_config(overrides=[f"model={folder}", "data.max_questions=6", "threads=1"])))
    lengths = [len(prompt) for prompt in work.prompts]
    settings(part="text_config", max_position_embeddings=min(lengths) + 8)(folder)
    code, printed = run_command(
        ["eval", folder, "tiny-vqa/shift-a", "data.max_questions=6", "threads=1", "eval.samples=0",
         "rollout.max_new_tokens=8"], capsys,
    )  # fmt: skip
    assert code == 0, printed
    left_out = [q.id for q, length in zip(work.questions, lengths, strict=True) if min(lengths) + 8 - length < 2]
    assert ("skipped" in printed) == bool(left_out)
    assert all(name in printed for name in left_out)


def test_no_context_is_no_limit():
    assert fit([10**6], 1024, None) == (((0,), (), 1, None))
    assert limits_within(None, [(1,) * 10**4], [7]) == [7]
