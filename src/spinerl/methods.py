"""The table of methods, and that of losses.  A row is what it changes of the configuration's defaults, nothing more.

All methods run the same loop (`spinerl.step`): the rollout plan, the reward, the advantage, the token selector, the
loss and its further terms are configuration keys, and a row here sets them.  Keys a user gives win over the row,
those of a recipe for another method excepted.
Formulas and sources: docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ALIASES", "LOSSES", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One row: what it is, where it comes from, what it sets."""

    summary: str
    source: str
    sets: Mapping[str, Any]


_NO_BAND = {"weight": 0.0, "weight_low": None, "weight_high": None}
_ALL_TOKENS = {"forks": {"selector": "all"}, "band": _NO_BAND}
_VOTE_ON_ALL = {"reward": "majority", **_ALL_TOKENS}
_FORKS = {"selector": "top-entropy", "fraction": 0.2, "scope": "response"}
_EAR = {"entropy": "reshape", "entropy_range": 0.2}
_FINE_TUNING = {**_ALL_TOKENS, "advantage": {"scale": "raw"}, "loss": {"form": "nll"}, "anchor": {"weight": 0.0}}

_EPISODE = {"stream": {"on": True, "answer": "both", "reset_every": -1}, "questions_per_step": 1}

METHODS: dict[str, Method] = {
    "spine": Method(
        summary="majority vote, updates on high-entropy forks only, entropy band on the forks",
        source="arXiv 2511.17938",
        # The band's weight is open in the paper; chosen on tiny/shift-dev (docs/experiments.md).
        sets={"reward": "majority", "forks": _FORKS, "band": {"weight": 0.01}},
    ),
    "spine-no-band": Method(
        summary="SPINE's forks without its band",
        source="arXiv 2511.17938, ablation",
        sets={"reward": "majority", "forks": _FORKS, "band": _NO_BAND},
    ),
    "spine-memory": Method(
        summary="SPINE with an anchor and a falling learning rate; labels by all votes so far, 64 before step 1",
        source="ours, docs/memory.md",
        # Chosen on tiny/shift-dev (docs/experiments.md).
        sets={
            "reward": "majority",
            "forks": _FORKS,
            "band": {"weight": 0.01},
            "anchor": {"weight": 0.05},
            "vote": {"memory": "sum", "memory_start": 64},
        },
    ),
    "spine-v2": Method(
        summary="SPINE's second version, as one reader has it: forks by Otsu's threshold, band from the median",
        source="arXiv 2511.17938v2, known from an independent re-implementation only",
        sets={
            "reward": "majority",
            "forks": {"selector": "otsu", "scope": "response"},
            "band": {"weight": 0.01, "edges": "median-mad"},
            "loss": {"normalizer": "response-tokens"},
        },
    ),
    "ttrl": Method(
        summary="majority vote, all tokens, no band",
        source="arXiv 2504.16084",
        sets=_VOTE_ON_ALL,
    ),
    "ttrl-paper": Method(
        summary="SPINE's baseline: TTRL with a KL anchor on all tokens",
        source="arXiv 2511.17938, section 4.1; weight and estimator: EasyR1's defaults",
        sets={**_VOTE_ON_ALL, "anchor": {"weight": 0.01, "estimator": "k3", "scope": "all"}},
    ),
    "ttrl-loo": Method(
        summary="TTRL whose responses do not vote for themselves",
        source="docs/method.md, leave-one-out",
        sets={**_VOTE_ON_ALL, "reward": "leave-one-out"},
    ),
    "frequency": Method(
        summary="reward: the share of votes for the response's own answer",
        source="SRT (arXiv 2505.21444)",
        sets={**_VOTE_ON_ALL, "reward": "frequency"},
    ),
    "empo": Method(
        summary="share of votes, on questions whose answers agree at all",
        source="arXiv 2504.05812",
        sets={**_VOTE_ON_ALL, "reward": "empo"},
    ),
    "ttrv": Method(
        summary="share of votes less how scattered the answers are, advantages over the whole step",
        source="arXiv 2510.06783",
        sets={**_VOTE_ON_ALL, "reward": "ttrv", "advantage": {"scope": "batch"}},
    ),
    "ettrl": Method(
        summary="TTRL whose certain responses count for more (EAR, reshaped)",
        source="arXiv 2508.11356",
        sets={**_VOTE_ON_ALL, "advantage": _EAR},
    ),
    "ettrl-clip": Method(
        summary="TTRL with bounded advantages (EAR, clipped)",
        source="arXiv 2508.11356",
        sets={**_VOTE_ON_ALL, "advantage": {"bound": 2.0}},
    ),
    "ettrl-etmr": Method(
        summary="TTRL on tree rollouts that branch at forks and share prefixes, with EAR",
        source="arXiv 2508.11356",
        sets={
            **_VOTE_ON_ALL,
            "advantage": _EAR,
            "tree": {"bases": 12, "forks": 2, "branches": 2},
            "rollout": {"num_votes": 60},
        },
    ),
    "evol": Method(
        summary="the majority decides the sign of the reward, novelty its size",
        source="arXiv 2509.15194",
        # Clip and bonus: the options that its code is published with (YujunZhou/EVOL-RL, README).
        sets={
            **_VOTE_ON_ALL,
            "reward": "evol",
            "loss": {"clip_high": 0.28},
            "entropy": {"weight": -0.003, "scope": "all"},
        },
    ),
    "80-20": Method(
        summary="TTRL on the fifth of the batch's tokens with the highest entropy",
        source="arXiv 2506.01939",
        sets={**_VOTE_ON_ALL, "forks": {"selector": "top-entropy", "fraction": 0.2, "scope": "batch"}},
    ),
    "entropy-min": Method(
        summary="reward: low entropy of the response's tokens; no vote",
        source="RENT (arXiv 2505.22660)",
        sets={**_VOTE_ON_ALL, "reward": "entropy"},
    ),
    "entropy-min-loss": Method(
        summary="loss: mean token entropy; no reward at all",
        source="EM-FT (arXiv 2505.15134)",
        sets={**_VOTE_ON_ALL, "reward": "none", "entropy": {"weight": 1.0, "scope": "all"}},
    ),
    "self-certainty": Method(
        summary="reward: how far the response's distributions are from uniform; no vote",
        source="INTUITOR (arXiv 2505.19590)",
        sets={**_VOTE_ON_ALL, "reward": "self-certainty"},
    ),
    "tempo": Method(
        summary="TTRL whose credit goes to the tokens where responses part; also called prefix-tree",
        source="TEMPO (arXiv 2509.18314; the TEMPO of arXiv 2604.19295 is another, which uses labels)",
        sets={**_VOTE_ON_ALL, "advantage": {"credit": "prefix-tree"}},
    ),
    "cat": Method(
        summary="reward: agreement with a reference that the frozen initial model writes from the group",
        source="Compute as Teacher (arXiv 2509.14234)",
        sets={**_VOTE_ON_ALL, "reward": "reference"},
    ),
    "scrl": Method(
        summary="strict majorities only, and less than nothing for answers that are rare and uncertain",
        source="SCRL (arXiv 2603.19880)",
        # A lead of more than 1/8, which shares of a group can be exactly.
        sets={**_VOTE_ON_ALL, "reward": "scrl", "vote": {"min_majority_frac": 0.375, "min_margin": 0.1251}},
    ),
    "dare": Method(
        summary="the share of votes over the answer's uncertainty, a bonus for rare but certain answers",
        source="DARE (arXiv 2601.21804)",
        sets={**_VOTE_ON_ALL, "reward": "dare"},
    ),
    "ttc-rl": Method(
        summary="TTRL on questions of medium agreement, with advantages for one right of 8",
        source="TTC-RL (arXiv 2510.04786), difficulty by agreement instead of success",
        sets={
            **_VOTE_ON_ALL,
            "advantage": {"scale": "pass-k", "k": 8},
            "data": {"min_agreement": 0.25, "max_agreement": 0.6},
        },
    ),
    "eata": Method(
        summary="TTRL whose questions count by how certain their vote is, with a KL anchor on all tokens",
        source="EATA (arXiv 2204.02610), a KL in place of its Fisher anchor",
        sets={
            **_VOTE_ON_ALL,
            "advantage": {"question_weight": "certain"},
            "anchor": {"weight": 0.01, "estimator": "k3", "scope": "all"},
        },
    ),
    "self-harmony": Method(
        summary="TTRL on each question and its rephrasing, the label an answer that both views give",
        source="Self-Harmony (arXiv 2511.01191)",
        sets={**_VOTE_ON_ALL, "vote": {"views": ["rephrase"], "pool": "harmonic", "train_views": True}},
    ),
    "permuted-ttrl": Method(
        summary="TTRL whose choice questions vote with permuted options too",
        source="RO-TTRL, permuted options; only the votes are worth something there",
        sets={**_VOTE_ON_ALL, "vote": {"views": ["permuted-options"], "pool": "sum", "train_views": True}},
    ),
    "compass": Method(
        summary="TTRL whose votes and rewards count by how far the likeliest tokens lead",
        source="COMPASS (arXiv 2510.17923), its answer reward",
        # Standardized, a factor of all rewards of a question would cancel.
        sets={**_VOTE_ON_ALL, "reward": "compass", "vote": {"weights": "margin"}, "advantage": {"scale": "none"}},
    ),
    "scope": Method(
        summary="votes weighted by the confidence of steps, a label for each of four subgroups of the responses",
        source="SCOPE (arXiv 2512.15146)",
        sets={**_VOTE_ON_ALL, "reward": "scope", "vote": {"weights": "stepwise"}},
    ),
    "co-rewarding-ii": Method(
        summary="TTRL whose labels are the votes of a slow copy of the model, slower and slower",
        source="Co-rewarding-II (arXiv 2508.00410)",
        sets={**_VOTE_ON_ALL, "vote": {"slow_decay": 0.99, "slow_decay_end": 0.9999}},
    ),
    "petal": Method(
        summary="labels by a slow copy; the weights that matter least return to the initial ones",
        source="PETAL (arXiv 2212.09713), for votes",
        sets={**_VOTE_ON_ALL, "vote": {"slow_decay": 0.999}, "optim": {"restore": 0.03}},
    ),
    "exploration": Method(
        summary="TTRL with a bonus for hidden states that few responses of the group have",
        source="representation-based exploration (arXiv 2510.11686)",
        sets={**_VOTE_ON_ALL, "reward": "exploration"},
    ),
    "entropic": Method(
        summary="share of votes with advantages that lean to the best response; meant for a reward of one's own",
        source="TTT-Discover (arXiv 2601.16175), its advantage",
        sets={**_VOTE_ON_ALL, "reward": "frequency", "advantage": {"scale": "entropic"}},
    ),
    "lmsi": Method(
        summary="fine-tuning on the majority's responses, all sampled once from the initial model",
        source="LMSI (arXiv 2210.11610)",
        sets={"reward": "majority", **_FINE_TUNING, "rollout": {"reuse": 0}},
    ),
    "sealong": Method(
        summary="fine-tuning on the response nearest to all others (minimum Bayes risk), sampled once",
        source="SEALONG (arXiv 2411.08147), on the model's own hidden states",
        sets={"reward": "similarity", **_FINE_TUNING, "rollout": {"reuse": 0}},
    ),
    "roirl": Method(
        summary="rounds of fine-tuning on the majority's responses, sampled again after every other pass",
        source="RoiRL (arXiv 2510.02892) with g(r) = r",
        sets={"reward": "majority", **_FINE_TUNING, "rollout": {"reuse": 2}},
    ),
    "scpo": Method(
        summary="preference of a response with the commonest answer over one with the rarest, weighted by their votes",
        source="ScPO (arXiv 2411.04109)",
        sets={
            **_ALL_TOKENS,
            "reward": "pairs",
            "vote": {"min_majority_frac": 0.5},
            "advantage": {"scale": "raw"},
            "loss": {"form": "dpo", "beta": 0.5},
        },
    ),
    "eata-fisher": Method(
        summary="EATA with its own anchor, on weights by their Fisher information",
        source="EATA (arXiv 2204.02610)",
        sets={**_VOTE_ON_ALL, "advantage": {"question_weight": "certain"}, "anchor": {"fisher": 2000.0}},
    ),
    "upft": Method(
        summary="fine-tuning on the first tokens of one response per question, sampled once; no vote",
        source="UPFT (arXiv 2503.02875), MITT (arXiv 2505.15508)",
        sets={
            "reward": "constant",
            **_FINE_TUNING,
            "forks": {"selector": "first", "num_tokens": 8},
            "group_size": 1,
            "rollout": {"reuse": 0},
        },
    ),
    "self-calibration": Method(
        summary="P(Yes), asked whether a response is right, learns the share of votes for its answer",
        source="Self-Calibration (arXiv 2503.00031)",
        sets={
            "reward": "frequency",
            **_ALL_TOKENS,
            "advantage": {"scale": "raw"},
            "loss": {"form": "calibration", "beta": 0.25},
            "anchor": {"weight": 0.0},
        },
    ),
    "ttadapt": Method(
        summary="for each question by itself: fine-tuning on one response decoded from all its views together",
        source="TTAdapt (arXiv 2510.03574)",
        sets={
            "reward": "constant",
            **_FINE_TUNING,
            "group_size": 1,
            "vote": {"views": ["augmented-images", "blank", "reread"], "pool": "average", "train_views": True},
            **_EPISODE,
            "stream": {**_EPISODE["stream"], "steps_each": 6},
        },
    ),
    "tt-si": Method(
        summary="for each unsure question by itself: adapters learn from similar questions that the model writes",
        source="TT-SI (arXiv 2510.07841), unsure by its votes",
        sets={
            "reward": "majority",
            **_FINE_TUNING,
            "lora": {"rank": 8},
            "vote": {"views": ["similar"] * 4, "pool": "own", "train_views": True, "unsure_margin": 0.5},
            **_EPISODE,
        },
    ),
    "grpo-gold": Method(
        summary="USES GOLD ANSWERS: what labels would give, an upper bound to compare with",
        source="GRPO (arXiv 2402.03300)",
        sets={**_VOTE_ON_ALL, "reward": "gold"},
    ),
    "bitta": Method(
        summary="USES GOLD ANSWERS: TTRL with yes or no to the labels of the 3 least certain questions of a step",
        source="BiTTA (arXiv 2505.18514)",
        sets={**_VOTE_ON_ALL, "feedback": {"questions": 3}},
    ),
    "none": Method(
        summary="no adaptation: only evaluates",
        source="ours",
        sets={"steps": 0},
    ),
}

ALIASES = {"prefix-tree": "tempo"}
"""Other names of methods."""

LOSSES: dict[str, Method] = {
    "grpo": Method(
        summary="ratios clipped per token, mean over responses of means over tokens",
        source="arXiv 2402.03300",
        sets={"loss": {"form": "token", "normalizer": "response", "clip_low": 0.2, "clip_high": 0.2}},
    ),
    "dr-grpo": Method(
        summary="GRPO without division by the deviation or by lengths",
        source="arXiv 2503.20783",
        sets={"loss": {"form": "token", "normalizer": "budget"}, "advantage": {"scale": "none"}},
    ),
    "dapo": Method(
        summary="higher upper edge, mean over all tokens",
        source="arXiv 2503.14476",
        sets={"loss": {"form": "token", "normalizer": "token", "clip_low": 0.2, "clip_high": 0.28}},
    ),
    "gspo": Method(
        summary="ratios of whole responses, clipped narrowly",
        source="arXiv 2507.18071",
        sets={"loss": {"form": "sequence", "normalizer": "response", "clip_low": 3e-4, "clip_high": 4e-4}},
    ),
    "cispo": Method(
        summary="the ratio is clipped, not the update: every token keeps its gradient",
        source="arXiv 2506.13585",
        sets={"loss": {"form": "cispo", "normalizer": "token", "clip_low": 1.0, "clip_high": 0.2}},
    ),
}
