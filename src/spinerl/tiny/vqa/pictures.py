"""The pictures of `tiny-vqa`: scenes of shapes on a 3x3 grid and small bar charts, 48x48 pixels, few colours.

What a picture shows (`Scene`, `Chart`) is apart from how it looks (`Look`: tints, sizes, places, speckles), so
the same content can be drawn plainly or hard to see. A seed fixes every pixel. Nothing here imports torch or
an imaging library.
"""

from __future__ import annotations

import base64
import colorsys
import functools
import struct
import zlib
from dataclasses import dataclass
from random import Random

import numpy as np

SIZE = 48
"""Pixels on a side."""
GRID = 3
"""Cells on a side."""
CELL = SIZE // GRID

HUES = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "pink": 300}
"""The colours by name, as degrees on the colour wheel; 30 degrees off lies half-way to the next."""
COLOURS = tuple(HUES)
SHAPES = ("square", "triangle", "cross", "ring")

TALLEST = 7
"""The height of the highest bar a chart has space for."""
LOW = 2
"""A bar of at most this height is low; what a glance makes of it, see `corpus`."""
UNIT = 6
"""Pixels per unit of a bar's height."""
GROUND = SIZE - 4
"""The row of pixels on which bars stand."""


# ----------------------------------------------------------------------------------------- content
@dataclass(frozen=True)
class Thing:
    """A shape in a cell."""

    shape: str
    colour: str
    small: bool = False

    @property
    def text(self) -> str:
        """The thing in words: "small red ring"."""
        return f"{'small ' if self.small else ''}{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The GRID * GRID cells, row by row from the top left; None is an empty one."""

    cells: tuple[Thing | None, ...]

    @property
    def things(self) -> list[Thing]:
        """The shapes, without the empty cells."""
        return [thing for thing in self.cells if thing is not None]

    def row(self, number: int) -> tuple[Thing | None, ...]:
        """The cells of a row from left to right; rows count from 1."""
        return self.cells[(number - 1) * GRID : number * GRID]

    @property
    def rows(self) -> list[tuple[Thing | None, ...]]:
        """All rows from the top down."""
        return [self.row(number) for number in range(1, GRID + 1)]

    @property
    def key(self) -> str:
        """The same for every scene with the same cells, however drawn."""
        return "; ".join("-" if thing is None else thing.text for thing in self.cells)


@dataclass(frozen=True)
class Chart:
    """Bars from left to right, each a colour and a height; no two of one colour."""

    bars: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """The same for every chart with the same bars, however drawn."""
        return "; ".join(f"{colour} {height}" for colour, height in self.bars)


# -------------------------------------------------------------------------------------------- look
@dataclass(frozen=True)
class Look:
    """How pictures are drawn. Pairs are ranges, both ends included; shares and HSV parts lie in 0 to 1."""

    hue_off: int = 8
    """Each colour is off its hue by up to this many degrees, either way."""
    saturation: tuple[float, float] = (0.85, 1.0)
    brightness: tuple[float, float] = (0.8, 1.0)
    background: tuple[float, float] = (0.92, 1.0)
    """Brightness of the background."""
    tint: float = 0.0
    """Saturation of the background, at most."""
    speckles: tuple[float, float] = (0.0, 0.0)
    """Share of the pixels that are noise."""
    sizes: tuple[int, int] = (12, 14)
    """Pixels across of a shape."""
    small_sizes: tuple[int, int] = (6, 7)
    off_centre: int = 1
    """Shapes lie off the middle of their cells by up to this many pixels, each way."""


SPECKLES = ((40, 40, 40), (128, 128, 128), (235, 235, 235))
INK = (70, 70, 70)
FIRST_SPECKLE = 1 + len(COLOURS)
INK_INDEX = FIRST_SPECKLE + len(SPECKLES)


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture: `indices` (SIZE, SIZE) point into `palette`, rows of red, green, blue; both uint8."""

    indices: np.ndarray
    palette: np.ndarray

    def rgb(self) -> np.ndarray:
        """The colours (SIZE, SIZE, 3), uint8."""
        return self.palette[self.indices]

    def png(self) -> bytes:
        """The picture as a PNG file with a palette, four bits a pixel."""
        packed = self.indices[:, 0::2] << 4 | self.indices[:, 1::2]
        rows = np.concatenate([np.zeros((SIZE, 1), np.uint8), packed], axis=1)  # 0: no filter
        header = struct.pack(">IIBBBBB", SIZE, SIZE, 4, 3, 0, 0, 0)
        chunks = (
            (b"IHDR", header),
            (b"PLTE", self.palette.tobytes()),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )

    def data_url(self) -> str:
        """The PNG file as a `data:image/png;base64,...` address."""
        return "data:image/png;base64," + base64.b64encode(self.png()).decode()


def draw(rng: Random, content: Scene | Chart, look: Look) -> Picture:
    """The content as a picture in this look."""
    indices = np.zeros((SIZE, SIZE), np.uint8)
    if isinstance(content, Scene):
        for place, thing in enumerate(content.cells):
            if thing is not None:
                _draw_thing(rng, indices, place, thing, look)
    else:
        _draw_bars(rng, indices, content, look)
    number = round(rng.uniform(*look.speckles) * SIZE * SIZE)
    if number:
        places = [int(rng.random() * SIZE * SIZE) for _ in range(number)]
        kinds = [FIRST_SPECKLE + rng.getrandbits(8) % len(SPECKLES) for _ in range(number)]
        indices.reshape(-1)[places] = kinds
    return Picture(indices, _palette(rng, look))


def _palette(rng: Random, look: Look) -> np.ndarray:
    colours = [(rng.random(), rng.uniform(0.0, look.tint), rng.uniform(*look.background))]
    for hue in HUES.values():
        off = rng.uniform(-look.hue_off, look.hue_off)
        colours.append(((hue + off) / 360 % 1.0, rng.uniform(*look.saturation), rng.uniform(*look.brightness)))
    rgb = [[round(255 * part) for part in colorsys.hsv_to_rgb(*colour)] for colour in colours]
    return np.array([*rgb, *SPECKLES, INK], np.uint8)


def _draw_thing(rng: Random, indices: np.ndarray, place: int, thing: Thing, look: Look) -> None:
    size = rng.randint(*(look.small_sizes if thing.small else look.sizes))
    corner = []
    for cell in divmod(place, GRID):
        middle = cell * CELL + (CELL - size) // 2 + rng.randint(-look.off_centre, look.off_centre)
        corner.append(min(max(middle, 0), SIZE - size))
    top, left = corner
    patch = indices[top : top + size, left : left + size]
    patch[shape_mask(thing.shape, size)] = 1 + COLOURS.index(thing.colour)


def _draw_bars(rng: Random, indices: np.ndarray, chart: Chart, look: Look) -> None:
    slot = CELL  # a bar to each column of cells
    width = max(4, look.sizes[0])
    shift = rng.randint(-look.off_centre, look.off_centre)
    for number, (colour, height) in enumerate(chart.bars):
        left = min(max(number * slot + (slot - width) // 2 + shift, 0), SIZE - width)
        indices[GROUND - height * UNIT : GROUND, left : left + width] = 1 + COLOURS.index(colour)
    indices[GROUND : GROUND + 1] = INK_INDEX


@functools.cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """The pixels of a shape `size` pixels across, (size, size), True where it is."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.44 * size  # a little inside, lest neighbours touch
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.38 * size) <= 0.14 * size
    if shape == "triangle":
        return np.abs(x) <= (y + size / 2) / 2 + 0.01
    return np.minimum(np.abs(x), np.abs(y)) <= max(1.0, size / 6)
