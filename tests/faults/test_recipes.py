"""Recipes that are broken, hostile or no recipes at all: one line, at once, wherever YAML is read."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from spinerl.config import dump_yaml, load_config, override, parse_override, read_recipe
from spinerl.errors import InputError
from spinerl.recipes import parse_yaml
from tests.faults.commands import run_lines

BOMB = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
TEXTS = {
    "alias bomb": (BOMB, "more than 10,000 values, where an alias counts as what it stands for"),
    "merge bomb": (
        "a: &a {x: 1, y: 2}\nb: {<<: [" + "*a," * 20_000 + "]}\n",
        "more than 10,000 values, where an alias counts",
    ),
    "an alias of itself": ("a: &a [*a]\n", "an alias inside of what it stands for"),
    "an unknown alias": ("steps: *nowhere\n", "found undefined alias 'nowhere'"),
    "deep lists": ("stop: " + "[" * 50_000, "more than 32 levels of nesting"),
    "deep mappings": ("{a: " * 40_000, "more than 32 levels of nesting"),
    "deep blocks": ("- " * 50_000, "more than 32 levels of nesting"),
    "many values": ("[" + "1," * 100_000 + "]", "more than 10,000 values"),
    "a key twice": ("steps: 1\nseed: 2\nsteps: 3\n", "key 'steps' is given twice"),
    "a key twice below": ("optim: {lr: 1.0, lr: 2.0}\n", "key 'lr' is given twice"),
    "a list": ("- steps\n", "must hold `key: value` lines, found list"),
    "a text": ("steps\n", "must hold `key: value` lines, found str"),
    "a list as a key": ("? [a, b]\n: 1\n", "a key must be a text"),
    "a number as a key": ("1: 2\n", "keys should be strings"),
    "null as a key": ("~: 2\n", "keys should be strings"),
    "a python tag": ("run: !!python/object/apply:os.system ['touch hacked']\n", "could not determine a constructor"),
    "a binary": ("run: !!binary aGVsbG8=\n", "could not determine a constructor"),
    "a set": ("run: !!set {a, b}\n", "could not determine a constructor"),
    "an unknown tag": ("run: !mine {a: 1}\n", "could not determine a constructor"),
    "a NUL": ("steps: 1\0\n", "special characters are not allowed"),
    "half a pair": ('run: "\\uD800"\n', "half of a surrogate pair"),
    "no UTF-8": (b"\xff\xfe\x00s", "codec can't decode"),
    "digits": ("steps: " + "1" * 100_000, "a number of 100,000 digits"),
    "digits in base 60": ("steps: 1" + ":59" * 80_000, "a number of 240,001 digits"),
    "half a number": ("steps: 0x_\n", "'0x_' is no number"),
    "a large number": ("steps: 100000000000000000000\n", "a whole number is at most 9223372036854775807"),
    "a large number below": ("prompt: {template_options: {a: [1, 1e3, 99999999999999999999]}}\n", "at most 92233720"),
    "no number": ("optim: {lr: .nan}\n", "finite number"),
    "a list for a name": ("loss: [a]\n", "loss=['a'] is not a loss"),
    "a mapping for a method": ("method: {a: 1}\n", "method={'a': 1} is not a method"),
    "a number for a section": ("vote: 3\n", "vote=3: "),
    "a number for a list": ("engine: {disable: 5}\noptim: {trim: false}\n", "engine.disable=5: "),
    "two documents": ("steps: 1\n---\nsteps: 2\n", "expected a single document"),
    "no YAML": ("steps: [1\n", "is not valid YAML"),
    "tabs": ("optim:\n\tlr: 1\n", "is not valid YAML"),
    "a long key": ("x" * 100_000 + ": 1\n", "is not valid YAML"),
    "a long text": ("tie: " + "x" * 200_000 + "\n", "unknown key tie"),
    "too large": ("# " + "x" * 300_000 + "\n", "it is over 256 KiB"),
}


def refused(arguments, capsys, says: str) -> None:
    """One line, exit code 2, within two seconds of processor time."""
    started = time.process_time()
    code, lines = run_lines(arguments, capsys)
    assert code == 2
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert len(lines[0]) < 1000
    assert time.process_time() - started < 2


@pytest.mark.parametrize("case", TEXTS)
def test_a_recipe_that_is_none_is_refused_in_one_line(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    text, says = TEXTS[case]
    Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["config", "r.yaml"], capsys, says)
    assert os.listdir() == ["r.yaml"]


HOSTILE = ("alias bomb", "deep lists", "an alias of itself", "digits", "a python tag", "a key twice", "too large")


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("command", ["compare", "settings", "report", "resume", "data"])
def test_the_same_wherever_yaml_is_read(capsys, tmp_path, monkeypatch, command, case):
    monkeypatch.chdir(tmp_path)
    text, says = TEXTS[case]
    folder = Path("run")
    folder.mkdir()
    for file in (Path("r.yaml"), folder / "config.yaml"):
        file.write_text(text)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    arguments = {
        "compare": ["compare", "r.yaml"],
        "settings": ["compare", "settings=r.yaml"],
        "report": ["report", folder],
        "resume": ["adapt", "--resume", folder],
        "data": ["config", "data=r.yaml"],
    }[command]
    refused(arguments, capsys, says)
    assert sorted(os.listdir()) == ["r.yaml", "run"]


FILES = {
    "a folder": (lambda: os.mkdir("r.yaml"), "it is a folder; give a YAML file"),
    "a pipe": (lambda: os.mkfifo("r.yaml"), "it is a pipe or a device"),
    "a device": (lambda: os.symlink("/dev/zero", "r.yaml"), "it is a pipe or a device"),
    "an endless file": (lambda: (Path("r.yaml").touch(), os.truncate("r.yaml", 1 << 40)), "it is over 256 KiB"),
    "nothing": (lambda: None, "recipe r.yaml does not exist"),
    "a link to itself": (lambda: os.symlink("r.yaml", "r.yaml"), "recipe r.yaml does not exist"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("command", ["config", "compare"])
def test_what_is_no_regular_file_is_not_waited_for(capsys, tmp_path, monkeypatch, command, case):
    monkeypatch.chdir(tmp_path)
    make, says = FILES[case]
    make()
    refused([command, "r.yaml"], capsys, says)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/" + "y/" * 3000, "\udcff"])
def test_a_name_that_no_file_has(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, lines = run_lines(["config", name], capsys)
    assert code == 2
    assert len(lines) == 1
    assert "does not exist" in lines[0] or len(lines[0]) > 4000


WORDS = {
    "bomb": ("data={a: &a [1,1,1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b,"
             "*b,*b], d: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]}", "more than 10,000 values"),
    "deep": ("rollout.stop=" + "[" * 50_000, "more than 32 levels of nesting"),
    "digits": ("steps=" + "1" * 100_000, "a number of 100,000 digits"),
    "negative digits": ("seed=-" + "1" * 5_000, "a number of 5,001 digits"),
    "hexadecimal": ("steps=0x" + "f" * 100_000, "a number of 100,002 digits"),
    "large": ("seed=18446744073709551616", "seed=18446744073709551616: a whole number is at most"),
    "a date": ("steps=2001-13-45", "steps='2001-13-45': "),
    "a tag": ("run=!!python/name:os.system", "run='!!python/name:os.system': "),
    "no text": ("run=\udcff", "is not UTF-8 text"),
    "NUL": ("steps=1\0", "steps='1\\x00': "),
    "a long text": ("steps=" + "x" * 100_000, "steps='xxx"),
    "a long key": ("x" * 100_000 + "=1", "unknown key xxx"),
    "a deep key": ("a." * 20_000 + "b=1", "more than 32 levels of sections"),
    "lines": ("st\nps=1", "unknown key st ps (did you mean"),
    "no value": ("steps=", "steps=None: "),
    "colon": ("steps=a:", "steps='a:': "),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_words_are_read_with_the_same_care(capsys, case):
    word, says = WORDS[case]
    if case in ("a tag", "NUL"):  # texts that are no YAML are texts
        assert load_config(overrides=["run=!!python/name:os.system"]).run == "!!python/name:os.system"
    if case != "a tag":
        refused(["config", word], capsys, says)


def test_what_recipes_may_have_is_read():
    """Anchors, merges with other values, dates as texts; as before."""
    text = "a: &a {lr: 1.0e-3, beta1: 0.8}\nb: &b {<<: *a, lr: 0.1}\nc: {<<: *b, beta1: 0.7}\nd: 2026-01-31\ne: =\n"
    read = parse_yaml(text)
    assert read["b"] == {"lr": 0.1, "beta1": 0.8}
    assert read["c"] == {"lr": 0.1, "beta1": 0.7}
    assert (read["d"], read["e"]) == ("2026-01-31", "=")


def test_a_bomb_takes_no_memory(tmp_path):
    (tmp_path / "r.yaml").write_text(BOMB)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_recipe(tmp_path / "r.yaml")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_every_recipe_that_comes_with_spinerl_is_read_as_before():
    recipes = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    assert len(recipes) > 8
    for recipe in recipes:
        assert read_recipe(recipe) == yaml.safe_load(recipe.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text", ["\x85", "a\x7fb", "\u2028\u2029", "\ufeff", "é 🎲", "\\u0041", "a:", "~", "1e3", "\t\n'\""]
)
def test_an_override_holds_any_text(text):
    assert parse_override(override("prompt.system", text)) == {"prompt": {"system": text}}


def test_a_configuration_is_written_so_that_it_is_read_again(tmp_path):
    config = load_config(overrides=['run="\\x85 é 🎲"', "prompt.system=2026-01-31", "rollout.stop=['=', '~', '0x10']"])
    (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    shutil.rmtree(tmp_path)
