"""The table of methods, and that of losses.  A row is what it changes of the configuration's defaults, nothing more.

All methods run the same loop (`spinerl.step`): the rollout plan, the reward, the advantage, the token selector, the
loss and its further terms are configuration keys, and a row here sets them.  Keys a user gives win over the row.
Formulas and sources: docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LOSSES", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One row: what it is, where it comes from, what it sets."""

    summary: str
    source: str
    sets: Mapping[str, Any]


_ALL_TOKENS = {"forks": {"selector": "all"}, "band": {"weight": 0.0}}
_VOTE_ON_ALL = {"reward": "majority", **_ALL_TOKENS}
_FORKS = {"selector": "top-entropy", "fraction": 0.2, "scope": "response"}

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
        sets={"reward": "majority", "forks": _FORKS, "band": {"weight": 0.0}},
    ),
    "ttrl": Method(
        summary="majority vote, all tokens, no band",
        source="arXiv 2504.16084",
        sets=_VOTE_ON_ALL,
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
        sets={**_VOTE_ON_ALL, "advantage": {"entropy": "reshape"}},
    ),
    "ettrl-clip": Method(
        summary="TTRL with bounded advantages (EAR, clipped)",
        source="arXiv 2508.11356",
        sets={**_VOTE_ON_ALL, "advantage": {"bound": 1.0}},
    ),
    "ettrl-etmr": Method(
        summary="TTRL on tree rollouts that branch at forks and share prefixes, with EAR",
        source="arXiv 2508.11356",
        sets={**_VOTE_ON_ALL, "advantage": {"entropy": "reshape"}, "tree": {"bases": -1, "forks": 3, "branches": 1}},
    ),
    "evol": Method(
        summary="the majority decides the sign of the reward, novelty its size",
        source="arXiv 2509.15194",
        sets={**_VOTE_ON_ALL, "reward": "evol"},
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
        summary="TTRL whose credit goes to the tokens where responses part",
        source="arXiv 2509.18314",
        sets={**_VOTE_ON_ALL, "advantage": {"credit": "prefix-tree"}},
    ),
    "cat": Method(
        summary="reward: agreement with a reference that the frozen initial model writes from the group",
        source="Compute as Teacher (arXiv 2509.14234)",
        sets={**_VOTE_ON_ALL, "reward": "reference"},
    ),
    "grpo-gold": Method(
        summary="USES GOLD ANSWERS: what labels would give, an upper bound to compare with",
        source="GRPO (arXiv 2402.03300)",
        sets={**_VOTE_ON_ALL, "reward": "gold"},
    ),
    "none": Method(
        summary="no adaptation: only evaluates",
        source="ours",
        sets={"steps": 0},
    ),
}

LOSSES: dict[str, Method] = {
    "grpo": Method(
        summary="ratios clipped per token, mean over responses of means over tokens",
        source="arXiv 2402.03300",
        sets={"loss": {"form": "token", "normaliser": "response", "clip_low": 0.2, "clip_high": 0.2}},
    ),
    "dr-grpo": Method(
        summary="GRPO without division by the deviation or by lengths",
        source="arXiv 2503.20783",
        sets={"loss": {"form": "token", "normaliser": "budget"}, "advantage": {"scale": "none"}},
    ),
    "dapo": Method(
        summary="higher upper edge, mean over all tokens",
        source="arXiv 2503.14476",
        sets={"loss": {"form": "token", "normaliser": "token", "clip_low": 0.2, "clip_high": 0.28}},
    ),
    "gspo": Method(
        summary="ratios of whole responses, clipped narrowly",
        source="arXiv 2507.18071",
        sets={"loss": {"form": "sequence", "normaliser": "response", "clip_low": 3e-4, "clip_high": 4e-4}},
    ),
    "cispo": Method(
        summary="the ratio is clipped, not the update: every token keeps its gradient",
        source="arXiv 2506.13585",
        sets={"loss": {"form": "cispo", "normaliser": "token", "clip_low": 1.0, "clip_high": 0.2}},
    ),
}
