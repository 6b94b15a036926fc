"""The suites of pictures: fixed by their seed, free of duplicates, and the bundled files are what is printed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from spinerl import tiny
from spinerl.errors import InputError
from spinerl.tiny.vqa import suite


@pytest.mark.parametrize("shift", suite.SHIFTS)
def test_prints_fresh_distinct_questions(shift: str, capsys) -> None:
    assert suite.main(["--shift", shift, "--seed", "5", "--n", "200"]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == len({row["images"][0] for row in rows}) == 200
    for row in rows:
        assert len(row["images"]) == 1
        assert row["images"][0].startswith("data:image/png;base64,")
        if "choices" in row:
            assert row["answer"] in "ABCD"[: len(row["choices"])]
        else:
            assert row["answer"].isdecimal() or row["answer"].isalpha()
    assert suite.main(["--shift", shift, "--seed", "5", "--n", "200"]) == 0
    assert capsys.readouterr().out == printed
    assert suite.main(["--shift", "c"]) == 2
    assert capsys.readouterr().err == "error: unknown shift 'c': choose one of in-domain, dev, a, b\n"


def test_command_runs_without_torch() -> None:
    code = (
        "import sys; from spinerl.tiny.vqa import suite; "
        "assert suite.main(['--shift', 'a', '--n', '2']) == 0; assert not {'torch', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_writing_the_bundled_suites_gives_the_same_bytes(tmp_path) -> None:
    assert suite.main(["--write", str(tmp_path)]) == 0
    assert tuple(suite.BUNDLED) == tiny.VQA_SUITES
    written = {path.name for path in tmp_path.iterdir()}
    for name in tiny.VQA_SUITES:
        for path in (tiny.suite_path(name, "tiny-vqa"), tiny.gold_path(name, "tiny-vqa")):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
            written.remove(path.name)
    assert not written
    folder = tiny.suite_path("shift-a", "tiny-vqa").parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_500_000


def test_gold_lies_apart() -> None:
    for name, (_, _, n) in suite.BUNDLED.items():
        questions = [json.loads(line) for line in tiny.suite_path(name, "tiny-vqa").read_text("utf-8").splitlines()]
        gold = [json.loads(line) for line in tiny.gold_path(name, "tiny-vqa").read_text("utf-8").splitlines()]
        assert len(questions) == len(gold) == n
        assert all(set(row) - {"choices"} == {"id", "question", "images"} for row in questions)
        assert [row["id"] for row in gold] == [row["id"] for row in questions]
        assert all(set(row) == {"id", "answer"} for row in gold)


def test_no_two_bundled_suites_share_a_problem() -> None:
    keys = {name: {p.key for _, p in suite.suite_problems(*suite.BUNDLED[name])} for name in suite.BUNDLED}
    for a, b in itertools.combinations(suite.BUNDLED, 2):
        assert not keys[a] & keys[b], (a, b)
    assert all(len(keys[name]) == suite.BUNDLED[name][2] for name in keys)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for lookup in (tiny.suite_path, tiny.gold_path):
        with pytest.raises(InputError, match="unknown suite 'shift-hard': choose one of in-domain, shift-dev"):
            lookup("shift-hard", "tiny-vqa")
        with pytest.raises(InputError, match="unknown family of suites 'vqa': choose one of tiny, tiny-vqa"):
            lookup("shift-a", "vqa")
    with pytest.raises(InputError, match="unknown bundled model 'tiny': choose one of tiny-reasoner, tiny-vlm"):
        tiny.model_path("tiny")
