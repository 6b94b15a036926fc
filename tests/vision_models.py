"""Tiny random vision-language models of real architectures, with processors, as folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from tests.models import byte_tokenizer

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "llava_onevision", "gemma3")

_WORDS = {
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "idefics3": ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<row_1_col_1>"),
    "llava_onevision": ("<image>", "<video>"),
    "gemma3": ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
}
_WORDS |= dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), _WORDS["qwen2_vl"]) | {"smolvlm": _WORDS["idefics3"]}
_PLACES = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "gemma3": "<start_of_image>"}


def write_vision_model(family: str, folder: Path, seed: int = 0, spread: float = 0.3) -> Path:
    """A model of this family with random weights and two layers on either side, saved as a user's folder would be."""
    tokenizer = _tokenizer(family, _PLACES.get("qwen" if family.startswith("qwen") else family, "<image>"))
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in _WORDS[family]}
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(_config(family, tokenizer, ids, spread))
    with torch.no_grad():  # some towers begin with zeros, which would hide whether pictures matter
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0 and "bias" not in name:
                parameter.normal_(std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor(family).save_pretrained(folder)
    _write_processor(family, folder)
    return folder


def image_place(folder: Path) -> str:
    """What stands for an image in a prompt of the model in this folder."""
    family = AutoConfig.from_pretrained(folder).model_type
    return _PLACES.get("qwen" if family.startswith("qwen") else family, "<image>")


def _tokenizer(family: str, place: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(_WORDS[family]), special_tokens=True)
    if family == "gemma3":
        named = dict(zip(("boi_token", "eoi_token", "image_token"), _WORDS[family], strict=True))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            eos_token="<|end|>",
            pad_token="<|pad|>",
            extra_special_tokens=named,
        )
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'image' %}" + place + "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def _config(family: str, tokenizer: PreTrainedTokenizerFast, ids: dict[str, int], spread: float) -> Any:
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": spread,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    vision: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 24}
    vision |= {"num_hidden_layers": 2, "depth": 2, "image_size": 16, "patch_size": 4, "initializer_range": spread}
    top: dict[str, Any] = {"initializer_range": spread}
    if family.startswith("qwen"):
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
        text |= {"rope_parameters": rope | ({"mrope_interleaved": True} if family == "qwen3_vl" else {})}
        vision |= {"embed_dim": 16, "out_hidden_size": 32, "spatial_patch_size": 4, "in_channels": 3, "window_size": 16}
        vision |= {"temporal_patch_size": 2, "spatial_merge_size": 2, "fullatt_block_indexes": [1]}
        if family == "qwen2_vl":
            vision |= {"hidden_size": 32, "mlp_ratio": 2}
        if family == "qwen3_vl":
            vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        top |= {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
        top |= {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    elif family in ("idefics3", "smolvlm"):
        text |= {"model_type": "llama"}
        top |= {"image_token_id": ids["<image>"], "scale_factor": 2}
    elif family == "llava_onevision":
        text |= {"model_type": "qwen2"}
        vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
        top |= {"image_token_index": ids["<image>"], "video_token_index": ids["<video>"], "vision_feature_layer": -1}
        top |= {"vision_feature_select_strategy": "full", "image_grid_pinpoints": [[16, 16], [16, 32], [32, 32]]}
    elif family == "gemma3":
        text |= {
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        }
        vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
        top |= {"mm_tokens_per_image": 4, "boi_token_index": ids["<start_of_image>"]}
        top |= {"eoi_token_index": ids["<end_of_image>"], "image_token_index": ids["<image_soft_token>"]}
    top |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return AutoConfig.for_model(family, text_config=text, vision_config=vision, **top)


def _image_processor(family: str) -> Any:
    names = {"qwen": "Qwen2VL", "idefics3": "Idefics3", "smolvlm": "SmolVLM", "llava_onevision": "LlavaOnevision"}
    name = names.get("qwen" if family.startswith("qwen") else family, "Gemma3")
    made = getattr(transformers, f"{name}ImageProcessorPil")
    if family.startswith("qwen"):
        return made(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024)
    if family in ("idefics3", "smolvlm"):
        return made(do_image_splitting=False, size={"longest_edge": 16}, max_image_size={"longest_edge": 16})
    if family == "llava_onevision":
        pinpoints = [[16, 16], [16, 32], [32, 32]]
        return made(size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints)
    return made(size={"height": 16, "width": 16})


def _write_processor(family: str, folder: Path) -> None:
    """What the processors of this family keep next to their image processor."""
    more: dict[str, Any] = {
        "idefics3": {"image_seq_len": 4},
        "smolvlm": {"image_seq_len": 4},
        "llava_onevision": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        "gemma3": {"image_seq_length": 4},
    }.get(family, {})
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "smolvlm": "SmolVLM"}
    names |= {"idefics3": "Idefics3", "llava_onevision": "LlavaOnevision", "gemma3": "Gemma3"}
    record = {"processor_class": f"{names[family]}Processor", **more}
    (folder / "processor_config.json").write_text(json.dumps(record))
