"""A line ends only at a line feed: in the files users bring and in those the project writes."""

import json
from pathlib import Path

import pytest
import yaml

from spinerl.config import dump_yaml, load_config
from spinerl.data import load_data
from spinerl.report.read import read_run
from spinerl.runs import RunFolder, read_lines, write_rows
from spinerl.scoring import read_predictions

SOURCE = Path(__file__).parent.parent / "src" / "spinerl"
SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
ODD = "one" + "two".join(SEPARATORS) + "three"


def jsonl(path, rows, start="", end="\n"):
    path.write_bytes((start + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "bom"])
def test_every_reader_keeps_separators_inside_texts(tmp_path, start, end):
    rows = [{"id": str(i), "question": ODD, "answer": ODD, "responses": [ODD], "step": i} for i in range(2)]
    file = jsonl(tmp_path / "rows.jsonl", rows, start, end)
    assert [row["question"] for row in read_lines(file)] == [ODD] * 2
    assert [row["responses"] for row in read_predictions(file)] == [[ODD]] * 2
    data = load_config(overrides=[f"data={file}", f"data.gold={file}", "answer.kind=text"]).data
    questions, gold = load_data(data, answer_kind="text")
    assert [question.text for question in questions.questions] == [ODD] * 2
    assert dict(gold) == {"0": ODD, "1": ODD}


def test_a_run_folder_reads_back_what_it_wrote(tmp_path):
    run = RunFolder.create(load_config(overrides=[f"run={tmp_path / 'r'}", "steps=2"]))
    streams = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "labels.jsonl", "guard.jsonl", "stream.jsonl")
    look = {"score": 0.5, "rule": None, "probe/initial_support": 0.5, "probe/concentration": 0.0}
    asked = {"greedy_correct": None, "majority_correct": None}
    rows = [
        {"step": step, "id": "q", "question_id": "q", "question": ODD, "label": ODD, **look, **asked} for step in (1, 2)
    ]
    for stream in streams:
        run.append(stream, *rows)
        assert run.rows(stream) == rows
    run.rewind(1)
    for stream in streams:
        assert run.rows(stream) == rows[:1]
    read = read_run(run.path)
    assert [read.samples[0].question, read.labels[0]["label"]] == [ODD, ODD]
    assert [note for note in read.notes if "jsonl" in note] == []


def test_a_run_folder_touched_by_an_editor_that_writes_a_byte_order_mark_is_read(tmp_path):
    run = RunFolder.create(load_config(overrides=[f"run={tmp_path / 'r'}"]))
    jsonl(run.path / "metrics.jsonl", [{"step": 1, "reward/mean": 0.5}], "\ufeff", "\r\n")
    read = read_run(run.path)
    assert read.series("reward/mean") == ((1.0, 0.5),)
    assert [note for note in read.notes if "jsonl" in note] == []


def test_a_last_line_cut_off_is_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"a": ODD}])
    with file.open("a") as end:
        end.write('{"a": "cut')
    assert list(read_lines(file)) == [{"a": ODD}]


@pytest.mark.parametrize("mark", [*SEPARATORS, "\ufeff"], ids=[f"{ord(c):04x}" for c in [*SEPARATORS, "\ufeff"]])
def test_a_configuration_survives_its_file(tmp_path, mark):
    config = load_config({"prompt": {"instruction": f"a{mark}b", "system": f"{mark} c: #d"}})
    (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert yaml.safe_load(dump_yaml(config))["prompt"]["instruction"] == f"a{mark}b"


def test_no_file_is_cut_by_splitlines():
    """`str.splitlines` cuts at separators that JSON texts may hold.

    Left are the answer reader's own cuts inside one response, and files of the kernel's in the engine.
    """
    using = {file.relative_to(SOURCE).parts[0] for file in SOURCE.rglob("*.py") if ".splitlines(" in file.read_text()}
    assert using <= {"answers", "engine"}
