"""The examples of docs/extending.md, read off the page and run."""

import re
from pathlib import Path
from random import Random

import pytest
import torch

from spinerl.answers import vote
from spinerl.cli import main
from spinerl.runs import RunFolder
from spinerl.types import Question

SHORT = [
    "steps=1", "data.max_questions=4", "questions_per_step=2", "group_size=4", "rollout.max_new_tokens=32", "guard=off",
    "eval.samples=0", "threads=1",
]  # fmt: skip
PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's Python as a module `mine` in the working folder, and its YAML as mine.yaml."""
    (tmp_path / "mine.py").write_text("\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine

    return mine


def test_cautious_gives_the_winners_share(mine):
    one = vote(["1", "1", "2", None], [0, 0, 1, None])
    assert mine.cautious(one) == (0.5, 0.5, 0.0, 0.0)
    assert mine.cautious(vote(["1", "2"], [0, 1])) == (0.0, 0.0)  # a tie


def test_near_the_median_is_a_score(mine):
    assert mine.near_the_median(vote(["4", "5", "7", "x", None], [0, 1, 2, 3, None])) == [0.5, 1.0, 1 / 3, 0.0, 0.0]


def test_a_score_with_the_entropic_method_runs(mine, tmp_path):  # noqa: ARG001 - the module in the working folder
    keys = [*SHORT, "method=entropic", "reward=mine:near_the_median", f"run={tmp_path / 'r'}", "answer.truncated=count"]
    with pytest.raises(SystemExit) as ended:
        main(["adapt", *keys])
    assert not ended.value.code
    (row,) = RunFolder.open(tmp_path / "r").rows("metrics.jsonl")
    assert 0 < row["reward/mean"] < 1
    assert row["optim/grad_norm"] > 0


def test_politely_is_a_view_that_votes_too(mine, tmp_path):
    question = Question("1", "What is 2 + 3?")
    assert {mine.politely(question, Random(seed)).partition(":")[0] for seed in range(9)} == {
        "Please tell me",
        "I would like to know",
    }
    with pytest.raises(SystemExit) as ended:
        main(["adapt", *SHORT, "vote.views=[mine:politely]", f"run={tmp_path / 'r'}"])
    assert not ended.value.code
    (row,) = RunFolder.open(tmp_path / "r").rows("metrics.jsonl")
    assert (row["rollout/num_responses"], row["views/as_is_frac"]) == (16.0, 0.0)


def test_weakest_link_is_the_least_likely_token(mine):
    logprobs = torch.tensor([[-0.1, -2.0, -9.0], [-0.5, -0.2, -0.3]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.allclose(mine.weakest_link(logprobs, None, mask), torch.tensor([-2.0, -0.5]).exp())


def test_late_forks_are_in_the_second_half(mine):
    entropies = torch.tensor([[9.0, 8.0, 1.0, 2.0, 7.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert mine.late_forks(entropies, mask, 0.5, "response").tolist() == [[False, False, False, True, False]]


@pytest.mark.usefixtures("mine")
def test_the_recipe_runs(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "mine.yaml", "--allow-plugins", f"run={tmp_path / 'r'}", *SHORT])
    assert not ended.value.code
    finished = RunFolder.open(tmp_path / "r")
    assert finished.config.reward == "mine:cautious"
    assert len(finished.rows("metrics.jsonl")) == 1
