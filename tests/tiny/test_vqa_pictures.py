"""Pictures show what their content says, whatever the look, and are stored without loss."""

from __future__ import annotations

import base64
import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from spinerl.tiny.vqa.corpus import CORPUS_KINDS, draw_chart, draw_scene
from spinerl.tiny.vqa.pictures import (
    CELL,
    COLOURS,
    GRID,
    GROUND,
    INK_INDEX,
    SHAPES,
    SIZE,
    UNIT,
    Chart,
    Look,
    Scene,
    Thing,
    draw,
    shape_mask,
)
from spinerl.tiny.vqa.suite import SHIFTS

PLAIN = Look(hue_off=0, saturation=(1, 1), brightness=(1, 1), background=(1, 1), sizes=(12, 12), off_centre=0)
NONE = [None] * 9


def test_a_plain_scene_by_hand() -> None:
    # A red square in row 1, column 2, 12 pixels across less one on each side, starts 16 + 3 pixels from the left and
    # 3 from the top; a small blue cross in row 3, column 3 has its middle at (40, 40).
    cells = [*NONE]
    cells[1], cells[8] = Thing("square", "red"), Thing("cross", "blue", small=True)
    rgb = draw(Random(0), Scene(tuple(cells)), PLAIN).rgb()
    assert rgb.shape == (SIZE, SIZE, 3)
    assert rgb[8, 24].tolist() == [255, 0, 0]
    assert rgb[40, 40].tolist() == [0, 0, 255]
    is_red, is_blue = (rgb == [255, 0, 0]).all(-1), (rgb == [0, 0, 255]).all(-1)
    rows, columns = np.nonzero(is_red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 12, 19, 28)
    assert is_red.sum() == 10 * 10
    assert is_blue.any(0).sum() in (6, 7)
    assert (rgb == 255).all(-1).sum() == SIZE * SIZE - is_red.sum() - is_blue.sum()


def test_a_plain_chart_by_hand() -> None:
    # Each bar stands in a column of cells; a unit is 6 pixels, so heights 5 and 1 reach up 30 and 6 from the ground.
    rgb = draw(Random(0), Chart((("green", 5), ("pink", 1))), PLAIN).rgb()
    green, pink = (rgb == [0, 255, 0]).all(-1), (rgb == [255, 0, 255]).all(-1)
    assert green.any(1).sum() == 30
    assert pink.any(1).sum() == 6
    assert np.nonzero(green)[1].max() < CELL <= np.nonzero(pink)[1].min()
    assert np.nonzero(pink)[1].max() < 2 * CELL
    assert np.nonzero(green)[0].max() == np.nonzero(pink)[0].max() == GROUND - 1


def test_shapes_differ() -> None:
    # 12 across: a square fills 10 * 10 pixels, a triangle half of 144, a cross two bars of 12 by 4, and a ring, its
    # middle line 4.56 from the centre and 3.36 wide, about 2 * pi * 4.56 * 3.36 = 96.
    filled = {shape: int(shape_mask(shape, 12).sum()) for shape in SHAPES}
    assert filled["square"] == 100
    assert 60 <= filled["triangle"] <= 84
    assert filled["cross"] == 2 * 12 * 4 - 16
    assert 85 <= filled["ring"] <= 107
    assert not shape_mask("ring", 12)[5:7, 5:7].any()
    assert all(shape_mask(shape, 5).any(0).all() for shape in SHAPES)


@pytest.mark.parametrize("kind", [kind for kind, _ in CORPUS_KINDS] + list(SHIFTS.values()))
def test_every_cell_shows_its_thing(kind) -> None:
    rng = Random(4)
    for _ in range(50):
        scene = draw_scene(rng, kind)
        assert kind.things[0] <= len(scene.things) <= kind.things[1]
        picture = draw(rng, scene, kind.look)
        assert len(picture.palette) <= 16
        for place, thing in enumerate(scene.cells):
            row, column = divmod(place, GRID)
            cell = picture.indices[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            shown = np.bincount(cell.ravel(), minlength=INK_INDEX + 1)[1 : 1 + len(COLOURS)]
            if thing is not None:
                assert shown[COLOURS.index(thing.colour)] >= (5 if thing.small else 20)
            elif kind.look.off_centre == 1:  # else a neighbour may reach in
                assert shown.sum() == 0
        chart = draw_chart(rng, kind)
        indices = draw(rng, chart, kind.look).indices
        for colour, height in chart.bars:
            rows = (indices == 1 + COLOURS.index(colour)).any(1).sum()
            assert rows == height * UNIT


def test_png_holds_the_very_pixels() -> None:
    rng = Random(5)
    picture = draw(rng, draw_scene(rng, SHIFTS["a"]), SHIFTS["a"].look)
    head, _, body = picture.data_url().partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert image.size == (SIZE, SIZE)
    assert np.array_equal(np.asarray(image.convert("RGB")), picture.rgb())


def test_the_same_seed_gives_the_same_picture() -> None:
    scene = draw_scene(Random(6), SHIFTS["b"])
    one, two, other = (draw(Random(seed), scene, SHIFTS["b"].look).png() for seed in (1, 1, 2))
    assert one == two != other
