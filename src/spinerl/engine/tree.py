"""Tree rollouts: some responses are sampled from the prompt, the others branch off them at their forks.

The same number of responses for fewer sampled tokens, since a branch takes over everything before its fork.
Source: ETTRL's ETMR (arXiv 2508.11356).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from spinerl.config import Config
from spinerl.engine.sampler import sample_responses
from spinerl.models.loading import LoadedModel
from spinerl.types import OnTokens, Question, Rollout

__all__ = ["branch_points", "tree_responses"]


def tree_responses(
    loaded: LoadedModel,
    questions: Sequence[Question],
    prompts: Sequence[tuple[int, ...]],
    config: Config,
    seed: tuple[object, ...],
    on_tokens: OnTokens | None = None,
    certainties: bool = False,
) -> Rollout:
    """M (1 + K B) responses to each question: M = `tree_bases` from the prompt, then B new ones at each of their K
    tokens of highest entropy (`tree.branches`, `tree.forks`).

    A branch keeps the tokens before its fork, with their figures, and samples the fork itself again.  It ends where any
    response would: at an end token, or after `rollout.max_new_tokens` of its own and taken-over tokens together.
    A base with fewer than K tokens branches again at its first ones.
    """
    rollout, tree, bases = config.rollout, config.tree, config.tree_bases
    base = sample_responses(
        loaded,
        questions,
        prompts,
        bases,
        rollout,
        (*seed, "base"),
        on_tokens,
        certainties=certainties,
    )
    points = branch_points(base.entropies, base.mask, tree.forks)
    kept = points.flatten()  # tokens that each branch point takes over
    rows = torch.arange(len(base.tokens)).repeat_interleave(tree.forks)
    branch_questions, branch_prompts = [], []
    for number, (row, length) in enumerate(zip(rows.tolist(), kept.tolist(), strict=True)):
        question = questions[row // bases]
        name = f"{question.id}/{row % bases}/{number % tree.forks}"  # names the random stream
        branch_questions.append(dataclasses.replace(question, id=name))
        branch_prompts.append(prompts[row // bases] + tuple(base.tokens[row, :length].tolist()))
    grown = sample_responses(
        loaded,
        branch_questions,
        branch_prompts,
        tree.branches,
        rollout,
        (*seed, "branch"),
        on_tokens,
        certainties=certainties,
        limits=(rollout.max_new_tokens - kept).tolist(),
    )
    return _assembled(base, grown, rows, kept, config, loaded)


def branch_points(entropies: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """The columns (B, count) of each row's highest entropies, in the order of the text; a row with fewer tokens
    repeats them, one without any gets 0."""
    lengths = mask.sum(dim=1, keepdim=True)
    ranked = entropies.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(count).unsqueeze(0) % lengths.clamp_min(1)
    return ranked.gather(1, positions.clamp_max(max(0, ranked.shape[1] - 1))).sort(dim=1).values


def _assembled(
    base: Rollout, grown: Rollout, rows: torch.Tensor, kept: torch.Tensor, config: Config, loaded: LoadedModel
) -> Rollout:
    """Bases and whole branches, question-major, the bases of a question first."""
    tree, bases = config.tree, config.tree_bases
    source = rows.repeat_interleave(tree.branches)
    taken = kept.repeat_interleave(tree.branches)
    lengths = torch.cat([base.mask.sum(dim=1), taken + grown.mask.sum(dim=1)])
    width = int(lengths.max())
    finished = torch.cat([base.finished_mask, grown.finished_mask])

    columns = torch.arange(width)
    own = columns - taken.unsqueeze(1)  # a branch's column among the tokens it sampled itself

    def whole(of_base: torch.Tensor, of_branch: torch.Tensor, padding: float) -> torch.Tensor:
        first = torch.nn.functional.pad(of_base, (0, max(0, width - of_base.shape[1])), value=padding)[:, :width]
        new = of_branch.gather(1, own.clamp(0, of_branch.shape[1] - 1))
        stitched = torch.where(own < 0, first[source], new)
        every = torch.cat([first, stitched])
        return every.masked_fill(columns >= lengths.unsqueeze(1), padding)

    order = _question_major(len(base.questions), bases, tree.forks * tree.branches)
    tokens = whole(base.tokens, grown.tokens, loaded.pad_id)[order]
    mask = (columns < lengths.unsqueeze(1))[order]
    texts = loaded.texts([row[own_mask].tolist() for row, own_mask in zip(tokens, mask, strict=True)])

    def optional(name: str) -> torch.Tensor | None:
        of_base, of_branch = getattr(base, name), getattr(grown, name)
        return None if of_base is None or of_branch is None else whole(of_base, of_branch, 0.0)[order]

    return Rollout(
        questions=base.questions,
        prompts=base.prompts,
        num_responses=bases * (1 + tree.forks * tree.branches),
        tokens=tokens,
        mask=mask,
        logprobs=whole(base.logprobs, grown.logprobs, 0.0)[order],
        entropies=whole(base.entropies, grown.entropies, 0.0)[order],
        finished_mask=finished[order],
        texts=texts,
        certainties=optional("certainties"),
        num_drawn=int(base.mask.sum() + grown.mask.sum()),
        sampler_logprobs=optional("sampler_logprobs"),
        log_mass=optional("log_mass"),
    )


def _question_major(num_questions: int, bases: int, branches: int) -> torch.Tensor:
    """Rows of [all bases, all branches (base-major)] in the order: question, its bases, its branches."""
    base_rows = torch.arange(num_questions * bases).view(num_questions, bases)
    branch_rows = torch.arange(num_questions * bases * branches).view(num_questions, bases * branches)
    return torch.cat([base_rows, branch_rows + num_questions * bases], dim=1).flatten()
