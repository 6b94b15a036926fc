"""No test here may reach the network or write outside its own folder."""

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

from spinerl.config import Config, load_config

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
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the data sets in {SHARED.name} beside the repository")
    return SHARED


@pytest.fixture
def configure() -> Callable[..., Config]:
    """`configure("data=x.jsonl", ...)`: the configuration of these words."""

    def build(*words: str) -> Config:
        return load_config(overrides=words)

    return build
