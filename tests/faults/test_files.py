"""Damaged and hostile files of questions: one line each, exit code 2, and little memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

import spinerl
from spinerl.config import DataConfig
from spinerl.data import files, load_data
from tests.faults.commands import SMALL, run_command, run_lines
from tests.faults.test_exit_codes import stopping_after

GOOD = b'{"question": "2 + 3?"}\n' * 200
HEAD = b"question,answer\n"


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def parquet(columns: dict, **options) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out, **options)
    return out.getvalue()


def arrow(columns: dict, new=pyarrow.ipc.new_file) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table(columns)
    with new(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def with_odd_offsets() -> bytes:
    """An Arrow stream whose texts begin outside of it."""
    good = arrow({"question": ["ab", "cd"]}, pyarrow.ipc.new_stream)
    offsets = b"\0\0\0\0\2\0\0\0\4\0\0\0"
    assert good.count(offsets) == 1
    return good.replace(offsets, b"\0\0\0\0\xff\xff\xff\x6f\xff\xff\xff\x7f")


def not_text() -> bytes:
    column = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column], ["question"]), out)
    return out.getvalue()


ROWS = {"question": [f"{n} + 1?" for n in range(500)]}
# name of the file -> (its bytes, what the line says)
DAMAGED = {
    "cut.jsonl.gz": (gzip.compress(GOOD)[:-20], "is no whole gzip file"),
    "cut.csv.gz": (gzip.compress(HEAD + b"a,1\n" * 99)[:30], "is no whole gzip file"),
    "flipped.jsonl.gz": (gzip.compress(GOOD)[:-6] + b"\0\0\0\0\0\0", "is no whole gzip file"),
    "empty.jsonl.gz": (gzip.compress(b""), "is empty"),
    "plain.jsonl.gz": (GOOD, "is no gzip file, as its ending .gz says: rename it if it is not compressed"),
    "zipped.jsonl.gz": (b"PK\x03\x04" + GOOD, "as its ending .gz says: it is a ZIP archive"),
    "other.jsonl.zst": (b"BZh91AY&SY" + GOOD, "is no zstd file, as its ending .zst says: it is bzip2 data"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(GOOD)), "is compressed twice"),
    "garbage.jsonl.zst": (zstd(GOOD)[:4] + os.urandom(40), "is no whole zstd file"),
    "cut.jsonl.zst": (zstd(GOOD * 99)[:-9], "is no whole zstd file"),
    "packed.parquet": (gzip.compress(parquet(ROWS)), "only text is read compressed"),
    "cut.parquet": (parquet(ROWS)[:-9], "is not a readable Parquet file"),
    "begun.parquet": (parquet(ROWS)[:60], "is not a readable Parquet file"),
    "holes.parquet": (b"PAR1" + b"\0" * 300 + parquet(ROWS)[304:], "is not a readable Parquet file"),
    "no text.parquet": (not_text(), "is not a readable Parquet file"),
    "empty.parquet": (parquet({"question": pyarrow.array([], pyarrow.string())}), "is empty"),
    "dates.parquet": (
        parquet({"question": pyarrow.array([0], pyarrow.timestamp("s"))}),
        "row 0: column 'question' must be text or a number, found datetime",
    ),
    "renamed.csv": (parquet(ROWS), "holds Parquet data, not csv; data.format=parquet reads it"),
    "other columns.arrow": (arrow({"[red]x[/red]": [1]}), "has no column 'question'; there are [red]x[/red]: set"),
    "other types.arrow": (arrow({"question": [[1, 2]]}), "column 'question' must be text or a number, found list"),
    "cut.arrow": (arrow(ROWS)[:-300], "is not a readable Arrow file"),
    "cut stream.arrow": (arrow(ROWS, pyarrow.ipc.new_stream)[:900], "is not a readable Arrow file"),
    "odd offsets.arrow": (with_odd_offsets(), "is not a readable Arrow file"),
    "text.arrow": (b"question\n2 + 3?\n", "is not a readable Arrow file"),
    "nothing.csv": (b"", "is empty"),
    "mark.csv": (b"\xef\xbb\xbf", "is empty"),
    "mark.txt": (b"\xff\xfe", "is empty"),
    "blank.txt": (b"\n \n\t\n", "is empty"),
    "header.csv": (HEAD, "is empty under its header"),
    "nameless.csv": (b",,\n1,2,3\n", "line 1: the first line must name the columns, and names none"),
    "twins.csv": (b"question,answer,answer\na,1,2\n", "line 1: the header names 'answer' twice; rename one"),
    "NUL.csv": (HEAD + b"a\0b,1\n", "line 2: holds a NUL character"),
    "NUL.txt": (b"a question\n" * 20 + b"a\0b\n", "line 21: holds a NUL character"),
    "NUL.jsonl": (b'{"question": "a\0"}\n', "line 1: not valid JSON (Invalid control character"),
    "open.csv": (HEAD + b'"a,1\n' + b"b,2\n" * 99, "line 2: a quote that opens here is never closed"),
    "early.csv": (HEAD + b'a,1\n"b" c,2\n', "line 3: a quote closes before its cell ends"),
    "markup.csv": (b"[bold]a,[link=x]b\n1,2\n", "has no column 'question'; there are [bold]a, [link=x]b: set"),
    "steering.csv": (b"\x1b[31m,b\n1,2\n", "has no column 'question'; there are '\\x1b[31m', b: set"),
    "long.csv": (
        HEAD + b"9" * 2_000_000 + b",1\n",
        "line 2: column 'question' has 2,000,000 characters, over 1,000,000",
    ),
    "long.txt.gz": (gzip.compress(b"a\n" + b"9" * 2_000_000), "line 2: column 'question' has 2,000,000 characters"),
    "long.arrow": (arrow({"question": ["a", "9" * 2_000_000]}), "row 1: column 'question' has 2,000,000 characters"),
    "wide.csv": (HEAD + b"a,1,2\n", "line 2: 3 cells where the header names 2 columns"),
    "16.csv": ("question,answer\na,1\n".encode("utf-16-le"), "looks like UTF-16 without its mark: set data.encoding="),
    "16.txt": (b"\xff\xfea\x00b", "is not text in utf-16"),
    "latin.txt": (b"a\nna\xefve?\n", "line 2 holds byte 0xef; data.encoding=cp1252"),
    "binary.txt": (bytes(range(256)) * 9, "files must be UTF-8 text, and line"),
    "picture.csv": (b"%PDF-1.7\n", "is a PDF file; save or unpack it"),
    "sheet.csv": (b"PK\x03\x04", "is a ZIP archive (Excel's files are some)"),
    "deep.json": (b"[" * 100_000, "is not valid JSON"),
    "deep.json.gz": (gzip.compress(b'[{"question": ' + b"[" * 100_000), "is not valid JSON"),
    "lists.json": (b'{"a": [1], "b": [2]}', "must hold a list of objects; found an object with keys a, b"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line(name, tmp_path, capsys):
    content, says = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    command = ["adapt", f"data={tmp_path / name}", "prompt.chat_template=off", f"run={tmp_path / 'run'}"]
    code, lines = run_lines(command, capsys)
    assert (code, len(lines)) == (2, 1), lines
    assert str(tmp_path / name) in lines[0]
    assert says in lines[0]
    assert len(lines[0]) < 1500
    assert not (tmp_path / "run").exists()


def test_what_looks_like_a_formula_or_markup_is_only_text(tmp_path, capsys):
    texts = ['=HYPERLINK("http://x")', "@SUM(1)", "+1", "-2", "[bold]2[/bold]?", "{{ 7 * 7 }}", "NaN", "null"]
    (tmp_path / "rows.csv").write_text("question\n" + "".join('"' + t.replace('"', '""') + '"\n' for t in texts))
    found, _ = load_data(DataConfig(name=str(tmp_path / "rows.csv")))
    assert [question.text for question in found.questions] == texts
    code, printed = run_command(["data", "show", tmp_path / "rows.csv", "-n", "9"], capsys)
    assert code == 0
    assert all(text in printed for text in texts)


def test_what_is_no_file_is_not_opened(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "lost.csv").symlink_to(tmp_path / "nothing")
    (tmp_path / "unreadable.jsonl").symlink_to("/proc/self/mem")
    expected = {
        "pipe.csv": "is a named pipe; `-` reads standard input",
        "folder.csv": "cannot be read as a data set",
        "loop.csv": "is a broken symbolic link",
        "lost.csv": "is a broken symbolic link",
        "unreadable.jsonl": "cannot be read: Input/output error",
        "x" * 300 + ".csv": "File name too long",
        "gone.csv": "there is no such file",
    }
    for name, says in expected.items():
        code, lines = run_lines(["data", "check", tmp_path / name], capsys)
        assert (code, len(lines)) == (2, 1), lines
        assert says in lines[0]


def test_a_saved_folder_that_was_damaged(tmp_path, capsys):
    for number, damage in enumerate((b"", b"{", b"[]", b'{"_data_files": [{"filename": "../../none.arrow"}]}')):
        folder = tmp_path / str(number)
        datasets.Dataset.from_dict(ROWS).save_to_disk(folder)
        capsys.readouterr()  # its progress
        (folder / "state.json").write_bytes(damage)
        code, lines = run_lines(["data", "check", folder], capsys)
        assert (code, len(lines)) == (2, 1), lines
        assert "cannot be read as a data set" in lines[0]


# ------------------------------------------------------------------------------------------------- in little memory

BOMBS = {
    "bomb.txt.gz": gzip.compress(b"\n" * 5_000_000, 9),
    "bomb.txt.zst": zstd(b"\n" * 5_000_000),
    "bomb.json.gz": gzip.compress(b"[" + b" " * 5_000_000, 9),
    "bomb.parquet": parquet({"question": pyarrow.array(["x" * 1000] * 4_000)}, compression="zstd"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_to_too_much_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "MAX_UNPACKED", 1_000_000)
    (tmp_path / name).write_bytes(BOMBS[name])
    code, lines = run_lines(["data", "check", tmp_path / name], capsys)
    assert (code, len(lines)) == (2, 1), lines
    assert "unpacks to over 1,000,000 bytes, more than 200 times its size" in lines[0]


def test_a_quote_that_is_never_closed_does_not_read_on_forever(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "MAX_CHARS", 100_000)
    before = csv.field_size_limit()  # one for the whole process
    (tmp_path / "open.csv").write_bytes(HEAD + b'a,1\n"b,2\n' + b"c,3\n" * 100_000)
    code, lines = run_lines(["data", "check", tmp_path / "open.csv"], capsys)
    assert (code, len(lines)) == (2, 1), lines
    assert "line 3: a cell of over 100,000 characters: is its quote closed?" in lines[0]
    (tmp_path / "long.txt").write_bytes(b"a\n" + b"b" * 200_000)
    code, lines = run_lines(["data", "check", tmp_path / "long.txt"], capsys)
    assert "line 2: over 100,000 characters, no row is so long" in lines[0]
    assert csv.field_size_limit() == before


MEASURE = """
import resource, sys
from spinerl.config import DataConfig
from spinerl.data import load_data
if sys.argv[1].split(".", 1)[1] in ("parquet", "csv.zst"):
    import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
questions, _ = load_data(DataConfig(name=sys.argv[1]))
assert len(questions.questions) == 200_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv.zst", "rows.parquet"])
def test_200_000_rows_take_a_few_times_their_size(name, tmp_path):
    texts = [f"{n}: " + "What is the sum of all numbers that are smaller? " * 4 for n in range(200_000)]
    other = "A worked solution that is not looked at. " * 4
    size = sum(map(len, texts)) + len(other) * len(texts)
    path = tmp_path / name
    if name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"question": texts, "output": [other] * len(texts)}), path)
    elif name == "rows.jsonl":
        with path.open("w") as out:
            out.writelines(json.dumps({"question": text, "output": other}) + "\n" for text in texts)
    else:
        with path.open("wb") as out:
            out.write(zstd("".join(["question,output\n", *(f"{text},{other}\n" for text in texts)]).encode()))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * size


# -------------------------------------------------------------------------------------------------- standard input


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


def test_a_run_keeps_what_standard_input_held_and_goes_on_from_it(tmp_path, monkeypatch, capsys):
    data = b"problem;target\n" + b"".join(b"%d+%d=;%d\n" % (n, n + 1, 2 * n + 1) for n in range(4))
    packed = gzip.compress(data)
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Piped(packed))
    code, printed = run_command(["adapt", *SMALL, "data=-", "run=run", "checkpoint.every=1"], capsys)
    assert code == 0, printed
    assert "standard input read as csv, gzip, utf-8, semicolons between columns" in printed
    assert "questions from column 'problem'" in printed
    assert (run / "questions.csv.gz").read_bytes() == packed
    assert f"name: {run / 'questions.csv.gz'}" in (run / "config.yaml").read_text()

    moved = tmp_path / "moved"
    run.rename(moved)
    monkeypatch.setattr(sys, "stdin", None)
    rows = (moved / "metrics.jsonl").read_bytes()
    for name in ("model", "report.html"):
        os.rename(moved / name, tmp_path / name)
    checkpoints = sorted((moved / "checkpoints").iterdir())
    os.rename(checkpoints[-1], tmp_path / "last")
    code, printed = run_command(["adapt", "--resume", "moved"], capsys)
    assert code == 0, printed
    assert len((moved / "metrics.jsonl").read_bytes().splitlines()) == len(rows.splitlines())
    (moved / "questions.csv.gz").write_bytes(gzip.compress(data.replace(b"0+1", b"5+5")))
    code, printed = run_command(["adapt", "--resume", "moved"], capsys)
    assert code == 2
    assert "data" in printed
    assert "has changed since it began" in printed


def test_an_evaluation_of_standard_input_goes_on_with_the_same_questions(tmp_path, monkeypatch, capsys):
    data, begun = b"question,answer\n1+2=,3\n2+2=,4\n", tmp_path / "begun"
    begun.mkdir()
    ask = ["eval", "tiny-reasoner", "-", "eval.samples=0", "rollout.max_new_tokens=8", "threads=1"]
    monkeypatch.setattr(sys, "stdin", Piped(data))
    with stopping_after(1, KeyboardInterrupt()):
        code, _ = run_command([*ask, "--at-once", "1", "--predictions", begun / "p.jsonl"], capsys)
    assert code == 130
    monkeypatch.setattr(sys, "stdin", Piped(data.replace(b"2+2", b"3+3")))
    other = shutil.copytree(begun, tmp_path / "other")  # what stopped it holds the lock in this process
    code, printed = run_command(["eval", "--resume", other], capsys)
    assert code == 2
    assert "cannot be resumed: its data - has changed since it began" in printed
    monkeypatch.setattr(sys, "stdin", Piped(data))
    same = shutil.copytree(begun, tmp_path / "same")
    code, printed = run_command(["eval", "--resume", same], capsys)
    assert code == 0, printed
    assert [json.loads(line)["gold"] for line in (same / "p.jsonl").read_text().splitlines()] == ["3", "4"]


def test_the_other_doors_take_standard_input_too(tmp_path, monkeypatch, capsys):
    data = b"question,answer\n1+2=,3\n2+2=,4\n"
    common = ["rollout.max_new_tokens=8", "threads=1"]
    commands = {
        "data check": ["data", "check", "-"],
        "data show": ["data", "show", "-"],
        "eval": ["eval", "tiny-reasoner", "-", *common],
        "preflight": ["preflight", "tiny-reasoner", "-", "group_size=2", *common],
        "plan": ["plan", "data=-", "--seconds", "0", *common],
        "export": ["export", "verl", "data=-", "method=ttrl", "--out", tmp_path / "job"],
    }
    for name, command in commands.items():
        monkeypatch.setattr(sys, "stdin", Piped(data))
        code, printed = run_command(command, capsys)
        assert code == 0, (name, printed)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(data))
    found = spinerl.evaluate("tiny-reasoner", tmp_path / "rows.csv.gz", threads=1, **{"rollout.max_new_tokens": 8})
    assert [row["gold"] for row in found.predictions] == ["3", "4"]
    (tmp_path / "rows.csv").write_text("question,solution\n1+2=,3\n")
    for method in ("grpo-gold", "bitta"):  # learns from gold answers
        command = ["adapt", f"method={method}", f"data={tmp_path / 'rows.csv'}", "prompt.chat_template=off"]
        code, lines = run_lines(command, capsys)
        assert (code, len(lines)) == (2, 1), lines
        assert "in column 'solution', say so with data.columns.gold=solution" in lines[0]
    for command in (["compare", "data=-", "methods=none"], ["adapt", "data.target=-", "data.order=nearest"]):
        monkeypatch.setattr(sys, "stdin", Piped(data))
        code, lines = run_lines(command, capsys)
        assert (code, len(lines)) == (2, 1), lines
        assert "=-: " in lines[0]
