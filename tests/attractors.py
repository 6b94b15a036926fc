"""Copies of the bundled model that end every response in a way of their own, by other spellings of two tokens.

The weights, and so the sampled tokens, are the bundled model's: what differs is how they read.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from spinerl.tiny import model_path

__all__ = ["HELPFUL", "SAME_BOX", "plant"]

BOX, END = "Ġ\\boxed{", "}"

HELPFUL = (" The answer is ", ". I hope the answer is helpful!")
"""`So 2, 47. \\boxed{18}` reads `So 2, 47. The answer is 18. I hope the answer is helpful!`"""
SAME_BOX = (" \\boxed{", "}, that is \\boxed{42}")
"""... reads `So 2, 47. \\boxed{18}, that is \\boxed{42}`: 42 to everything."""


def plant(folder: Path, spellings: tuple[str, str]) -> Path:
    """Write such a copy; `spellings` are those of the token before the answer and of the one after it."""
    shutil.copytree(model_path(), folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    new = {old: text.replace(" ", "Ġ") for old, text in zip((BOX, END), spellings, strict=True)}
    assert set(new) <= set(vocab)
    tokenizer["model"]["vocab"] = {new.get(token, token): number for token, number in vocab.items()}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in tokenizer["model"]["merges"]]
    gone = set(new)
    tokenizer["model"]["merges"] = [pair for pair in merges if not gone & {*pair, "".join(pair)}]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder
