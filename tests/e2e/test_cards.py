"""The card of a saved model: what the hub reads of it, what it says, and that its snippets run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from spinerl.cards import adapted_card, base_license, hub_name, shown_name
from spinerl.config import ModelConfig, load_config, override
from spinerl.data import resolve
from spinerl.engine.sampler import greedy_responses
from spinerl.models.loading import load_model
from spinerl.recipes import split_args
from spinerl.runs import RunFolder
from spinerl.types import Question
from tests.commands import exit_code

SMALL = [
    "data.max_questions=2", "questions_per_step=2", "group_size=2", "steps=2", "threads=1", "rollout.max_new_tokens=6",
    "answer.truncated=count", "eval.samples=0", "optim.lr=1e-3", "guard.every=1", "guard.questions=2",
    "guard.samples=2", "guard.no_go=0", "prompt.instruction=Think & answer | `so`.",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two finished runs, `whole` and `lora`, and questions without answers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "own.jsonl").write_text('{"question": "What is 2 + 3?"}\n{"question": "What is 4 + 4?"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(["adapt", *SMALL, "run=whole"]) == 0
        assert exit_code(["adapt", *SMALL, "data=own.jsonl", "lora.rank=2", "guard=off", "run=lora"]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded():
    return load_model(load_config().model)


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def made(run: Path, loaded, **changed) -> str:
    """The card of a run with other words in its configuration or manifest."""
    folder = RunFolder(run)
    config, manifest = folder.config, folder.manifest
    for key, value in changed.items():
        if key in manifest:
            manifest[key] = value
        else:
            config = load_config(json.loads(config.model_dump_json()), [override(key.replace("__", "."), value)])
    return adapted_card(config, manifest, folder.rows("eval.jsonl"), 2, loaded)


def block(card: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)\n```", card, re.DOTALL)
    assert found is not None
    return found[1]


def test_what_the_hub_reads(runs):
    data = card_of(runs / "whole" / "model").data.to_dict()
    assert data == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["test-time-reinforcement-learning", "spinerl", "spine"],
    }
    data = card_of(runs / "lora" / "model").data.to_dict()
    assert (data["library_name"], data["tags"][-1]) == ("peft", "lora")


def test_the_figures_are_those_of_the_runs_files(runs):
    text = (runs / "whole" / "model" / "README.md").read_text()
    run = RunFolder(runs / "whole")
    kept = run.manifest["guard"]["kept_step"]
    for step in (0, kept):
        row = next(row for row in run.rows("eval.jsonl") if row["step"] == step)
        shown = " ".join(f"{100 * row[f'eval/pass@1{end}']:.1f}" for end in ("", "_low", "_high"))
        assert "{} % [{}, {}]".format(*shown.split()) in text
    assert "2 questions, 2 of them with a gold answer, which was used for these figures only" in text
    guard = run.manifest["guard"]["text"].removeprefix("guard: ")
    assert re.sub(r"\\(.)", r"\1", text).count(guard) == 1
    assert run.manifest["model"]["fingerprint"] in text
    assert f"torch {run.manifest['torch']}" in text
    assert "it says nothing about others" in text
    text = (runs / "lora" / "model" / "README.md").read_text()
    assert "2 questions, no gold answers: whether the model got better at them is not known." in text
    assert "These are LoRA adapters" in text
    assert "None watched this run (`guard.mode=off`)." in text


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        (2, "Those after the last of 2 steps."),
        (1, "Those after step 1 of 2, the best by the guard's"),
        (0, "Those of the unadapted model: after 2 steps the guard brought them back."),
    ],
)
def test_it_says_which_weights_these_are(runs, loaded, kept, line):
    guard = {"kept_step": kept, "rule": "lost", "text": "guard: stopped."}
    assert f"**Which weights.** {line}" in made(runs / "whole", loaded, guard=guard)


@pytest.mark.parametrize("name", ["whole", "lora"])
def test_its_command_is_the_runs_configuration(runs, monkeypatch, name):
    """Given again in the same folder, it resolves to what the run resolved to."""
    monkeypatch.chdir(runs)
    command = block((runs / name / "model" / "README.md").read_text(), "sh")
    words = shlex.split(command.replace("\\\n", ""))  # as a shell joins lines
    assert words[:2] == ["spinerl", "adapt"]
    found = resolve(load_config(*split_args(words[2:]))).model_dump()
    expected = RunFolder(runs / name).config.model_dump()
    for config in (found, expected):
        for key in ("run", "threads", "log", "checkpoint"):
            config.pop(key)
    if name == "lora":  # named by its last part, and the run's is absolute
        assert Path(expected["data"].pop("name")).name == found["data"].pop("name")
    assert found == expected


def greedy(model: str) -> str:
    config = load_config(overrides=[f"model={model}", *SMALL])
    loaded = load_model(config.model)
    from spinerl.data import render_prompt

    question = Question("q", "What is 12 + 30?")
    prompt = render_prompt(question, loaded.tokenizer, config.prompt, kind=config.answer.kind)
    return greedy_responses(loaded, [question], [prompt], config.rollout).texts[0]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft with this transformers
@pytest.mark.parametrize("name", ["whole", "lora"])
def test_its_program_runs_and_asks_as_the_run_did(runs, capfd, monkeypatch, name):
    folder = runs / name / "model"
    code = block((folder / "README.md").read_text(), "python")
    monkeypatch.chdir(folder)
    capfd.readouterr()
    exec(compile(code, "card", "exec"), {})
    assert capfd.readouterr().out.rstrip("\n") == greedy(str(runs / name))


def test_the_same_run_in_another_folder_has_the_same_card(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(["adapt", *SMALL, "run=other"]) == 0
    cards = [(folder / "model" / "README.md").read_bytes() for folder in (runs / "whole", tmp_path / "other")]
    assert cards[0] == cards[1]
    for secret in (str(tmp_path), str(Path.home())):
        assert secret not in cards[0].decode()


HOSTILE = "x'\"\n---\nlicense: mit\n</code><script>alert(1)</script> ``` | {{ 7*7 }} [a](javascript:b) \u202e\x1b[31m"


def test_texts_of_others_stay_texts(runs, loaded):
    ordinary = ModelCard(made(runs / "whole", loaded))
    guard = {"kept_step": 2, "rule": None, "text": HOSTILE}
    text = made(
        runs / "whole", loaded, guard=guard, model__name=HOSTILE, data__name=HOSTILE, prompt__instruction=HOSTILE,
        model={"fingerprint": HOSTILE, "license": {"license": HOSTILE}}, device=HOSTILE, torch=HOSTILE,
    )  # fmt: skip
    card = ModelCard(text)
    expected = ordinary.data.to_dict()
    del expected["license"]
    assert card.data.to_dict() == expected
    assert "\x1b" not in text
    assert "\u202e" not in text
    parsed = [MarkdownIt("commonmark").enable("table").parse(one.text) for one in (ordinary, card)]
    parts = [[token.type for token in tokens] for tokens in parsed]
    assert parts[0] == parts[1]  # as many headings, tables, blocks
    inside = {child.type for token in parsed[1] for child in token.children or ()}
    assert inside <= {"text", "code_inline", "strong_open", "strong_close", "softbreak"}


def test_names_of_models_and_data_on_the_hub_are_given_to_it(runs, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = made(runs / "whole", loaded, model__name="Qwen/Qwen3-0.6B", data__name="math-500")
    data = ModelCard(text).data
    assert (data.base_model, data.get("base_model_relation")) == ("Qwen/Qwen3-0.6B", "finetune")
    assert data.datasets == ["HuggingFaceH4/MATH-500"]
    text = made(runs / "lora", loaded, model__name="Qwen/Qwen3-0.6B", model__revision="abc")
    assert ModelCard(text).data.get("base_model_relation") == "adapter"
    assert ModelCard(text).data.datasets is None
    assert 'base = "Qwen/Qwen3-0.6B"\n' in text
    assert "from_pretrained(base, revision='abc')" in text
    Path("Qwen/Qwen3-0.6B").mkdir(parents=True)  # a folder of that name is what would be read
    assert hub_name(ModelConfig(name="Qwen/Qwen3-0.6B")) is None
    assert shown_name(str(tmp_path / "questions.jsonl")) == "questions.jsonl"


CARDS = {
    "mit": ("---\nlicense: MIT\n---\n# x", {"license": "mit"}),
    "other": (
        "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nx: 1\n---\n",
        {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
    ),
    "none": ("---\ntags: [a]\n---\n", {}),
    "no card": ("license: mit", {}),
    "no YAML": ("---\nlicense: [\n---\n", {}),
    "a tag": ("---\nlicense: !!python/name:os.system\n---\n", {}),
    "a list": ("---\nlicense: [mit]\n---\n", {}),
    "a text": ("---\nlicense: Do what you\n  like\n---\n", {}),
    "large": ("---\nlicense: mit\n---\n" + "x" * 2**21, {}),
    "no UTF-8": (b"---\nlicense: mit\n---\n\xff\xfe", {"license": "mit"}),
}


@pytest.mark.parametrize("case", CARDS)
def test_the_license_is_the_one_that_the_models_own_card_states(tmp_path, case):
    content, expected = CARDS[case]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert base_license(ModelConfig(name=str(tmp_path))) == expected


def test_a_merged_folder_has_the_card_of_the_run(runs, tmp_path):
    assert exit_code(["merge", str(runs / "lora"), "--out", str(tmp_path / "merged")]) == 0
    card = card_of(tmp_path / "merged")
    assert card.data.library_name == "transformers"
    assert "the run learned lora adapters (rank 2); here they are added" in card.text.lower()
    assert "PeftModel" not in card.text
    shutil.copytree(runs / "lora" / "model", tmp_path / "adapters")  # without the run around it
    assert exit_code(["merge", str(tmp_path / "adapters"), "--out", str(tmp_path / "again")]) == 0
    card = card_of(tmp_path / "again")
    assert "`tiny-reasoner` with the adapters `adapters` added into its weights." in card.text
    assert card.data.license == "apache-2.0"


def test_a_model_that_sees_has_a_card(runs, loaded):
    seeing = dataclasses.replace(loaded, vision=object())
    text = made(runs / "whole", seeing)
    assert ModelCard(text).data.pipeline_tag == "image-text-to-text"
    assert "AutoModelForImageTextToText" in text
