"""ID-sampling: responses whose budget of tokens grows, with a cue to think again where each budget ends.

Source: iterative deepening sampling (arXiv 2502.05449), budget forcing (`spinerl.comparison.forcing`) that grows.
What is ours: the cue's words are those of a key; a response that ends before a budget does is sent on at once; the
results vote.
"""

from __future__ import annotations

from spinerl.comparison.forcing import ids_of
from spinerl.comparison.search.records import Found, Searched
from spinerl.engine.sampler import sample_responses

__all__ = ["budgets_of", "deepened"]


def budgets_of(first: int, growth: float, most: int) -> list[int]:
    """Tokens at which a response gets a cue, and at last its end: first x growth^r, rounded down, below `most`; `most`.

    >>> budgets_of(16, 2.0, 100)
    [16, 32, 64, 100]
    """
    found = []
    budget = float(first)
    while budget < most:
        found.append(int(budget))
        budget *= growth
    return [*dict.fromkeys(found), most]


def deepened(search: Searched, *, responses: int, budget: int, growth: float, cue: str) -> list[Found]:
    """`responses` responses per question, each sampled up to `budget` tokens, a cue appended, up to `growth` times as
    many, and so on until rollout.max_new_tokens.

    Budgets count cues; `Found.num_tokens` counts what the model wrote.  A cue that no space is left for is left out,
    and then a response that ended stays as it is.  The streams are (config.seed, "deepening", response, round).
    """
    loaded, rollout = search.loaded, search.config.rollout
    cue_ids = ids_of(loaded, cue)
    most = search.limits()
    found = [Found([], [], [], 0) for _ in search.questions]
    for j in range(responses):
        states: list[list[int]] = [[] for _ in search.questions]
        ended = [False] * len(states)  # for good
        for number, mark in enumerate(budgets_of(budget, growth, rollout.max_new_tokens)):
            marks = [min(mark, own) for own in most]
            chosen = [i for i, ids in enumerate(states) if not ended[i] and len(ids) < marks[i]]
            if not chosen:
                continue
            written = sample_responses(
                loaded,
                [search.questions[i] for i in chosen],
                [search.prompts[i] + tuple(states[i]) for i in chosen],
                1,
                rollout,
                (search.config.seed, "deepening", j, number),
                search.on_tokens,
                limits=[marks[i] - len(states[i]) for i in chosen],
            )
            rows = zip(chosen, written.tokens, written.mask, written.finished_mask.tolist(), strict=True)
            for i, tokens, mask, finished in rows:
                new = tokens[mask].tolist()
                found[i].num_tokens += len(new)
                kept = states[i] + (search.without_end(new) if finished else new)
                if marks[i] < most[i] and len(kept) + len(cue_ids) < most[i]:
                    states[i] = kept + cue_ids
                else:
                    states[i] += new
                    ended[i] = finished
        for one, text, ids, done in zip(found, loaded.texts(states), states, ended, strict=True):
            one.responses.append(text)
            one.truncated.append(not done)
            one.lengths.append(len(ids))
    return found
