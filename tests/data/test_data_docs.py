"""docs/data.md is right: its worked example runs, and its tables agree with the code."""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spinerl.config import ColumnsConfig, PromptConfig, load_config
from spinerl.data import BENCHMARKS, Definition
from spinerl.tiny import SUITES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def block(info: str) -> str:
    found = re.findall(rf"^```{re.escape(info)}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, info
    return found[0]


@pytest.mark.parametrize(
    ("files", "code", "output"),
    [
        (["json clinic.jsonl", "yaml clinic.yaml"], "python", "text output"),
        (["json scans.jsonl"], "python images", "text images"),
    ],
)
def test_the_worked_examples_print_what_the_page_says(tmp_path, files, code, output):
    for info in files:
        (tmp_path / info.split()[1]).write_text(block(info), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block(code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == block(output)


def test_a_definition_takes_ten_lines():
    assert len(block("yaml clinic.yaml").splitlines()) <= 10


def test_the_commands_are_valid():
    for line in block("bash").splitlines():
        assert load_config(overrides=shlex.split(line)[2:]).data.name == "exam.jsonl"


def test_the_benchmark_table_agrees_with_the_definitions():
    listed = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and cells[3].isdigit():
            name, hub, place, count, kind, subject, _ = cells
            listed[name.strip("`")] = (hub.split()[0], place, int(count), kind, subject.strip("`") or None)
    assert list(listed) == list(BENCHMARKS)
    for name, raw in BENCHMARKS.items():
        d = Definition.model_validate(raw)
        place = f"{d.config}, {d.split}" if d.config else d.split
        kind = "choice or math, by row" if name == "mathvision" else d.kind
        assert listed[name] == (d.hub, place, d.rows, kind, d.columns.subject)


@pytest.mark.parametrize(
    "names",
    [
        [f"`{name}`" for name in Definition.model_fields],
        [f"`data.columns.{name}`" for name in ColumnsConfig.model_fields],
        [f"`prompt.{name}`" for name in PromptConfig.model_fields],
        [f"`{suite}`" for suite in SUITES if suite != "shift-a"],
        [f"data.{name}" for name in ("image_folder", "max_image_pixels", "on_bad_row")],
    ],
)
def test_the_page_names_them_all(names):
    assert [name for name in names if name not in PAGE] == []


@pytest.mark.parametrize("name", ["definitions", "images", "rows", "load", "prompts", "inspect"])
def test_the_docstrings_examples_run(name):
    results = doctest.testmod(importlib.import_module(f"spinerl.data.{name}"))
    assert results.attempted
    assert not results.failed
