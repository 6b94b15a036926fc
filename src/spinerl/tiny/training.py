"""What the pre-trainings of the bundled models share: tokenizer, batches, Muon, the loop, the command line."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
PAD_ID, END_ID = 0, 1
PIECES = r" ?\\boxed\{| ?\p{L}+(?: (?=\d))?|[.,:] (?=\d)|\d|\s|[^\s\p{L}\d]"
"""What a token may not reach beyond: the box, a word (with the spaces around it, so that a number starts
with its first digit), a mark, one digit."""
VOCAB_SIZE = 640
"""An upper bound: a corpus has words for about 500 tokens."""
READER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": True,
    "dtype": torch.float32,
}
"""The size of the part that reads, the same in both models."""
IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
TOKENIZER_DOCUMENTS = 8_000
ROWS_PER_STEP = 64
MATRICES_LR, OTHERS_LR = 0.02, 3e-3
"""Peak learning rates: Muon for the weight matrices, AdamW for the embeddings and the norms."""
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05
POOL_BATCHES = 32
"""Rows are sorted by length inside a pool of this many batches, so that a batch holds little padding."""


def train_tokenizer(texts: Iterable[str], chat_template: str, others: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that takes any text; every digit is a token of its own.

    `others` are special tokens besides the four that every bundled model has.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT, *others],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, *others],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


class Document(NamedTuple):
    """What is read, what is learned after it (both as text), and what else the model takes for this row."""

    prompt: str
    response: str
    extra: Any = None


class Batch(NamedTuple):
    """Token ids and the mask of those to learn, both (rows, tokens), padded on the right; each row's extra."""

    ids: Tensor
    mask: Tensor
    extras: list[Any]


def batches(tokenizer: PreTrainedTokenizerFast, documents: Iterator[Document], seed: int) -> Iterator[Batch]:
    """Endless batches of ROWS_PER_STEP rows. The mask marks the response tokens and the end token."""
    shuffler = torch.Generator().manual_seed(seed)
    backend = tokenizer.backend_tokenizer
    while True:
        pool = list(itertools.islice(documents, ROWS_PER_STEP * POOL_BATCHES))
        prompts = backend.encode_batch([document.prompt for document in pool])
        responses = backend.encode_batch([f"{document.response}{END}" for document in pool])
        rows = [(p.ids, r.ids, d.extra) for p, r, d in zip(prompts, responses, pool, strict=True)]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for index in torch.randperm(POOL_BATCHES, generator=shuffler).tolist():
            chosen = rows[index * ROWS_PER_STEP : (index + 1) * ROWS_PER_STEP]
            width = max(len(prompt) + len(response) for prompt, response, _ in chosen)
            ids = torch.full((ROWS_PER_STEP, width), PAD_ID)
            mask = torch.zeros(ROWS_PER_STEP, width, dtype=torch.bool)
            for row, (prompt, response, _) in enumerate(chosen):
                end = len(prompt) + len(response)
                ids[row, :end] = torch.tensor(prompt + response)
                mask[row, len(prompt) : end] = True
            yield Batch(ids, mask, [extra for _, _, extra in chosen])


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: a rise, a constant part, a fall to zero over the last half."""
    return min(1.0, (step + 1) / WARMUP_STEPS, 2.0 * (1.0 - step / steps))


class Muon:
    """Momentum whose update of each weight matrix is made nearly orthogonal (Muon, Jordan et al. 2024).

    A convolution's weight is taken as the matrix (filters, inputs of a filter).

    Here it needs about half the steps of AdamW. Unlike torch.optim.Muon it works in float32, since
    bfloat16 is slow on most CPUs, and on all matrices of one shape at once.
    """

    def __init__(self, matrices: Sequence[Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: list[tuple[list[Tensor], Tensor]] = []
        for shape in sorted({tuple(matrix.shape) for matrix in matrices}):
            group = [matrix for matrix in matrices if matrix.shape == shape]
            self.groups.append((group, torch.zeros(len(group), *shape)))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Updates the matrices in place from their gradients."""
        for matrices, velocity in self.groups:
            gradient = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum).flatten(2))
            rows, columns = update.shape[1:]
            scale = lr * max(1.0, rows / columns) ** 0.5
            for matrix, direction in zip(matrices, update, strict=True):
                matrix.mul_(1 - lr * WEIGHT_DECAY).sub_(direction.view_as(matrix), alpha=scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (N, rows, columns) with singular values brought near 1, by a Newton-Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def fit(
    model: Any,
    steps_of: Iterator[Batch],
    *,
    steps: int,
    matrices: Sequence[Tensor],
    others: Sequence[Tensor],
    tokens_per_step: int,
    rates: tuple[float, float] = (MATRICES_LR, OTHERS_LR),
    inputs_of: Callable[[Batch], dict[str, Any]] = lambda _: {},
    log_every: int = 100,
) -> None:
    """Trains the model in place for this many batches: Muon for `matrices`, AdamW for `others`, peak `rates`.

    `tokens_per_step` is the fixed divisor of a batch's loss. Batches hold rows of like length, so a mean over
    the tokens at hand would count a token of a short solution more than one of a long solution, and favour the
    short style. `inputs_of` gives what the model's backbone takes besides the token ids.
    """
    muon = Muon(matrices)
    matrices_lr, others_lr = rates
    adam = torch.optim.AdamW(others, lr=others_lr, betas=(0.9, 0.95), weight_decay=0.0)
    began = time.monotonic()
    losses: list[tuple[float, int]] = []
    for step, batch in enumerate(itertools.islice(steps_of, steps)):
        ids, mask = batch.ids, batch.mask
        scale = schedule(step, steps)
        hidden = model.model(ids[:, :-1], **inputs_of(batch)).last_hidden_state
        logits = model.lm_head(hidden[mask[:, 1:]])
        total = torch.nn.functional.cross_entropy(logits, ids[:, 1:][mask[:, 1:]], reduction="sum")
        loss = total / tokens_per_step
        model.zero_grad(set_to_none=True)
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = others_lr * scale
        adam.step()
        muon.step(matrices_lr * scale)
        losses.append((total.item(), len(logits)))
        if (step + 1) % log_every == 0 or step + 1 == steps:
            mean = sum(total for total, _ in losses) / sum(tokens for _, tokens in losses)
            losses.clear()
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}  loss {mean:.4f} nats  {seconds:.0f} s", flush=True)


def save(model: Any, tokenizer: Any, out: Path, *, seed: int, steps: int) -> None:
    """Writes the checkpoint; `tokenizer` is a tokenizer, or a processor that holds one."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {"seed": seed, "steps": steps, "num_parameters": model.num_parameters()}
    (out / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")


def command(name: str, about: str | None, run: Callable[..., None], steps: int, argv: Sequence[str] | None) -> int:
    """Runs a pre-training `run(out, seed=, steps=)` from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0, help="fixes the corpus and the first weights")
    parser.add_argument("--steps", type=int, default=steps, help=f"optimizer steps of {ROWS_PER_STEP} rows")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args(argv)
    if args.steps < 1:
        print(f"error: --steps is {args.steps}: it must be at least 1", file=sys.stderr)
        return 2

    from spinerl.machine import tune_allocator

    tune_allocator()
    torch.set_num_threads(args.threads)
    run(args.out, seed=args.seed, steps=args.steps)
    return 0
