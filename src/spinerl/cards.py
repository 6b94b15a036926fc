"""Model cards: the README.md of a saved model, which says what was done to it, on which questions, and what came of it.

The hub reads the YAML at its beginning, people the rest.  A run has one card, however often it was interrupted: nothing
in it is of the day, of the machine's folders or of the terminal.  Names and texts of others stand in it as texts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from spinerl.config import (
    PLUGIN_KEYS,
    Config,
    ModelConfig,
    describe_keys,
    layer_value,
    load_config,
    override,
    parse_override,
)
from spinerl.data import resolve
from spinerl.data.definitions import definition_of
from spinerl.data.prompts import chat_messages, render_text
from spinerl.display import accuracy_keys, format_share
from spinerl.errors import InputError
from spinerl.files import write_text
from spinerl.lines import one_line, read_text, visible
from spinerl.methods import METHODS
from spinerl.models.gguf import PACKAGED
from spinerl.models.gguf_header import read_header
from spinerl.models.loading import LoadedModel, resolve_name
from spinerl.models.weights import find_file
from spinerl.recipes import parse_yaml
from spinerl.report.read import read_run
from spinerl.runs import RunFolder
from spinerl.tiny import MODELS
from spinerl.types import Question

__all__ = ["CARD", "adapted_card", "base_license", "hub_name", "merged_card", "shown_name", "write_card"]

CARD = "README.md"

_TAGS = ("test-time-reinforcement-learning", "spinerl")
_LICENSE_KEYS = ("license", "license_name", "license_link")
_FRONT = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_MOST_CARD = 2**20  # bytes of a card that are read
_PLACES = ("model.name", "data.name", "data.path", "data.gold", "data.target", "data.image_folder", *PLUGIN_KEYS)
# Of this machine, or of no account for the weights.
_OWN_KEYS = ("run", "threads", "model.name", "data.name", "method", "model.device", "vllm.url", "vllm.folder")
_OWN_SECTIONS = ("log", "checkpoint")
_QUESTION = "What is 12 + 30?"


def write_card(folder: Path, text: str) -> None:
    """Write a model's card into its folder."""
    write_text(folder / CARD, text)


def adapted_card(
    config: Config,
    manifest: Mapping[str, Any],
    evals: Sequence[Mapping[str, Any]],
    num_steps: int,
    loaded: LoadedModel,
    *,
    merged: bool = False,
) -> str:
    """The card of the model that a run ended with.

    Args:
        config: the run's, resolved.
        manifest: its manifest.json: versions, the license of the model it began with, what the guard did.
        evals: the lines of eval.jsonl.
        num_steps: the steps that were made.
        loaded: the model, for how it is loaded and asked.
        merged: whether it is whole although the run learned adapters.
    """
    adapters = bool(config.lora.rank) and not merged
    kept = _mapping(manifest.get("guard")).get("kept_step", num_steps)
    base, data = shown_name(config.model.name), shown_name(config.data.path or config.data.name)
    method = METHODS[config.method]
    front = _front(
        loaded,
        base_model=hub_name(config.model),
        base_model_relation=None if hub_name(config.model) is None else "adapter" if adapters else "finetune",
        datasets=_hub_data(config),
        library_name="peft" if adapters else "transformers",
        tags=[*_TAGS, config.method, *(["lora"] if config.lora.rank else [])],
        **_license(_mapping(manifest.get("model")).get("license")),
    )
    what = f"{_code(base)}, adapted to the questions of {_code(data)} by test-time reinforcement learning"
    form = "These are LoRA adapters: the weights of the model they were added to are needed, too." if adapters else ""
    if merged:
        form = f"The run learned LoRA adapters (rank {config.lora.rank}); here they are added into the model's weights."
    parts = [
        f"# {_escaped(base)} adapted to {_escaped(data)}",
        f"{what} with spinerl {_escaped(manifest.get('spinerl', ''))}. Method: {_code(config.method)}, "
        f"{_escaped(method.summary)} ({_escaped(method.source)}). {form}".rstrip(),
        f"**Which weights.** {_which(kept, num_steps)}",
        "## What adapting to questions means",
        _meaning(manifest),
        "## Before and after",
        *_results(config, evals, kept),
        "## The guard",
        _guard(config, manifest),
        "## How it was made",
        _block("sh", _command(config)),
        "Every key that is not in the command has the default of its method and model. Files and folders are named by "
        "the last part of their path.",
        _settings(config, manifest, adapters or merged),
        "## How to load it",
        *_loading(config, loaded, adapters),
    ]
    return _card(front, parts)


def merged_card(name: str, base: str | None, loaded: LoadedModel) -> str:
    """The card of the folder that `spinerl merge` writes: that of the run, where the adapters are a run's.

    Args:
        name: what was merged: a run, a folder of adapters, a GGUF file.
        base: the model that the adapters belong to; None for a GGUF file.
    """
    if base is None:
        return _plain_card(name, loaded)
    for folder in (Path(name), Path(name).parent):
        run = RunFolder(folder)
        if (folder / "config.yaml").is_file() and run.is_marked:
            data = read_run(folder)
            if not data.damage and data.manifest:
                return adapted_card(run.config, data.manifest, data.evals, data.steps_done, loaded, merged=True)
    return _plain_card(base, loaded, adapters=name)


def _plain_card(name: str, loaded: LoadedModel, *, adapters: str | None = None) -> str:
    """The card of a folder made of a GGUF file, or of this model and adapters that no run is known of."""
    config = load_config(overrides=[override("model", name)])
    base = hub_name(config.model) if adapters is not None else None
    front = _front(
        loaded,
        base_model=base,
        base_model_relation=None if base is None else "finetune",
        library_name="transformers",
        tags=["spinerl"],
        **base_license(config.model),
    )
    shown = shown_name(name)
    if adapters is None:
        title, what = shown, f"The model in the GGUF file {_code(shown)} as a Hugging Face folder: the values that the "
        what += "file's blocks stand for, as plain weights. Nothing was trained."
    else:
        added = shown_name(adapters)
        title = f"{shown} with {added}"
        what = f"{_code(shown)} with the adapters {_code(added)} added into its weights. Nothing else was changed."
    code = _transformers_code("question", None, _model_class(loaded), config)
    return _card(front, [f"# {_escaped(title)}", what, "## How to load it", _block("python", code)])


def shown_name(name: str) -> str:
    """A model or data set as others may read it: of a path of this machine the last part, of a run's model the run.

    >>> shown_name("/home/me/runs/mine/model"), shown_name("Qwen/Qwen3-1.7B"), shown_name("/home/me/f.py:reward")
    ('mine', 'Qwen/Qwen3-1.7B', 'f.py:reward')
    """
    path = Path(os.path.expanduser(name))
    if not path.is_absolute() and (name in MODELS or not os.path.exists(path)):
        return name
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def hub_name(model: ModelConfig) -> str | None:
    """The model's name on the hub; None for what is bundled, packaged, or lies on this machine."""
    name = model.name
    if name in MODELS or name in PACKAGED or os.path.exists(os.path.expanduser(name)):
        return None
    try:
        validate_repo_id(name)
    except ValueError:
        return None
    return name


def base_license(model: ModelConfig) -> dict[str, str]:
    """The license that a model's own card (README.md) or GGUF file states, in a card's keys; {} where it states none.

    Never raises: a card is not needed.
    """
    if model.name in MODELS:
        return {"license": "apache-2.0"}
    try:
        source = resolve_name(model.name)
        if Path(source).is_file():
            fields = read_header(Path(source)).fields
            stated = {key: fields.get(f"general.{key.replace('_', '.')}") for key in _LICENSE_KEYS}
        else:
            file = find_file(source, CARD, model.revision)
            stated = {} if file is None else _front_of(file)
    except Exception:  # a stranger's file, in any state
        return {}
    return _license(stated)


def _front_of(file: Path) -> Mapping[str, Any]:
    with file.open("rb") as opened:
        if len(opened.read(_MOST_CARD + 1)) > _MOST_CARD:
            return {}
    found = _FRONT.match(read_text(file, errors="replace"))
    return _mapping(parse_yaml(found[1])) if found else {}


def _license(stated: Any) -> dict[str, str]:
    """What of a card's keys about its license is well-formed: an identifier, and for "other" its name and address."""
    stated = _mapping(stated)
    texts = {key: one_line(value) for key in _LICENSE_KEYS if isinstance(value := stated.get(key), str)}
    name = texts.get("license", "").lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", name):
        return {}
    more = {key: text for key, text in texts.items() if key != "license" and 0 < len(text) <= 300}
    return {"license": name, **(more if name == "other" else {})}


def _hub_data(config: Config) -> list[str] | None:
    """The hub data set that the questions came from."""
    if config.data.path is not None:
        return None
    definition = definition_of(config.data)
    name = config.data.name if definition is None else definition.hub
    owner, _, rest = (name or "").partition("/")
    if not owner or not rest or "/" in rest or os.path.exists(name or ""):
        return None
    try:
        validate_repo_id(name)
    except ValueError:
        return None
    return [str(name)]


# What it says


def _which(kept: int, num_steps: int) -> str:
    if kept == num_steps:
        return f"Those after the last of {num_steps} steps."
    if kept == 0:
        return f"Those of the unadapted model: after {num_steps} steps the guard brought them back."
    return f"Those after step {kept} of {num_steps}, the best by the guard's label-free score, which brought them back."


def _meaning(manifest: Mapping[str, Any]) -> str:
    if manifest.get("uses_gold"):
        return (
            "This run learned **from gold answers** of the questions below: it shows an upper bound, and is no "
            "adaptation without labels."
        )
    return (
        "The model learned from its own responses to these questions, and from no answer key: no label was used, but "
        "**the questions themselves were seen** (transductive learning). A gain below means that it got better at "
        "these questions; it says nothing about others. Measure it on yours before you use it. What a model's "
        "responses agree on can be wrong, and then learning makes it worse without a sign in its own reward."
    )


def _results(config: Config, evals: Sequence[Mapping[str, Any]], kept: int) -> Iterable[str]:
    """The table of both evaluations, and what its figures are of."""
    before = next((row for row in evals if row.get("step") == 0), None)
    after = next((row for row in evals if row.get("step") == kept), None)
    if before is None or after is None:
        yield "The run has no evaluation of these weights."
        return
    rows = [
        (label, format_share(before, key), format_share(after, key))
        for key, label in accuracy_keys([before, after])
        if key in before and key in after
    ]
    for key, label, scale, digits, unit in (
        ("eval/majority_frac", "majority fraction", 100, 1, " %"),
        ("eval/abstained_frac", "responses without an answer", 100, 1, " %"),
        ("eval/truncated_frac", "truncated responses", 100, 1, " %"),
        ("eval/response_length", "response length", 1, 1, " tokens"),
    ):
        if key in before and key in after:
            first, last = (f"{scale * one[key]:.{digits}f}{unit}" for one in (before, after))
            rows.append((label, first, last))
    yield _table(("", "before", f"after step {kept}"), rows)
    num, gold = before.get("num_questions", 0), before.get("num_gold", 0)
    share = f"{100 * config.eval.confidence:g} % intervals in brackets."
    if gold:
        yield (
            f"{_escaped(num)} questions, {_escaped(gold)} of them with a gold answer, which was used for these figures "
            f"only. {share}"
        )
    else:
        yield f"{_escaped(num)} questions, no gold answers: whether the model got better at them is not known."


def _guard(config: Config, manifest: Mapping[str, Any]) -> str:
    said = _mapping(manifest.get("guard")).get("text")
    if not isinstance(said, str) or not said:
        return f"None watched this run ({_code('guard.mode=' + config.guard.mode)})."
    return f"Without labels, mode {_code(config.guard.mode)}: {_escaped(said.removeprefix('guard: '))}"


def _settings(config: Config, manifest: Mapping[str, Any], lora: bool) -> str:
    model, data = _mapping(manifest.get("model")), _mapping(manifest.get("data"))
    names = ("spinerl", "python", "torch", "transformers")
    rows = [
        ("method", _code(config.method)),
        ("seed", str(config.seed)),
        ("steps, questions per step", f"{config.steps}, {config.questions_per_step}"),
        ("responses per question", f"{config.group_size}, {config.num_votes} of them voting"),
        ("temperature, most tokens of a response", f"{config.rollout.temperature:g}, {config.rollout.max_new_tokens}"),
        ("learning rate", f"{config.optim.lr:g}"),
        *([("LoRA rank", str(config.lora.rank))] if lora else []),
        ("model at the beginning", f"{_code(shown_name(config.model.name))}, {_code(model.get('fingerprint', '?'))}"),
        *([("its revision", _code(config.model.revision))] if config.model.revision else []),
        ("questions", f"{_escaped(data.get('num_questions', '?'))}, {_code(data.get('fingerprint', '?'))}"),
        ("computed in", f"{_escaped(manifest.get('dtype', '?'))} on {_escaped(manifest.get('device', '?'))}"),
        ("versions", ", ".join(f"{name} {_escaped(manifest[name])}" for name in names if name in manifest)),
    ]
    return _table(("", ""), rows)


def _command(config: Config) -> str:
    """The command that does this run again, with every key that has not the default of its method and model."""
    given = {"model": config.model.name, "data": config.data.name, "method": config.method}
    try:
        usual = resolve(load_config(given)).model_dump()
    except InputError:  # the model or the data is gone, with what it would bring
        usual = load_config({"method": config.method}).model_dump()
    own = config.model_dump()
    words = [_word(key, shown_name(value) if key != "method" else value) for key, value in given.items()]
    for key, *_ in describe_keys(unlisted=True):
        value = layer_value(own, key)
        if key in _OWN_KEYS or key.partition(".")[0] in _OWN_SECTIONS or value == layer_value(usual, key):
            continue
        words.append(_word(key, shown_name(value) if key in _PLACES and isinstance(value, str) else value))
    return " \\\n  ".join(["spinerl adapt", *words])


def _word(key: str, value: Any) -> str:
    """`key=value` for a shell, without quotes where it means the same without."""
    exact = override(key, value)
    plain = f"{key}={value}"
    if isinstance(value, str) and plain.isprintable():
        try:
            if parse_override(plain) == parse_override(exact):
                return shlex.quote(plain)
        except InputError:
            pass
    return shlex.quote(exact)


# How it is loaded


def _loading(config: Config, loaded: LoadedModel, adapters: bool) -> Iterable[str]:
    question = Question("1", _QUESTION)
    chat = config.prompt.chat_template != "off" and loaded.tokenizer.chat_template is not None
    if loaded.vision is not None:
        kind = "vision"
    elif chat:
        kind = "chat"
    else:
        kind = "text"
    if kind == "chat":
        asked = repr(chat_messages(question, config.prompt, kind=config.answer.kind))
    else:
        asked = repr(render_text(question, None, config.prompt, kind=config.answer.kind))
    base = _base_code(config) if adapters else None
    if adapters:
        yield f"Needs transformers and peft ({_code('pip install transformers peft')})."
    yield _block("python", _transformers_code(kind, base, _model_class(loaded), config, asked))
    if kind == "vision":
        yield "Images are prepared by the processor of the same folder, or of the model it began with."
    else:
        yield "That is how the questions were asked. With spinerl, where NAME is this folder or repository:"
        yield _block("sh", "spinerl eval NAME questions.jsonl")


def _base_code(config: Config) -> tuple[str, str]:
    """(an import, an expression) for the model that adapters belong to."""
    name = config.model.name
    if name in MODELS:
        return "from spinerl.tiny import model_path", f"model_path({name!r})"
    if hub_name(config.model) is not None:
        return "", json.dumps(name)
    return "", f"{json.dumps('path/of/' + shown_name(name))}  # the model's folder"


def _transformers_code(
    kind: str, base: tuple[str, str] | None, model_class: str, config: Config, asked: str = ""
) -> str:
    """A program that loads the model and, but for kinds "vision" and "question", asks it a question."""
    options = ", trust_remote_code=True" if config.model.trust_remote_code else ""
    more, expression = base or ("", "")
    revision = f", revision={config.model.revision!r}" if base and config.model.revision else ""
    lines = ["from peft import PeftModel"] if base else []
    lines += [more] if more else []
    lines += [f"from transformers import {model_class}, AutoTokenizer", ""]
    lines += ['name = "."  # this folder, or its name on the hub']
    if base:
        lines += [f"base = {expression}"]
    source = "base" if base else "name"
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({source}{revision}{options})"]
    lines += [f"model = {model_class}.from_pretrained({source}{revision}{options})"]
    lines += ["model = PeftModel.from_pretrained(model, name)"] if base else []
    if kind == "chat":
        extra = "".join(f", {key}={value!r}" for key, value in config.prompt.template_options.items())
        lines += ["", f"messages = {asked}", "inputs = tokenizer.apply_chat_template("]
        lines += [f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{extra}', ")"]
    elif kind == "text":
        lines += ["", f'inputs = tokenizer({asked}, return_tensors="pt", return_token_type_ids=False)']
    if kind in ("chat", "text"):
        lines += [f"output = model.generate(**inputs, max_new_tokens={config.rollout.max_new_tokens}, do_sample=False)"]
        lines += ['print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))']
    return "\n".join(lines)


def _model_class(loaded: LoadedModel) -> str:
    return "AutoModelForCausalLM" if loaded.vision is None else "AutoModelForImageTextToText"


def _front(loaded: LoadedModel, **fields: Any) -> ModelCardData:
    kind = "text-generation" if loaded.vision is None else "image-text-to-text"
    return ModelCardData(pipeline_tag=kind, **fields)


# Texts of others in Markdown


def _card(front: ModelCardData, parts: Sequence[str]) -> str:
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n{body}\n"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _escaped(text: object) -> str:
    r"""A text, on one line, whose characters mean nothing to Markdown, HTML or a table.

    >>> print(_escaped("a|b <script> *x* [y](z)\n# w"))
    a\|b \<script\> \*x\* \[y\](z) \# w
    """
    return re.sub(r"[\\`*_\[\]<>|&$#~]", r"\\\g<0>", one_line(str(text)))


def _code(value: Any) -> str:
    r"""A text in code marks, also within a table.

    >>> print(_code("a`b"), _code("x|y"))
    `` a`b `` `x\|y`
    """
    text = one_line(str(value)).replace("|", "\\|")
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    gap = " " if "`" in text or not text.strip() else ""
    return f"{marks}{gap}{text}{gap}{marks}"


def _block(language: str, text: str) -> str:
    """Lines of code; no line of theirs ends the block."""
    text = visible(text)
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{marks}{language}\n{text}\n{marks}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
