"""Files in, questions and gold out; and every refusal in one line that names the fix."""

import dataclasses
import json
import socket
import subprocess
import sys
import time

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spinerl import hub as reach
from spinerl.data import check, load_data
from spinerl.errors import InputError
from spinerl.types import Question


@pytest.fixture
def load(configure):
    def loaded(*overrides, kind="auto"):
        return load_data(configure(*overrides).data, answer_kind=kind)

    return loaded


@pytest.mark.parametrize(("name", "count"), [("amc", 83), ("math500", 500), ("aime2024", 30)])
def test_real_files_load_with_column_flags(load, shared, name, count):
    path = shared / f"{name}.jsonl"
    questions, gold = load(f"data={path}", "data.columns.question=question", "data.columns.gold=answer")
    assert len(questions.questions) == len(gold) == count
    assert questions.source == str(path)
    assert dict(questions.skipped) == {}


def test_a_file_without_gold_is_the_normal_case(load, jsonl):
    questions, gold = load(f"data={jsonl([{'question': 'What is 2 + 3?'}])}")
    assert questions.questions == (Question(id="0", text="What is 2 + 3?"),)
    assert dict(gold) == {}


def test_questions_have_no_field_for_an_answer(load, jsonl):
    questions, gold = load(f"data={jsonl([{'question': 'q', 'answer': 'secret'}])}")
    assert gold["0"] == "secret"
    assert "secret" not in repr(questions)
    assert not {"gold", "answer"} & {field.name for field in dataclasses.fields(Question)}


def test_gold_column_auto_none_and_named(load, jsonl):
    path = jsonl([{"question": "q", "answer": "1", "key": "2"}])
    assert load(f"data={path}")[1]["0"] == "1"
    assert dict(load(f"data={path}", "data.columns.gold=null")[1]) == {}
    assert load(f"data={path}", "data.columns.gold=key")[1]["0"] == "2"


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("142.0", "142.0"),  # text stays as it is
        (142.0, "142"),
        (142, "142"),
        (0.1, "0.1"),
        (-3, "-3"),
        (1e22, "1e+22"),
        (True, "true"),
        ("  x ", "x"),
        (None, None),
        ("", None),
        ("  ", None),
        (float("nan"), None),
    ],
)
def test_gold_cells_become_text(load, jsonl, cell, gold):
    path = jsonl([{"question": "q", "answer": cell}, {"question": "p", "answer": "1"}])
    assert load(f"data={path}")[1].get("0") == gold


def test_true_and_false_are_yes_and_no_for_a_yes_no_question(load, jsonl):
    path = jsonl([{"question": "q", "answer": True}, {"question": "p", "answer": False}])
    assert dict(load(f"data={path}", kind="yesno")[1]) == {"0": "yes", "1": "no"}


def test_columns_by_name_and_by_dots(load, jsonl):
    row = {"uid": 7, "extra": {"problem": "q", "truth": {"value": 3}}, "topic": "algebra"}
    overrides = ["id=uid", "question=extra.problem", "gold=extra.truth.value", "subject=topic"]
    questions, gold = load(f"data={jsonl([row])}", *(f"data.columns.{word}" for word in overrides))
    assert questions.questions == (Question(id="7", text="q", subject="algebra"),)
    assert dict(gold) == {"7": "3"}


def test_empty_questions_are_skipped_with_a_count_and_keep_the_row_numbers(load, jsonl):
    rows = [{"question": ""}, {"question": " \n"}, {"question": None}, {"other": 1}, {"question": "q"}]
    questions, _ = load(f"data={jsonl(rows)}")
    assert [question.id for question in questions.questions] == ["4"]
    assert dict(questions.skipped) == {"empty question": 4}


def test_max_questions_counts_questions_and_limits_the_gold(load, jsonl):
    rows = [{"question": q, "answer": q} for q in ("", "a", "b", "c")]
    questions, gold = load(f"data={jsonl(rows)}", "data.max_questions=2")
    assert [question.text for question in questions.questions] == ["a", "b"]
    assert dict(gold) == {"1": "a", "2": "b"}


def test_fingerprint_depends_on_ids_texts_and_order_only(load, jsonl, tmp_path):
    rows = [{"id": "1", "question": "a", "answer": "x"}, {"id": "2", "question": "b"}]
    same = load(f"data={jsonl(rows, 'one.jsonl')}")[0].fingerprint
    (tmp_path / "two.json").write_text(json.dumps([{**row, "answer": "y"} for row in rows]))
    assert load(f"data={tmp_path / 'two.json'}")[0].fingerprint == same
    for other in ([*rows[::-1]], [{**rows[0], "question": "c"}, rows[1]], [{**rows[0], "id": "3"}, rows[1]]):
        assert load(f"data={jsonl(other)}")[0].fingerprint != same
    assert len(same) == 64


def test_jsonl_with_bom_blank_lines_windows_ends_and_line_separators(load, tmp_path):
    path = tmp_path / "rows.jsonl"
    text = '\ufeff{"question": "a\u2028b"}\r\n\r\n  \n{"question": "c"}'
    path.write_bytes(text.encode())
    questions, _ = load(f"data={path}")
    assert [(q.id, q.text) for q in questions.questions] == [("0", "a\u2028b"), ("1", "c")]


@pytest.mark.parametrize("content", ['[{"question": "q"}]', '{"version": 2, "data": [{"question": "q"}]}'])
def test_json_files(load, tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert load(f"data={path}")[0].questions[0].text == "q"


def test_parquet_files(load, tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"problem": ["a", "b"], "answer": [1.0, None], "options": [["x", "y"], None]})
    pyarrow.parquet.write_table(table, path)
    questions, gold = load(
        f"data={path}",
        "data.columns.question=problem",
        "data.columns.choices=options",
        "data.columns.gold=answer",
    )
    assert [q.text for q in questions.questions] == ["a\nA. x\nB. y", "b"]
    assert [q.answer_kind for q in questions.questions] == ["choice", "auto"]
    assert dict(gold) == {"0": "B"}


def test_a_local_folder_is_read_through_datasets(load, jsonl, tmp_path):
    (tmp_path / "set").mkdir()
    jsonl([{"question": "a", "answer": "1"}], "set/test.jsonl")
    jsonl([{"question": "b", "answer": "2"}], "set/train.jsonl")
    assert load(f"data={tmp_path / 'set'}")[0].questions[0].text == "a"
    assert load(f"data={tmp_path / 'set'}", "data.split=train")[1]["0"] == "2"
    assert load("data=anything", f"data.path={tmp_path / 'set'}")[1]["0"] == "1"
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean \"train\"\?\); there are"):
        load(f"data={tmp_path / 'set'}", "data.split=trian")
    with pytest.raises(InputError, match=r"no configuration 'x'; there are default: set data\.config"):
        load(f"data={tmp_path / 'set'}", "data.config=x")


def test_a_folder_of_one_split_serves_as_the_split_that_was_not_asked_for(load, jsonl, tmp_path):
    (tmp_path / "set").mkdir()
    jsonl([{"question": "a"}], "set/rows.jsonl")
    assert load(f"data={tmp_path / 'set'}")[0].questions[0].text == "a"
    with pytest.raises(InputError, match="no split 'test'; there are train"):
        load(f"data={tmp_path / 'set'}", "data.split=test")


def test_tiny_suites_come_with_their_gold_apart(load):
    questions, gold = load("data=tiny/shift-a", "data.max_questions=5")
    assert [question.id for question in questions.questions] == list(gold)
    assert all(value.lstrip("-").isdigit() for value in gold.values())
    assert {question.answer_kind for question in questions.questions} == {"number"}
    assert questions.source == "tiny/shift-a"
    assert dict(load("data=tiny/shift-a", "data.columns.gold=null")[1]) == {}
    with pytest.raises(InputError, match="shift-a"):
        load("data=tiny/nothing")


def test_gold_in_a_separate_file(load, jsonl):
    path = jsonl([{"id": 1, "question": "a", "answer": "wrong"}, {"id": 2, "question": "b"}])
    gold_path = jsonl([{"id": 1, "answer": 10}, {"id": "3", "answer": "x"}, {"id": 2, "answer": None}], "g.jsonl")
    assert dict(load(f"data={path}", f"data.gold={gold_path}")[1]) == {"1": "10"}


def test_gold_in_a_separate_file_of_multiple_choice_becomes_a_letter(load, jsonl):
    path = jsonl([{"id": 1, "question": "a", "options": ["red", "blue"]}])
    gold_path = jsonl([{"id": 1, "answer": "blue"}], "g.jsonl")
    overrides = (f"data={path}", f"data.gold={gold_path}", "data.columns.choices=options")
    assert dict(load(*overrides)[1]) == {"1": "B"}


def test_gold_of_a_later_question_is_no_fault_of_the_gold_file(load, jsonl):
    path = jsonl([{"id": 1, "question": "a"}, {"id": 2, "question": "b"}])
    gold_path = jsonl([{"id": 2, "answer": 10}], "g.jsonl")
    assert dict(load(f"data={path}", f"data.gold={gold_path}", "data.max_questions=1")[1]) == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 9, "answer": "x"}], "none of its ids is a question's id"),
        ([{"id": 1, "answer": "x"}, {"id": 1, "answer": "y"}], "line 2: id '1' was already given in line 1"),
        ([{"id": 1}], "line 1: a gold row must be"),
        ([{"id": [1], "answer": "x"}], "line 1: a gold row must be"),
        (["{"], "line 1: not valid JSON"),
        ([{"id": 1, "answer": {"a": 1}}], "line 1: column 'answer' must be text or a number, found dict"),
        ([], "data.gold=.* is empty"),
    ],
)
def test_bad_gold_files_are_refused(load, jsonl, rows, message):
    path = jsonl([{"id": 1, "question": "a"}])
    with pytest.raises(InputError, match=message) as caught:
        load(f"data={path}", f"data.gold={jsonl(rows, 'g.jsonl')}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (['{"question": "a"}', "{oops}"], [], r"line 2: not valid JSON \(.* at column 2\)"),
        (["[1]"], [], "line 1: a row must be an object"),
        (['{"question": "\\ud800"}'], [], "line 1: column 'question' holds half a character"),
        (["[" * 100_000], [], "line 1: not valid JSON"),
        (
            [{"id": 1, "question": "a"}, {"id": "1", "question": "b"}],
            [],
            "line 2: id '1' was already given in line 1",
        ),
        ([{"id": None, "question": "a"}], [], "line 1: column 'id' is empty"),
        ([{"question": ["a"]}], [], "line 1: column 'question' must be text or a number, found list"),
        ([{"question": "a", "answer": ["1"]}], [], "line 1: column 'answer' must be text"),
        (
            [{"problem": "a"}],
            ["data.columns.question=question"],
            r"no column 'question' \(did you mean \"problem\"\?\); there are problem: set data\.columns\.question",
        ),
        ([{"questions": "a"}], [], r"no column 'question' \(did you mean \"questions\"\?\)"),
        (
            [{"question": "a"}],
            ["data.columns.gold=answer"],
            r"no column 'answer'; .*: set data\.columns\.gold",
        ),
        (
            [{"a\nb": 1, **{f"c{i}": 1 for i in range(40)}}],
            [],
            r"there are 'a\\nb', c0, .*, c28 and 11 more: set",
        ),
        ([{"question": "a"}], ["data.columns.id=uid"], r"set data\.columns\.id"),
        (
            [{"question": "a"}],
            ["data.columns.choices=[x,question]"],
            r"no column 'x'.*data\.columns\.choices",
        ),
        (
            [{"question": ""}],
            [],
            r"gives no question \(1 rows: empty question\); see data\.columns\.question",
        ),
        ([], [], "is empty"),
        (["", "  "], [], "is empty"),
    ],
)
def test_bad_rows_are_refused_in_one_line(load, jsonl, rows, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        load(f"data={jsonl(rows)}", *overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data=nothing.jsonl", "data=nothing.jsonl: there is no such file"),
        ("data=rows.csv", "data=rows.csv: there is no such file; give a .jsonl, "),
        ("data=rows.xls", r"neither a file nor a known data set"),
        ("data=a/b/c", "no such file or folder; a hub data set is written owner/name"),
        ("data=math-50", r'did you mean "math-500"\?'),
        ("data=shift-a", r'did you mean "tiny/shift-a"\?'),
        ("data=my.yaml", "data=my.yaml: there is no such definition file"),
        ("data.path=nothing", "data.path=nothing: there is no such file"),
        ("data.gold=nothing.jsonl", "data.gold=nothing.jsonl: there is no such file"),
    ],
)
def test_missing_sources_are_refused(load, word, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(word)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "", "is empty"),
        ("rows.json", "{", "not valid JSON"),
        ("rows.json", '{"question": "a"}\n{"question": "b"}', r"must end in \.jsonl"),
        ("rows.json", '{"question": "a"}', "must hold a list of objects; found an object with keys question"),
        ("rows.json", "3", "must hold a list of objects; found int"),
        ("rows.json", "[3]", "row 0: a row must be an object"),
        ("rows.json", "[]", "is empty"),
        ("rows.parquet", "PAR", "not a readable Parquet file"),
        ("rows.xml", "a,b", r"files of type \.xml are not read"),
        ("rows", "a,b", "files without an ending are not read"),
        ("rows.jsonl", b"\xff\xfa", "must be UTF-8"),
    ],
)
def test_files_of_another_format_are_refused(load, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        load(f"data={path}")
    assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach_names_the_way_out(load):
    with pytest.raises(
        InputError, match="hub data set someone/something is out of reach: HF_HUB_OFFLINE is set"
    ) as caught:
        load("data=someone/something")
    assert str(caught.value).endswith("for a copy on this machine set data.path=FOLDER")


def test_a_hub_whose_name_does_not_resolve_is_not_waited_for(load, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reach, "getproxies", dict)
    monkeypatch.setattr(reach, "_found", {})

    def unknown(*_):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    start = time.monotonic()
    with pytest.raises(InputError, match="out of reach"):
        load("data=someone/something")
    assert time.monotonic() - start < 5  # the hub's own retries take over 20 seconds
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            DatasetNotFoundError("'a/b' is a gated dataset on the Hub."),
            "is gated: .*hf auth login.*data.path",
        ),
        (DatasetNotFoundError("'a/b' doesn't exist on the Hub"), "cannot be found .*data.path"),
        (
            ValueError('Unknown split "test". Use one of\n [train].'),
            r"Use one of \[train\]\.; see data\.split",
        ),
        (ValueError("Config name is missing."), r"Config name is missing\.; see data\.config"),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be read: Dataset scripts"),
    ],
)
def test_what_the_hub_says_becomes_one_line(load, monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=message) as caught:
        load("data=a/b")
    assert "\n" not in str(caught.value)


def test_a_folder_of_several_configurations_or_of_none_is_refused(load, tmp_path, jsonl):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"cannot be read as a data set.*set data\.path"):
        load(f"data={tmp_path / 'set'}")
    jsonl([{"question": "a"}], "set/a.jsonl")
    head = "---\nconfigs:\n"
    for name in ("one", "two"):
        head += f"- config_name: {name}\n  data_files: a.jsonl\n"
    (tmp_path / "set" / "README.md").write_text(head + "---\n")
    with pytest.raises(InputError, match=r"several configurations; there are one, two: set data\.config"):
        load(f"data={tmp_path / 'set'}")
    assert load(f"data={tmp_path / 'set'}", "data.config=two")[0].questions[0].text == "a"


def test_reading_data_imports_neither_torch_nor_datasets(jsonl):
    code = (
        "import sys; from spinerl.config import load_config; from spinerl.data import check, load_data\n"
        f"load_data(load_config(overrides=['data={jsonl([{'question': 'q'}])}']).data)\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'pyarrow', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["A", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(
    st.fixed_dictionaries({"question": CELLS}, optional=dict.fromkeys(("id", "answer", "options", "image"), CELLS))
    | CELLS,
    max_size=4,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, kind=st.sampled_from(["auto", "math", "yesno"]), choices=st.sampled_from(["null", "options"]))
def test_any_rows_load_or_are_refused_in_one_line(load, jsonl, configure, rows, kind, choices):
    overrides = (f"data={jsonl(rows)}", f"data.columns.choices={choices}", f"answer.kind={kind}")
    try:
        questions, gold = load(*overrides, kind=kind)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    if refusal:
        return
    assert questions.questions
    assert set(gold) <= {question.id for question in questions.questions}
    assert all(question.text.strip() and question.id for question in questions.questions)
    assert check(configure(*overrides)).ok


@pytest.mark.parametrize(("name", "kind"), [("tiny/shift-a", "number"), ("tiny-vqa/shift-b", "text")])
def test_fresh_questions_of_a_suites_kind_by_name(load, name, kind):
    first, gold = load(f"data={name}@11")
    again, _ = load(f"data={name}@11")
    other, _ = load(f"data={name}@12")
    bundled, _ = load(f"data={name}")
    assert len(first.questions) == len(gold) == 256
    assert first.fingerprint == again.fingerprint != other.fingerprint
    texts = [{(q.text, q.images) for q in found.questions} for found in (first, other, bundled)]
    assert all(len(a & b) < 8 for a, b in ((texts[0], texts[1]), (texts[0], texts[2])))
    assert {q.answer_kind for q in first.questions} <= {kind, "choice"}
    with pytest.raises(InputError, match="whole number"):
        load(f"data={name}@one")
    with pytest.raises(InputError, match="shift-z"):
        load("data=tiny/shift-z@1")
