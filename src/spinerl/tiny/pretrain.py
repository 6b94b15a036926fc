"""Pre-trains `tiny-reasoner` from nothing: `python -m spinerl.tiny.pretrain --out DIR --seed 0`.

Writes a Hugging Face checkpoint (config, float32 weights, tokenizer with chat template) to DIR. The same
seed, thread count and library versions give the same weights, bit for bit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from spinerl.tiny import MODEL, training
from spinerl.tiny.corpus import corpus
from spinerl.tiny.training import ASSISTANT, TOKENIZER_DOCUMENTS, USER, Document

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""System messages are dropped: the model never saw one."""

STEPS = 2_400
TOKENS_PER_STEP = 1_800


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus."""
    documents = itertools.islice(corpus(seed), TOKENIZER_DOCUMENTS)
    texts = (text for document in documents for text in (document.question, document.solution.text))
    return training.train_tokenizer(texts, CHAT_TEMPLATE)


def new_model(seed: int) -> Qwen3ForCausalLM:
    """An untrained float32 Qwen3 of about 0.9 million parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(**training.READER, **training.IDS)
    config.spinerl_profile = MODEL  # copies and adapted models keep the settings that suit it (spinerl.config)
    return Qwen3ForCausalLM(config)


def pretrain(out: Path, *, seed: int, steps: int) -> None:
    """Trains a model for this many steps and writes the checkpoint to the folder `out`."""
    tokenizer = train_tokenizer(seed)
    model = new_model(seed)
    documents = (Document(f"{USER}{d.question}{ASSISTANT}", d.solution.text) for d in corpus(seed))
    training.fit(
        model,
        training.batches(tokenizer, documents, seed),
        steps=steps,
        matrices=[p for p in model.model.layers.parameters() if p.dim() == 2],
        others=[model.model.embed_tokens.weight, *(p for p in model.parameters() if p.dim() == 1)],
        tokens_per_step=TOKENS_PER_STEP,
    )
    model.resize_token_embeddings(len(tokenizer))  # drops the rows that no token uses
    training.save(model, tokenizer, out, seed=seed, steps=steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a pre-training from the command line; returns the exit code."""
    return training.command("spinerl.tiny.pretrain", __doc__, pretrain, STEPS, argv)


if __name__ == "__main__":
    sys.exit(main())
