"""The question suites: fixed by their seed, free of duplicates, and the bundled files are what it prints."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from spinerl import tiny
from spinerl.errors import InputError
from spinerl.tiny import suite


@pytest.mark.parametrize("shift", suite.SHIFTS)
def test_prints_fresh_distinct_questions(shift: str, capsys) -> None:
    assert suite.main(["--shift", shift, "--seed", "5", "--n", "300"]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 300
    assert all(str(int(row["answer"])) == row["answer"] for row in rows)
    assert len({row["answer"] for row in rows}) > 50
    assert suite.main(["--shift", shift, "--seed", "5", "--n", "300"]) == 0
    assert capsys.readouterr().out == printed
    other = {row.question for row in suite.suite_rows(shift, 6, 300)}
    assert not other & {row["question"] for row in rows}


@pytest.mark.parametrize(
    "arguments",
    [["--n", "0"], ["--n", "-3"], ["--shift", "c"], ["--n", "10000000"], ["--n", "x"], ["--sede", "1"]],
)
def test_bad_arguments_give_one_line_and_code_2(arguments: list[str], capsys) -> None:
    try:
        code = suite.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_command_runs_without_torch() -> None:
    code = (
        "import sys; from spinerl.tiny import suite, SUITES; "
        "assert suite.main(['--shift', 'a', '--n', '2']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_bundled_suites_are_what_the_generator_prints() -> None:
    assert tuple(suite.BUNDLED) == tiny.SUITES
    for name in tiny.SUITES:
        rows = suite.suite_rows(*suite.BUNDLED[name])
        questions = [json.loads(line) for line in tiny.suite_path(name).read_text("utf-8").splitlines()]
        gold = [json.loads(line) for line in tiny.gold_path(name).read_text("utf-8").splitlines()]
        assert questions == [{"id": row.id, "question": row.question} for row in rows]
        assert gold == [{"id": row.id, "answer": row.answer} for row in rows]


def test_no_two_bundled_suites_share_a_problem() -> None:
    """Not even the same numbers in another order and wording: unseen means unseen."""
    keys = {name: {p.key for _, p in suite.suite_problems(*suite.BUNDLED[name])} for name in suite.BUNDLED}
    texts = {name: {row.question for row in suite.suite_rows(*suite.BUNDLED[name])} for name in suite.BUNDLED}
    for a, b in itertools.combinations(suite.BUNDLED, 2):
        assert not keys[a] & keys[b], (a, b)
        assert not texts[a] & texts[b], (a, b)
    assert all(len(keys[name]) == suite.BUNDLED[name][2] for name in keys)


def test_unseen_suites_are_of_the_same_shift() -> None:
    for name in ("shift-dev", "shift-a", "shift-b"):
        (shift, seed, _), (other, fresh, _) = suite.BUNDLED[name], suite.BUNDLED[f"{name}-unseen"]
        assert shift == other
        assert seed != fresh


def test_writing_the_bundled_suites_gives_the_same_bytes(tmp_path) -> None:
    assert suite.main(["--write", str(tmp_path)]) == 0
    for name in tiny.SUITES:
        for path in (tiny.suite_path(name), tiny.gold_path(name)):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_unknown_suite_is_refused_with_the_names() -> None:
    for lookup in (tiny.suite_path, tiny.gold_path):
        with pytest.raises(InputError, match="unknown suite 'shift-z': choose one of in-domain, shift-dev"):
            lookup("shift-z")
