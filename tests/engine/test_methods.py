"""Every method's row against a brute-force dense implementation of its formula, and its golden trajectory."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from spinerl.answers import Equivalence, vote
from spinerl.config import load_config
from spinerl.engine.fisher import estimate_fisher
from spinerl.engine.optimizer import Optimizer
from spinerl.engine.update import update
from spinerl.evaluation import gold_rewards
from spinerl.feedback import Feedback
from spinerl.hooks import weigh_questions, weigh_votes
from spinerl.memory import Memories
from spinerl.methods import LOSSES, METHODS
from spinerl.models.loading import load_model
from spinerl.rewards import RewardContext, give_rewards
from spinerl.seeding import seed_of
from spinerl.step import StepState, freeze_targets, rollout_metrics, sample, trained_rows
from spinerl.types import Question
from spinerl.views import Views
from tests.engine.test_update import gradient
from tests.models import compute_norms_in_float64

TEXTS = ("What is 2 + 3?", "Hi", "A longer question, with more words.")
ANSWERS = (("4", "4", "5", None), ("7", "7", "7", "7"), ("1", "2", "2", "2"))
GOLD = {"0": "5", "1": "7", "2": "2"}
QUESTIONS = tuple(Question(str(i), text, answer_kind="number") for i, text in enumerate(TEXTS))
ELSEWHERE = ("ttadapt", "tt-si", "self-calibration")  # tests/engine/test_episodic_rows.py, test_calibration.py
ADAPTING = [name for name in METHODS if name not in ("none", *ELSEWHERE)]
START = (
    ("8", "8", "8", "7", None, None),
    ("5", "5", "5", "5", "5", None),
    (None,) * 6,
)  # what the unadapted model said, for methods that remember
VIEW_ANSWERS = (("5", "4", "5", None), ("7", "8", "8", "8"), ("1", "1", "2", None))  # to each question asked otherwise
VOTER_ANSWERS = (("5", "5", "4", "5"), ("8", "7", "7", None), ("2", "1", "2", "1"))  # of a slow copy
RECORD = Path(__file__).parent.parent / "golden" / "methods.json"


FINE_TUNING = ("lmsi", "sealong", "roirl", "upft", "scpo")
SMALL = {
    "ettrl-etmr": ["tree.bases=1", "tree.forks=3", "tree.branches=1", "rollout.num_votes=4"],  # the row has 60 votes
    "eata": ["advantage.scale=raw"],
    "eata-fisher": ["advantage.scale=raw"],  # of four votes only those that all agree are certain enough
}


def opened(folder, method, *overrides, dtype=torch.float64):
    overrides = [*SMALL.get(method, ()), *overrides]
    config = load_config(
        overrides=[f"model={folder}", f"method={method}", "group_size=4", "rollout.max_new_tokens=14", *overrides]
    )
    policy, anchor = load_model(config.model, config.engine), load_model(config.model, config.engine)
    for loaded in (policy, anchor):
        loaded.model.to(dtype)
        if dtype == torch.float64:
            compute_norms_in_float64(loaded.model)
    prompts = [tuple(policy.tokenizer(text).input_ids) for text in TEXTS]
    return config, policy, anchor, prompts


def answers_of(config):
    """What the responses say, by group: with views those to a question, then those to its view."""
    if not config.vote.views:
        return ANSWERS
    return tuple(group for pair in zip(ANSWERS, VIEW_ANSWERS, strict=True) for group in pair)


def slow_copy(equivalence):
    """A voter that says VOTER_ANSWERS: a random model's responses have no answer."""

    def voter(questions, prompts, step):  # noqa: ARG001
        votes = [vote(list(given), equivalence.classes(list(given), "number")) for given in VOTER_ANSWERS]
        return votes, [1.0] * 12, 0

    return voter


def memory_of(config, equivalence):
    """What counts more than the step's own votes: of spine-memory those of START are remembered; None for most."""
    if config.feedback.questions:
        return Feedback(config, lambda question, answer: answer == GOLD[question.id])
    if config.vote.slow_decay:
        return Memories(config, slow_copy(equivalence))
    if config.vote.memory == "off":
        return None
    memory = Memories(config)
    votes = [vote(list(given), equivalence.classes(list(given), "number")) for given in START]
    memory.start(QUESTIONS, votes, [1.0] * 18, 0, equivalence)
    return memory


def rolled_out(config, policy, anchor, prompts, equivalence, step=1, memory=None):
    """(rollout, votes, rewards, batch, old log-probabilities, entropies), the votes being those of ANSWERS."""
    views = Views(config, lambda question: tuple(policy.tokenizer(question.text).input_ids), equivalence)
    if config.vote.views:
        memory, (rollout, _) = views, views.draw(policy, QUESTIONS, prompts, step)
    else:
        rollout = sample(policy, QUESTIONS, prompts, config, step)
    rules, weights = config.vote.rules, weigh_votes(rollout, config.vote.weights)
    votes = tuple(
        vote(list(given), equivalence.classes(list(given), "number"), weights=weights[4 * p : 4 * p + 4], **rules)
        for p, given in enumerate(answers_of(config))
    )
    if memory is not None:
        votes, _ = memory.vote(rollout, votes, weights, step + 1, equivalence)
    if config.reward == "gold":
        rewards = gold_rewards(QUESTIONS, votes, gold=GOLD, config=config, equivalence=equivalence)
    else:
        rewards = give_rewards(RewardContext(config, step, policy, anchor, rollout, votes, equivalence))
    return rollout, votes, rewards, *trained_rows(rollout, config)


# ---- the formulas once more, by loops over responses and tokens, sharing nothing with the package


def brute_label(method, p, counts):
    """The label of methods that count something else than the group's own votes; `counts` are those."""
    if method == "spine-memory":
        counts = counts + Counter(a for a in START[p] if a is not None)
    if method in ("co-rewarding-ii", "petal"):
        counts = Counter(a for a in VOTER_ANSWERS[p] if a is not None)
    if method in ("self-harmony", "permuted-ttrl"):
        both = [Counter(a for a in views[p // 2] if a is not None) for views in (ANSWERS, VIEW_ANSWERS)]
        if method == "permuted-ttrl":
            counts = both[0] + both[1]
        else:
            shares = {a: (both[0][a] / 4, both[1][a] / 4) for a in both[0] if both[1][a]}
            counts = {a: 2 * x * y / (x + y) for a, (x, y) in shares.items()}
    if method == "bitta":  # asked about all three: yes, or no and the next
        return GOLD[str(p)]
    best = max(counts.values(), default=0)
    leaders = [a for a in counts if counts[a] == best]
    return leaders[0] if len(leaders) == 1 else None


def brute_weighted(method, policy, rollout, rows, answers, seed):
    """COMPASS's and SCOPE's rewards, whose votes weigh what whole distributions say."""
    logs = [brute_logs(policy, rollout, row) for row in rows]
    weights, totals = [], Counter()
    for row, log_p in zip(rows, logs, strict=True):
        tokens = rollout.tokens[row, : len(log_p)].tolist()
        if method == "compass":
            tops = [sorted(own.exp().tolist())[-2:] for own in log_p]
            weights.append(sum(high - low for low, high in tops) / len(tops))
            continue
        lines = [[]]
        for own, token in zip(log_p, tokens, strict=True):
            lines[-1].append(own[token].item())
            if policy.tokenizer.decode([token]) == "\n":
                lines.append([])
        means = [math.exp(sum(line) / len(line)) for line in lines if line]
        weights.append(sum(means) / len(means))
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer] += weight
    if method == "compass":
        top = max(totals, key=lambda a: totals[a])
        scale = max(w for a, w in zip(answers, weights, strict=True) if a == top) / max(weights)
        return [scale * (a == top) for a in answers]
    rewards = []
    for i, answer in enumerate(answers):  # a subgroup each: there are four responses
        random, held = Random(f"{seed}/{i}"), Counter()
        for place in [random.randrange(4) for _ in range(4)]:
            if answers[place] is not None:
                held[answers[place]] += weights[place]
        rewards.append(float(answer is not None and answer == max(held, key=lambda a: held[a], default=None)))
    return rewards


def brute_exploration(policy, rollout, rows, answers, top):
    states = [brute_embedding(policy, rollout, row) for row in rows]
    states = [state / state.norm() for state in states]
    inverse = torch.linalg.inv(0.1 * torch.eye(len(states[0])).double() + sum(torch.outer(h, h) for h in states))
    return [float(a == top) + 0.1 * (h @ inverse @ h).item() for a, h in zip(answers, states, strict=True)]


def brute_pairs(answers, counts):
    most, least = (choose(counts, key=lambda a: counts[a]) for choose in (max, min))
    if len(counts) < 2 or counts[most] / 4 < 0.5:
        return [0.0] * 4
    margin = (counts[most] - counts[least]) / 4
    own = [0.0] * 4
    own[answers.index(most)], own[answers.index(least)] = margin, -margin
    return own


def brute_rewards(method, rollout, policy, anchor, config):
    out = []
    for p, answers in enumerate(answers_of(config)):
        counts = Counter(a for a in answers if a is not None)
        top = max(counts, key=lambda a: counts[a])
        rows = range(4 * p, 4 * p + 4)
        lengths = [int(rollout.mask[row].sum()) for row in rows]
        entropies = [rollout.entropies[row, :n].tolist() for row, n in zip(rows, lengths, strict=True)]
        spread = [counts[a] / 4 if a else 0.25 for a in dict.fromkeys(a or f"none {i}" for i, a in enumerate(answers))]
        spread = [counts[a] / 4 for a in counts] + [0.25] * answers.count(None)
        scatter = -sum(x * math.log(x) for x in spread)
        if method in ("spine-memory", "co-rewarding-ii", "petal", "self-harmony", "permuted-ttrl", "bitta"):
            top = brute_label(method, p, counts)
        if method == "ttrl-loo":
            own = []
            for i, a in enumerate(answers):
                others = Counter(b for j, b in enumerate(answers) if j != i and b is not None)
                best = max(others.values())
                winners = [b for b in others if others[b] == best]
                own.append(float(winners == [a]))
        elif method == "frequency":
            own = [counts[a] / 4 if a else 0.0 for a in answers]
        elif method == "empo":
            own = [counts[a] / 4 if a and scatter < math.log(4) - 1e-9 else 0.0 for a in answers]
        elif method == "ttrv":
            part = scatter / math.log(len(spread)) if len(spread) > 1 else 0.0
            own = [(counts[a] / 4 if a else 0.0) - 0.75 * part for a in answers]
        elif method == "entropy-min":
            own = [-sum(h) / len(h) for h in entropies]
        elif method == "self-certainty":
            own = [
                sum(-math.log(len(log_p)) - float(log_p.mean()) for log_p in rows_of_logs) / len(rows_of_logs)
                for rows_of_logs in (brute_logs(policy, rollout, row) for row in rows)
            ]
        elif method == "sealong":
            vectors = [brute_embedding(anchor, rollout, row) for row in rows]
            scores = [sum(torch.cosine_similarity(a, b, dim=0).item() for b in vectors) / 4 for a in vectors]
            own = [float(i == scores.index(max(scores))) for i in range(4)]
        elif method == "upft":
            own = [1.0] * 4
        elif method in ("scrl", "dare"):
            own = brute_uncertain(method, answers, [sum(h) / len(h) for h in entropies])
        elif method == "entropic":
            own = [counts[a] / 4 if a else 0.0 for a in answers]
        elif method in ("compass", "scope"):
            seed = seed_of(config.seed + 1, "scope", str(p))
            own = brute_weighted(method, policy, rollout, rows, answers, seed)
        elif method == "exploration":
            own = brute_exploration(policy, rollout, rows, answers, top)
        elif method == "scpo":
            own = brute_pairs(answers, counts)
        elif method == "evol":
            own = brute_evol(policy, rollout, rows, answers, top)
        elif method == "entropy-min-loss":
            own = [0.0] * 4
        elif method == "cat":
            return None  # the reference is sampled: tests/engine/test_step_rewards.py
        elif method == "grpo-gold":
            own = [float(a == GOLD[str(p)]) for a in answers]
        else:
            own = [float(top is not None and a == top) for a in answers]
        out.append(own)
    return out


def brute_ids(rollout, row):
    prompt = list(rollout.prompts[row // rollout.num_responses])
    return len(prompt), prompt + rollout.tokens[row, : int(rollout.mask[row].sum())].tolist()


def brute_logs(policy, rollout, row):
    start, ids = brute_ids(rollout, row)
    with torch.no_grad():
        return torch.log_softmax(policy.model(torch.tensor([ids])).logits[0].double(), -1)[start - 1 : -1]


def brute_embedding(model, rollout, row):
    start, ids = brute_ids(rollout, row)
    with torch.no_grad():
        states = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return states[start - 1 : -1].double().mean(0)


def brute_evol(policy, rollout, rows, answers, top):
    embeddings = [brute_embedding(policy, rollout, row) for row in rows]
    sides = [-1 if a is None else int(a == top) for a in answers]
    cos = [[max(0.0, torch.cosine_similarity(a, b, dim=0).item()) for b in embeddings] for a in embeddings]
    novelty = {}
    for i, side in enumerate(sides):
        if side < 0:
            continue
        others = [j for j, s in enumerate(sides) if s >= 0 and j != i]
        same = [j for j in others if sides[j] == side] or others
        novelty[i] = 1 - sum(cos[i][j] for j in same) / len(same) / 2 - max(cos[i][j] for j in others) / 2
    rewards = []
    for i, side in enumerate(sides):
        if side < 0:
            rewards.append(-1.0)
            continue
        scores = [novelty[j] for j, s in enumerate(sides) if s == side]
        low, high = min(scores), max(scores)
        scaled = (novelty[i] - low) / (high - low) if high > low else (1.0 if len(scores) == 1 else 0.5)
        rewards.append((0.5 if side else -1.0) + 0.5 * scaled)
    return rewards


def brute_uncertain(method, answers, mean_h):
    """SCRL's and DARE's rewards, which look at the mean entropies of whole classes."""
    out = []
    counts = Counter(a for a in answers if a is not None)
    class_h = {a: sum(h for b, h in zip(answers, mean_h, strict=True) if b == a) / counts[a] for a in counts}
    first, second = [*sorted(counts.values(), reverse=True), 0][:2]
    weights = {a: counts[a] / (class_h[a] + 1e-6) for a in counts}
    weights = {a: w for a, w in weights.items() if w / sum(weights.values()) >= 0.05}
    for a in answers:
        if a is None:
            out.append(0.0)
            continue
        p = counts[a] / 4
        if method == "dare":
            share = weights[a] / sum(weights.values()) + 0.1 * (1 - p) * (1 - class_h[a]) if a in weights else 0.0
            out.append(share)
            continue
        positive = counts[a] == first and first / 4 >= 0.375 and (first - second) / 4 > 0.125
        negative = not positive and p < 0.125 and class_h[a] >= sum(mean_h) / 4
        out.append(p * positive + (p - 0.125) * negative - 0.1 * (class_h[a] - sum(mean_h) / 4))
    return out


def brute_entropic(own):
    """exp(b r) over its mean, less 1, with b from a search of its own."""
    if len(set(own)) == 1:
        return [0.0] * len(own)

    def weights(b):
        raw = [math.exp(b * (r - max(own))) for r in own]
        return [w / sum(raw) for w in raw]

    low, high = 0.0, 1.0
    for _ in range(60):  # of doublings; where the divergence cannot be reached, all weight goes to the best
        if sum(q * math.log(4 * q) for q in weights(high) if q > 0) >= math.log(2) or high > 1e6:
            break
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if sum(q * math.log(4 * q) for q in weights(middle) if q > 0) < math.log(2):
            low = middle
        else:
            high = middle
    return [4 * q - 1 for q in weights(high)]


def brute_pass_k(own, plain):
    """k = 8 of 4 are all 4: by counting the subsets."""
    right = sum(r > 0 for r in own)
    subsets = list(itertools.combinations(range(4), 4))
    rho = sum(any(own[i] > 0 for i in subset) for subset in subsets) / len(subsets)
    assert rho in (0.0, 1.0)  # and so the part that is for one of k has no spread
    return [(1 - right / 4) * a for a in plain]


def std(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def brute_advantages(method, rewards, rollout):
    """One per token: {(row, t): A}."""
    out = {}
    flat = [r for own in rewards for r in own]
    for p, own in enumerate(rewards):
        mean, deviation = sum(own) / 4, std(own)
        lengths = [int(rollout.mask[4 * p + i].sum()) for i in range(4)]
        tokens = [rollout.tokens[4 * p + i, : lengths[i]].tolist() for i in range(4)]
        mean_h = [rollout.entropies[4 * p + i, : lengths[i]].double().mean().item() for i in range(4)]
        for i in range(4):
            advantage = (own[i] - mean) / (deviation + 1e-6) if len(set(own)) > 1 else 0.0
            if method in FINE_TUNING or method in ("eata", "eata-fisher"):
                advantage = own[i]
            if method == "compass":
                advantage = own[i] - mean
            if method == "ttrv":
                advantage = (own[i] - sum(flat) / 12) / (std(flat) + 1e-6)
            if method in ("ettrl", "ettrl-etmr"):
                group = sum(mean_h) / 4
                advantage *= min(1.2, max(0.8, 1 + (group - mean_h[i]) / group))
            if method == "entropic":
                advantage = brute_entropic(own)[i]
            if method == "ttc-rl":
                plain = [(r - mean) / (deviation + 1e-6) if len(set(own)) > 1 else 0.0 for r in own]
                advantage = brute_pass_k(own, plain)[i]
            if method in ("eata", "eata-fisher"):
                counts = Counter(a or f"none {j}" for j, a in enumerate(ANSWERS[p]))
                scatter = -sum(n / 4 * math.log(n / 4) for n in counts.values()) / math.log(4)
                advantage *= math.exp(0.4 - scatter) if scatter < 0.4 else 0.0
            if method == "ettrl-clip":
                advantage = max(-2.0, min(2.0, advantage))
            before = mean
            for t in range(lengths[i]):
                out[4 * p + i, t] = advantage
                if method == "tempo" and len(set(own)) > 1:
                    sharing = [own[j] for j in range(4) if tokens[j][: t + 1] == tokens[i][: t + 1]]
                    value = sum(sharing) / len(sharing)
                    out[4 * p + i, t] = (own[i] - mean + value - before) / (deviation + 1e-6)
                    before = value
    return out


def brute_otsu(entropies):
    """The entropies at or over the threshold that separates two classes best, by trying all of them."""
    low, high = min(entropies), max(entropies)
    if low == high:
        return set(range(len(entropies)))
    bins = [min(99, int((h - low) / (high - low) * 100)) for h in entropies]
    best, chosen = -1.0, 0
    for k in range(1, 100):
        below, above = [b for b in bins if b < k], [b for b in bins if b >= k]
        if below and above:
            apart = len(below) * len(above) * (sum(above) / len(above) - sum(below) / len(below)) ** 2
            if apart > best * (1 + 1e-12):
                best, chosen = apart, k
    return {t for t, b in enumerate(bins) if b >= chosen}


def brute_forks(method, rollout, rewards):
    cells = {row: range(int(rollout.mask[row].sum())) for row in range(len(rollout.tokens))}
    if method == "80-20":
        every = sorted((-rollout.entropies[r, t].item(), r, t) for r in cells for t in cells[r])
        return {(r, t) for _, r, t in every[: math.ceil(0.2 * len(every) - 1e-9)]}
    if method in ("spine", "spine-no-band", "spine-memory"):
        chosen = set()
        for r, columns in cells.items():
            ranked = sorted(columns, key=lambda t: (-rollout.entropies[r, t].item(), t))
            chosen |= {(r, t) for t in ranked[: math.ceil(0.2 * len(columns) - 1e-9)]}
        return chosen
    if method == "spine-v2":
        return {(r, t) for r in cells for t in brute_otsu(rollout.entropies[r].double()[: len(cells[r])].tolist())}
    if method in FINE_TUNING:  # what is kept, and of it UPFT's first tokens
        flat = [reward for own in rewards for reward in own]
        return {(r, t) for r in cells for t in cells[r] if flat[r] and (method != "upft" or t < 8)}
    return {(r, t) for r in cells for t in cells[r]}


def median(values):
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def brute_preferences(policy, anchor, rollout, advantages):
    """ScPO's loss, pair by pair: - w log sigmoid(0.5 gap) - w log pi(y+) / len."""
    pairs = []
    for p in range(3):
        sums = {}
        for row in range(4 * p, 4 * p + 4):
            if advantages.get((row, 0)):
                start, ids = brute_ids(rollout, row)
                own, initial = (
                    sum(
                        torch.log_softmax(one.model(torch.tensor([ids])).logits[0], -1)[at - 1, ids[at]]
                        for at in range(start, len(ids))
                    )
                    for one in (policy, anchor)
                )
                sums[advantages[row, 0] > 0] = (own, own - initial.detach(), len(ids) - start, abs(advantages[row, 0]))
        if sums:
            likelihood, _, length, weight = sums[True]
            gap = sums[True][1] - sums[False][1]
            pairs.append(-weight * (torch.log(torch.sigmoid(0.5 * gap)) + likelihood / length))
    return sum(pairs) / len(pairs)


def brute_gradient(method, config, policy, anchor, rollout, advantages, forks):
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = int(rollout.mask.sum())
    divisor = num_tokens if method == "spine-v2" else len(forks)
    if method == "scpo":
        total = brute_preferences(policy, anchor, rollout, advantages)
    for row in range(len(rollout.tokens) if method != "scpo" else 0):
        start, ids = brute_ids(rollout, row)
        log_p = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0], -1)[start - 1 : -1]
        with torch.no_grad():
            log_q = torch.log_softmax(anchor.model(torch.tensor([ids])).logits[0], -1)[start - 1 : -1]
        own = sorted(t for r, t in forks if r == row)
        sampled = sorted(rollout.entropies[row, t].item() for t in own)
        for t in range(len(ids) - start):
            entropy = -(log_p[t].exp() * log_p[t]).sum()
            if (row, t) in forks:  # on policy: the ratio is 1 and its gradient that of log pi
                total = total - advantages[row, t] * log_p[t, ids[start + t]] / divisor
                if method == "spine-v2":
                    high = median(sampled)
                    low = max(0.0, high - 1.4826 * max(1e-6, median(abs(h - high) for h in sampled)))
                    for distance in (entropy - high, low - entropy):
                        if distance > 1e-4:
                            total = total + config.band.weight * distance / divisor
                if method in ("ttrl-paper", "eata"):
                    d = log_p[t, ids[start + t]] - log_q[t, ids[start + t]]
                    total = total + 0.01 * ((-d).exp() - 1 + d) / len(forks)
                if method == "spine-memory" and (row, t) in forks:
                    d = log_p[t, ids[start + t]] - log_q[t, ids[start + t]]
                    total = total + 0.05 * ((-d).exp() - 1 + d) / len(forks)
                if method in ("spine", "spine-memory"):

                    def quantile(q, values=sampled):
                        place = q * (len(values) - 1)
                        low = math.floor(place)
                        high = min(low + 1, len(values) - 1)
                        return values[low] + (values[high] - values[low]) * (place - low)

                    for distance in (entropy - quantile(0.5), quantile(0.1) - entropy):
                        if distance > 1e-4:
                            total = total + config.band.weight * distance / len(forks)
            if method == "entropy-min-loss":
                total = total + entropy / num_tokens
            if method == "evol":
                total = total - 0.003 * entropy / num_tokens
    policy.model.zero_grad()
    total.backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


@pytest.mark.parametrize("method", ADAPTING)
def test_a_methods_gradient_is_that_of_its_formula(model_folders, method):
    config, policy, anchor, prompts = opened(model_folders("qwen3"), method)
    with torch.no_grad():  # an anchor that the policy has left
        for parameter in anchor.model.parameters():
            parameter.mul_(1.02)
    with Equivalence() as equivalence:
        memory = memory_of(config, equivalence)
        rollout, votes, rewards, batch, old, entropies = rolled_out(
            config, policy, anchor, prompts, equivalence, memory=memory
        )
    expected = brute_rewards(method, rollout, policy, anchor, config)
    if expected is None:
        expected = [list(own) for own in rewards]
    for own, theirs in zip(rewards, expected, strict=True):
        assert own == pytest.approx(theirs, abs=1e-6)
    weights = weigh_questions(votes, rollout.questions, config.advantage.question_weight)
    targets, _ = freeze_targets(anchor, batch, rewards, old, entropies, config, StepState(), weights)
    advantages = brute_advantages(method, [list(own) for own in rewards], rollout)
    for (row, t), value in advantages.items():
        assert targets.advantages[row, t].item() == pytest.approx(value, abs=1e-6)
    forks = brute_forks(method, rollout, rewards)
    assert {tuple(cell) for cell in targets.policy_mask.nonzero().tolist()} == forks
    _, found = gradient(config, policy, anchor, batch, targets)
    brute = brute_gradient(method, config, policy, anchor, rollout, advantages, forks)
    scale = max(g.abs().max().item() for g in brute.values())
    for name, value in brute.items():
        # the sampler's float32 log-probabilities leave ratios a few 1e-7 away from 1
        assert (found[name] - value).abs().max().item() <= 1e-5 * max(scale, 1e-3), name


@pytest.mark.parametrize("loss", LOSSES)
def test_a_losss_gradient_is_that_of_its_formula(model_folders, loss):
    config, policy, anchor, prompts = opened(model_folders("qwen3"), "ttrl", f"loss={loss}")
    with Equivalence() as equivalence:
        _, _, rewards, batch, old, entropies = rolled_out(config, policy, anchor, prompts, equivalence)
    old = old.double() + 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0)) * batch.mask
    targets, _ = freeze_targets(anchor, batch, rewards, old, entropies, config, StepState())
    total = torch.zeros((), dtype=torch.float64)
    keys, num_tokens = config.loss, int(batch.mask.sum())
    for row in range(12):
        n = int(batch.mask[row].sum())
        prompt = list(batch.prompts[row])
        ids = prompt + batch.tokens[row, :n].tolist()
        log_p = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0], -1)[len(prompt) - 1 : -1]
        logps = torch.stack([log_p[t, ids[len(prompt) + t]] for t in range(n)])
        own = rewards[row // 4]
        advantage = own[row % 4] - sum(own) / 4
        if loss != "dr-grpo":
            advantage = advantage / (std(own) + 1e-6) if len(set(own)) > 1 else 0.0
        ratios = (logps - old[row, :n]).exp()
        low, high = 1 - keys.clip_low, 1 + keys.clip_high
        if loss == "gspo":
            ratio = (logps - old[row, :n]).mean().exp()
            value = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            total = total - value / 12
            continue
        if loss == "cispo":
            values = ratios.detach().clamp(low, high) * advantage * logps
        else:
            values = torch.minimum(ratios * advantage, ratios.clamp(low, high) * advantage)
        divisor = {"grpo": 12 * n, "dr-grpo": 12 * 14, "dapo": num_tokens, "cispo": num_tokens}[loss]
        total = total - values.sum() / divisor
    policy.model.zero_grad()
    total.backward()
    expected = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    captured = {}

    class Recording(Optimizer):
        def step(self):
            captured.update({name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None})
            return {}

    optimizer = Recording(policy.model.parameters(), config.optim, 1)
    update(policy, anchor, batch, targets, optimizer, config, torch.arange(12), on_policy=False)
    scale = max(g.abs().max().item() for g in expected.values())
    assert scale > 1e-4 or loss == "gspo"
    for name, value in expected.items():
        assert (captured[name] - value).abs().max().item() <= 1e-7 * max(scale, 1e-2), name


def same_as_recorded(method, rows):
    """Compare the figures of ten steps with those recorded; or record them, with SPINERL_WRITE_GOLDEN."""
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if os.environ.get("SPINERL_WRITE_GOLDEN"):
        record[method] = rows
        RECORD.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n")
    for step, (row, expected) in enumerate(zip(rows, record[method], strict=True)):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6), f"step {step}"


@pytest.mark.parametrize("method", ADAPTING)
def test_a_methods_trajectory_is_the_recorded_one(model_folders, method):
    """Ten steps; the record is rewritten by `SPINERL_WRITE_GOLDEN=1 make test ARGS=tests/engine/test_methods.py`."""
    loss = [] if method in FINE_TUNING else ["loss=dapo"]
    config, policy, anchor, prompts = opened(model_folders("qwen3"), method, "optim.lr=2e-3", *loss)
    fisher = None
    if config.anchor.fisher:
        fisher = config.anchor.fisher, estimate_fisher(policy, QUESTIONS, prompts, config)
    optimizer = Optimizer(policy.model.parameters(), config.optim, 10, fisher)
    state, rows = StepState(), []
    with Equivalence() as equivalence:
        memory = memory_of(config, equivalence)
        for step in range(10):
            rollout, votes, rewards, batch, old, entropies = rolled_out(
                config, policy, anchor, prompts, equivalence, step, memory
            )
            weights = weigh_questions(votes, rollout.questions, config.advantage.question_weight)
            targets, state = freeze_targets(anchor, batch, rewards, old, entropies, config, state, weights)
            figures = update(policy, anchor, batch, targets, optimizer, config, torch.arange(len(batch.tokens)))
            figures.pop("loss/log_ratio_max")  # rounding noise
            rows.append(
                {"reward": sum(map(sum, rewards)) / sum(map(len, rewards)), **figures, **rollout_metrics(rollout)}
            )
    same_as_recorded(method, rows)
    # A random model writes no reference that can be read: tests/engine/test_step_rewards.py sees to the rest.
    assert any(row["optim/grad_norm"] > 0 for row in rows) or method == "cat"
