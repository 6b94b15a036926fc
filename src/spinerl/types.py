"""The records that travel through a step.  All frozen; none has a field for a gold answer.

Letters: P questions, G responses per question, B = P*G rows (question-major), T response tokens, V vocabulary.
Per-token tensors are response-aligned (B, T): column t belongs to the t-th generated token, the emitted end
token counts, prompt positions never appear, padding holds 0.0 (tokens: the pad id).  Log-probabilities and
entropies are float32 nats of the distribution the token was drawn from before any truncation (top-p and the
like), that is softmax(logits / temperature).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the records hold tensors, but reading them must not cost an import of torch
    import torch

__all__ = ["Batch", "GoldTable", "Question", "Rollout", "StepRecord", "Targets", "Vote"]


@dataclass(frozen=True)
class Question:
    """One unlabeled question.

    `Question(id="17", text="What is 2 + 3?")`; for multiple choice `choices` holds the options' texts in the
    order of their letters (they are already rendered into `text`); `answer_kind` is how answers are read.
    """

    id: str
    text: str
    choices: tuple[str, ...] = ()
    subject: str | None = None
    answer_kind: str = "auto"
    images: tuple[Any, ...] = ()


GoldTable = Mapping[str, str]
"""Gold answers by question id, read apart from the questions and consumed only by `spinerl.evaluate`."""


@dataclass(frozen=True)
class Vote:
    """The outcome of one question's vote over N responses.

    Four responses answering 12, 7, 12 and nothing: `answers=("12", "7", "12", None)`, `classes=(0, 1, 0, None)`,
    `counts=(2.0, 1.0)`, `winner=0`, `pseudo_label="12"`, `majority_frac=0.5` (2 of 4 responses).
    `winner` and `pseudo_label` are None when nobody voted, a tie abstained, or the majority was too small.
    `counts` are vote weights by class; classes are numbered by first appearance; None abstains.
    `majority_frac` is the winning (or, without a winner, the largest) class's weight over that of all N responses.
    """

    answers: tuple[str | None, ...]
    classes: tuple[int | None, ...]
    counts: tuple[float, ...]
    winner: int | None
    pseudo_label: str | None
    majority_frac: float


@dataclass(frozen=True)
class Rollout:
    """N sampled responses to each of P questions, question-major: row i answers question i // N.

    `prompts` has P token-id tuples (one per question, shared by its responses).  `finished_mask` (P*N,) is False
    for a response cut off by the token limit.  `texts` are decoded without special tokens.  `certainties` are there
    when asked for.  `num_drawn` is the number of tokens drawn, where responses share some of theirs (None: all of
    them are their own).
    """

    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    num_responses: int
    tokens: torch.Tensor  # (P*N, T) int64
    mask: torch.Tensor  # (P*N, T) bool, True on generated tokens
    logprobs: torch.Tensor  # (P*N, T) float32, of the sampled tokens
    entropies: torch.Tensor  # (P*N, T) float32, nats
    finished_mask: torch.Tensor  # (P*N,) bool
    texts: tuple[str, ...]
    certainties: torch.Tensor | None = None  # (P*N, T) float32, KL(uniform || distribution) in nats
    num_drawn: int | None = None


@dataclass(frozen=True)
class Batch:
    """The B rows an update learns from: token ids only, no targets.  Row i belongs to `prompts[i]`."""

    prompts: tuple[tuple[int, ...], ...]  # B prompts (rows of one question share the same tuple)
    tokens: torch.Tensor  # (B, T) int64
    mask: torch.Tensor  # (B, T) bool
    temperature: float


@dataclass(frozen=True)
class Targets:
    """All that the update needs and that carries no gradient, computed once per step for the whole batch.

    Each loss term owns its weights; for one optimiser update they sum to 1 over the rows of that update, or are all
    0 (loss.normaliser=budget divides by a fixed budget instead).  `band_low/high` are per response, in nats.
    `anchor_logprobs` is None unless the anchor term needs it.
    """

    advantages: torch.Tensor  # (B, T) float64
    old_logprobs: torch.Tensor  # (B, T) float32
    fork_mask: torch.Tensor  # (B, T) bool
    policy_mask: torch.Tensor  # (B, T) bool
    anchor_mask: torch.Tensor | None  # (B, T) bool
    anchor_logprobs: torch.Tensor | None  # (B, T) float32
    band_mask: torch.Tensor | None  # (B, T) bool
    band_low: torch.Tensor | None  # (B,) float64
    band_high: torch.Tensor | None  # (B,) float64
    entropy_mask: torch.Tensor | None = None  # (B, T) bool


@dataclass(frozen=True)
class StepRecord:
    """What one training step leaves behind for logs, guards and reports; no gold in it.

    `metrics` is flat: {"label/majority_frac": 0.61, "reward/mean": 0.58, ...} (docs/metrics.md defines each).
    """

    step: int
    metrics: Mapping[str, float]
    rollout: Rollout
    votes: tuple[Vote, ...]
    rewards: tuple[tuple[float, ...], ...]  # per question, per trained response
    targets: Targets
    state: Mapping[str, Any] = field(default_factory=dict)
