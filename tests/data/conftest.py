"""No test here may reach the network or write outside its own folder."""

import io
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import datasets
import huggingface_hub.constants
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spinerl.config import Config, load_config

BOS, EOS = "<s>", "</s>"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where another test imported these packages first."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (or lines as they are) to a JSONL file and returns its path."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """`picture("PNG", (4, 3), color="red")`: a small image file's bytes; `mode=` and what Pillow's `save` takes."""

    def make(kind: str = "PNG", size: tuple[int, int] = (4, 3), mode: str = "RGB", color: Any = "red", **save: Any):
        file = io.BytesIO()
        Image.new(mode, size, color).save(file, kind, **save)
        return file.getvalue()

    return make


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED.name} next to the repository")
    return SHARED


@pytest.fixture
def configure() -> Callable[..., Config]:
    """`configure("data=x.jsonl", ...)`: the configuration of these overrides, for a model without a profile."""

    def build(*overrides: str) -> Config:
        return load_config(overrides=["model=some/model", *overrides])

    return build


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(adds: str = "", chat_template: str | None = None) -> PreTrainedTokenizerFast:
        """A byte-level tokenizer; `adds` says what its post-processor adds: nothing, "bos" or "bos eos"."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [BOS, EOS, *alphabet]
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([BOS, EOS])
        if adds:
            single = f"{BOS} $A" + (f" {EOS}" if "eos" in adds else "")
            tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[(BOS, 0), (EOS, 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, chat_template=chat_template
        )

    return make
