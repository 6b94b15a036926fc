"""The page: balanced, self-contained, escaped, and saying what the numbers say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spinerl.errors import InputError
from spinerl.report import write_report
from spinerl.report.text import visible
from tests.report.synthetic import write_run

_VOID = {"meta", "br", "link", "img", "hr", "input"}
_MAIN_CHARTS = ["chart-reward", "chart-length", "chart-entropy", "chart-pass1"]


class Page(HTMLParser):
    """Checks that tags balance, and keeps attributes, ids and the text by element."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.ids = [a["id"] for _, a in self.tags if "id" in a]
        self.words = " ".join("".join(self.text).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"
        if tag in ("td", "th", "small", "dt", "dd", "li", "p"):
            self.text.append(" ")

    def handle_data(self, data: str):
        if not self.open or self.open[-1] not in ("style", "script", "title"):
            self.text.append(data)

    def chart(self, id: str) -> str:
        return self.source.split(f'id="{id}"')[1].split("</figure>")[0]


def report(tmp_path: Path, *folders: Path) -> Page:
    return Page(write_report(list(folders), tmp_path / "out" / "report.html"))


def test_a_whole_run(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", steps=40, every=20))
    assert "SPINE on tiny/shift-a" in page.words
    assert re.search(r"Greedy Pass@1 rose from 4\d\.\d % to 6\d\.\d % \(95 % intervals", page.words)
    assert "The majority fraction went from" in page.words
    assert [id for id in page.ids if id in _MAIN_CHARTS] == _MAIN_CHARTS
    assert {"chart-forks", "chart-loss", "chart-abstain", "chart-time", "chart-signal", "chart-gold"} <= set(page.ids)
    for row in (
        "Greedy Pass@1",
        "avg@16",
        "maj@16",
        "Response length",
        "Token entropy",
        "Truncated",
        "Abstained",
    ):
        assert row in page.words
    assert len(page.ids) == len(set(page.ids))
    assert (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]  # no temporary file stays


def test_the_four_curves_hold_the_runs_numbers(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=12, every=6)
    page = report(tmp_path, folder)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for id, key, name in (
        ("reward", "reward/mean", "reward"),
        ("length", "rollout/response_length", "response length"),
        ("entropy", "rollout/entropy", "entropy"),
    ):
        drawn = re.search(rf'data-name="{name}" d="([^"]*)"', page.chart(f"chart-{id}"))
        assert drawn is not None
        assert len(re.findall(r"[\d.]+,[\d.]+", drawn[1])) == 12
        for row in metrics:
            digits = f"{row[key]:.0f}" if row[key] >= 100 else f"{row[key]:.3f}"
            assert re.search(rf"step {row['step']}\n(.*\n)?{name}: {re.escape(digits)}", page.chart(f"chart-{id}"))
    evals = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    chart = page.chart("chart-pass1")
    assert chart.count('class="whisker') == chart.count('class="mark') == len(evals) == 3
    for row in evals:
        assert f"step {row['step']}\nPass@1: {100 * row['eval/pass@1']:.1f}" in chart


def test_nothing_is_loaded_from_anywhere(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", steps=10))
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page.source)
    assert not any(
        key in ("src", "srcset", "action") or key.startswith("on") for _, attrs in page.tags for key in attrs
    )
    links = [attrs for _, attrs in page.tags if "href" in attrs]
    assert links
    assert all(str(attrs["href"]).startswith("data:text/csv") and "download" in attrs for attrs in links)
    assert "default-src 'none'" in page.source
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "form"})


def test_the_script_is_the_one_the_policy_allows(tmp_path: Path):
    import base64
    import hashlib

    page = report(tmp_path, write_run(tmp_path / "run", steps=2))
    script = page.source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source


HOSTILE = (
    "</span><script>alert(1)</script>\"'`&<img src=x onerror=alert(1)>{{ 7*7 }}"
    + "\x00\x1b[31m\u202eabc\u2066\u200b\ufeff\ud800 שלום"
)


def test_text_from_models_and_data_is_escaped_and_nothing_hides(tmp_path: Path):
    folder = write_run(tmp_path / "<b>run&\u202e", steps=5, overrides=())
    config = (folder / "config.yaml").read_text().replace("tiny/shift-a", "'<script>x</script>'")
    (folder / "config.yaml").write_text(config)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"command": HOSTILE, "platform": HOSTILE, "data": {"name": HOSTILE, "skipped": {HOSTILE: 1}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    row = {
        "step": 5,
        "question_id": HOSTILE,
        "question": HOSTILE,
        "pseudo_label": HOSTILE,
        "majority_frac": 0.5,
        "votes": {HOSTILE: 3, "\u200b12": 1},
        "num_abstained": 0,
        "responses": [
            {
                "text": HOSTILE,
                "answer": HOSTILE,
                "reward": 1,
                "advantage": 0.5,
                "truncated": False,
                "tokens": [HOSTILE, " ", "\n"],
                "entropies": [1.0, 0.1, 0.2],
                "forks": [True, False, True],
            },
            {"text": HOSTILE, "answer": None},
        ],
    }
    (folder / "samples.jsonl").write_text(json.dumps(row))
    page = report(tmp_path, folder)  # parsing checks the balance
    assert page.source.count("<script") == 1
    assert "<img" not in page.source
    assert "alert(1)" in page.words
    assert "{{ 7*7 }}" in page.words
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩abc⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+D800⟩ שלום" in page.words
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", page.source)
    assert 'dir="auto"' in page.source


def test_visible_keeps_ordinary_text():
    text = "naïve café — 数学 😀 ½ שלום\n\tok"
    assert visible(text) == text
    assert visible("a\r\x7f\xad\ufffe") == "a⟨U+000D⟩⟨U+007F⟩⟨U+00AD⟩⟨U+FFFE⟩"


def test_tokens_show_forks_by_entropy(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=5)
    row = {
        "step": 5,
        "question_id": "q",
        "question": "Why?",
        "votes": {"1": 1},
        "responses": [
            {
                "text": "so wait",
                "tokens": ["so", " wait", " <eos>"],
                "entropies": [0.02, 2.4, 0.3],
                "forks": [False, True, True],
            }
        ],
    }
    (folder / "samples.jsonl").write_text(json.dumps(row))
    page = report(tmp_path, folder)
    assert '<span title="0.02 nats">so</span> <mark class="f5" title="2.40 nats">wait</mark>' in page.source
    assert '<mark class="f0" title="0.30 nats">&lt;eos&gt;</mark>' in page.source
    assert "2–2.4" in page.words  # the legend's last level


def test_without_gold_accuracy_is_unknown(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", steps=10, gold=False))
    assert "Accuracy is unknown: the data has no gold answers." in page.words
    assert "Greedy Pass@1 rose" not in page.words
    assert "No gold answers: accuracy is unknown." in page.chart("chart-pass1")
    assert "chart-gold" not in page.ids
    assert "Response length" in page.words


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.25, "Greedy Pass@1 rose from"),
        (-0.25, "Greedy Pass@1 fell from"),
        (0.03, "cannot tell whether accuracy changed"),
    ],
)
def test_the_summary_says_what_the_intervals_say(tmp_path: Path, gain: float, words: str):
    assert words in report(tmp_path, write_run(tmp_path / "run", steps=10, every=10, gain=gain)).words


def test_collapse_is_named(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=20, every=20, gain=-0.3)
    rows = [{"step": i, "reward/mean": 0.5 + i / 40, "rollout/response_length": 150 - 5 * i} for i in range(1, 21)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = report(tmp_path, folder)
    assert (
        "Signs of collapse: the majority-vote reward is saturated, responses lost over 40 % of their length "
        "and accuracy fell."
    ) in page.words


def test_an_unfinished_run(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=60, done=23)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "rew')
    page = report(tmp_path, folder)
    assert "This run is unfinished: 23 of 60 steps so far." in page.words
    assert "the last line is cut short" in page.words
    assert "23 of 60" in page.words


def test_empty_metrics(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=10)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        (folder / name).write_text("")
    page = report(tmp_path, folder)
    assert [id for id in page.ids if id in _MAIN_CHARTS] == _MAIN_CHARTS
    assert "No evaluation was written yet" in page.words
    assert page.source.count('class="plot empty"') == 4


def test_a_run_that_only_evaluates(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", method="none", steps=0))
    assert re.search(
        r"Greedy Pass@1 of the unadapted model is 4\d\.\d % \(95 % interval .*\); no later evaluation",
        page.words,
    )


def test_a_run_of_one_step(tmp_path: Path):
    page = report(tmp_path, write_run(tmp_path / "run", steps=1, every=1))
    assert "step 1\nreward: 0." in page.chart("chart-reward")


def test_values_that_are_not_finite_are_gaps(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    rows = [
        {"step": i, "reward/mean": float("nan") if i == 3 else 0.5, "loss/total": float("inf")} for i in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = report(tmp_path, folder)
    drawn = re.search(r'data-name="reward" d="([^"]*)"', page.chart("chart-reward"))
    assert drawn is not None
    assert drawn[1].count("M") == 2
    assert "6 values are not finite" in page.words
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', page.source)


def test_several_runs_are_overlaid_and_seeds_are_one_band(tmp_path: Path):
    seeds = [write_run(tmp_path / f"spine-tiny-seed{seed}", seed=seed, steps=10, every=10) for seed in (0, 1, 2)]
    other = write_run(tmp_path / "ttrl-tiny-seed0", method="ttrl", steps=10, every=10, gain=0.05)
    page = report(tmp_path, *seeds, other)
    assert "SPINE and TTRL on tiny/shift-a" in page.words
    chart = page.chart("chart-length")
    assert re.findall(r'class="curve s\d d\d" data-name="([^"]*)"', chart) == [
        "spine-tiny (3 seeds)",
        "ttrl-tiny-seed0",
    ]
    assert chart.count('class="band') == 1
    lengths = [
        json.loads(line)["rollout/response_length"]
        for seed in seeds
        for line in (seed / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["step"] == 4
    ]
    mean = sum(lengths) / 3
    assert (
        f"step 4\nspine-tiny (3 seeds): {mean:.0f}\n"
        f"spine-tiny (3 seeds): {min(lengths):.0f} to {max(lengths):.0f}" in chart
    )
    assert "The mean greedy Pass@1 of 3 seeds went from" in page.words
    assert "seed by seed: 3 rose" in page.words
    assert "Seed by seed" in page.words
    assert page.source.count('class="s0') == 0  # colours come with a role, never bare


def test_runs_of_one_name_and_runs_given_twice(tmp_path: Path):
    one = write_run(tmp_path / "a" / "run", steps=3)
    two = write_run(tmp_path / "b" / "run", steps=3, overrides=("optim.lr=1e-4",))
    page = report(tmp_path, one, two, one)
    assert "a/run" in page.words
    assert "b/run" in page.words
    assert "Runs 2 " in page.words


def test_configuration_that_differs_from_the_defaults(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=3)
    with (folder / "config.yaml").open("a") as file:
        file.write("future:\n  key: 5\n")
    page = report(tmp_path, folder)
    table = page.words.split("Configuration that differs from the defaults")[1].split("Full configuration")[0]
    assert "optim.lr 3e-05 1e-06" in table
    assert "steps 3 60" in table
    assert "future.key 5 – not a key of this version" in table
    assert "optim.beta1" not in table
    assert "optim.beta1: 0.9" in page.words


def test_a_long_run_with_long_responses_stays_small(tmp_path: Path):
    folder = write_run(tmp_path / "run", steps=200)
    long = {
        "text": "x",
        "answer": "1",
        "reward": 1,
        "advantage": 0,
        "tokens": [" word"] * 5000,
        "entropies": [1.5] * 5000,
        "forks": [True] * 5000,
    }
    rows = [
        {
            "step": step,
            "question_id": str(step),
            "question": "q" * 9000,
            "votes": {str(i): 1 for i in range(50)},
            "responses": [long] * 9,
        }
        for step in (1, 5, 9)
    ]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = report(tmp_path, folder)
    assert len(page.source.encode()) < 2_000_000
    assert "4500 more tokens are not shown" in page.words
    assert "5 more logged responses are not shown" in page.words
    assert "44 other answers: 44.0 votes" in page.words
    assert "3 of 3 logged questions" in page.words


def test_refusals(tmp_path: Path):
    with pytest.raises(InputError, match="no run folder given"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(InputError, match="is not a run folder"):
        write_report([tmp_path], tmp_path / "x.html")
    folder = write_run(tmp_path / "run", steps=1)
    with pytest.raises(InputError, match="is a folder; name the file"):
        write_report([folder], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report([folder], tmp_path / "file" / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_the_report_and_the_live_page_work_without_torch():
    heavy = ("torch", "transformers", "spinerl.engine", "spinerl.train")
    code = f"import sys, spinerl.report, spinerl.watch; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
