"""QAlign: a Markov chain over responses, which moves by writing a response's end again; all its states vote.

Source: QAlign (arXiv 2504.03790) on the chain of Quest.  Its reward model is trained on preferences or right answers;
here the mean token probability stands for it (ours), as for "likeliest of k".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from spinerl.comparison.search.records import Found, Searched, likelihood
from spinerl.engine.sampler import sample_responses
from spinerl.seeding import seed_of

__all__ = ["acceptance", "chained"]


@dataclass
class _State:
    ids: list[int]
    logprobs: list[float]
    finished: bool

    @property
    def score(self) -> float:
        return likelihood(self.logprobs)


def acceptance(new: float, old: float, new_length: int, old_length: int, beta: float) -> float:
    """P(accept) = min(1, exp((r' - r) / beta) |y| / |y'|), |y| tokens being as many places where an end may begin.

    Where an end begins is uniform over a response's tokens, and the end is the model's own: what is left of the ratio
    of proposals is |y| / |y'|, and the chain's law is p(y) exp(r(y) / beta).

    >>> acceptance(0.5, 0.5, 20, 10, 0.1), acceptance(0.9, 0.5, 20, 10, 0.1)
    (0.5, 1.0)
    """
    exponent = (new - old) / beta
    return 1.0 if exponent > 700 else min(1.0, math.exp(exponent) * old_length / new_length)


def chained(search: Searched, *, steps: int, beta: float) -> list[Found]:
    """A chain of `steps` states per question: a sampled response, and `steps` - 1 proposals, accepted or not.

    Per proposal the response is kept up to a place, and sampled again from there: half a response on average.
    `Found.num_tokens` counts what was sampled.  The streams are (config.seed, "qalign", step, question).
    """
    config, most = search.config, search.limits()
    states = [_State([], [], False) for _ in search.questions]
    found = [Found([], [], [], 0, figures={"num_accepted": 0}) for _ in search.questions]
    for step in range(steps):
        draws = [Random(seed_of(config.seed, "qalign", step, question.id)) for question in search.questions]
        places = [int(draw.random() * len(state.ids)) for draw, state in zip(draws, states, strict=True)]
        kept = [state.ids[:place] for state, place in zip(states, places, strict=True)]
        written = sample_responses(
            search.loaded,
            search.questions,
            [prompt + tuple(ids) for prompt, ids in zip(search.prompts, kept, strict=True)],
            1,
            config.rollout,
            (config.seed, "qalign", step),
            search.on_tokens,
            limits=[limit - place for limit, place in zip(most, places, strict=True)],
        )
        finished = written.finished_mask.tolist()
        for i, (tokens, logprobs, mask) in enumerate(zip(written.tokens, written.logprobs, written.mask, strict=True)):
            new, values = tokens[mask].tolist(), logprobs[mask].tolist()
            found[i].num_tokens += len(new)
            old = states[i]
            proposal = _State(kept[i] + new, old.logprobs[: places[i]] + values, finished[i])
            if not step:
                states[i] = proposal
                continue
            chance = acceptance(proposal.score, old.score, len(proposal.ids), len(old.ids), beta)
            if draws[i].random() < chance:
                states[i] = proposal
                found[i].figures["num_accepted"] += 1
        for one, state, text in zip(found, states, search.loaded.texts([s.ids for s in states]), strict=True):
            one.responses.append(text)
            one.truncated.append(not state.finished)
            one.lengths.append(len(state.ids))
    return found
