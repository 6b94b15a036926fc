"""A base model that goes on with a next question is stopped there, at the plain prompt's own form."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from spinerl.answers import Equivalence
from spinerl.config import load_config
from spinerl.data import render_all
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.evaluation import evaluate_model
from spinerl.models.loading import load_model
from spinerl.step import count_votes
from spinerl.types import Question
from spinerl.workload import open_workload, stopping
from tests.models import byte_tokenizer, write_model

PLAIN = "Question: 2 + 3?\n\nAnswer:"
RUN_ON = " It is 5.\n\nQuestion: 9 + 9?\n\nAnswer: It is 18."
NEXT = "\n\nQuestion:"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory):
    """A folder with a model that has learned by heart to go on as base models do, without an end."""
    folder = write_model("llama", tmp_path_factory.mktemp("base"), spread=0.05)
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PLAIN + RUN_ON)["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "q.jsonl"
    file.write_text('{"id": "a", "question": "2 + 3?", "answer": "5"}\n')
    return file


def configured(base_model, questions_file, *overrides):
    return load_config(
        overrides=[
            f"model={base_model}",
            f"data={questions_file}",
            "prompt.instruction=''",
            "answer.kind=number",
            f"rollout.max_new_tokens={len(RUN_ON)}",
            "rollout.temperature=0.05",
            "eval.samples=2",
            *overrides,
        ]
    )


def test_a_run_on_is_ended_where_it_begins(base_model, questions_file):
    config = configured(base_model, questions_file)
    work = open_workload(config)
    assert work.loaded.tokenizer.decode(work.prompts[0]) == PLAIN
    greedy = greedy_responses(work.loaded, work.questions, work.prompts, config.rollout)
    assert greedy.texts == (" It is 5.",)
    assert work.loaded.tokenizer.decode(greedy.tokens[0]) == f" It is 5.{NEXT}"  # learned from as it was sampled
    assert greedy.finished_mask.tolist() == [True]
    sampled = sample_responses(work.open_again(), work.questions, work.prompts, 2, config.rollout, ("s",))
    assert sampled.texts == (" It is 5.",) * 2  # the copies of the model stop there too
    with Equivalence() as equivalence:
        (one,) = count_votes(sampled, config.answer, config.vote, equivalence, seed=0)
    assert one.pseudo_label == "5"
    assert evaluate_model(config).metrics["eval/pass@1"] == 1.0


def test_without_the_key_the_invented_question_is_sampled_as_well(base_model, questions_file):
    config = configured(base_model, questions_file, "rollout.stop_at_next=false")
    work = open_workload(config)
    greedy = greedy_responses(work.loaded, work.questions, work.prompts, config.rollout)
    assert greedy.texts == (RUN_ON,)
    assert greedy.finished_mask.tolist() == [False]


def test_prompts_by_a_template_have_no_such_end(model_folders):
    loaded = load_model(load_config(overrides=[f"model={model_folders('llama')}"]).model)
    assert loaded.tokenizer.chat_template
    assert stopping(loaded, load_config()).stop_texts == ()
    assert stopping(loaded, load_config(overrides=["prompt.chat_template=off"])).stop_texts == (NEXT,)
    own = load_config(overrides=["prompt.chat_template=off", 'rollout.stop=["\\n\\nQuestion:"]'])
    assert own.rollout.stop == [NEXT]
    assert stopping(loaded, own).stop_texts == ()


def test_both_kinds_of_stops_hold(base_model, questions_file):
    config = configured(base_model, questions_file, 'rollout.stop=["is"]')
    loaded = stopping(load_model(config.model, config.engine), config)
    rendered = render_all([Question("a", "2 + 3?")], loaded.tokenizer, config.prompt)
    found = greedy_responses(loaded, rendered.questions, rendered.prompts, config.rollout)
    assert found.texts == (" It is",)
    plain = config.rollout.model_copy(update={"stop": []})
    found = greedy_responses(replace(loaded, stop_texts=()), rendered.questions, rendered.prompts, plain)
    assert found.texts == (RUN_ON,)
