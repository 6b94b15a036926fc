"""Opening images: what a file's header claims, its pixels, its digest.

Pillow is imported only here, and only when an image is looked at.  Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import struct
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import IO, TYPE_CHECKING, Any

from spinerl.errors import InputError, MissingExtraError, reason_of
from spinerl.types import ImageRef

if TYPE_CHECKING:
    from PIL import Image, ImageFile

__all__ = [
    "MAX_PIXELS",
    "BadImageError",
    "ImageFacts",
    "augmented_image",
    "image_facts",
    "image_key",
    "open_image",
    "shortened",
    "thumbnail",
    "upright_rgb",
]

MAX_PIXELS = 50_000_000
"""Default of data.max_image_pixels."""

PLUGINS = {"PNG": "Png", "JPEG": "Jpeg", "WEBP": "WebP", "GIF": "Gif", "BMP": "Bmp", "TIFF": "Tiff", "PPM": "Ppm"}
"""The kinds of files that are read, with the parts of Pillow that read them.  Others stay out: some run programs."""


_PIXELS_AS_PNG = 10_000  # of photographs, larger ones are several times as large as JPEG


class BadImageError(InputError, ValueError):
    """An image that cannot be used, in one line; `reason` is short, for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageFacts:
    """What an image's header says, and how long the file is."""

    kind: str
    width: int
    height: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.width} x {self.height} pixels, {self.num_bytes:,} bytes"


def image_key(ref: ImageRef) -> str:
    """SHA-256 of the file's bytes, in hex: equal for equal files, wherever they are."""
    with _file(ref) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def image_facts(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Kind, size and length from the header only; BadImageError if that is no image, or too large a one."""
    with _file(ref) as file, _without_warnings():
        kind, image = _start(ref, file, max_pixels)
        return ImageFacts(kind, *image.size, file.seek(0, io.SEEK_END))


def open_image(ref: ImageRef, *, question_id: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole image in RGB, upright.

    The EXIF orientation is applied, what is transparent becomes white, of an animation the first frame is taken,
    16-bit grey is scaled to 8 bits.  Raises BadImageError, in front of it the question's id where one is given.
    """
    try:
        with _file(ref) as file, _without_warnings():
            _, image = _start(ref, file, max_pixels)
            try:
                image.load()
            except Exception as error:  # a decoder's input is anything at all, and so is what it raises
                raise _bad(ref, f"is truncated or corrupt ({reason_of(error, 120)})", "broken image") from None
            return upright_rgb(ref, image)
    except BadImageError as error:
        if question_id is None:
            raise
        raise BadImageError(f"question {question_id!r}: {error}", error.reason) from None


def _file(ref: ImageRef) -> IO[bytes]:
    if ref.data is not None:
        return io.BytesIO(ref.data)
    path = ref.path or ""
    try:
        if os.path.isfile(path):
            return open(path, "rb")
    except OSError as error:
        raise _bad(ref, f"cannot be read ({error.strerror})", "missing image") from None
    if os.path.isdir(path):
        raise _bad(ref, "is a folder, not a file", "missing image")
    where = "relative paths start at the data file's folder, or at data.image_folder"
    raise _bad(ref, f"there is no such file; {where}", "missing image")


def _start(ref: ImageRef, file: IO[bytes], max_pixels: int) -> tuple[str, ImageFile.ImageFile]:
    """The file's kind, and the image with its header read and no pixel; its size is within the limit."""
    registry = _registry()
    prefix = file.read(64)
    if not prefix:
        raise _bad(ref, "is empty", "broken image")
    if prefix.startswith(b"version https://git-lfs"):
        raise _bad(ref, "is a Git LFS pointer and not the image; fetch the files with `git lfs pull`", "missing image")
    for kind in PLUGINS:
        factory, accept = registry[kind]
        if accept is not None and accept(prefix) is not True:
            continue
        _check_size(ref, _early_size(kind, prefix), max_pixels)
        file.seek(0)
        try:
            image = factory(file, "")
        except Exception as error:  # as above: the bytes are anyone's
            raise _bad(ref, f"has a broken {kind} header ({reason_of(error, 120)})", "broken image") from None
        _check_size(ref, image.size, max_pixels)
        return kind, image
    raise _bad(ref, f"is not an image; read are {', '.join(PLUGINS)}", "not an image")


def _registry() -> Mapping[str, Any]:
    """Pillow's readers by kind.  Opened through them, no limit but ours is asked, and no other kind is opened."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("images need Pillow, and it is not installed: pip install pillow") from None
    for plugin in PLUGINS.values():
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return Image.OPEN


def _early_size(kind: str, prefix: bytes) -> tuple[int, int] | None:
    """The size in the first bytes of a PNG or GIF; Pillow takes one without a pixel for no image at all."""
    form, start = {"PNG": (">II", 16), "GIF": ("<HH", 6)}.get(kind, ("", 0))
    if not form or len(prefix) < start + struct.calcsize(form):
        return None
    width, height = struct.unpack_from(form, prefix, start)
    return width, height


def _check_size(ref: ImageRef, size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width * height == 0:
        raise _bad(ref, "has a width or a height of 0", "broken image")
    if width * height > max_pixels:
        claim = f"claims {width} x {height} = {width * height:,} pixels"
        raise _bad(ref, f"{claim}, over data.max_image_pixels={max_pixels}", "oversized image")


def thumbnail(ref: ImageRef, side: int = 320) -> bytes:
    """The image as a small file for showing, no side longer than `side` pixels: PNG where small, else JPEG."""
    picture = open_image(ref, max_pixels=sys.maxsize)
    picture.thumbnail((side, side))
    small = io.BytesIO()
    if picture.width * picture.height <= _PIXELS_AS_PNG:
        picture.save(small, "PNG", optimize=True)
    else:
        picture.save(small, "JPEG", quality=80)
    return small.getvalue()


def augmented_image(ref: ImageRef, random: Random) -> ImageRef:
    """The image a little differently: of each side 90 to 100 % is kept, brightness and contrast change by up to 20 %.

    Nothing is turned or mirrored, which could change a question's answer.  Source: after TTAug (arXiv 2510.03574);
    which changes and how large, ours.

    Args: `random`, gives the numbers: equal ones give an equal image.
    """
    from PIL import ImageEnhance

    picture = open_image(ref, max_pixels=sys.maxsize)
    sides = [max(1, round(side * random.uniform(0.9, 1.0))) for side in picture.size]
    left, top = (random.randint(0, side - kept) for side, kept in zip(picture.size, sides, strict=True))
    picture = picture.crop((left, top, left + sides[0], top + sides[1]))
    picture = ImageEnhance.Brightness(picture).enhance(random.uniform(0.8, 1.2))
    picture = ImageEnhance.Contrast(picture).enhance(random.uniform(0.8, 1.2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return ImageRef(data=file.getvalue())


def upright_rgb(ref: ImageRef, image: Image.Image) -> Image.Image:
    """An opened image as `open_image` gives it."""
    from PIL import Image, ImageOps

    with contextlib.suppress(Exception):  # broken metadata of the picture: the picture as it lies
        ImageOps.exif_transpose(image, in_place=True)
    try:
        if image.mode[0] in "IF":  # 16 or 32 bits of grey, or floats
            image = _eight_bits(image)
        elif image.has_transparency_data:
            paper = Image.new("RGBA", image.size, "white")
            paper.alpha_composite(image.convert("RGBA"))
            image = paper
        result = image.convert("RGB")
    except (ValueError, OSError) as error:
        raise _bad(
            ref, f"has colours that are not read, {image.mode} ({reason_of(error, 120)})", "broken image"
        ) from None
    result.info.clear()
    return result


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its whole range, of more or of floats from the darkest value to the lightest."""
    wide = image if image.mode == "F" else image.convert("I")
    low, high = (float(value) for value in wide.getextrema())  # pyright: ignore[reportArgumentType]
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scale = 255 / (high - low) if high > low else 0.0
    return wide.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _without_warnings() -> warnings.catch_warnings[None]:
    """Pillow warns of much that it then reads; what it cannot read it raises."""
    return warnings.catch_warnings(action="ignore")


def _bad(ref: ImageRef, what: str, reason: str) -> BadImageError:
    name = shortened(ref.path) if ref.path else "in the row"
    return BadImageError(f"image {name}: {what}", reason)


def shortened(text: str) -> str:
    """A text for a message: its beginning where it is long, its escapes where it has control characters."""
    shown = text if len(text) <= 200 else f"{text[:80]}..."
    return shown if shown.isprintable() else repr(shown)
