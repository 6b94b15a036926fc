"""Vision-language models: the sampler and the update see images exactly as the model itself does."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from spinerl.config import load_config
from spinerl.engine.forward import Prefix, logits, plan, wanted_states
from spinerl.engine.sampler import greedy_responses, sample_responses
from spinerl.engine.update import score
from spinerl.models.loading import load_model
from spinerl.types import Batch, ImagePrompt, ImageRef, Question
from tests.models import compute_norms_in_float64, without
from tests.vision_models import FAMILIES, image_place

TOLERANCE = 1e-4


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageRef(data=file.getvalue())


def opened(folder, *overrides):
    """The model, its configuration, and prompts: one image, two, none, and the first again with another image."""
    config = load_config(overrides=[f"model={folder}", "rollout.max_new_tokens=12", *overrides])
    loaded = load_model(config.model, config.engine)
    place = image_place(folder)
    vision = loaded.vision
    prompts = (
        vision.prompt(f"Look {place} now", [picture(16, 16)]),
        vision.prompt(f"{place}and {place} then what?", [picture(24, 16, 1), picture(16, 40, 2)]),
        tuple(loaded.tokenizer("no picture")["input_ids"]),
        vision.prompt(f"Look {place} now", [picture(16, 16, 3)]),
    )
    return loaded, config, prompts


QUESTIONS = tuple(Question(name, name) for name in "abcd")


def single_row(loaded, prompt, response=()):
    """Logits of the model's own forward pass over one row, with its processor's own inputs."""
    ids = torch.tensor([[*prompt, *response]])
    more = {}
    if isinstance(prompt, ImagePrompt):
        more = dict(loaded.vision.processed(prompt.shown.text, prompt.shown.images))
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in more:
                more[name] = torch.nn.functional.pad(more[name], (0, len(response)))
        more.pop("input_ids")
        more.pop("attention_mask")
        more["pixel_values"] = more["pixel_values"].to(loaded.model.dtype)
    return loaded.model(input_ids=ids, **more).logits[0]


@pytest.fixture(params=FAMILIES)
def folder(request, vision_model_folders):
    return vision_model_folders(request.param)


@pytest.mark.parametrize("share", [True, False])
def test_sampled_figures_equal_teacher_forcing(folder, share):
    loaded, config, prompts = opened(folder, *(() if share else ("engine.disable=[shared-prefix]",)))
    rollout = sample_responses(loaded, QUESTIONS, prompts, 3, config.rollout, ("v",))
    if share:
        assert loaded.capabilities.uses("shared_prefix")
    for row in range(12):
        prompt, length = prompts[row // 3], int(rollout.mask[row].sum())
        response = rollout.tokens[row, :length]
        with torch.no_grad():
            expected = single_row(loaded, prompt, response.tolist()).log_softmax(-1)[len(prompt) - 1 : -1]
        assert torch.allclose(
            rollout.logprobs[row, :length], expected.gather(1, response.unsqueeze(1)).squeeze(1), atol=TOLERANCE
        )
        entropies = -(expected.exp() * expected).sum(-1)
        assert torch.allclose(rollout.entropies[row, :length], entropies, atol=TOLERANCE)


def test_greedy_equals_generate(folder):
    loaded, config, prompts = opened(folder)
    rollout = greedy_responses(loaded, QUESTIONS, prompts, config.rollout)
    for row in (0, 1, 3):
        inputs = dict(
            loaded.vision._processor(
                text=[prompts[row].shown.text],
                images=[
                    [
                        loaded.vision._fitted(Image.open(io.BytesIO(i.data)).convert("RGB"))
                        for i in prompts[row].shown.images
                    ]
                ],
                return_tensors="pt",
                add_special_tokens=False,
            )
        )
        with torch.no_grad():
            out = loaded.model.generate(
                **inputs,
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=loaded.pad_id,
                suppress_tokens=loaded.vision.placeholder_ids,
            )
        expected = out[0, len(prompts[row]) :].tolist()
        assert rollout.tokens[row, : len(expected)].tolist() == expected


def test_the_image_matters_and_prompts_differ_by_it(folder):
    loaded, _, prompts = opened(folder)
    assert tuple(prompts[0]) == tuple(prompts[3])
    assert prompts[0] != prompts[3]
    assert len({*prompts}) == 4
    with torch.no_grad():
        assert (single_row(loaded, prompts[0])[-1] - single_row(loaded, prompts[3])[-1]).abs().max() > 1e-3


def batch_of(prompts, seed=0, width=6):
    tokens = torch.randint(5, 200, (2 * len(prompts), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 3:] = False
    rows = tuple(prompt for prompt in prompts for _ in range(2))
    return Batch(rows, tokens, mask, 1.0)


@pytest.mark.parametrize("overrides", [(), ("engine.disable=[shared-prefix]",), ("optim.micro_batch_rows=1",)])
def test_scores_equal_the_models_own(folder, overrides):
    loaded, config, prompts = opened(folder, *overrides)
    batch = batch_of(prompts)
    logprobs, _ = score(loaded, batch, batch.mask, config.optim)
    for row, prompt in enumerate(batch.prompts):
        length = int(batch.mask[row].sum())
        response = batch.tokens[row, :length]
        with torch.no_grad():
            expected = single_row(loaded, prompt, response.tolist()).log_softmax(-1)[len(prompt) - 1 : -1]
        found = logprobs[row, :length]
        assert torch.allclose(found, expected.gather(1, response.unsqueeze(1)).squeeze(1), atol=TOLERANCE)


def gradients(loaded, batch, optim):
    """Of the mean log-probability of every token, by the engine's passes."""
    loaded.model.zero_grad(set_to_none=True)
    for piece in plan(loaded, batch, batch.mask, optim):
        prefix = Prefix(loaded, piece.prefixes) if piece.prefixes else None
        for micro in piece.micros:
            states = wanted_states(loaded, micro, prefix)
            found = logits(loaded, states).log_softmax(-1)
            tokens = batch.tokens[micro.row_of, micro.column_of]
            (found.gather(1, tokens.unsqueeze(1)).sum() / batch.mask.sum()).backward()
        if prefix is not None:
            prefix.backward()
    return {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}


def own_gradients(loaded, batch):
    loaded.model.zero_grad(set_to_none=True)
    total = 0.0
    for row, prompt in enumerate(batch.prompts):
        response = batch.tokens[row, : int(batch.mask[row].sum())]
        found = single_row(loaded, prompt, response.tolist()).log_softmax(-1)[len(prompt) - 1 : -1]
        total = total + found.gather(1, response.unsqueeze(1)).sum() / batch.mask.sum()
    total.backward()
    return {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("train", [False, True])
def test_gradients_equal_the_models_own(folder, train):
    """In float64, with and without the vision part learning, prompts shared and not."""
    loaded, config, prompts = opened(folder, f"model.train_vision={train}")
    loaded.model.double()
    compute_norms_in_float64(loaded.model)
    batch = batch_of(prompts)
    expected = own_gradients(loaded, batch)
    vision = [name for name in expected if "vis" in name or "connector" in name or "projector" in name]
    assert bool(vision) == train
    scale = max(float(g.abs().max()) for g in expected.values())
    for parts, rows in ((), 0), (("shared-prefix",), 0), ((), 1), (("trim", "shared-images"), 0):
        loaded.vision._share = "shared-images" not in parts  # settled when a model is opened
        found = gradients(without(loaded, *parts), batch, config.optim.model_copy(update={"micro_batch_rows": rows}))
        if not parts and not rows:
            assert loaded.capabilities.uses("shared_prompts")
        assert found.keys() == expected.keys()
        worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        assert worst <= 1e-6 * scale, (parts, rows, worst / scale)
