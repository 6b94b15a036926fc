"""Compares models read from GGUF files with transformers' own reading and with the folders they become, by hand.

    python scripts/check_gguf.py [--tokens 64] [--prompts 8] FILE.gguf|smollm2-135m ...

For each: end tokens, context length; our greedy responses against `generate` of the model as transformers reads the
file by itself (8 prompts, 64 tokens, float32), against those of the folder that is saved from it, and of a file that is
written from that (`spinerl export gguf`, float32; in other types it is only said how many agree).  Exit code 1 where a
token differs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig

from spinerl.config import Config, load_config, override
from spinerl.engine.sampler import greedy_responses
from spinerl.models.gguf_writer import ARCHITECTURES, export_gguf
from spinerl.models.loading import LoadedModel, load_model, resolve_name, save_model
from spinerl.types import Question

TEXTS = (
    "Tom has 5 apples and buys 12 more. How many apples does he have now?",
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Once upon a time there was a fox who",
    "Is the sky blue? Answer yes or no.",
    "List three fruits.",
    "A train travels 60 miles in 2 hours. What is its speed in miles per hour?",
    "Translate to French: good morning.",
)

FLOAT32 = ("model.dtype=float32",)  # "auto" may measure that bfloat16 is faster


def prompts_of(loaded: LoadedModel, num: int) -> list[tuple[int, ...]]:
    """The texts as the model is asked them: in its chat template, or as they are."""
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template is None:
        return [tuple(tokenizer(text).input_ids) for text in TEXTS[:num]]
    chats = [[{"role": "user", "content": text}] for text in TEXTS[:num]]
    return [tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]


def greedy(loaded: LoadedModel, config: Config, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Our greedy responses, without what fills rows up."""
    questions = [Question(f"q{i}", text) for i, text in enumerate(TEXTS[: len(prompts)])]
    rollout = greedy_responses(loaded, questions, prompts, config.rollout)
    lengths = rollout.mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(rollout.tokens.tolist(), lengths, strict=True)]


def generated(file: Path, loaded: LoadedModel, prompts: list[tuple[int, ...]], tokens: int) -> list[list[int]]:
    """What `generate` writes with the weights as transformers itself reads them."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(loaded.end_ids),
            pad_token_id=loaded.pad_id,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


def check(name: str, tokens: int, num_prompts: int) -> bool:
    """Prints what was found about one model; whether all tokens agree."""
    config = load_config(overrides=[*FLOAT32, override("model", name), f"rollout.max_new_tokens={tokens}"])
    started = time.monotonic()
    loaded = load_model(config.model, config.engine)
    print(f"{name}: read in {time.monotonic() - started:.1f} s")
    settings = loaded.model.config
    ends = loaded.tokenizer.convert_ids_to_tokens(list(loaded.end_ids))
    print(
        f"  {settings.model_type}, context {settings.max_position_embeddings}, ends {ends}, {settings.rope_parameters}"
    )
    prompts = prompts_of(loaded, num_prompts)
    ours = greedy(loaded, config, prompts)
    theirs = generated(Path(resolve_name(name)), loaded, prompts, tokens)
    with tempfile.TemporaryDirectory() as folder:
        save_model(loaded, Path(folder))
        tokenizer = loaded.tokenizer
        del loaded  # a model at a time
        again = load_model(load_config(overrides=[*FLOAT32, override("model", folder)]).model, config.engine)
        saved = greedy(again, config, prompts)
        same_prompts = prompts_of(again, num_prompts) == prompts
        files = {}
        for kind in ("f32", "f16", "bf16", "q8_0") if settings.model_type in ARCHITECTURES else ():
            file = Path(folder) / "written" / f"{kind}.gguf"
            file.parent.mkdir(exist_ok=True)
            started = time.monotonic()
            written = export_gguf(again, file, kind, "check")
            print(f"  written as {kind}: {written.size:,} bytes in {time.monotonic() - started:.1f} s {written.notes}")
            read = load_model(load_config(overrides=[*FLOAT32, override("model", str(file))]).model)
            files[kind] = greedy(read, config, prompts)
            same_prompts = same_prompts and prompts_of(read, num_prompts) == prompts
            file.unlink()
    others = {f"a {kind} file": texts for kind, texts in files.items()}
    for what, other in {"generate": theirs, "the saved folder": saved, **others}.items():
        equal = sum(a == b for a, b in zip(ours, other, strict=True))
        print(f"  greedy equals {what}: {equal} of {len(ours)} prompts, {sum(map(len, ours))} tokens", flush=True)
    print(f"  prompts of the saved folder and of the files equal: {same_prompts}")
    for row in ours[:3]:
        print(f"    {tokenizer.decode(row)[:160]!r}")
    return ours == theirs == saved == files.get("f32", ours) and same_prompts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=len(TEXTS))
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        verdicts = [check(name, args.tokens, args.prompts) for name in args.models]
    raise SystemExit(not all(verdicts))
