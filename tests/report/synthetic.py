"""Run folders with made-up yet realistic curves, for the tests and for looking at the page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from spinerl.config import dump_yaml, load_config

_WORDS = [
    "so",
    "we",
    "have",
    "the",
    "sum",
    "of",
    "two",
    "numbers",
    "then",
    "wait",
    "maybe",
    "that",
    "gives",
    "and",
    "half",
    "is",
    "left",
    "let",
    "me",
    "check",
    "again",
    "12",
    "+",
    "7",
    "=",
    "19",
    ".",
    "\n",
    "thus",
    "if",
]


def write_run(
    folder: Path,
    *,
    method: str = "spine",
    seed: int = 0,
    steps: int = 60,
    done: int | None = None,
    gold: bool = True,
    every: int = 20,
    gain: float = 0.22,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Write a run folder that looks like a real one; `done` steps of the planned `steps` (all by default)."""
    rng = random.Random(f"{method}-{seed}")
    done = steps if done is None else done
    words = [f"method={method}", f"seed={seed}", f"steps={steps}", "group_size=16", "optim.lr=3e-5"]
    config = load_config(overrides=[*words, *(["band.weight=0.1"] if method == "spine" else []), *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(_manifest(config.method, seed, gold)), encoding="utf-8")
    _write(folder / "metrics.jsonl", [_metrics(step, steps, method, gold, rng) for step in range(1, done + 1)])
    marks = [step for step in range(0, steps + 1, every) if step <= done]
    _write(folder / "eval.jsonl", [_evaluation(step, steps, gold, gain, rng) for step in marks])
    _write(
        folder / "samples.jsonl",
        [
            _sample(step, question, step / max(steps, 1), rng)
            for step in range(5, done + 1, 5)
            for question in ((step * 7) % 40, 3 if step in (5, done) else 41 + step)
        ],
    )
    _write(
        folder / "tokens.jsonl",
        [
            _token_counts(step, step / max(steps, 1), method, rng)
            for step in range(1, done + 1)
            if step % 5 == 1 or step == done
        ],
    )
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _manifest(method: str, seed: int, gold: bool) -> dict[str, Any]:
    return {
        "spinerl": "0.1.0",
        "python": "3.11.7",
        "torch": "2.8.0",
        "transformers": "5.0.1",
        "platform": "Linux-6.1-x86_64",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "seed": seed,
        "model": {"name": "tiny-reasoner", "fingerprint": "sha256:9f2c4b7d11aa", "num_parameters": 1_204_224},
        "data": {
            "name": "tiny/shift-a",
            "fingerprint": "sha256:01e7bb42c9d0",
            "num_questions": 256,
            "skipped": {"prompt over 4096 tokens": 2, "empty question": 0},
            "num_gold": 256 if gold else 0,
        },
        "started": "2026-03-04T10:11:12+00:00",
        "command": f"spinerl train method={method} seed={seed}",
    }


def _metrics(step: int, steps: int, method: str, gold: bool, rng: random.Random) -> dict[str, Any]:
    t = step / max(steps, 1)
    rise = 1 - math.exp(-2.6 * t)
    slump = 0.45 * t if method == "ttrl" else 0.12 * t
    noise = rng.gauss
    majority = min(1.0, 0.46 + (0.5 if method == "ttrl" else 0.34) * rise + noise(0, 0.03))
    fork, spread = 1.15 - 0.9 * slump + noise(0, 0.03), 0.02
    row = {
        "step": step,
        "rollout/response_length": 148 * (1 - slump) + noise(0, 5),
        "rollout/truncated_frac": max(0.0, 0.09 - 0.08 * rise + noise(0, 0.008)),
        "rollout/entropy": 0.46 - 0.5 * slump + noise(0, 0.015),
        "rollout/num_tokens": 18_900,
        "label/majority_frac": majority,
        "label/abstained_frac": max(0.0, 0.13 - 0.1 * rise + noise(0, 0.012)),
        "label/labelled_frac": 0.98,
        "label/num_classes": 4.1 - 2 * rise,
        "label/answer_entropy": 1.1 - 0.6 * rise,
        "label/unanimous_frac": max(0.0, 0.08 + 0.3 * rise + noise(0, 0.04)),
        "reward/mean": majority - 0.02,
        "reward/zero_variance_frac": max(0.0, 0.1 + 0.32 * rise + noise(0, 0.04)),
        "fork/fraction": 0.2,
        "fork/entropy": fork,
        "fork/follower_entropy": 0.14 - 0.1 * slump + noise(0, spread / 3),
        "band/low": fork * 0.62,
        "band/high": fork * 0.97,
        "band/inside_frac": 0.41,
        "loss/total": 0.021 - 0.016 * rise + noise(0, 0.002),
        "loss/policy": -0.002 + noise(0, 0.0015),
        "loss/anchor": 0.0,
        "loss/band": 0.023 - 0.016 * rise + noise(0, 0.001),
        "loss/clipped_frac": 0.01,
        "optim/lr": 3e-5,
        "optim/grad_norm": 0.7 + noise(0, 0.1),
        "time/step_s": 4.2 + noise(0, 0.2) - slump,
        "time/rollout_s": 2.9 + noise(0, 0.15) - slump,
        "time/update_s": 1.2 + noise(0, 0.05),
        "time/tokens_per_s": 6400,
    }
    if gold:
        row |= {
            "gold/label_accuracy": 0.55 + 0.2 * rise + noise(0, 0.05),
            "gold/reward_accuracy": 0.71 + 0.12 * rise + noise(0, 0.03),
            "gold/response_accuracy": 0.39 + 0.22 * rise + noise(0, 0.03),
        }
    if method == "ttrl":
        row.pop("fork/follower_entropy")
        row.pop("band/low")
        row.pop("band/high")
    return row


def _evaluation(step: int, steps: int, gold: bool, gain: float, rng: random.Random) -> dict[str, Any]:
    t = step / max(steps, 1)
    row: dict[str, Any] = {
        "step": step,
        "num_questions": 256,
        "num_gold": 256 if gold else 0,
        "eval/response_length": 147.2 - 20 * t,
        "eval/entropy": 0.462 - 0.07 * t,
        "eval/truncated_frac": 0.086 - 0.07 * t,
        "eval/abstained_frac": 0.121 - 0.09 * t,
        "eval/majority_frac": 0.47 + 0.31 * t,
    }
    if gold:
        accuracy = (
            0.41
            + rng.gauss(0, 0.004)
            + gain * (1 - math.exp(-3 * t)) / (1 - math.exp(-3))
            + (rng.gauss(0, 0.01) if 0 < t < 1 else 0)
        )
        for key, value, half in (
            ("pass@1", accuracy, 0.06),
            ("avg@16", accuracy - 0.03, 0.045),
            ("maj@16", accuracy + 0.11, 0.06),
        ):
            row |= {f"eval/{key}": value, f"eval/{key}_low": value - half, f"eval/{key}_high": value + half}
    return row


def _sample(step: int, question: int, t: float, rng: random.Random) -> dict[str, Any]:
    majority = round(7 + 7 * t)
    votes = {"19": majority, "17": 14 - majority, "5": 1}
    return {
        "step": step,
        "question_id": f"q{question}",
        "prompt": "…",
        "question": f"Anna has {question + 4} apples and buys 7 more. She gives half of them away. How many are left?",
        "pseudo_label": "19",
        "majority_frac": majority / 16,
        "votes": {k: v for k, v in votes.items() if v},
        "num_abstained": 1,
        "responses": [_response(index, t, rng) for index in range(4)],
    }


def _response(index: int, t: float, rng: random.Random) -> dict[str, Any]:
    cut = index == 3 and t < 0.5
    right = not cut and rng.random() < 0.5 + 0.4 * t
    tokens = [
        word if word == "\n" else f" {word}" for word in rng.choices(_WORDS, k=rng.randint(60, 130) - round(30 * t))
    ]
    entropies = [abs(rng.gauss(0, 0.12)) if rng.random() < 0.75 else rng.uniform(0.3, 2.4 - t) for _ in tokens]
    floor = sorted(entropies)[-max(1, len(tokens) // 5)]
    return {
        "text": "".join(tokens),
        "answer": None if cut else "19" if right else "17",
        "reward": float(right),
        "advantage": 0.74 if right else -1.35,
        "truncated": cut,
        "tokens": tokens,
        "entropies": entropies,
        "forks": [entropy >= floor for entropy in entropies],
    }


def _token_counts(step: int, t: float, method: str, rng: random.Random) -> dict[str, Any]:
    edges = [i / 10 for i in range(41)]
    entropies = [
        rng.expovariate(12) if rng.random() < 0.78 else rng.gammavariate(3, 0.5 - 0.2 * t) for _ in range(4000)
    ]
    forks = entropies if method == "ttrl" else sorted(entropies)[-800:]
    bins = [[sum(min(40, int(10 * h)) == i for h in values) for i in range(41)] for values in (entropies, forks)]
    followers = [] if method == "ttrl" else _frequent(sum(bins[0]) - sum(bins[1]), "followers", rng)
    words = _frequent(sum(bins[1]), "forks", rng)
    return {"step": step, "edges": edges, "tokens": bins[0], "forks": bins[1], "words": words, "followers": followers}


def _frequent(left: int, what: str, rng: random.Random) -> list[dict[str, Any]]:
    """The most frequent tokens of a kind, of which there are `left`."""
    words = []
    for place, word in enumerate(dict.fromkeys(rng.sample(_WORDS, len(_WORDS)))):
        count = max(1, left // 6)
        left -= count
        token = word if word == "\n" else f" {word}"
        words.append({"token": token, "id": 100 + place, "seen": 3 * count, what: count, "entropy": rng.random() * 2})
    return words
