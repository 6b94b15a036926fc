"""What a row's columns mean where no key names them, and questions that are chats."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from spinerl.config import PromptConfig
from spinerl.data import chat_messages, check, load_data, render_text, resolve
from spinerl.data.columns import find_choices, offer
from spinerl.errors import InputError

SYSTEM, FIRST, REPLY = "Be brief.", "What is 2 + 2?", "4"
CHAT = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": FIRST},
    {"role": "assistant", "content": REPLY},
    {"role": "user", "content": "And 2 + 3?"},
    {"role": "assistant", "content": "5"},
]
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["question", "choices"], ["choices"]),
        (["Question", "Options"], ["Options"]),
        (["question", "A", "B", "C", "D", "answer"], ["A", "B", "C", "D"]),
        (["question", "D", "C", "B", "A"], ["A", "B", "C", "D"]),
        (["question", "option_a", "option_b"], ["option_a", "option_b"]),
        (["question", "optionA", "optionB", "optionC"], ["optionA", "optionB", "optionC"]),
        (["question", "opa", "opb", "opc", "opd", "cop"], ["opa", "opb", "opc", "opd"]),
        (["question", "A", "B"], []),  # two letters may be anything
        (["question", "a", "b", "c"], []),
        (["question", "A", "C", "D"], []),
        (["question", "option_b", "option_c"], []),
        (["question", "answer"], []),
    ],
)
def test_columns_of_options_are_found(columns, found):
    assert find_choices(columns) == found


@pytest.mark.parametrize("names", [["choices"], ["options"], ["A", "B", "C"], ["opa", "opb", "opc"]])
def test_options_that_no_key_names_are_used(jsonl, configure, names):
    texts = ["red", "blue", "green"]
    cells = {names[0]: texts} if len(names) == 1 else dict(zip(names, texts, strict=True))
    config = configure(f"data={jsonl([{'question': 'Which?', **cells, 'answer': 'blue'}])}")
    questions, gold = load_data(config.data)
    (question,) = questions.questions
    assert question.choices == ("red", "blue", "green")
    assert question.text == "Which?\nA. red\nB. blue\nC. green"
    assert (question.answer_kind, gold["0"]) == ("choice", "B")
    assert "1 questions (1 choice), 1 with gold" in check(config).lines()[0]
    (plain,) = load_data(
        config.data.model_copy(update={"columns": configure("data.columns.choices=null").data.columns})
    )[0].questions
    assert (plain.choices, plain.text) == ((), "Which?")


def test_rows_may_have_fewer_options_than_columns(jsonl, configure):
    rows = [{"question": "q", "A": "x", "B": "y", "C": "z"}, {"question": "p", "A": "x", "B": "y", "C": None}]
    questions, _ = load_data(configure(f"data={jsonl(rows)}").data)
    assert [question.choices for question in questions.questions] == [("x", "y", "z"), ("x", "y")]


@pytest.mark.parametrize("text", ["Which?\nA. red\nB. blue", "Which? (A) red (B) blue", "Which? A: red, B: blue."])
def test_options_that_the_text_shows_are_not_written_twice(jsonl, configure, text):
    rows = [{"question": text, "options": ["red", "blue"], "answer": "A"}]
    (question,) = load_data(configure(f"data={jsonl(rows)}").data)[0].questions
    assert (question.text, question.choices) == (text, ("red", "blue"))


@pytest.mark.parametrize(
    "row", [{"options": "anything"}, {"options": 3}, {"options": ["a", "b"], "answer": "none of them"}]
)
def test_found_options_that_do_not_read_say_how_to_leave_them_out(jsonl, configure, row):
    path = jsonl([{"question": "q", **row}])
    with pytest.raises(InputError, match=r"line 1: .*data\.columns\.choices=null reads no options"):
        load_data(configure(f"data={path}").data)
    assert len(load_data(configure(f"data={path}", "data.columns.choices=null").data)[0].questions) == 1


def test_a_definition_that_says_its_kind_has_no_options_unless_it_names_them(jsonl, configure, tmp_path):
    jsonl([{"question": "2 + 3?", "options": ["4", "5"], "answer": "5"}])
    (tmp_path / "d.yaml").write_text("path: rows.jsonl\nkind: number\n")
    questions, gold = load_data(configure(f"data={tmp_path / 'd.yaml'}").data)
    assert (questions.questions[0].choices, questions.questions[0].answer_kind, gold["0"]) == ((), "number", "5")
    assert resolve(configure(f"data={tmp_path / 'd.yaml'}")).data.columns.choices is None


@pytest.mark.parametrize(
    ("columns", "offered"),
    [
        (["id", "problem", "solution"], "problem"),
        (["solution", "problem"], "problem"),
        (["prompt", "solution"], "prompt"),
        (["messages", "label"], "messages"),
        (["Question", "solution"], "Question"),
        (["solution", "answer"], None),
    ],
)
def test_a_solution_is_never_offered_in_place_of_a_named_question(columns, offered, jsonl, configure):
    said = offer("data.columns.question", "question", columns)
    assert said == (f' (did you mean "{offered}"?)' if offered else "")
    path = jsonl([dict.fromkeys(columns, "x")])
    with pytest.raises(InputError) as refused:
        load_data(configure(f"data={path}", "data.columns.question=question").data)
    assert f"no column 'question'{said}; there are" in str(refused.value)
    assert "set data.columns.question" in str(refused.value)


def chat_question(configure, jsonl, cell):
    path = jsonl([{"id": "a", "messages": cell, "answer": "5"}])
    return load_data(configure(f"data={path}", "data.columns.question=messages").data)


@pytest.mark.parametrize("sharegpt", [False, True])
def test_the_last_user_turn_of_a_chat_is_the_question(configure, jsonl, make_tokenizer, sharegpt):
    names = {"user": "human", "assistant": "gpt"}
    other = [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in CHAT]
    questions, gold = chat_question(configure, jsonl, other if sharegpt else CHAT)
    (question,) = questions.questions
    assert question.text == "And 2 + 3?"
    assert question.turns == (("system", SYSTEM), ("user", FIRST), ("assistant", REPLY))
    assert dict(gold) == {"a": "5"}  # of the answer column; the chat's own last turn is not read
    prompt = PromptConfig(instruction="Box it.")  # pyright: ignore[reportCallIssue]
    assert chat_messages(question, prompt) == [*CHAT[:3], {"role": "user", "content": "And 2 + 3?\n\nBox it."}]
    text = render_text(question, make_tokenizer(chat_template=CHATML), prompt)
    assert text == f"<system>{SYSTEM}<user>{FIRST}<assistant>{REPLY}<user>And 2 + 3?\n\nBox it.<assistant>"
    assert render_text(question, None, prompt) == (
        f"{SYSTEM}\n\nQuestion: {FIRST}\n\nAnswer: {REPLY}\n\nQuestion: And 2 + 3?\n\nBox it.\n\nAnswer:"
    )
    own = prompt.model_copy(update={"system": "Mine."})
    assert chat_messages(question, own)[0] == {"role": "system", "content": "Mine."}


def test_a_chat_is_read_from_parquet_too(configure, tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [CHAT[:2], CHAT[1:2]]}), file)
    questions, _ = load_data(configure(f"data={file}", "data.columns.question=prompt").data)
    assert [(q.text, q.turns) for q in questions.questions] == [(FIRST, (("system", SYSTEM),)), (FIRST, ())]
    assert check(configure(f"data={file}", "data.columns.question=prompt")).findings == ()  # not the same question


def test_what_was_said_before_is_part_of_the_fingerprint(configure, jsonl):
    first = chat_question(configure, jsonl, CHAT)[0]
    second = chat_question(configure, jsonl, CHAT[1:])[0]
    plain = load_data(configure(f"data={jsonl([{'id': 'a', 'question': 'And 2 + 3?'}])}").data)[0]
    single = chat_question(configure, jsonl, CHAT[3:])[0]
    assert len({one.fingerprint for one in (first, second, plain)}) == 3
    assert single.fingerprint == plain.fingerprint


def test_parts_of_a_message_are_joined_and_images_stand_in_their_place(configure, tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture())
    content = [{"type": "text", "text": "What is on "}, {"type": "image"}, {"type": "text", "text": "?"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": content}], "images": ["a.png"]}))
    (question,) = load_data(configure(f"data={rows}", "data.columns.question=messages").data)[0].questions
    assert question.text == "What is on <image>?"
    assert len(question.images) == 1


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ([{"role": "assistant", "content": "hi"}], "none of its messages is a user's"),
        ([{"role": "tool", "content": "hi"}], "message 1 has the role 'tool'; allowed: system, "),
        ([{"role": "user", "content": 3}], "message 1 must be a text or a list of parts, found int"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 1 has a part of type 'audio'"),
        ([{"role": "user"}], "must be text or a number, found list"),
    ],
)
def test_a_chat_without_a_question_is_refused_in_one_line(configure, jsonl, cell, says):
    with pytest.raises(InputError) as refused:
        chat_question(configure, jsonl, cell)
    assert "line 1: column 'messages'" in str(refused.value)
    assert says in str(refused.value)
