"""`spinerl bench` on a miniature: every documented figure is there and is a positive number."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from spinerl.bench.efficiency import measure_efficiency
from spinerl.bench.images import measure_images
from spinerl.bench.probe import probe
from spinerl.bench.rollout import measure_rollout
from spinerl.bench.settings import Settings, load_settings
from spinerl.bench.sharing import measure_sharing
from spinerl.bench.work import Job
from spinerl.cli import main
from tests.bench.miniature import WORKLOAD, overrides

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def documented(*parts: str) -> list[str]:
    """The figures that docs/benchmarks.md defines, of these parts."""
    rows = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(), re.MULTILINE)
    return [row for row in rows if row.split(".")[0] in parts]


def at(result: dict, key: str):
    for name in key.split("."):
        result = result[name]
    return result


def check_numbers(found, where: str = "") -> None:
    if isinstance(found, dict):
        for key, value in found.items():
            check_numbers(value, f"{where}.{key}")
    elif isinstance(found, list):
        for value in found:
            check_numbers(value, where)
    elif isinstance(found, float | int):
        assert math.isfinite(found), where
        # Phases can be too short for the clock, fits have any slope, and two responses seldom have a majority.
        if not re.search("share|zero_variance|intercept|slope|r_squared|loss", where):
            assert found > 0, where


def main_ends_well(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the command writes: two parts by the command itself, the others by what its workers call."""
    file = tmp_path_factory.mktemp("bench") / "figures.json"
    parts = "step,update" if importlib.util.find_spec("trl") else "update"
    main_ends_well(["bench", *overrides(WORKLOAD, parts=parts), "--json", str(file)])
    job = Job(
        load_settings(overrides(WORKLOAD, parts="rollout,sharing,images,efficiency")), tmp_path_factory.mktemp("models")
    )
    probe(job)
    here = {
        "rollout": measure_rollout(job),
        "sharing": measure_sharing(job),
        "images": measure_images(job),
        "efficiency": measure_efficiency(job),
    }
    return json.loads(file.read_text()) | json.loads(json.dumps(here))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["step", "rollout", "update", "sharing", "images", "efficiency"])
def test_every_documented_figure_is_measured(result, part):
    if part == "step":
        pytest.importorskip("trl")
    keys = documented(part)
    assert keys
    for key in keys:
        check_numbers(at(result, key), key)
    check_numbers(result[part], part)


@pytest.mark.slow
def test_every_ratio_has_its_repeats(result):
    for part in ("rollout", "update", "sharing", "images"):
        for name in result[part]:
            if "ratio" in name and not name.endswith("_repeats"):
                assert len(result[part][f"{name}_repeats"]) == 1, name


@pytest.mark.slow
def test_the_record_says_where_and_how(result):
    assert result["machine"]["threads"] == 1
    assert {"cpu", "cores", "torch", "transformers", "trl", "load_average", "date"} <= set(result["machine"])
    assert result["settings"]["group_size"] == 2
    assert result["model"]["num_parameters"] > 0
    assert result["seconds"] > 0


@pytest.mark.slow
def test_scaling_writes_a_table_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main_ends_well(["bench", *overrides(WORKLOAD, parts="scaling", out=tmp_path)])
    with (tmp_path / "scaling.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {row["axis"] for row in rows} == {"group_size", "prompt_tokens", "new_tokens", "vocabulary", "questions"}
    for row in rows:
        assert float(row["rollout_seconds"]) > 0
        assert float(row["update_seconds"]) > 0
        assert row["date"]
        assert row["cpu"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "one more: group_size" in capsys.readouterr().out


def test_the_page_lists_every_key():
    page = PAGE.read_text()
    assert all(f"`{name}`" in page for name in Settings.model_fields)
