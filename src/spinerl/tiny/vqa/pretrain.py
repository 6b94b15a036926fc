"""Pre-trains `tiny-vlm` from nothing: `python -m spinerl.tiny.vqa.pretrain --out DIR --seed 0`.

Writes a Hugging Face checkpoint (config, float32 weights, processor with tokenizer and chat template) to DIR.
The same seed, thread count and library versions give the same weights, bit for bit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from spinerl.tiny import VISION_MODEL, training
from spinerl.tiny.training import (
    ASSISTANT,
    ROWS_PER_STEP,
    TOKENIZER_DOCUMENTS,
    USER,
    Batch,
    Document,
)
from spinerl.tiny.vqa.corpus import CORPUS_KINDS, corpus, draw_chart, draw_scene
from spinerl.tiny.vqa.pictures import COLOURS, GRID, SHAPES, SIZE, TALLEST, Chart, Picture, Scene, draw

IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
SPECIAL = (AROUND, IMAGE, "<end_of_utterance>", WHOLE)
"""What transformers' processor for this architecture writes around pictures, or adds when it is missing."""
PATCH, SHUFFLE = 8, 2
IMAGE_TOKENS = (SIZE // PATCH // SHUFFLE) ** 2
"""One per cell of the grid."""
IMAGE_TEXT = AROUND + WHOLE + IMAGE * IMAGE_TOKENS + AROUND
"""A picture in a prompt, as the processor writes it out."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role in ('user', 'assistant') %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""System messages are dropped: the model never saw one."""

MEAN, STD = 0.9, 0.4
"""What the processor takes from and divides each colour part by: most of a picture is light background, and with
it near 0 what lies on it is learnt from much sooner."""

PLACES_STD = 0.2
"""Spread of the first position embeddings of the patches, as large as that of the patches themselves: which row a
shape is in is learnt twice as fast as with the default of 0.02."""
MATRICES_LR, OTHERS_LR = 0.01, 2e-3
"""Peak learning rates, lower than for text only: with those, what was learnt of seeing is lost again on the way."""
TOKENIZER_FROM = 26_000
"""The tokenizer is made of documents from here on, where all styles are (corpus.CAREFUL_FIRST)."""
EYES_STEPS, EYES_LR = 500, 2e-3
"""Half a minute, in which what sees learns to tell shapes, colours and blocks of pixels."""
CHARTS_FRAC = 0.3
SEEN_TO_READ = 3.0
"""How much larger the numbers of a cell are than those of a word when reading begins."""
STEPS = 2_500
TOKENS_PER_STEP = 1_200


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus."""
    documents = itertools.islice(corpus(seed), TOKENIZER_FROM, TOKENIZER_FROM + TOKENIZER_DOCUMENTS)
    texts = (text for document in documents for text in (document.question, document.response))
    return training.train_tokenizer(texts, CHAT_TEMPLATE, SPECIAL)


def new_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """The processor: pictures are taken as they are when SIZE pixels on a side, else resized."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIZE},
        max_image_size={"longest_edge": SIZE},
        do_image_splitting=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def new_model(seed: int, image_id: int) -> Idefics3ForConditionalGeneration:
    """An untrained float32 Idefics3 of about 1.2 million parameters."""
    torch.manual_seed(seed)
    text = LlamaConfig(**training.READER, **training.IDS)
    vision = Idefics3VisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=SHUFFLE,
        image_token_id=image_id,
        tie_word_embeddings=True,
        dtype=torch.float32,
        **training.IDS,
    )
    config.spinerl_profile = VISION_MODEL  # copies and adapted models keep the settings that suit it (spinerl.config)
    model = Idefics3ForConditionalGeneration(config)
    places: Any = model.model.vision_model.embeddings.position_embedding
    torch.nn.init.normal_(places.weight, std=PLACES_STD)
    return model


def prompt_text(question: str) -> str:
    """The prompt of a question about one picture, as the chat template and the processor write it."""
    return f"{USER}{IMAGE_TEXT}{question}{ASSISTANT}"


def pixel_values(pictures: Iterable[Picture]) -> Tensor:
    """The pictures (rows, 1, 3, SIZE, SIZE) exactly as the processor hands them to the model."""
    drawn = []
    for picture in pictures:
        colours = picture.palette.astype(np.float64) * (1 / 255)
        colours = ((colours.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
        drawn.append(colours.T[:, picture.indices])
    return torch.from_numpy(np.stack(drawn))[:, None]


def pretrain(out: Path, *, seed: int, steps: int) -> None:
    """Trains a model, first its eyes and then, for this many steps, what reads, and writes it to the folder `out`."""
    tokenizer = train_tokenizer(seed)
    image_id = tokenizer.get_vocab()[IMAGE]
    model = new_model(seed, image_id)
    eyes = new_model(seed, image_id)
    open_eyes(eyes, seed, EYES_STEPS)
    for name in ("vision_model", "connector"):
        getattr(model.model, name).load_state_dict(getattr(eyes.model, name).state_dict())
    _quieten(model, seed)
    for parameter in _seeing(model):
        parameter.requires_grad_(False)
    documents = (Document(prompt_text(d.question), d.response, d.picture) for d in corpus(seed))
    matrices = [p for p in model.model.text_model.layers.parameters() if p.dim() == 2]
    kept = {id(p) for p in matrices}
    training.fit(
        model,
        training.batches(tokenizer, documents, seed),
        steps=steps,
        matrices=matrices,
        others=[p for p in model.parameters() if p.requires_grad and id(p) not in kept],
        tokens_per_step=TOKENS_PER_STEP,
        rates=(MATRICES_LR, OTHERS_LR),
        inputs_of=_inputs,
    )
    model.resize_token_embeddings(len(tokenizer))  # drops the rows that no token uses
    training.save(model, new_processor(tokenizer), out, seed=seed, steps=steps)


def open_eyes(model: Idefics3ForConditionalGeneration, seed: int, steps: int) -> list[float]:
    """Teaches what sees to tell what is in each cell, by heads that are thrown away; the accuracies at the end.

    They are those of shape, colour, size and a bar's height. Learnt together with reading, by only the answers, the
    same takes hundreds of times as long: a picture says nothing to who cannot read it, and is then ignored.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matmuls are small
    width, kinds = model.get_input_embeddings().embedding_dim, len(COLOURS) + 1
    sizes = {"blocks": 16 * kinds, "shape": len(SHAPES) + 1, "colour": kinds, "small": 2, "height": TALLEST + 1}
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, size) for name, size in sizes.items()})
    adam = torch.optim.AdamW([*_seeing(model), *heads.parameters()], lr=EYES_LR, betas=(0.9, 0.95), weight_decay=0.0)
    shown = contents(seed + 1)
    accuracies: list[float] = []
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = EYES_LR * min(1.0, (step + 1) / 50, 2.0 * (1.0 - step / steps))
        drawn = list(itertools.islice(shown, ROWS_PER_STEP))
        features = _features(model, [picture for picture, _ in drawn])
        seen = torch.nn.functional.rms_norm(features, (width,))
        blocks = torch.from_numpy(np.stack([blocks_of(picture) for picture, _ in drawn]))
        loss = torch.nn.functional.cross_entropy(heads["blocks"](seen).reshape(-1, kinds), blocks.flatten())
        accuracies = []
        for name, wanted in zip(
            ("shape", "colour", "small", "height"), zip(*(cells_of(c) for _, c in drawn), strict=True), strict=True
        ):
            told, right = heads[name](seen), torch.tensor(wanted)
            loss = loss + 0.5 * torch.nn.functional.cross_entropy(told.flatten(0, 1), right.flatten(), ignore_index=-1)
            known = right >= 0
            accuracies.append((told.argmax(-1)[known] == right[known]).float().mean().item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.set_num_threads(threads)
    return accuracies


def contents(seed: int) -> Iterator[tuple[Picture, Scene | Chart]]:
    """Endless pictures of the corpus's kinds, with what is in them."""
    rng = Random(seed)
    kinds, shares = zip(*CORPUS_KINDS, strict=True)
    while True:
        kind = rng.choices(kinds, shares)[0]
        content = draw_chart(rng, kind) if rng.random() < CHARTS_FRAC else draw_scene(rng, kind)
        yield draw(rng, content, kind.look), content


def blocks_of(picture: Picture) -> np.ndarray:
    """(cells, 16): which colour, from 1, covers enough of each of a cell's 4 x 4 blocks of 4 x 4 pixels; 0 for none."""
    side = SIZE // 16
    known = np.where(picture.indices <= len(COLOURS), picture.indices, 0)
    pixels = known.reshape(side, 4, 4, side, 4, 4).transpose(0, 3, 1, 4, 2, 5).reshape(side * side, 16, 16)
    blocks = np.zeros((side * side, 16), np.int64)
    for colour in range(1, len(COLOURS) + 1):
        blocks[(pixels == colour).sum(-1) >= 6] = colour
    return blocks


def cells_of(content: Scene | Chart) -> tuple[list[int], list[int], list[int], list[int]]:
    """Shape and colour of each cell's thing, from 1 (0 for none), whether it is small, the height of its column's bar.

    Of a chart the colour is the bar's; -1 where something is not asked.
    """
    unknown = [-1] * GRID**2
    if isinstance(content, Chart):
        bars = [*content.bars, *([("", 0)] * (GRID - len(content.bars)))]
        colours = [1 + COLOURS.index(colour) if colour else 0 for colour, _ in bars]
        return unknown, colours * GRID, unknown, [height for _, height in bars] * GRID
    things = content.cells
    return (
        [0 if thing is None else 1 + SHAPES.index(thing.shape) for thing in things],
        [0 if thing is None else 1 + COLOURS.index(thing.colour) for thing in things],
        [-1 if thing is None else int(thing.small) for thing in things],
        unknown,
    )


def _seeing(model: Idefics3ForConditionalGeneration) -> list[torch.nn.Parameter]:
    return [*model.model.vision_model.parameters(), *model.model.connector.parameters()]


def _features(model: Idefics3ForConditionalGeneration, pictures: Iterable[Picture]) -> Tensor:
    """What the pictures are to the part that reads: (pictures, cells, width)."""
    pixels = pixel_values(pictures)
    backbone: Any = model.model
    found = backbone.get_image_features(pixels, return_dict=True)
    return torch.cat(list(found.pooler_output)).reshape(len(pixels), IMAGE_TOKENS, -1)


@torch.no_grad()
def _quieten(model: Idefics3ForConditionalGeneration, seed: int) -> None:
    """Makes what is seen not much louder than words are at first."""
    seen = _features(model, [d.picture for d in itertools.islice(corpus(seed + 9), ROWS_PER_STEP)])
    words = model.get_input_embeddings().weight
    scale = SEEN_TO_READ * words.square().mean().sqrt() / seen.square().mean().sqrt()
    model.model.connector.modality_projection.proj.weight.mul_(scale)


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"pixel_values": pixel_values(batch.extras), "use_cache": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a pre-training from the command line; returns the exit code."""
    return training.command("spinerl.tiny.vqa.pretrain", __doc__, pretrain, STEPS, argv)


if __name__ == "__main__":
    sys.exit(main())
