"""Tree rollouts: as many responses, fewer sampled tokens, the same figures as any text has."""

from __future__ import annotations

import pytest
import torch

from spinerl.config import load_config
from spinerl.engine.sampler import sample_responses
from spinerl.engine.tree import branch_points, tree_responses
from spinerl.engine.update import score
from spinerl.errors import InputError
from spinerl.models.loading import load_model
from spinerl.step import trained_rows
from spinerl.types import Question

TREE = ("tree.bases=-1", "tree.forks=3", "tree.branches=1", "rollout.num_votes=0")  # small next to the row's own
TEXTS = ("What is 2 + 3?", "Hi")
QUESTIONS = tuple(Question(str(i), text) for i, text in enumerate(TEXTS))


def grown(model_folders, *overrides, architecture="qwen3", step=0):
    config = load_config(
        overrides=[
            f"model={model_folders(architecture)}",
            "method=ettrl-etmr",
            "group_size=8",
            "rollout.max_new_tokens=40",
            *TREE,
            *overrides,
        ]
    )
    loaded = load_model(config.model, config.engine)
    prompts = [tuple(loaded.tokenizer(text).input_ids) for text in TEXTS]
    return config, loaded, prompts, tree_responses(loaded, QUESTIONS, prompts, config, ("t", step))


def test_branch_points_by_hand():
    entropies = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    # row 0: columns 1, 3, 2 by entropy; row 1 has two tokens, so its first choice comes again; row 2 has none
    assert branch_points(entropies, mask, 3).tolist() == [[1, 2, 3], [0, 0, 1], [0, 0, 0]]


def test_branches_share_their_bases_text_up_to_the_fork(model_folders):
    config, loaded, prompts, rollout = grown(model_folders)
    assert config.tree_bases == 2
    assert rollout.num_responses == 8
    assert len(rollout.texts) == 16
    base = sample_responses(loaded, QUESTIONS, prompts, 2, config.rollout, ("t", 0, "base"))
    points = branch_points(base.entropies, base.mask, 3)
    for p in range(2):
        for m in range(2):
            row, source = 8 * p + m, 2 * p + m
            length = int(base.mask[source].sum())
            assert rollout.tokens[row, :length].tolist() == base.tokens[source, :length].tolist()
            assert rollout.finished_mask[row] == base.finished_mask[source]
            for k in range(3):
                branch, kept = 8 * p + 2 + 3 * m + k, int(points[source, k])
                assert rollout.tokens[branch, :kept].tolist() == base.tokens[source, :kept].tolist()
                assert int(rollout.mask[branch].sum()) > kept, "the fork itself is sampled again"


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt2"])
def test_figures_equal_teacher_forcing(model_folders, architecture):
    config, loaded, _, rollout = grown(model_folders, architecture=architecture)
    batch, logprobs, entropies = trained_rows(rollout, config)
    found = score(loaded, batch, batch.mask, config.optim)
    assert (found[0] - logprobs).abs().max() < 1e-4
    assert (found[1] - entropies).abs().max() < 1e-4
    assert (rollout.tokens[~rollout.mask] == loaded.pad_id).all()
    assert rollout.mask.shape[1] <= 40
    lengths = rollout.mask.sum(dim=1)
    assert ((lengths == 40) | rollout.finished_mask).all(), "only the limit cuts a response off"
    ends = rollout.tokens.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
    assert ((ends == loaded.end_ids[0]) == rollout.finished_mask).all()


def test_a_tree_draws_fewer_tokens_than_it_has(model_folders):
    shares = []
    for step in range(5):
        *_, rollout = grown(model_folders, step=step)
        assert rollout.num_drawn is not None
        shares.append(rollout.num_drawn / int(rollout.mask.sum()))
    assert sum(shares) / 5 < 0.85


def test_the_same_seed_grows_the_same_tree(model_folders):
    assert grown(model_folders)[3].texts == grown(model_folders)[3].texts
    assert grown(model_folders)[3].texts != grown(model_folders, step=1)[3].texts


def test_a_tree_that_does_not_make_the_group_is_refused():
    with pytest.raises(InputError, match="does not make 6"):
        load_config(overrides=["method=ettrl-etmr", *TREE, "group_size=6"])
    assert load_config(overrides=["method=ettrl-etmr", *TREE, "group_size=6", "tree.forks=2"]).tree_bases == 2
    row = load_config(overrides=["method=ettrl-etmr"])
    assert (row.tree_bases, row.tree.forks, row.tree.branches, row.num_votes) == (12, 2, 2, 60)
