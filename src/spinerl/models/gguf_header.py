"""The header of a GGUF file: metadata, tensor names and shapes, read in a fraction of a second, without any weight.

The reader of the `gguf` package goes through vocabularies element by element, which takes seconds, and transformers
calls it again for whatever it needs; this one serves the checks.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ARRAY", "MAGIC", "TEXT", "Cursor", "Header", "Tensor", "fault", "read_header"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape in torch's order, its ggml type and where it begins after the header, in bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself: metadata under llama.cpp's keys, tensors by name, where their data begins."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data_start: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as "llama"."""
        return str(self.fields["general.architecture"])

    def of_model(self, key: str) -> Any:
        """The value of a key below the architecture's name, or None."""
        return self.fields.get(f"{self.architecture}.{key}")

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, in the order of its ids."""
        return self.fields["tokenizer.ggml.tokens"]

    def token_id(self, name: str) -> int | None:
        """The id of a special token ("eos", "eot", "eom", "bos", "padding"), or None."""
        found = self.fields.get(f"tokenizer.ggml.{name}_token_id")
        return int(found) if found is not None and 0 <= found < len(self.tokens) else None


def read_header(file: Path) -> Header:
    """The header of a file, kept as long as the file stays as it is.

    Raises ValueError or struct.error for a header that cannot be read to its end, OSError.
    """
    stat = file.stat()
    return _read(file, stat.st_mtime_ns, stat.st_size)


def fault(header: Header) -> str | None:
    """Why a file is no whole model that reads and writes text, as the rest of a sentence; None for one that is."""
    fields, tensors = header.fields, header.tensors
    kind = fields.get("general.type", "model")
    if "general.architecture" not in fields:
        return "does not say its architecture (general.architecture)"
    if kind == "mmproj" or header.architecture == "clip":
        return "is the vision part of a model (mmproj), which writes no text; name the file of the model itself"
    if kind != "model":
        return f"holds no model: its type is {kind!r} (general.type)"
    parts = fields.get("split.count", 0)
    if parts > 1:
        number = fields.get("split.no", 0) + 1
        return f"is part {number} of {parts}; join them: `llama-gguf-split --merge`, a tool of llama.cpp"
    if not isinstance(fields.get("tokenizer.ggml.tokens"), list) or "tokenizer.ggml.model" not in fields:
        return "has no tokenizer (tokenizer.ggml.model and tokenizer.ggml.tokens)"
    if not tensors:
        return "holds a vocabulary and no weights"
    return None


class Cursor:
    """Reads a header's values one after the other; struct.error where the data end too early."""

    def __init__(self, data: Any) -> None:
        self._data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        if length > len(self._data) - self.at:
            raise struct.error("a text reaches beyond the end")
        self.at += length
        return self._data[self.at - length : self.at].decode("utf-8", errors="replace")

    def skip(self, kind: int, count: int) -> None:
        """Go past so many values of a kind, texts or numbers."""
        if kind != TEXT:
            self.at += count * struct.calcsize(_SCALARS[kind])
            return
        for _ in range(count):
            length = self.scalar("Q")
            self.at += length

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner not in _SCALARS:
                return [self.value(inner) for _ in range(count)]
            found = np.frombuffer(self._data, np.dtype(f"<{_SCALARS[inner]}"), count, self.at).copy()
            self.at += found.nbytes
            return found
        if kind not in _SCALARS:
            raise ValueError(f"unknown type {kind}")
        return self.scalar(_SCALARS[kind])


@lru_cache(maxsize=4)
def _read(file: Path, _changed: int, _size: int) -> Header:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(data)
        cursor.at = len(MAGIC)
        version, num_tensors, num_fields = cursor.scalar("I"), cursor.scalar("Q"), cursor.scalar("Q")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}, of which 2 and 3 are read, little-endian")
        fields = {cursor.text(): cursor.value(cursor.scalar("I")) for _ in range(num_fields)}
        tensors = {}
        for _ in range(num_tensors):
            name = cursor.text()
            dims = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
            tensors[name] = Tensor(tuple(reversed(dims)), cursor.scalar("I"), cursor.scalar("Q"))
        alignment = int(fields.get("general.alignment", 32))
        return Header(fields, tensors, math.ceil(cursor.at / alignment) * alignment)
