"""Questions as token ids: templates, plain text, special tokens once, and what is too long."""

import pytest

from spinerl.answers import Equivalence, count_vote
from spinerl.config import ExampleConfig, PromptConfig
from spinerl.data import preview, render_all, render_prompt, render_text
from spinerl.data.prompts import INSTRUCTIONS
from spinerl.errors import InputError
from spinerl.types import Question

BOS = "<s>"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{% if think is defined %}[{{ think }}]{% endif %}"
)
BOS_CHAT = "{{ bos_token }}" + CHAT
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHAT

QUESTION = Question("1", "2 + 3?")


@pytest.mark.parametrize("adds", ["", "bos", "bos eos"])
def test_a_base_model_gets_plain_text_with_its_own_bos_and_no_end_token(adds, make_tokenizer):
    tokenizer = make_tokenizer(adds)
    ids = render_prompt(QUESTION, tokenizer, PromptConfig())
    text = tokenizer.decode(ids)
    assert text == (BOS if adds else "") + f"Question: 2 + 3?\n\n{INSTRUCTIONS['auto']}\n\nAnswer:"
    assert ids.count(0) == (1 if adds else 0)
    assert 1 not in ids


@pytest.mark.parametrize("adds", ["", "bos"])
@pytest.mark.parametrize(("template", "num_bos"), [(CHAT, 0), (BOS_CHAT, 1)])
def test_a_chat_template_brings_its_own_special_tokens(adds, template, num_bos, make_tokenizer):
    tokenizer = make_tokenizer(adds, template)
    ids = render_prompt(QUESTION, tokenizer, PromptConfig(instruction=""))
    assert tokenizer.decode(ids) == BOS * num_bos + "<user>2 + 3?</s><assistant>"
    assert ids.count(0) == num_bos
    assert ids.count(1) == 1


def test_render_text_is_what_the_ids_say(make_tokenizer):
    tokenizer = make_tokenizer("bos", BOS_CHAT)
    for chat in ("auto", "off"):
        prompt = PromptConfig(chat_template=chat, system="Be brief.")
        text = render_text(QUESTION, tokenizer, prompt)
        decoded = tokenizer.decode(render_prompt(QUESTION, tokenizer, prompt))
        assert decoded == (text if chat == "auto" else BOS + text)


@pytest.mark.parametrize(
    ("own", "asked", "used"),
    [
        ("auto", "auto", "auto"),
        ("math", "auto", "math"),
        ("choice", "auto", "choice"),
        ("yesno", "auto", "yesno"),
        ("text", "auto", "text"),
        ("number", "auto", "number"),
        ("choice", "math", "math"),
    ],
)
def test_the_instruction_follows_the_kind(own, asked, used):
    question = Question("1", "q", answer_kind=own)
    text = render_text(question, None, PromptConfig(), kind=asked)
    assert text == f"Question: q\n\n{INSTRUCTIONS[used]}\n\nAnswer:"
    assert "\\boxed{}" in INSTRUCTIONS[used]


def test_the_instruction_of_the_configuration_wins_and_none_is_none():
    assert "Guess." in render_text(QUESTION, None, PromptConfig(instruction="Guess."))
    assert render_text(QUESTION, None, PromptConfig(instruction="")) == "Question: 2 + 3?\n\nAnswer:"


def test_system_and_examples_in_both_forms(make_tokenizer):
    prompt = PromptConfig(
        system="Be brief.",
        instruction="Box it.",
        examples=[ExampleConfig(question="1 + 1?", answer="So \\boxed{2}")],
    )
    assert render_text(QUESTION, None, prompt) == (
        "Be brief.\n\nQuestion: 1 + 1?\n\nBox it.\n\nAnswer: So \\boxed{2}\n\nQuestion: 2 + 3?\n\nBox it.\n\nAnswer:"
    )
    assert render_text(QUESTION, make_tokenizer(chat_template=CHAT), prompt) == (
        "<system>Be brief.</s><user>1 + 1?\n\nBox it.</s><assistant>So \\boxed{2}</s>"
        "<user>2 + 3?\n\nBox it.</s><assistant>"
    )


def test_examples_come_from_the_configuration(configure):
    config = configure("prompt.examples=[{question: '1 + 1', answer: '\\boxed{2}'}]")
    assert "Answer: \\boxed{2}" in render_text(QUESTION, None, config.prompt)
    with pytest.raises(InputError, match=r"prompt\.examples\.0\.answer"):
        configure("prompt.examples=[{question: a}]")


def test_template_options_reach_the_template(make_tokenizer):
    prompt = PromptConfig(instruction="", template_options={"think": "off"})
    assert render_text(QUESTION, make_tokenizer(chat_template=CHAT), prompt).endswith("<assistant>[off]")


def test_chat_template_on_without_one_and_refusing_templates(make_tokenizer):
    with pytest.raises(InputError, match=r"prompt\.chat_template=on, but the tokenizer has no chat template"):
        render_text(QUESTION, make_tokenizer(), PromptConfig(chat_template="on"))
    with pytest.raises(InputError, match=r"\(No system role\); see prompt\.system"):
        render_text(QUESTION, make_tokenizer(chat_template=NO_SYSTEM), PromptConfig(system="x"))


def test_render_all_leaves_out_what_is_too_long_with_a_count(make_tokenizer):
    tokenizer = make_tokenizer("bos")
    questions = [Question(str(n), "x" * n) for n in (1, 50, 2, 60)]
    limit = len(render_prompt(questions[2], tokenizer, PromptConfig(instruction="")))
    kept, prompts, num_too_long = render_all(questions, tokenizer, PromptConfig(instruction="", max_tokens=limit))
    assert [question.id for question in kept] == ["1", "2"]
    assert [len(ids) for ids in prompts] == [limit - 1, limit]
    assert num_too_long == 2
    assert render_all([], tokenizer, PromptConfig()) == ((), (), 0)
    with pytest.raises(InputError, match=r"all 4 prompts are longer than prompt\.max_tokens=3; the shortest has"):
        render_all(questions, tokenizer, PromptConfig(max_tokens=3))


def test_preview_shows_what_the_model_will_see(configure, jsonl, make_tokenizer):
    path = jsonl([{"question": f"q{n}", "answer": n, "options": ["a", "b"]} for n in (0, 1)])
    config = configure(f"data={path}", "data.columns.choices=options", "data.columns.gold=null")
    tokenizer = make_tokenizer("bos", BOS_CHAT)
    (row,) = preview(config, tokenizer, 1)
    assert row.text == f"<s><user>q0\nA. a\nB. b\n\n{INSTRUCTIONS['choice']}</s><assistant>"
    assert (row.id, row.kind, row.gold, row.num_tokens) == (
        "0",
        "choice",
        None,
        len(tokenizer(row.text).input_ids) - 1,
    )
    rows = preview(configure(f"data={path}", "data.columns.choices=null"), None, 5)
    assert [(row.gold, row.num_tokens) for row in rows] == [("0", None), ("1", None)]
    assert len(preview(configure(f"data={path}", "data.max_questions=1"), None, 5)) == 1


THINKS = CHAT.replace("<assistant>", "<assistant><think>\n")


def test_a_prompt_that_opens_a_thought_is_known_by_its_question(make_tokenizer):
    """A response that closes none holds no answer; one that does, what follows."""
    for template, opened in ((THINKS, True), (CHAT, False)):
        tokenizer = make_tokenizer("bos")
        tokenizer.chat_template = template
        ((question,), _, _) = render_all([QUESTION], tokenizer, PromptConfig(system="Reason inside <think> tags."))
        assert question.in_thought is opened
        with Equivalence() as equivalence:
            texts = ["2 + 3 is 5, so the answer is 5.", "Perhaps 6.</think>The answer is 5."]
            one = count_vote(texts, [False] * 2, "number", equivalence, in_thought=question.in_thought)
        assert one.answers == ((None, "5") if opened else ("5", "5"))
