"""The site's pages and the notebooks: links, anchors, navigation; cells that run, outputs that are theirs."""

from __future__ import annotations

import doctest
import json
import re

import matplotlib as mpl
import pytest

from tests.scripts import ROOT, script

build_site, notebooks, gallery = script("build_site"), script("notebooks"), script("gallery")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_examples_in_the_script():
    results = doctest.testmod(build_site)
    assert results.attempted
    assert not results.failed


def test_every_link_anchor_and_entry_of_the_navigation_leads_somewhere(tmp_path):
    assert build_site.stage(tmp_path) == []
    assert "[source](files/src/spinerl/answers/baselines.py.md)" in (tmp_path / "compare.md").read_text()
    assert "[docs/api.md](api.md)" in (tmp_path / "readme.md").read_text()
    assert '```json title="clinic.jsonl"' in (tmp_path / "data.md").read_text()
    assert "`<|im_end|>`" in (tmp_path / "answers.md").read_text()  # a table's cell, where GitHub needs \\|
    assert (tmp_path / "benchmarks" / "scaling.png").is_file()


def test_what_leads_nowhere_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in build_site.ELSEWHERE:
        (tmp_path / name).write_text("# A page\n")
    (tmp_path / "docs" / "a.md").write_text(
        "# One\n\n[well](a.md#one), [gone](b.md), [lost](../README.md#no), [out](../../etc)\n\n"
        "```sh\n[code](c.md)\n```\n"
    )
    (tmp_path / "zensical.toml").write_text('[project]\nnav = ["a.md", "a.md", { "X" = [{ "Y" = "x.md" }] }]\n')
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    assert build_site.stage(tmp_path / "out") == [
        "docs/a.md:3: b.md is no file",
        "docs/a.md:3: README.md has no heading #no",
        "docs/a.md:3: ../../etc is no file",
        *(f"zensical.toml: the navigation lacks {page}" for page in ("changelog.md", "contributing.md", "readme.md")),
        "zensical.toml: a.md is there twice",
        "zensical.toml: x.md is no page",
    ]


def test_what_pages_load_from_elsewhere_is_replaced_or_named(tmp_path):
    (tmp_path / "a").mkdir()
    link = '<a href="https://arxiv.org">paper</a><link rel="stylesheet" href="../site.css">'
    page = tmp_path / "a" / "b.html"
    page.write_text(f'{link}<script src="{build_site.SHIM}"></script><img alt="" src=//c.org/d.png>')
    assert build_site.localize(tmp_path) == ['a/b.html loads <img alt="" src=//c.org/d.png']
    assert page.read_text().startswith(f'{link}<script src="../assets/iframe-worker.js"></script>')
    assert (ROOT / "docs" / "assets" / "iframe-worker.js").read_text().count("Permission is hereby granted") == 1


def test_a_list_that_only_one_dialect_sees_is_named(tmp_path):
    for folder in ("pages", "site"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pages" / "a.md").write_text("Two:\n- one\n- two\n")
    (tmp_path / "site" / "a.html").write_text("<nav><li></li></nav><article><p>Two:\n- one\n- two</p></article>")
    assert build_site.read_otherwise(tmp_path / "pages", tmp_path / "site") == [
        "a.md: 0 <li> instead of 2: blank lines missing?"
    ]


def test_a_section_of_a_report_stands_by_itself():
    top, labels = (
        '<header class="top">T</header>',
        '<section aria-labelledby="h-labels"><h2>L</h2><p>1</p><p>2</p></section>',
    )
    page = f'<main>{top}<section class="summary many" aria-label="Summary">S</section>{labels}<footer>F</footer></main>'
    assert gallery.only(page, ("h-labels",)) == f"<main>{labels}</main>"
    assert gallery.only(page, ("top", "h-labels"), "<p>", 2) == f"<main>{top}{labels.replace('<p>2</p>', '')}</main>"
    assert gallery.only(page, ("h-labels",), "<p>", 3) == f"<main>{labels}</main>"


def test_the_gallery_shows_its_pictures_and_is_small():
    page = (ROOT / "docs" / "gallery.md").read_text()
    files = sorted((ROOT / "docs" / "gallery").glob("*.png"))
    assert {file.stem for file in files} == set(gallery.PICTURES)
    assert sorted(re.findall(r"\]\(gallery/([\w-]+)\.png\)", page)) == sorted(gallery.PICTURES)
    assert sum(file.stat().st_size for file in files) < 1_000_000


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebooks_outputs_are_of_its_cells(file):
    notebook = json.loads(file.read_text())
    assert notebook["metadata"].get("sources") == notebooks.sources_digest(notebook), "run `make notebooks`"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert sum(len(cell["outputs"]) for cell in code) >= 3


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebooks_cells_run(file, tmp_path, monkeypatch):
    """In this process and with fewer steps; `make test-notebooks` runs them as written."""
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names: dict = {}
    small = "steps, questions_per_step, group_size = 2, 2, 4\nnum_questions = 4\n"
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    assert "parameters" in cells[0]["metadata"]["tags"]
    exec("".join(cells[0]["source"]), names)
    assert {"steps", "questions_per_step", "group_size", "num_questions"} <= set(names)
    exec(small, names)
    for cell in cells[1:]:
        exec(compile("".join(cell["source"]).replace("plt.show()", "plt.close('all')"), file.name, "exec"), names)
    assert list(tmp_path.iterdir()) == []
