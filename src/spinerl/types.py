"""The records that travel through a step.  All frozen; none has a field for a gold answer.

Letters: P questions, G responses per question, B = P*G rows (question-major), T response tokens, V vocabulary.
Per-token tensors are response-aligned (B, T): column t belongs to the t-th generated token, the emitted end
token counts, prompt positions never appear, padding holds 0.0 (tokens: the pad id).  Log-probabilities and
entropies are float32 nats of the distribution the token was sampled from before any truncation (top-p and the
like), that is softmax(logits / temperature).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:  # the records hold tensors, but reading them must not cost an import of torch
    import torch

    from spinerl.answers.extract import Reading

__all__ = [
    "Activations",
    "Batch",
    "GoldTable",
    "ImagePrompt",
    "ImageRef",
    "OnTokens",
    "Question",
    "Remembered",
    "Rollout",
    "ShownImages",
    "StepRecord",
    "Targets",
    "Vote",
]

OnTokens = Callable[[int, int], object]
"""Called while responses are sampled: tokens sampled and responses finished since the last call."""


@dataclass(frozen=True)
class ImageRef:
    """An image not opened yet: a file by its absolute path, or the file's bytes (then `path` is but a name).

    `spinerl.images` opens it.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Question:
    """One unlabeled question.

    `Question(id="17", text="What is 2 + 3?")`; for multiple choice `choices` holds the options' texts in the
    order of their letters (they are already rendered into `text`); `answer_kind` is how answers are read.
    `images` are in the order in which they are shown: at each `<image>` of the text, or all before a text that has
    none (`spinerl.data.parts_of`).  `turns` are the messages before it in a chat: (system, user or assistant, text).
    `in_thought`: its prompt ends in the opening of a thought, so that a response that closes none has no answer.
    `view`: the name of the way in which another question is asked here ("": this is the question itself); `letters`:
    the letter that each option has there, where the options are permuted ("": they are not).
    """

    id: str
    text: str
    choices: tuple[str, ...] = ()
    subject: str | None = None
    answer_kind: str = "auto"
    images: tuple[ImageRef, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    in_thought: bool = False
    view: str = ""
    letters: str = ""


GoldTable = Mapping[str, str]
"""Gold answers by question id, read apart from the questions and consumed only by `spinerl.evaluation`."""


@dataclass(frozen=True, eq=False)
class ShownImages:
    """The images of one prompt, as the model that reads it takes them; made by `spinerl.models.vision`.

    `text` is the prompt before its tokens; `key` is equal for equal images.  `positions` (3, T) are the prompt's
    positions where they are not 0, 1, 2, ...; what follows the prompt's T tokens stands at T + `offset` and on.
    `token_inputs` are further model inputs (T,), by name.
    """

    text: str
    images: tuple[ImageRef, ...]
    key: str
    offset: int = 0
    positions: torch.Tensor | None = None
    token_inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)


class ImagePrompt(tuple[int, ...]):
    """The token ids of a prompt that shows images; a prompt without any is a plain tuple.

    It equals another only if that shows the same images.  A part from its start keeps them, and so does the sum with
    more tokens; any other part is a plain tuple.

    >>> prompt = ImagePrompt((5, 9, 9, 7), ShownImages("<image>?", (), "k"))
    >>> prompt[:-1].shown is prompt.shown, type(prompt[-1:]) is tuple, (prompt + (8,)).shown is prompt.shown
    (True, True, True)
    """

    shown: ShownImages

    def __new__(cls, ids: Iterable[int], shown: ShownImages) -> Self:
        prompt = super().__new__(cls, ids)
        prompt.shown = shown
        return prompt

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return ImagePrompt(part, self.shown) if isinstance(index, slice) and not index.start else part

    def __add__(self, other: Any) -> Any:
        return ImagePrompt(super().__add__(tuple(other)), self.shown)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImagePrompt) and self.shown.key == other.shown.key and super().__eq__(other)

    def __ne__(self, other: object) -> bool:  # tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple.__hash__(self), self.shown.key))


@dataclass(frozen=True)
class Remembered:
    """What a vote adds where it counts more than its own responses: earlier ones (vote.memory), those to other views
    of the question (vote.views).

    `weights`: how much of `Vote.counts` is each of the N responses' own; 0 for one that the memory did not take.
    `abstained` and `total`: the weight of all responses remembered that gave no answer, and of all that are remembered.
    `held`: the class of the label the question had before this vote.  `labels`: each class's answer.
    """

    weights: tuple[float, ...]
    abstained: float
    total: float
    held: int | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Vote:
    """The outcome of one question's vote over N responses.

    Four responses answering 12, 7, 12 and nothing: `answers=("12", "7", "12", None)`, `classes=(0, 1, 0, None)`,
    `counts=(2.0, 1.0)`, `winner=0`, `pseudo_label="12"`, `majority_frac=0.5` (2 of 4 responses).
    `winner` and `pseudo_label` are None when no response voted, a tie abstained, or the majority was too small.
    `counts` are vote weights by class; classes are numbered by first appearance; None abstains.
    `majority_frac` is the winning (or, without a winner, the largest) class's weight over that of all N responses.
    With a memory, `counts`, `winner`, `pseudo_label` and `majority_frac` are of all responses remembered: there may be
    more classes than the N responses have.  `readings`: how each response was read (where asked for).
    """

    answers: tuple[str | None, ...]
    classes: tuple[int | None, ...]
    counts: tuple[float, ...]
    winner: int | None
    pseudo_label: str | None
    majority_frac: float
    memory: Remembered | None = None
    readings: tuple[Reading, ...] = ()

    @property
    def class_answers(self) -> tuple[str, ...]:
        """An answer of each class: the first that a response gave, or with a memory the one remembered most.

        >>> Vote(("12", "7", "12.0", None), (0, 1, 0, None), (2.0, 1.0), 0, "12", 0.5).class_answers
        ('12', '7')
        """
        if self.memory is not None:
            return self.memory.labels
        return tuple(str(self.answers[self.classes.index(number)]) for number in range(len(self.counts)))


class Activations(Protocol):
    """What a backend kept of a rollout's rows while it sampled them; only that backend looks inside."""

    def of_rows(self, rows: torch.Tensor) -> Activations:
        """Those of some rows, an index into all."""
        ...


@dataclass(frozen=True)
class Rollout:
    """N sampled responses to each of P questions, question-major: row i answers question i // N.

    `prompts` has P token-id tuples (one per question, shared by its responses).  `finished_mask` (P*N,) is False
    for a response cut off by the token limit.  `texts` are decoded without special tokens.  `certainties` are there
    when asked for.  `num_drawn` is the number of tokens sampled, where responses share some of theirs (None: all of
    them are their own).  `sampler_logprobs` are there where another engine sampled: the tokens' log-probabilities by
    its account, while `logprobs` and `entropies` are the learning model's.  `log_mass` is there where sampling was
    truncated: the log-probability log S of the tokens that could be sampled; the sampled distribution is softmax / S.
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
    sampler_logprobs: torch.Tensor | None = None  # (P*N, T) float32
    log_mass: torch.Tensor | None = None  # (P*N, T) float32, nats
    activations: Activations | None = field(default=None, repr=False)  # of its rows
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)  # (P*N, T) each, by `maths.TOKEN_FIGURES`

    def of_questions(self, indices: Sequence[int]) -> Rollout:
        """The rollout of only these questions, in this order, cut to its longest response; without activations."""
        n = self.num_responses
        rows = [index * n + j for index in indices for j in range(n)]
        width = int(self.mask[rows].sum(dim=1).max())
        names = ("tokens", "mask", "logprobs", "entropies", "certainties", "sampler_logprobs", "log_mass")
        tensors = {name: None if (one := getattr(self, name)) is None else one[rows, :width] for name in names}
        return replace(
            self,
            questions=tuple(self.questions[index] for index in indices),
            prompts=tuple(self.prompts[index] for index in indices),
            finished_mask=self.finished_mask[rows],
            texts=tuple(self.texts[row] for row in rows),
            activations=None,
            figures={name: one[rows, :width] for name, one in self.figures.items()},
            **tensors,
        )

    @property
    def total_drawn(self) -> int:
        """The tokens that were sampled for it: `num_drawn`, or all of its own."""
        return int(self.mask.sum()) if self.num_drawn is None else self.num_drawn

    @property
    def sampled_logprobs(self) -> torch.Tensor:
        """(P*N, T) log-probabilities of the distribution that was sampled, truncated or not, by the learning model."""
        return self.logprobs if self.log_mass is None else self.logprobs - self.log_mass


@dataclass(frozen=True)
class Batch:
    """The B rows an update learns from: token ids only, no targets.  Row i belongs to `prompts[i]`."""

    prompts: tuple[tuple[int, ...], ...]  # B prompts (rows of one question share the same tuple)
    tokens: torch.Tensor  # (B, T) int64
    mask: torch.Tensor  # (B, T) bool
    temperature: float
    activations: Activations | None = field(default=None, repr=False)  # that sampling kept of these rows


@dataclass(frozen=True)
class Targets:
    """All that the update needs and that carries no gradient, computed once per step for the whole batch.

    Each loss term owns its weights; for one optimizer update they sum to 1 over the rows of that update, or are all
    0 (loss.normalizer=budget and response-tokens divide by other numbers).  `band_low/high` are per response, in nats.
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

    def of_rows(self, rows: torch.Tensor, width: int) -> Targets:
        """Those of only these rows, in this order, cut to so many tokens."""
        tensors = {one.name: getattr(self, one.name) for one in fields(self)}
        cut = {name: x[rows, :width] if x.dim() == 2 else x[rows] for name, x in tensors.items() if x is not None}
        return replace(self, **cut)


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
    fresh_votes: tuple[Vote, ...] = ()  # of only this step's responses; the same as `votes` without a memory
    state: Mapping[str, Any] = field(default_factory=dict)
