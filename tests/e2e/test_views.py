"""Runs that ask each question in several ways: their labels counted again by the options' texts, not their letters."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from functools import partial
from random import Random

import pytest
import torch

from spinerl.answers import Equivalence, extract_answer
from spinerl.config import load_config
from spinerl.data import render_prompt, resolve
from spinerl.engine.sampler import sample_responses
from spinerl.errors import InputError
from spinerl.evaluation import evaluate
from spinerl.hooks import ask_otherwise
from spinerl.images import augmented_image, open_image
from spinerl.runs import RunFolder
from spinerl.train import adapt
from spinerl.types import ImageRef, Question
from spinerl.views import VIEWS, Views
from spinerl.workload import open_workload
from tests.commands import exit_code
from tests.e2e.test_guarded_runs import Quiet
from tests.test_schedule import StopAt

SUMS = (("3+4=", "7 8 9"), ("12+5=", "16 17 18"), ("9-4=", "3 4 5"), ("6+6=", "12 11 10"), ("2+2=", "4 5 6 7"))
TINY = ["questions_per_step=3", "group_size=4", "rollout.max_new_tokens=24", "answer.truncated=count"]
SMALL = [
    "questions_per_step=4", "group_size=6", "steps=2", "threads=1", "guard=off", "eval.samples=0", "optim.lr=2e-3",
    "log.plan=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """A file of choice questions whose options the bundled model may name by their text."""
    file = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"id": text, "question": text, "choices": options.split()} for text, options in SUMS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(folder, *overrides, observer=None) -> RunFolder:
    return adapt(load_config(overrides=[*SMALL, *overrides, f"run={folder}"]), observer or Quiet())


@pytest.mark.parametrize("pool", ["sum", "harmonic"])
def test_the_labels_are_those_that_the_options_texts_give(choices, tmp_path, pool):
    keys = [f"data={choices}", "method=ttrl", "vote.views=[permuted-options,reread]", f"vote.pool={pool}"]
    made = run(tmp_path / "run", *keys, "steps=1", "vote.train_views=true")
    work = open_workload(resolve(made.config))
    rows = made.rows("labels.jsonl")
    places = {question.id: i for i, question in enumerate(work.questions)}
    own = work.only([places[row["id"]] for row in rows])
    loaded, config = work.loaded, made.config
    render = partial(render_prompt, tokenizer=loaded.tokenizer, prompt=config.prompt, kind="auto")
    asked = Views(config, render, Equivalence()).ask(loaded, own.questions, own.prompts, 1)
    assert asked.as_is_frac == 0
    rollout = sample_responses(loaded, asked.questions, asked.prompts, 6, config.rollout, (0, "train", 1))
    found, moved = [], 0
    for first in range(0, len(asked.questions), 3):
        views = []
        for place in range(first, first + 3):
            question = asked.questions[place]
            texts = rollout.texts[6 * place : 6 * place + 6]
            done = rollout.finished_mask[6 * place : 6 * place + 6].tolist()
            letters = [
                extract_answer(text, "choice", choices=question.choices, truncated=not end)
                for text, end in zip(texts, done, strict=True)
            ]
            # What the option behind the letter says, in the order in which this view shows them.
            said = [question.choices["ABCD".index(letter)] for letter in letters if letter is not None]
            views.append(Counter(said))
            moved += question.letters not in ("", "ABCD"[: len(question.choices)]) and len(said) > 0
        if pool == "sum":
            counts = sum(views, Counter())
        else:
            common = set(views[0]) & set(views[1]) & set(views[2])
            counts = {text: 3 / sum(6 / own[text] for own in views) for text in common}
        best = max(counts.values(), default=0)
        leaders = [text for text in counts if counts[text] == best]
        options = asked.questions[first].choices
        found.append("ABCD"[options.index(leaders[0])] if len(leaders) == 1 else None)
    assert [row["label"] for row in rows] == found
    assert moved > 1, "permuted options were answered"
    assert any(label is not None for label in found) or pool == "harmonic"
    (metrics,) = made.rows("metrics.jsonl")
    assert metrics["rollout/num_responses"] == 4 * 3 * 6
    assert metrics["rollout/num_drawn"] == int(rollout.mask.sum())
    if pool == "sum":
        assert metrics["optim/grad_norm"] > 0


@pytest.mark.parametrize(
    "keys",
    [
        (
            *("method=self-harmony", "vote.views=[rephrase,permuted-options]", "vote.pool=sum", "lora.rank=2"),
            *("optim.restore=0.1", "anchor.fisher=10", "anchor.fisher_questions=2", "optim.minibatches=2"),
        ),
        ("method=bitta", "data=tiny/in-domain", "data.max_questions=5", "vote.weights=margin"),
        ("method=co-rewarding-ii", "vote.slow_decay=0.5", "vote.weights=stepwise", "optim.restore=0.3"),
    ],
)
def test_an_interrupted_run_ends_as_the_whole_one(choices, tmp_path, keys):
    keys = [f"data={choices}", *keys, "steps=2", "checkpoint.every=1", *TINY]
    whole = run(tmp_path / "whole", *keys)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", *keys, observer=StopAt(1))
    assert exit_code(["adapt", "--resume", tmp_path / "cut"]) == 0
    cut = RunFolder.open(tmp_path / "cut")
    for stream in ("metrics.jsonl", "labels.jsonl", "samples.jsonl"):
        rows = [
            [{key: value for key, value in row.items() if not key.startswith("time/")} for row in one.rows(stream)]
            for one in (whole, cut)
        ]
        assert rows[0] == rows[1], stream
    for file in (whole.path / "model").glob("*.safetensors"):
        assert file.read_bytes() == (cut.path / "model" / file.name).read_bytes()
    if "method=bitta" in keys:
        assert whole.manifest["uses_gold"] is True
        totals = [row["feedback/total"] for row in whole.rows("metrics.jsonl")]
        assert totals == sorted(totals)
        assert totals[0] == 3


REFUSED = {
    "vote.pool=harmonic": "set vote.views",
    "vote.train_views=true": "set vote.views",
    "vote.views=[rereed]": 'did you mean "reread"',
    "vote.views=[mine:a,mine:b]": "more than one module:function",
    "vote.views=[reread] vote.memory=sum": "vote.memory",
    "vote.views=[reread] vote.slow_decay=0.9": "vote.slow_decay",
    "vote.views=[reread] rollout.reuse=0": "rollout.reuse",
    "vote.views=[reread] tree.bases=-1 tree.forks=1": "tree.bases",
    "vote.views=[reread] method=grpo-gold": "grpo-gold",
    "vote.views=[reread] method=bitta": "vote.views",
    "vote.views=[reread] vote.pool=harmonic reward=leave-one-out": "leave-one-out",
    "vote.slow_decay_end=0.9": "set vote.slow_decay",
    "feedback.questions=2": "method=bitta",
    "method=bitta feedback.questions=0": "method=bitta",
    "loss.form=dpo": "reward=pairs",
    "method=scpo rollout.num_votes=64": "rollout.num_votes",
    "anchor.fisher=1 stream.on=true stream.reset_every=2": "stream.reset_every",
}


@pytest.mark.parametrize("keys", REFUSED)
def test_what_cannot_go_together_is_refused_in_a_line(keys, tmp_path, capsys):
    assert exit_code(["adapt", *keys.split(), f"run={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert REFUSED[keys] in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def a_question(**changes):
    return Question("q", "Which?\nA. red\nB. blue", ("red", "blue"), answer_kind="choice", **changes)


def test_a_plug_in_may_permute_options_too():
    def backwards(question, random):  # noqa: ARG001
        return Question("x", "Which?\nA. blue\nB. red", question.choices[::-1])

    found = ask_otherwise(a_question(), backwards, "mine:backwards", Random(0))
    assert (found.letters, found.answer_kind) == ("BA", "choice")
    assert ask_otherwise(a_question(), lambda q, _: f"{q.text}?", "mine:more", Random(0)) == "Which?\nA. red\nB. blue?"
    assert ask_otherwise(a_question(), lambda *_: None, "mine:none", Random(0)) is None


@pytest.mark.parametrize(
    "returned",
    [7, "", "  ", "\ud800", Question("q", " ", ("red", "blue")), Question("q", "Which?", ("red", "green")), ["a text"]],
)
def test_what_a_plug_in_may_not_return_is_named(returned):
    with pytest.raises(InputError, match=r"vote\.views=mine:odd on question 'q': it returned"):
        ask_otherwise(a_question(), lambda *_: returned, "mine:odd", Random(0))


def test_an_image_is_changed_a_little_and_always_alike():
    from PIL import Image

    file = io.BytesIO()
    noise = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(file, "PNG")
    one = ImageRef(data=file.getvalue())
    changed = [augmented_image(one, Random(seed)).data for seed in (1, 1, 2)]
    assert changed[0] == changed[1]
    assert len({one.data, *changed}) == 3
    width, height = open_image(ImageRef(data=changed[0])).size
    assert 54 <= width <= 60
    assert 36 <= height <= 40
    question = Question("q", "Is <image> red?", images=(one,))
    assert VIEWS["augmented-images"](question, Random(1)).images[0].data == changed[0]
    assert VIEWS["augmented-images"](a_question(), Random(1)) is None
    assert VIEWS["reread"](question, Random(1)).count("<image>") == 0


def test_a_greedy_answer_is_decoded_from_the_mean_over_views(choices):
    words = [f"data={choices}", "method=none", "eval.samples=0", "eval.views=[reread,blank]", *TINY[2:]]
    config = resolve(load_config(overrides=words))
    work = open_workload(config)
    with Equivalence() as equivalence:
        found = evaluate(work.loaded, work.questions, work.prompts, work.gold, config, equivalence)
    drawn = 0
    for question, prompt, row in zip(work.questions, work.prompts, found.predictions, strict=True):
        texts = [ask_otherwise(question, VIEWS[name], name, Random(0)) for name in ("reread", "blank")]
        others = (dataclasses.replace(question, text=text) for text in texts)
        shown = [prompt, *(render_prompt(one, work.loaded.tokenizer, config.prompt, kind="auto") for one in others)]
        response: list[int] = []
        while len(response) < config.rollout.max_new_tokens and not set(response) & set(work.loaded.end_ids):
            with torch.no_grad():
                logits = [work.loaded.model(torch.tensor([[*ids, *response]])).logits[0, -1] for ids in shown]
            response.append(int(torch.stack(logits).double().softmax(1).mean(0).argmax()))
        drawn += 3 * len(response)
        assert work.loaded.texts([response])[0] == row["greedy"]["text"]
    assert found.metrics["eval/greedy_tokens"] * len(work.questions) == drawn == found.metrics["eval/num_tokens"]
