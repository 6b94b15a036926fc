"""The smallest workloads that still do everything."""

from __future__ import annotations

MODEL = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocabulary": 64,
    "device": "cpu",
}
WORKLOAD = MODEL | {
    "questions": 2,
    "group_size": 2,
    "prompt_tokens": 12,
    "new_tokens": 8,
    "repeats": 1,
    "threads": 1,
    "update_vocabulary": 4000,
    "update_hidden_size": 32,
    "update_prompt_tokens": 8,
    "update_new_tokens": 16,
    "update_group_size": 4,
    "sharing_prompt_tokens": 64,
    "sharing_new_tokens": 8,
    "images_questions": 1,
    "images_group_sizes": "2,3",
    "images_side": 28,
    "images_hidden_size": 64,
    "images_layers": 1,
    "images_new_tokens": 4,
}


def overrides(sizes: dict[str, object], **others: object) -> list[str]:
    """As on the command line."""
    return [f"{key}={value}" for key, value in (sizes | others).items()]
