"""Models and questions made for measuring: random weights, a tokenizer of their own, saved as plain folders.

Saved, so that every peer reads the very same model.  Nothing here is learned; only shapes, lengths and the spread
of the entropies matter.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinerl.bench.settings import Settings
from spinerl.types import Question

if TYPE_CHECKING:
    import torch

__all__ = [
    "IMAGE",
    "number_tokenizer",
    "random_questions",
    "stopping_rate",
    "write_model",
    "write_update_model",
    "write_vision_model",
]

PAD, END = 0, 1
IMAGE = "<image>"
NUM_ANSWERS = 4  # so few that sixteen random responses have a majority
_LOGIT_SPREAD = 1.5
_NEVER = -200.0  # a logit whose probability is exactly 0 in float32


def number_tokenizer(vocabulary: int) -> Any:
    """A tokenizer of `vocabulary` words: padding, end, and words like `w7=3`, one token each, blanks between them.

    Every word ends in one of four digits, so that the last number of a random text is an answer to vote on.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", *(f"w{i}={i % NUM_ANSWERS}" for i in range(2, vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", padding_side="left")


def random_questions(
    tokenizer: Any, settings: Settings, number: int, length: int
) -> tuple[tuple[Question, ...], tuple[tuple[int, ...], ...]]:
    """`number` questions of random words and their prompts, each of exactly `length` tokens.

    The question's text is the prompt's text: reading it with the tokenizer gives the prompt's tokens again (random
    model).
    """
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    rng = random.Random(settings.seed)
    prompts = tuple(tuple(rng.choices(ordinary, k=length)) for _ in range(number))
    questions = tuple(
        Question(str(i), tokenizer.decode(list(prompt)), answer_kind="number") for i, prompt in enumerate(prompts)
    )
    return questions, prompts


def write_model(settings: Settings, folder: Path, stops: bool, dtype: torch.dtype | None = None) -> Path:
    """The random Qwen3 of these settings, with its tokenizer, in `folder`; `dtype` None: float32.

    `stops` False: no response ever ends by itself.  True: each token ends it with the same probability, about, such
    that the mean length is half of `new_tokens`.

    How: channel 0 of the residual stream is held constant (no layer writes to it), so one weight of the head is a
    bias on the end token.  It is in the weights only, so all peers share it.  On CUDA it is made there: on a CPU, two
    billion random numbers take half a minute.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(settings.seed)
    config = Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        initializer_range=settings.hidden_size**-0.5,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    with torch.device(settings.device if settings.device.startswith("cuda") else "cpu"):
        model: Any = Qwen3ForCausalLM(config).eval()
    tokenizer = number_tokenizer(settings.vocabulary)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        head = model.lm_head.weight
        head.normal_(std=_LOGIT_SPREAD * settings.hidden_size**-0.5)
        head[:, 0] = 0.0
        head[PAD] = head[END] = 0.0
        constant, free_energy = _probe(model, tokenizer, settings)
        head[PAD, 0] = _NEVER / constant
        rate = stopping_rate(settings.new_tokens)
        head[END, 0] = (free_energy + math.log(rate / (1 - rate)) if stops else _NEVER) / constant
    model.to(dtype or torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_update_model(settings: Settings, folder: Path) -> Path:
    """The model of part update: small, with the vocabulary of a large one, the head tied to the embedding."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(settings.seed)
    width = settings.update_hidden_size
    config = Qwen3Config(
        vocab_size=settings.update_vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings.update_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=max(4, width // 4 * 2),
        tie_word_embeddings=True,
        initializer_range=_LOGIT_SPREAD * width**-0.5,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    number_tokenizer(64).save_pretrained(folder)  # this part only handles token ids
    return folder


def write_vision_model(settings: Settings, folder: Path) -> Path:
    """A random Idefics3 that reads with the settings' sizes and sees squares of `images_side` pixels."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tokenizer = number_tokenizer(settings.vocabulary)
    words = ("<fake_token_around_image>", IMAGE, "<end_of_utterance>", "<global-img>")
    tokenizer.add_tokens(list(words), special_tokens=True)
    side = settings.images_side // 28 * 28
    width = settings.images_hidden_size
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": settings.images_layers}
    sizes["num_attention_heads"] = max(4, width // 64)
    torch.manual_seed(settings.seed)
    config = Idefics3Config(
        vision_config={**sizes, "image_size": side, "patch_size": 14},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": settings.hidden_size,
            "intermediate_size": settings.intermediate_size,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.kv_heads,
            "head_dim": settings.head_dim,
            "max_position_embeddings": 8192,
            "bos_token_id": None,
            "eos_token_id": END,
            "pad_token_id": PAD,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    size = {"longest_edge": side}
    images = Idefics3ImageProcessorPil(do_image_splitting=False, size=size, max_image_size=size)
    Idefics3Processor(images, tokenizer, image_seq_len=(side // 28) ** 2).save_pretrained(folder)
    return folder


def stopping_rate(limit: int) -> float:
    """The chance to end at each token for which the mean length, cut at `limit`, is half of it.

    >>> rate = stopping_rate(128)
    >>> round((1 - (1 - rate) ** 128) / rate, 6)
    64.0
    """
    low, high = 1e-9, 1.0
    rate = high
    for _ in range(100):
        rate = (low + high) / 2
        mean = (1 - (1 - rate) ** limit) / rate
        low, high = (rate, high) if mean > limit / 2 else (low, rate)
    return rate


def _probe(model: Any, tokenizer: Any, settings: Settings) -> tuple[float, float]:
    """(the constant channel as the head sees it, log of the sum of exp(logits) of ordinary tokens), both means."""
    import torch

    _, prompts = random_questions(tokenizer, settings, 4, 64)
    seen: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(input_ids=torch.tensor(prompts, device=model.device)).logits
    handle.remove()
    return float(seen[0][..., 0].mean()), float(logits[..., 2:].logsumexp(-1).mean())
