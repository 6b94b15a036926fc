"""Files that other programs read: citation, containers, workflows.  The commands and paths in them exist."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml

from tests.scripts import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTAINERS = sorted((ROOT / "containers").iterdir())


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["version"], cited["license"]) == (
        PROJECT["name"], PROJECT["version"], PROJECT["license"],
    )  # fmt: skip
    assert cited["references"][0]["url"] == "https://arxiv.org/abs/2511.17938"


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "AGENTS.md"], ids=lambda file: file.name)
def test_make_targets_that_are_named_exist(file):
    targets = set(re.findall(r"^(?:- run: )?\s*(?:- run: )?make ([a-z-]+)", file.read_text(), re.MULTILINE))
    if not targets:
        assert file.name == "release.yml"
        return
    done = subprocess.run(["make", "-n", *sorted(targets)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_may_only_read_and_ends_some_time(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        assert job.get("permissions", {}) in ({}, {"id-token": "write"}), name
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.name)
def test_a_container_copies_what_is_there_and_runs_as_a_user(file):
    lines = re.sub(r"\\\n", " ", file.read_text()).splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for source in (source for kind, *sources in words if kind == "COPY" for source in sources[:-1]):
        assert (ROOT / source).exists()
        assert f"!{source}" in sent
    assert re.fullmatch(r"[\w/.-]+:[\w.-]+", words[0][1])
    assert [word for word in words if word[0] == "USER"] == [["USER", "1000"]]
    named = {name for group in re.findall(r"\[([a-z,]+)\]'", file.read_text()) for name in group.split(",")}
    assert named
    assert named <= set(PROJECT["optional-dependencies"])


def test_no_page_has_a_place_that_was_to_be_filled_in():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert [page.name for page in pages if re.search(r"@@|TODO|TBD|XXX", page.read_text(encoding="utf-8"))] == []
