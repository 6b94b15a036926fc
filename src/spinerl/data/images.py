"""What a cell of the rows names as images, and where they stand in a question's text."""

from __future__ import annotations

import base64
import binascii
import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spinerl.images import MAX_PIXELS, BadImageError, image_facts, open_image, shortened, upright_rgb
from spinerl.lines import counted
from spinerl.types import ImageRef, Question

__all__ = ["ImageReader", "parts_of", "place_images"]

PLACE = "<image>"
MARK = re.compile(r"<image ?([1-9][0-9]?)?>")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=?=?\s*")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class ImageReader:
    """Cells -> `ImageRef`s that are known to be images.

    Relative paths start at `folder`.  Of every image the header is looked at; with `decode` the rest as well.  An
    image that several rows hold is looked at, and kept, once.
    """

    folder: Path | None = None
    max_pixels: int = MAX_PIXELS
    decode: bool = False
    _sound: dict[ImageRef, ImageRef] = field(default_factory=dict, compare=False, repr=False)

    def read(self, cell: Any) -> tuple[ImageRef, ...]:
        """The images of one cell; BadImageError naming all that are wrong with it."""
        refs: list[ImageRef] = []
        faults: list[BadImageError] = []
        for part in cell if isinstance(cell, list | tuple) else [cell]:
            try:
                ref = _reference(part, self.folder)
                if ref is None:
                    continue
                if ref not in self._sound:
                    if self.decode:
                        open_image(ref, max_pixels=self.max_pixels)
                    else:
                        image_facts(ref, max_pixels=self.max_pixels)
                    self._sound[ref] = ref
                refs.append(self._sound[ref])
            except BadImageError as fault:
                faults.append(fault)
        if faults:
            raise BadImageError("; ".join(str(fault) for fault in faults), faults[0].reason)
        return tuple(refs)


def place_images(text: str, images: tuple[ImageRef, ...], *, merged: bool = False) -> tuple[str, tuple[ImageRef, ...]]:
    """The text with `<image>` where an image stands, and the images in that order.

    `<image1>` or `<image 1>` names an image of the row by its number, `<image>` is the next one.  An image named
    again stays words: "image 2", counted in the order in which they are shown.  A text without any is left as it
    is.  `merged`: the row's image may be several drawn into one; where their number is another than that of the
    images, all of them become words.  Raises BadImageError where the numbers differ.

    >>> place_images("Is <image2> larger than <image1>? See <image2>.", (ImageRef("/a"), ImageRef("/b")))[0]
    'Is <image> larger than <image>? See image 1.'
    """
    marks = [mark[1] for mark in MARK.finditer(text)]
    if not marks:
        return text, images
    named = [int(mark) for mark in marks if mark is not None]
    order = list(dict.fromkeys(named)) or list(range(1, len(marks) + 1))
    mixed = 0 < len(named) < len(marks)
    if merged and images and (mixed or sorted(order) != list(range(1, len(images) + 1))):
        return MARK.sub(lambda mark: f"image {mark[1]}" if mark[1] else "image", text), images
    reason = "wrong number of image placeholders"
    if mixed:
        raise BadImageError("the text mixes <image> and numbered placeholders such as <image1>; use one kind", reason)
    if len(order) != len(images):
        found, there = counted(len(order), "image placeholder"), counted(len(images), "image")
        raise BadImageError(f"the text has {found}, the row has {there}; see data.columns.images", reason)
    if max(order) > len(images):
        there = counted(len(images), "image")
        raise BadImageError(f"the text names <image{max(order)}>, the row has {there}", reason)
    shown: set[int] = set()

    def replace(mark: re.Match[str]) -> str:
        number = int(mark[1] or 0)
        if number in shown:
            return f"image {order.index(number) + 1}"
        if number:
            shown.add(number)
        return PLACE

    return MARK.sub(replace, text), tuple(images[number - 1] for number in order)


def parts_of(question: Question) -> list[str | ImageRef]:
    """The question's text and images in the order in which a model sees them.

    Images that the text has no `<image>` for come before it.  Raises BadImageError, which names the question, where
    the text has some, but not as many.

    >>> parts_of(Question("1", "Is <image> a cat?", images=(ImageRef("/a.png"),)))
    ['Is ', ImageRef(path='/a.png'), ' a cat?']
    """
    if not question.images:
        return [question.text]
    pieces = question.text.split(PLACE)
    if len(pieces) == 1:
        return [*question.images, question.text]
    if len(pieces) != len(question.images) + 1:
        found, there = counted(len(pieces) - 1, "image placeholder"), counted(len(question.images), "image")
        message = f"question {question.id!r}: the text has {found}, the question {there}"
        raise BadImageError(message, "wrong number of image placeholders")
    parts: list[str | ImageRef] = [pieces[0]]
    for image, piece in zip(question.images, pieces[1:], strict=True):
        parts += [image, piece]
    return [part for part in parts if part != ""]


def _reference(part: Any, folder: Path | None) -> ImageRef | None:
    """What one entry of a cell names: bytes, or a file by its absolute path; None for nothing."""
    if part is None or (isinstance(part, float) and math.isnan(part)):
        return None
    if isinstance(part, bytes | bytearray | memoryview):
        return ImageRef(data=bytes(part))
    if isinstance(part, str):
        return _named(part, folder)
    if isinstance(part, Mapping) and (part.get("bytes") is not None or part.get("path") is not None):
        data, path = part.get("bytes"), part.get("path")
        if data is None:
            return _reference(str(path), folder)
        if isinstance(data, str):
            data = _decoded(data.partition(";base64,")[2] or data)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise BadImageError("an image's `bytes` are neither bytes nor base64 text", "not an image")
        return ImageRef(str(path) if path is not None else None, bytes(data))
    opened: Any = part
    if hasattr(opened, "getbands"):  # an image that Pillow has already opened
        buffer = io.BytesIO()
        upright_rgb(ImageRef(), opened).save(buffer, "PNG")
        return ImageRef(data=buffer.getvalue())
    raise BadImageError(
        f"an image must be a path, base64 text or {{bytes, path}}, found {type(part).__name__}; "
        "data.columns.images=null reads no images",
        "not an image",
    )


def _named(text: str, folder: Path | None) -> ImageRef | None:
    """The image that a text names: a data URI, base64 text, or a path."""
    text = text.strip()
    if not text:
        return None
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        data = _decoded(body) if comma and head.lower().endswith(";base64") else None
        if data is None:
            raise BadImageError(
                f"image {shortened(text)}: must be data:image/...;base64,... with whole base64", "not an image"
            )
        return ImageRef(data=data)
    if ADDRESS.match(text):
        raise BadImageError(
            f"image {shortened(text)}: is an address, and nothing is downloaded; save the file and give its path",
            "missing image",
        )
    if len(text) >= 40 and BASE64.fullmatch(text):
        data = _decoded(text)
        if data is not None and data.startswith(MAGIC):
            return ImageRef(data=data)
    if folder is None and not os.path.isabs(text):
        raise BadImageError(
            f"image {shortened(text)}: is a file's name, and the rows have no folder; "
            "set data.image_folder to the folder that has it",
            "missing image",
        )
    return ImageRef(path=os.path.abspath((folder or Path()) / text))


def _decoded(text: str) -> bytes | None:
    bare = "".join(text.split())
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
