"""LatentSeek and LatentEvolve: per question, the last hidden states behind a response's first tokens are learned.

Source: LatentSeek (arXiv 2505.13308): policy gradient on those states, the weights as they are; the likeliest tokens of
them begin the response, which is decoded on greedily.  Its reward asks the model to check itself; here, for small
models, it is the share of the saved responses with the same answer, less 1 (ours).  LatentEvolve (arXiv 2509.24771)
begins near the states of similar questions before; its other half, which trains a network between questions, is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spinerl.comparison.search.records import Found, Searched, vote_share
from spinerl.engine.forward import logits
from spinerl.engine.sampler import greedy_responses
from spinerl.engine.update import predicting_states
from spinerl.types import Batch, Rollout

__all__ = ["blended", "sought"]

_NEIGHBORS = 3  # LatentEvolve's: past questions whose states are blended in,
_ALPHA = 0.3  # how much of them,
_LEAST = 10  # once so many are known
_AT_ONCE = 16  # questions that know only those before them (ours: one by one would be slow)


@dataclass
class _Answer:
    """A response and its reward, in [-1, 0], with the states that it came from."""

    text: str
    truncated: bool
    length: int
    reward: float
    states: torch.Tensor


def sought(
    search: Searched, *, rounds: int, fraction: float, most: int, lr: float, evolve: bool = False
) -> list[Found]:
    """Per question the response with the best reward among the greedy one and those of up to `rounds` updates.

    Learned are the states behind the first ceil(`fraction` x length) tokens of the greedy response, `most` at most.  A
    round minimizes - R sum_t log softmax(W z_t)[y_t] by Adam, R in [-1, 0] the reward of the response before and y its
    first tokens; then the likeliest tokens of z begin a response that is decoded greedily.  It ends at a reward of 0.

    `Found.num_tokens`: the saved responses that the reward counts, the greedy response, and all tokens decoded after;
    those that begin a response are read off the states and cost no pass each.  Nothing is random.
    """
    greedy = greedy_responses(search.loaded, search.questions, search.prompts, search.config.rollout, search.on_tokens)
    states = _first_states(search, greedy, fraction, most)
    spent = [sum(own) + length for own, length in zip(search.lengths, _lengths(greedy), strict=True)]
    answers: list[_Answer] = []
    changed = [0] * len(states)
    past: list[tuple[torch.Tensor, torch.Tensor]] = []  # (question, states of its answer)
    size = _AT_ONCE if evolve else len(states)
    for start in range(0, len(states), size):
        wave = range(start, min(start + size, len(states)))
        starts = [blended(states[i], past) if evolve and len(past) >= _LEAST else states[i] for i in wave]
        moved = [i for i, own in zip(wave, starts, strict=True) if own is not states[i]]
        current = {i: _greedy_answer(search, greedy, i, states[i]) for i in wave if i not in moved}
        by_question = dict(zip(wave, starts, strict=True))
        current |= _decoded(search, {i: by_question[i] for i in moved}, spent)
        best = _search(search, by_question, current, rounds, lr, spent)
        for i in wave:
            changed[i] = int(best[i].text != greedy.texts[i])
            answers.append(best[i])
            past.append((states[i][0], best[i].states))
    return [
        Found([one.text], [one.truncated], [one.length], tokens, figures={"changed": other, "reward": one.reward})
        for one, tokens, other in zip(answers, spent, changed, strict=True)
    ]


def blended(own: torch.Tensor, past: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """(1 - 0.3) z_t + 0.3 sum_j w_j z_jt over the 3 most similar past questions, w the softmax of their cosines.

    `own` (n, d), its first state standing for its question; `past`: (a question's first state (d,), its states (m, d)).
    Where a past question has fewer states, the own one stands in (ours).
    """
    keys = torch.stack([key for key, _ in past])
    cosines = torch.nn.functional.cosine_similarity(keys, own[0].unsqueeze(0), dim=1)
    near = cosines.topk(min(_NEIGHBORS, len(past)))
    weights = near.values.softmax(dim=0)
    mixed = torch.zeros_like(own)
    for weight, j in zip(weights, near.indices.tolist(), strict=True):
        theirs = own.clone()
        num = min(len(own), len(past[j][1]))
        theirs[:num] = past[j][1][:num]
        mixed += weight * theirs
    return (1 - _ALPHA) * own + _ALPHA * mixed


def _search(
    search: Searched,
    starts: dict[int, torch.Tensor],
    current: dict[int, _Answer],
    rounds: int,
    lr: float,
    spent: list[int],
) -> dict[int, _Answer]:
    """The best answer of each question: the current one, or one of a round's."""
    learned = {i: states.clone().float().requires_grad_() for i, states in starts.items()}
    optimizers = {i: torch.optim.Adam([states], lr=lr) for i, states in learned.items()}
    best = dict(current)
    for _ in range(rounds):
        active = [i for i, one in current.items() if best[i].reward < 0 and one.reward < 0]
        if not active:
            break
        for i in active:
            states = learned[i]
            with torch.enable_grad():
                log_dist = _head(search, states).log_softmax(dim=-1)
                chosen = log_dist.gather(1, log_dist.argmax(dim=-1, keepdim=True))
                loss = -current[i].reward * chosen.sum()
                (states.grad,) = torch.autograd.grad(loss, [states])
            optimizers[i].step()
        current |= _decoded(search, {i: learned[i].detach() for i in active}, spent)
        for i in active:
            if current[i].reward > best[i].reward:
                best[i] = current[i]
    return best


def _decoded(search: Searched, states: dict[int, torch.Tensor], spent: list[int]) -> dict[int, _Answer]:
    """What these states begin, decoded on greedily; the tokens are added to `spent`."""
    if not states:
        return {}
    limits = search.limits()
    with torch.no_grad():
        begun = {i: _head(search, own).argmax(dim=-1).tolist() for i, own in states.items()}
    ends = set(search.loaded.end_ids)
    for i, ids in begun.items():  # nothing follows an end
        begun[i] = ids[: next((t + 1 for t, token in enumerate(ids) if token in ends), len(ids))]
    going = [i for i, ids in begun.items() if ids[-1] not in ends and len(ids) < limits[i]]
    rest: dict[int, tuple[list[int], bool]] = {}
    if going:
        longest = max(limits[i] - len(begun[i]) for i in going)  # greedy tokens do not depend on it
        written = greedy_responses(
            search.loaded,
            [search.questions[i] for i in going],
            [search.prompts[i] + tuple(begun[i]) for i in going],
            search.config.rollout.model_copy(update={"max_new_tokens": longest}),
            search.on_tokens,
        )
        rows = zip(going, written.tokens, written.mask, written.finished_mask.tolist(), strict=True)
        for i, tokens, mask, finished in rows:
            new, left = tokens[mask].tolist(), limits[i] - len(begun[i])
            rest[i] = new[:left], finished and len(new) <= left
    found = {}
    for i, ids in begun.items():
        new, finished = rest.get(i, ([], ids[-1] in ends))
        spent[i] += len(new)
        (text,) = search.loaded.texts([ids + new])
        reward = vote_share(search, i, text, not finished) - 1
        found[i] = _Answer(text, not finished, len(ids) + len(new), reward, states[i].clone())
    return found


def _first_states(search: Searched, greedy: Rollout, fraction: float, most: int) -> list[torch.Tensor]:
    """(n_i, d) for each question: the states behind the first tokens of its greedy response."""
    counts = [min(most, max(1, math.ceil(fraction * length))) for length in _lengths(greedy)]
    wanted = torch.arange(greedy.tokens.shape[1]) < torch.tensor(counts).unsqueeze(1)
    batch = Batch(greedy.prompts, greedy.tokens, greedy.mask, 1.0)
    states, _, _ = predicting_states(search.loaded, batch, wanted & greedy.mask, search.config.optim)
    return list(states.split(counts))


def _greedy_answer(search: Searched, greedy: Rollout, i: int, states: torch.Tensor) -> _Answer:
    finished = bool(greedy.finished_mask[i])
    reward = vote_share(search, i, greedy.texts[i], not finished) - 1
    return _Answer(greedy.texts[i], not finished, _lengths(greedy)[i], reward, states)


def _lengths(rollout: Rollout) -> list[int]:
    return rollout.mask.sum(dim=1).tolist()


def _head(search: Searched, states: torch.Tensor) -> torch.Tensor:
    return logits(search.loaded, states.to(search.loaded.model.dtype)).float()
