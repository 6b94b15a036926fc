"""Floating-point operations that the matmuls of a decoder need, counted by hand.

A matmul of (m, k) by (k, n) is 2*m*k*n.  Counted is what the job needs, not what a program happens to do: each
prompt once, the head where a distribution is used, attention to the positions that exist.  Norms, RoPE,
softmax and sampling are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

__all__ = ["Shape", "forward_flops", "matmul_peak", "rollout_flops", "update_flops"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder with gated feed-forward blocks and grouped-query attention."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a Hugging Face configuration."""
        heads = config.num_attention_heads
        return cls(
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate_size=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def weights_per_token(self) -> int:
        """Weights of the layers' matmuls: each costs a multiplication and an addition per token."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)


def forward_flops(shape: Shape, tokens: int, attended: int, logits: int) -> int:
    """Of one forward pass.

    Args:
        tokens: that go through the layers.
        attended: pairs (token, position it attends to), summed over the tokens.
        logits: positions at which the head is applied.

    >>> tiny = Shape(4, 1, 1, 1, 4, 8, 10)
    >>> forward_flops(tiny, tokens=3, attended=6, logits=1)  # 2*3*(64+96) + 4*6*4 + 2*40
    1136
    """
    attention = 4 * attended * shape.heads * shape.head_dim * shape.layers  # scores, then the weighted sum
    return 2 * tokens * shape.weights_per_token + attention + 2 * logits * shape.hidden_size * shape.vocabulary


def rollout_flops(shape: Shape, questions: int, group_size: int, prompt_tokens: int, new_tokens: int) -> int:
    """Of sampling `new_tokens` tokens in each of questions * group_size responses, each prompt computed once."""
    rows = questions * group_size
    prefill = forward_flops(shape, questions * prompt_tokens, questions * _triangle(prompt_tokens), questions)
    # The last sampled token is not run through the model again.
    decoded = new_tokens - 1
    attended = rows * (decoded * prompt_tokens + _triangle(decoded))
    return prefill + forward_flops(shape, rows * decoded, attended, rows * decoded)


def update_flops(
    shape: Shape, questions: int, group_size: int, prompt_tokens: int, new_tokens: int, wanted: int
) -> int:
    """Of one forward and backward over finished responses with logits at `wanted` positions, each prompt once.

    The backward pass needs two matmuls for each of the forward's.
    """
    rows, read = questions * group_size, new_tokens - 1
    tokens = questions * prompt_tokens + rows * read
    attended = questions * _triangle(prompt_tokens) + rows * (read * prompt_tokens + _triangle(read))
    return 3 * forward_flops(shape, tokens, attended, wanted)


def matmul_peak(device: str = "cpu", dtype: Any = None, seconds: float = 0.6, *, onednn: bool = False) -> float:
    """FLOP per second of the fastest of a few square matmuls, the best of as many tries as fit in the time.

    `onednn`: by that library, on a CPU and in float32, instead of `torch.mm`.
    """
    import torch

    best = 0.0
    matmul: Any = torch.mm
    if onednn:
        matmul = partial(torch.ops.mkldnn._linear_pointwise, B=None, attr="none", scalars=[], algorithm="")
    for size in (512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            matmul(a, b)
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
