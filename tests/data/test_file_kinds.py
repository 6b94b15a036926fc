"""Questions from files of every kind: the same whatever they came in, and one line for what cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from spinerl.config import DataConfig
from spinerl.data import check, load_data, reading_of
from spinerl.errors import InputError
from spinerl.paths import absolute_paths

ROWS = [
    {"id": "007", "question": 'Which is "red", or\nnot; or?', "choices": ["a, b", "c"], "subject": "é", "answer": "c"},
    {"id": "1.50", "question": "2 + 3?", "choices": None, "subject": "NA", "answer": "1e5"},
    {"id": "true", "question": "=1+1", "choices": None, "subject": None, "answer": "007"},
    {"id": "NA", "question": "[2] + '3'?", "choices": None, "subject": "x", "answer": None},
]
COLUMNS = list(ROWS[0])


def as_csv(delimiter: str = ",", line_end: str = "\r\n", encoding: str = "utf-8", head: str = "") -> bytes:
    out = io.StringIO(newline="")
    out.write(head)
    writer = csv.writer(out, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(COLUMNS)
    for row in ROWS:
        writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values()])
    return out.getvalue().encode(encoding)


def as_jsonl(encoding: str = "utf-8") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(encoding)


def as_arrow(kind: str) -> bytes:
    table = pyarrow.Table.from_pylist(ROWS)
    out = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, out)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, out, compression="zstd")
    else:
        with (pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file)(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


FILES = {
    "rows.jsonl": as_jsonl(),
    "rows.ndjson.gz": gzip.compress(as_jsonl()),
    "two members.jsonl.gz": gzip.compress(as_jsonl()[:40]) + gzip.compress(as_jsonl()[40:]),
    "ROWS.JSONL.ZST": zstd(as_jsonl()),
    "not named so.jsonl": gzip.compress(as_jsonl()),
    "utf-16.jsonl": as_jsonl("utf-16"),
    "rows.json": json.dumps(ROWS).encode(),
    "rows.json.gz": gzip.compress(json.dumps({"version": 1, "data": ROWS}).encode()),
    "rows.csv": as_csv(),
    "rows.csv.zst": zstd(as_csv()),
    "lf.csv": as_csv(line_end="\n"),
    "mark.csv": as_csv(encoding="utf-8-sig"),
    "excel.csv": as_csv(";", encoding="utf-16"),
    "said.csv": as_csv("|", head="sep=|\r\n"),
    "pipes.csv": as_csv("|"),
    "tabs.csv": as_csv("\t"),
    "rows.tsv": as_csv("\t"),
    "rows.tsv.gz": gzip.compress(as_csv("\t")),
    "rows.parquet": as_arrow("parquet"),
    "rows.arrow": as_arrow("file"),
    "stream.arrow": as_arrow("stream"),
    "rows.feather": as_arrow("feather"),
}


@pytest.fixture
def load(configure):
    return lambda *overrides: load_data(configure(*overrides, "data.columns.subject=subject").data)


@pytest.fixture
def refused(configure):
    """The one line that a data set is refused with."""

    def refuse(*overrides):
        with pytest.raises(InputError) as caught:
            load_data(configure(*overrides).data)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


@pytest.fixture
def expected(load, tmp_path):
    (tmp_path / "expected.jsonl").write_bytes(as_jsonl())
    return load(f"data={tmp_path / 'expected.jsonl'}")


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_questions(load, expected, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    questions, gold = load(f"data={path}")
    assert questions.questions == expected[0].questions
    assert questions.fingerprint == expected[0].fingerprint
    assert dict(gold) == dict(expected[1]) == {"007": "B", "1.50": "1e5", "true": "007"}
    assert questions.notes == ()


@pytest.mark.parametrize("kind", ["saved", "splits", "csv", "jsonl"])
def test_so_does_a_folder(load, expected, tmp_path, kind):
    folder = tmp_path / "set"
    dataset = datasets.Dataset.from_list(ROWS)
    if kind == "saved":
        dataset.with_format("numpy").save_to_disk(folder)
    elif kind == "splits":
        datasets.DatasetDict({"train": dataset.select([0]), "test": dataset}).save_to_disk(folder)
    else:
        folder.mkdir()
        (folder / f"test.{kind}").write_bytes(FILES[f"rows.{kind}"])
    questions, gold = load(f"data={folder}")
    assert questions.fingerprint == expected[0].fingerprint
    assert dict(gold) == dict(expected[1])
    if kind == "splits":
        assert len(load(f"data={folder}", "data.split=train")[0].questions) == 1


def test_class_labels_are_their_names_in_files_as_in_folders(tmp_path):
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    dataset = datasets.Dataset.from_list([{"question": f"{n}?", "answer": n % 2} for n in range(3)], features=features)
    dataset.save_to_disk(tmp_path / "set")
    dataset.to_parquet(tmp_path / "rows.parquet")
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    for path in (tmp_path / "set", tmp_path / "rows.parquet", arrow):
        assert dict(load_data(DataConfig(name=str(path)))[1]) == {"0": "no", "1": "yes", "2": "no"}


def test_a_text_file_holds_a_question_per_line(load_text, jsonl, configure):
    questions, gold = load_text('\ufeffWhat is 2, 3?\r\n\n \t\n"Why?"\n')
    path = jsonl([{"question": "What is 2, 3?"}, {"question": '"Why?"'}])
    same = load_data(configure(f"data={path}").data)[0]
    assert questions.fingerprint == same.fingerprint
    assert dict(questions.skipped) == {"empty question": 2}
    assert dict(gold) == {}


@pytest.fixture
def load_text(tmp_path, configure):
    def loaded(text, *overrides, name="rows.txt"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_data(configure(f"data={path}", *overrides).data)

    return loaded


CSV = {
    "an index without a name": (",question,answer\n0,a,1\n1,b,2\n", {"0": "1", "1": "2"}),
    "cells without a column": ("question,answer,,\na,1,,\nb,2,,\n", {"0": "1", "1": "2"}),
    "blank lines": ("question,answer\n\na,1\n\n\nb,2\n", {"0": "1", "1": "2"}),
    "spaces after commas": ('question, answer\na, "1"\nb, 2\n', {"0": "1", "1": "2"}),
    "quotes inside a cell": ('question,answer\na 5" pipe,1\nb,2\n', {"0": "1", "1": "2"}),
    "old line ends": ("question,answer\ra,1\rb,2\r", {"0": "1", "1": "2"}),
    "a decimal comma": ('question;answer\na;"1,5"\nb;2,5\n', {"0": "1,5", "1": "2,5"}),
    "capitals": ("Question,ANSWER\na,1\nb,2\n", {"0": "1", "1": "2"}),
    "no gold in a row": ("question,answer\na,\nb,2\n", {"1": "2"}),
}


@pytest.mark.parametrize("name", CSV)
def test_csv_as_people_write_it(load_text, name):
    text, expected = CSV[name]
    questions, gold = load_text(text, name="rows.csv")
    assert dict(gold) == expected
    assert len(questions.questions) == 2


def test_a_csv_cell_may_hold_a_chat_or_images_as_json(load_text, tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture())
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"}]
    out = io.StringIO()
    csv.writer(out).writerows([["messages", "images"], [json.dumps(chat), '["a.png"]'], ["[plain] 2?", "a.png"]])
    questions, _ = load_text(out.getvalue(), name="rows.csv")
    assert [question.text for question in questions.questions] == ["2 + 3?", "[plain] 2?"]
    assert questions.questions[0].turns == (("system", "Be brief."),)
    assert [len(question.images) for question in questions.questions] == [1, 1]


def test_a_bad_row_of_a_csv_file_can_be_left_out(load_text, refused, tmp_path):
    text = "question,answer\na,1\nb,2,3\nc\nd,4\n"
    questions, gold = load_text(text, "data.on_bad_row=skip", name="rows.csv")
    assert dict(gold) == {"0": "1", "3": "4"}
    assert dict(questions.skipped) == {"unreadable row": 2}
    assert "line 3: 3 cells where the header names 2 columns; a text that holds ',' must" in refused(
        f"data={tmp_path / 'rows.csv'}"
    )


def test_an_encoding_can_be_named(load_text, refused, tmp_path):
    text = "question,answer\nWas heißt «é»?,1\n"
    questions, _ = load_text(text.encode("cp1252"), "data.encoding=cp1252", name="rows.csv")
    assert questions.questions[0].text == "Was heißt «é»?"
    assert "line 2 holds byte 0xdf; data.encoding=cp1252 (Windows) or latin-1 reads it" in refused(
        f"data={tmp_path / 'rows.csv'}"
    )
    load_text(text.encode("utf-16-le"), "data.encoding=utf-16-le", name="rows.csv")
    assert "set data.encoding=utf-16-le" in refused(f"data={tmp_path / 'rows.csv'}")
    assert "is not text in utf-16 (UTF-16 stream does not" in refused(
        f"data={tmp_path / 'rows.csv'}", "data.encoding=utf-16"
    )
    for name in ("klingon", "hex", "unicode_escape", "a\0b"):
        with pytest.raises(InputError, match=r"data\.encoding=.*unknown; allowed: auto, utf-8"):
            load_text(text, f"data.encoding={name}")


def test_a_file_without_a_known_ending_can_be_named_for_what_it_holds(load_text, refused, tmp_path):
    questions, _ = load_text("question;answer\na;1\n", "data.format=csv", name="rows.data")
    assert questions.questions[0].text == "a"
    assert "files of type .data are not read; allowed: .jsonl" in refused(f"data={tmp_path / 'rows.data'}")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04")
    assert "save the sheet as CSV" in refused(f"data={tmp_path / 'sheet.xlsx'}")


# --------------------------------------------------------------------------------------------------- columns

# (the columns, that of questions, that of gold answers, how many lines say so)
GUESSES = {
    "the usual": (["question", "answer", "problem", "solution"], "question", "answer", 0),
    "a problem": (["id", "problem", "solution"], "problem", "solution", 2),
    "in capitals": (["Prompt", "TARGET"], "Prompt", "TARGET", 2),
    "both are there": (["input", "problem", "label"], "problem", "label", 2),
    "written apart": (["Question", "Correct Answer"], "Question", "Correct Answer", 2),
    "as in ARC": (["question", "answerKey", "label"], "question", "answerKey", 1),
    "no gold": (["query", "output"], "query", None, 1),
    "two that may be gold": (["text", "label", "target"], "text", None, 2),
    "exactly so": (["Question", "question"], "question", None, 0),
}


@pytest.mark.parametrize("name", GUESSES)
def test_columns_that_no_key_names_are_guessed_and_said(jsonl, configure, name):
    columns, question, gold, num_notes = GUESSES[name]
    config = configure(f"data={jsonl([dict(zip(columns, columns, strict=True))])}")
    questions, golds = load_data(config.data)
    assert [one.text for one in questions.questions] == [question]
    assert list(golds.values()) == ([gold] if gold else [])
    assert len(questions.notes) == num_notes
    if question != "question":
        assert questions.notes[0].startswith(f"questions from column '{question}'; data.columns.question=NAME")
    assert f"question from {question}" in reading_of(config)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["prompt", "input"], "in any of the columns prompt, input; say which with data.columns.question=prompt"),
        (["instruction", "input", "output"], "data.columns.question=instruction; a definition's `template` joins both"),
        (["Question", "QUESTION"], "in any of the columns Question, QUESTION"),
        (["answer", "solution"], "has no column 'question'; there are answer, solution"),
    ],
)
def test_several_that_may_be_the_question_are_refused(jsonl, refused, configure, columns, says):
    path = jsonl([dict.fromkeys(columns, "x")])
    assert says in refused(f"data={path}")
    assert len(load_data(configure(f"data={path}", f"data.columns.question={columns[1]}").data)[0].questions) == 1


def test_a_guessed_gold_that_does_not_read_says_how_to_leave_it_out(jsonl, refused, configure):
    path = jsonl([{"question": "q", "solution": "a\n" * 300}])
    assert refused(f"data={path}").endswith("data.columns.gold=null reads no gold answers")
    assert dict(load_data(configure(f"data={path}", "data.columns.gold=null").data)[1]) == {}


def test_nested_columns(jsonl, configure):
    chat = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    row = {"a.b": "dot", "a": {"b": "field", "c.d": "inner"}, "m": chat, "extra": '{"gold": {"x": [7, 8]}}'}
    path = jsonl([row])

    def question(name, gold="null"):
        config = configure(f"data={path}", f"data.columns.question={name}", f"data.columns.gold={gold}")
        questions, golds = load_data(config.data)
        return questions.questions[0].text, golds.get("0")

    assert question("a.b") == ("dot", None)
    assert question("m.0.content", "m.-1.content") == ("2 + 3?", "5")
    assert question("m", "m") == ("2 + 3?", "5")  # a chat's last reply is gold where it is named
    assert question("m") == ("2 + 3?", None)
    assert question("m.0.content", "extra.gold.x.1") == ("2 + 3?", "8")
    with pytest.raises(InputError, match="gives no question"):
        question("m.7.content")


def test_nested_columns_of_parquet(tmp_path, configure):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a.b": ["dot"], "a": [{"b": "field"}]}), path)
    assert load_data(configure(f"data={path}", "data.columns.question=a.b").data)[0].questions[0].text == "dot"
    pyarrow.parquet.write_table(pyarrow.table({"x": [1], "a": [{"b": "field"}]}), path)
    assert load_data(configure(f"data={path}", "data.columns.question=a.b").data)[0].questions[0].text == "field"


def test_check_says_format_encoding_and_columns(tmp_path, configure):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress("Frage;problem;target\nx;2 + 3?;5\n".encode("utf-16")))
    report = check(configure(f"data={path}"))
    assert report.ok
    assert report.reading == "csv, gzip, utf-16, semicolons between columns: question from problem, gold from target"


# -------------------------------------------------------------------------------------------- standard input


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("rows.jsonl", "jsonl, utf-8"),
        ("rows.ndjson.gz", "jsonl, gzip, utf-8"),
        ("ROWS.JSONL.ZST", "jsonl, zstd, utf-8"),
        ("rows.json", "json, utf-8"),
        ("excel.csv", "csv, utf-16, semicolons between columns"),
        ("said.csv", "csv, utf-8, '|' between columns"),
        ("rows.tsv", "tsv, utf-8, tabs between columns"),
        ("rows.parquet", "parquet"),
        ("stream.arrow", "arrow"),
    ],
)
def test_standard_input_is_known_by_its_content_and_read_once(monkeypatch, load, expected, name, reading):
    monkeypatch.setattr(sys, "stdin", Piped(FILES[name]))
    for _ in range(2):
        questions, gold = load("data=-")
        assert questions.fingerprint == expected[0].fingerprint
        assert dict(gold) == dict(expected[1])
        assert questions.notes == (f"standard input read as {reading}; data.format=KIND says otherwise",)


def test_other_texts_on_standard_input(monkeypatch, configure):
    def texts(content, *overrides):
        monkeypatch.setattr(sys, "stdin", Piped(content.encode()))
        return [question.text for question in load_data(configure("data=-", *overrides).data)[0].questions]

    assert texts("What, in a question?\nWhy?\n") == ["What, in a question?", "Why?"]
    assert texts("question\nWhy?\n") == ["Why?"]
    assert texts("question\nWhy, then?\n", "data.format=txt") == ["question", "Why, then?"]
    assert texts('{\n "data": [{"question": "a"}]}') == ["a"]
    assert texts('{"prompt": "a"}\n{"prompt": "b"}\n') == ["a", "b"]


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (None, "data=-: standard input is closed"),
        (Piped(b""), "data=-: standard input is empty"),
        (Piped(b"\xff\xfe"), "data=- (standard input) is empty"),
        (Piped(b"\x89PNG\r\n\x1a\n"), "data=- (standard input): files must be UTF-8 text, and line 1 holds byte 0x89"),
    ],
)
def test_standard_input_that_gives_nothing(monkeypatch, refused, stdin, says):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert refused("data=-").startswith(says)


def test_a_terminal_and_an_endless_standard_input_are_refused(monkeypatch, refused):
    monkeypatch.setattr("spinerl.data.standard_input.MAX_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", Piped(b"y\n" * 1000))
    assert "standard input goes on after 1,000 bytes" in refused("data=-")
    terminal = Piped(b"")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert "standard input is a terminal; pipe questions into it" in refused("data=-")


def test_paths_of_all_kinds_become_absolute_and_standard_input_stays(monkeypatch, configure, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "rows.txt", "rows.jsonl.gz", "-"):
        (tmp_path / name).write_bytes(FILES["rows.csv"])
        name = absolute_paths(configure(f"data={name}")).data.name
        assert name == "-" or name.startswith(str(tmp_path))
    assert configure("data=runs/exam.csv.gz").run_folder.name.endswith("-exam-seed0")
    assert configure("data=-").run_folder.name.endswith("-stdin-seed0")
