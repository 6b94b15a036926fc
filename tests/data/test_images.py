"""Images in the rows: where they may be, how they are opened, and every refusal."""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import struct
import sys
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from PIL import ImageFile
from PIL.Image import Exif

from spinerl import images, tiny
from spinerl.data import ImageRef, check, load_data, parts_of, preview, resolve
from spinerl.data.images import ImageReader, place_images
from spinerl.data.load import fingerprint
from spinerl.errors import InputError, MissingExtraError
from spinerl.images import BadImageError, image_facts, image_key, open_image
from spinerl.types import Question

RED = (255, 0, 0)


@pytest.fixture
def load(configure):
    def loaded(*overrides):
        return load_data(configure(*overrides).data)[0]

    return loaded


def png_claiming(width, height):
    """The first bytes of a PNG of this size: enough for its header, and no pixel."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(size=(64, 64)):
    """A picture that does not compress, so that half of its file is half of its pixels."""
    state, values = 1, bytearray()
    for _ in range(3 * size[0] * size[1]):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state >> 16 & 255)
    return Picture.frombytes("RGB", size, bytes(values))


# Sources


def test_every_source_gives_the_same_image(load, jsonl, picture, tmp_path):
    data = picture(size=(40, 30))
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "a picture.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    cells = [
        "deep/a picture.png",
        str(path),
        f"data:image/png;base64,{text}",
        f"DATA:image/png;name=x;base64,{text[:40]}\n{text[40:]}",
        text,
        text.rstrip("="),
        {"path": "deep/a picture.png", "bytes": None},
        {"bytes": text, "path": "other.png"},
        ["deep/a picture.png"],
        [None, "", {"path": str(path)}],
    ]
    questions = load(f"data={jsonl({'question': 'q', 'images': cell} for cell in cells)}").questions
    assert len(questions) == len(cells)
    for question in questions:
        (image,) = question.images
        held = Path(image.path).read_bytes() if image.data is None else image.data
        assert (held, open_image(image).size) == (data, (40, 30))
        assert image_key(image) == hashlib.sha256(data).hexdigest()
        assert image.data is not None or os.path.isabs(image.path or "")
    assert questions[0].images == questions[1].images == questions[6].images == (ImageRef(str(path)),)
    assert "bytes" not in repr(questions)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_kinds_of_files_and_their_base64(picture, kind):
    data = picture(kind, (64, 48))
    facts = image_facts(ImageRef(data=data))
    assert (facts.kind, facts.width, facts.height, facts.num_bytes) == (kind, 64, 48, len(data))
    assert open_image(ImageRef(data=data)).mode == "RGB"
    if kind != "PPM":  # its first bytes tell too little
        assert ImageReader().read(base64.b64encode(data).decode()) == (ImageRef(data=data),)


def test_several_images_and_rows_without(load, jsonl, picture, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture(color="red" if name == "a" else "blue"))
    rows = [{"image": ["a.png", "b.png"]}, {"image": None}, {"image": []}, {"image": ""}, {}, {"image": "a.png"}]
    questions = load(f"data={jsonl({'question': 'q', **row} for row in rows)}").questions
    a, b = ImageRef(str(tmp_path / "a.png")), ImageRef(str(tmp_path / "b.png"))
    assert [question.images for question in questions] == [(a, b), (), (), (), (), (a,)]


def test_the_column_is_found_by_name_or_named_or_left_out(load, jsonl, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())
    path = jsonl([{"question": "q", "image": "a.png", "images": "b.png", "extra": {"scan": "a.png"}}])
    for overrides, name in (([], "b"), (["data.columns.images=image"], "a"), (["data.columns.images=extra.scan"], "a")):
        assert [i.path for i in load(f"data={path}", *overrides).questions[0].images] == [str(tmp_path / f"{name}.png")]
    assert load(f"data={path}", "data.columns.images=null").questions[0].images == ()
    with pytest.raises(InputError, match=r"no column 'picture'.*set data\.columns\.images"):
        load(f"data={path}", "data.columns.images=picture")


def test_relative_paths_start_at_the_file_and_are_resolved_when_read(load, jsonl, picture, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture())
    (tmp_path / "elsewhere").mkdir()
    jsonl([{"question": "q", "image": "a.png"}], "set/rows.jsonl")
    monkeypatch.chdir(tmp_path / "elsewhere")
    (image,) = load("data=../set/rows.jsonl").questions[0].images
    monkeypatch.chdir("/")
    assert image.path == str(tmp_path / "set" / "a.png")
    assert open_image(image).getpixel((0, 0)) == RED


def test_a_folder_of_images_of_its_own(load, jsonl, picture, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.png").write_bytes(picture())
    path = jsonl([{"question": "q", "image": "a.png"}])
    with pytest.raises(InputError, match=rf"line 1: image {tmp_path}/a\.png: there is no such file; .*image_folder"):
        load(f"data={path}")
    (image,) = load(f"data={path}", f"data.image_folder={tmp_path / 'scans'}").questions[0].images
    assert image.path == str(tmp_path / "scans" / "a.png")
    with pytest.raises(InputError, match=r"data\.image_folder=nowhere: there is no such folder"):
        load(f"data={path}", "data.image_folder=nowhere")
    assert load(f"data={jsonl([{'question': 'q'}])}", "data.image_folder=nowhere").questions  # nothing to look for


def test_a_definition_says_where_images_lie(load, jsonl, picture, tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.png").write_bytes(picture())
    jsonl([{"question": "q", "scan": "a.png"}])
    (tmp_path / "mine.yaml").write_text("path: rows.jsonl\nimage_folder: scans\ncolumns: {images: scan}")
    monkeypatch.chdir(tmp_path)
    for overrides in ([], ["data.path=rows.jsonl"]):
        assert load("data=mine.yaml", *overrides).questions[0].images[0].path == str(tmp_path / "scans" / "a.png")


def test_parquet_files(load, picture, tmp_path):
    cells = [[{"bytes": picture(), "path": "a.png"}, {"bytes": None, "path": "b.png"}], None]
    (tmp_path / "b.png").write_bytes(picture(color="blue"))
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q", "r"], "images": cells}), tmp_path / "rows.parquet")
    first, second = load(f"data={tmp_path / 'rows.parquet'}").questions
    assert [open_image(image).getpixel((0, 0)) for image in first.images] == [RED, (0, 0, 255)]
    assert second.images == ()
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q"], "image": [picture()]}), tmp_path / "plain.parquet")
    assert open_image(load(f"data={tmp_path / 'plain.parquet'}").questions[0].images[0]).size == (4, 3)


@pytest.mark.parametrize(
    ("feature", "wrap", "column"),
    [
        (Image(), lambda image: image, "image"),
        (List(Image()), lambda image: [image, image], "image"),
        ({"scan": Image(), "note": Value("string")}, lambda image: {"scan": image, "note": "x"}, "image.scan"),
    ],
)
def test_folders_of_datasets_are_not_decoded_in_passing(load, picture, tmp_path, feature, wrap, column):
    folder = tmp_path / "set"
    folder.mkdir()
    row = {"question": "q", "image": wrap({"bytes": picture(size=(9, 7)), "path": "x.png"})}
    features = Features({"question": Value("string"), "image": feature})
    Dataset.from_list([row], features=features).to_parquet(folder / "test.parquet")
    found = load(f"data={folder}", f"data.columns.images={column}").questions[0].images
    assert {image.data for image in found} == {picture(size=(9, 7))}


def test_a_folder_of_pictures_with_their_questions(load, picture, tmp_path):
    folder = tmp_path / "set" / "test"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(picture())
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "question": "What is it?"}))
    (question,) = load(f"data={tmp_path / 'set'}").questions
    assert (question.text, image_facts(question.images[0]).width) == ("What is it?", 4)


def test_rows_of_a_json_folder_name_files_in_it(load, jsonl, picture, tmp_path):
    (tmp_path / "set" / "scans").mkdir(parents=True)
    (tmp_path / "set" / "scans" / "a.png").write_bytes(picture())
    jsonl([{"question": "q", "image": "scans/a.png"}], "set/test.jsonl")
    assert open_image(load(f"data={tmp_path / 'set'}").questions[0].images[0]).size == (4, 3)


def test_an_image_that_is_open_already():
    for mode, color in (("RGB", "red"), ("CMYK", (0, 255, 255, 0)), ("RGBA", (255, 0, 0, 255))):
        (image,) = ImageReader().read(Picture.new(mode, (5, 4), color))
        assert open_image(image).getpixel((4, 3)) == RED


# Opening


@pytest.mark.parametrize(
    ("mode", "color", "kind", "pixel"),
    [
        ("RGB", RED, "PNG", RED),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("LA", (0, 255), "PNG", (0, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), "WEBP", RED),
        ("RGBA", (255, 0, 0, 51), "PNG", (255, 204, 204)),  # a fifth of red, the rest of the paper's white
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 100, "PNG", (100, 100, 100)),
        ("I;16", 0, "TIFF", (0, 0, 0)),
        ("I", 257 * 100, "TIFF", (100, 100, 100)),
        ("CMYK", (0, 255, 255, 0), "TIFF", RED),
        ("F", 0.5, "TIFF", (0, 0, 0)),  # one value has no range
    ],
)
def test_every_colour_becomes_rgb(mode, color, kind, pixel):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = open_image(ImageRef(data=saved(Picture.new(mode, (3, 2), color), kind, **options)))
    assert (image.mode, image.size, image.getpixel((1, 1))) == ("RGB", (3, 2), pixel)
    assert not isinstance(image, ImageFile.ImageFile)  # nothing of the file is held


def test_values_beyond_16_bits_go_from_the_darkest_to_the_lightest():
    for mode, values in (("F", [-1.0, 0.0, 1.0]), ("I", [-70000, 0, 70000])):
        image = Picture.new(mode, (3, 1))
        image.putdata(values)
        opened = open_image(ImageRef(data=saved(image, "TIFF")))
        assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_palettes_and_a_transparent_colour():
    image = Picture.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    for options, pixels in (({}, [RED, (0, 0, 255)]), ({"transparency": 1}, [RED, (255, 255, 255)])):
        opened = open_image(ImageRef(data=saved(image, **options)))
        assert [opened.getpixel((x, 0)) for x in range(2)] == pixels


def test_the_first_frame_of_an_animation():
    frames = [Picture.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert open_image(ImageRef(data=data)).getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """Whatever way the file is stored, the picture is 3 wide and 2 high with its red pixel in the top left."""
    upright = Picture.new("RGB", (3, 2), "blue")
    upright.putpixel((0, 0), RED)
    stored = {
        1: None,
        2: Picture.Transpose.FLIP_LEFT_RIGHT,
        3: Picture.Transpose.ROTATE_180,
        4: Picture.Transpose.FLIP_TOP_BOTTOM,
        5: Picture.Transpose.TRANSPOSE,
        6: Picture.Transpose.ROTATE_90,  # the inverse of what orientation 6 asks of a viewer
        7: Picture.Transpose.TRANSVERSE,
        8: Picture.Transpose.ROTATE_270,
    }[orientation]
    exif = Exif()
    exif[0x0112] = orientation
    data = saved(upright if stored is None else upright.transpose(stored), exif=exif)
    opened = open_image(ImageRef(data=data))
    assert (opened.size, opened.getpixel((0, 0)), opened.getpixel((2, 1))) == ((3, 2), RED, (0, 0, 255))
    assert not opened.info
    assert not opened.getexif()


def test_a_broken_exif_note_leaves_the_picture_as_it_lies(picture):
    data = picture("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(ImageRef(data=data)).size == (4, 3)


# Refusals


def refusal(call, *args, **options):
    with pytest.raises(BadImageError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError | InputError)
    assert caught.value.exit_code == 2
    return str(caught.value), caught.value.reason


@pytest.mark.parametrize(
    ("data", "message", "reason"),
    [
        (b"", "is empty", "broken image"),
        (b"hello, I am a text", "is not an image; read are PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "is not an image", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer and not the image", "missing image"),
        (png_claiming(0, 5), "has a width or a height of 0", "broken image"),
        (b"GIF89a" + struct.pack("<HH", 7, 0) + bytes(9), "has a width or a height of 0", "broken image"),
        (b"\x89PNG\r\n\x1a\n", "has a broken PNG header", "broken image"),
        (b"\xff\xd8\xff\xe0 a jpeg", "has a broken JPEG header", "broken image"),
        (
            png_claiming(60000, 60000),
            "claims 60000 x 60000 = 3,600,000,000 pixels, over data.max_image_pixels=50000000",
            "oversized image",
        ),
    ],
)
def test_headers_that_are_refused(data, message, reason, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for ref, name in ((ImageRef(data=data), "in the row"), (ImageRef(str(path)), str(path))):
        for call in (image_facts, open_image):
            said, why = refusal(call, ref)
            assert said.startswith(f"image {name}: {message}")
            assert why == reason


def test_the_limit_can_be_moved(picture):
    image = ImageRef(data=picture(size=(10, 10)))
    assert image_facts(image, max_pixels=100).width == 10
    assert "= 100 pixels, over data.max_image_pixels=99" in refusal(image_facts, image, max_pixels=99)[0]
    large = ImageRef(data=png_claiming(60000, 60000) + bytes(4) + b"IDAT")  # far over Pillow's own limit
    assert image_facts(large, max_pixels=10**10).height == 60000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files(kind):
    data = saved(noise(), kind)
    message, reason = refusal(open_image, ImageRef(data=data[: len(data) // 2]), question_id="7")
    assert message.startswith("question '7': image in the row: ")
    assert "truncated or corrupt" in message or f"broken {kind} header" in message
    assert reason == "broken image"
    if kind in ("PNG", "JPEG"):
        assert image_facts(ImageRef(data=data[: len(data) // 2])).width == 64  # its header is whole


def test_any_bytes_open_or_are_refused(picture):
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = picture(kind, (16, 16))
        for place in range(0, len(data), max(1, len(data) // 60)):
            for change in (0x01, 0xFF):
                broken = data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
                with contextlib.suppress(BadImageError):
                    assert open_image(ImageRef(data=broken), max_pixels=10**6).mode == "RGB"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("https://example.org/a.png", "image https://example.org/a.png: is an address, and nothing is downloaded"),
        ("s3://bucket/a.png", "is an address, and nothing is downloaded; save the file and give its path"),
        ({"path": "hf://datasets/a/b.png", "bytes": None}, "is an address"),
        ("data:image/png;base64,####", "must be data:image/...;base64,... with whole base64"),
        ("data:image/svg+xml,%3Csvg", "must be data:image/...;base64,... with whole base64"),
        ("data:text/plain;base64,aGVsbG8gd29ybGQ=", "image in the row: is not an image"),
        ({"bytes": "gone.png"}, "an image's `bytes` are neither bytes nor base64 text"),
        (3, "an image must be a path, base64 text or {bytes, path}, found int; data.columns.images=null reads no"),
        ({"url": "x"}, "an image must be a path, base64 text or {bytes, path}, found dict"),
        ("gone.png", "/gone.png: there is no such file; relative paths start at the data file's folder"),
        ("A" * 5000, "there is no such file"),
        ("a\0b", "there is no such file"),
        (".", "is a folder, not a file"),
        (["gone.png", 3], "/gone.png: there is no such file; relative paths start at the data file's folder, or at "),
    ],
)
def test_cells_that_are_refused(load, jsonl, cell, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(f"data={jsonl([{'question': 'q', 'image': cell}])}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert ", line 1: " in str(caught.value)


def test_colours_that_are_not_read(picture, monkeypatch):
    def refuse(*_):
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Picture.Image, "convert", refuse)
    message = refusal(open_image, ImageRef(data=picture()))[0]
    assert message == "image in the row: has colours that are not read, RGB (conversion not supported)"


def test_a_file_that_may_not_be_read(picture, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", refuse, raising=False)
    message = refusal(image_key, ImageRef(str(tmp_path / "a.png")))[0]
    assert message == f"image {tmp_path / 'a.png'}: cannot be read (Permission denied)"


def test_without_pillow_only_images_are_refused(load, jsonl, picture, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture())
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert load(f"data={jsonl([{'question': 'q'}])}").questions
    with pytest.raises(MissingExtraError, match="images need Pillow, and it is not installed: pip install pillow"):
        load(f"data={jsonl([{'question': 'q', 'image': 'a.png'}])}", "data.on_bad_row=skip")


def test_a_name_without_a_folder():
    assert "set data.image_folder" in refusal(ImageReader().read, "a.png")[0]


def test_all_that_is_wrong_with_a_row_is_said_at_once():
    message, reason = refusal(ImageReader().read, ["http://a/b.png", 3, b""])
    assert len(message.split("; ")) > 3
    assert ("is an address" in message, "found int" in message, "is empty" in message) == (True, True, True)
    assert reason == "missing image"


# Placeholders


@pytest.mark.parametrize(
    ("text", "count", "placed", "order"),
    [
        ("What is it?", 2, "What is it?", [1, 2]),
        ("<image>What is it?", 1, "<image>What is it?", [1]),
        ("<image> or <image>?", 2, "<image> or <image>?", [1, 2]),
        ("<image1> or <image 2>?", 2, "<image> or <image>?", [1, 2]),
        ("<image2> or <image1>?", 2, "<image> or <image>?", [2, 1]),
        ("<image1> or <image2>? <image1>!", 2, "<image> or <image>? image 1!", [1, 2]),
        ("<image2> or <image1>? <image2>!", 2, "<image> or <image>? image 1!", [2, 1]),
        ("<image0> <images> <Image1> <image_1>", 1, "<image0> <images> <Image1> <image_1>", [1]),
    ],
)
def test_placeholders(text, count, placed, order):
    given = tuple(ImageRef(f"/{n}") for n in range(1, count + 1))
    wanted = (placed, tuple(ImageRef(f"/{n}") for n in order))
    assert place_images(text, given) == place_images(text, given, merged=True) == wanted


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("<image><image>", 3, "the text has 2 image placeholders, the row has 3 images"),
        ("<image>", 0, "the text has 1 image placeholder, the row has 0 images"),
        ("<image1> <image1>", 2, "the text has 1 image placeholder, the row has 2 images"),
        ("<image1> <image3>", 2, "the text names <image3>, the row has 2 images"),
        ("<image> <image1>", 2, "the text mixes <image> and numbered placeholders"),
    ],
)
def test_wrong_numbers_of_placeholders(load, jsonl, picture, text, count, message):
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    rows = [{"question": "ok", "images": uri}, {"question": text, "images": [uri] * count}]
    with pytest.raises(InputError, match=re.escape(f"line 2: {message}")):
        load(f"data={jsonl(rows)}")


def test_one_picture_of_several_parts():
    image = (ImageRef("/a"),)
    assert place_images("<image1> to <image7>, <image>", image, merged=True) == ("image 1 to image 7, image", image)
    assert refusal(place_images, "<image1>", (), merged=True)[0].endswith(
        "the row has 0 images; see data.columns.images"
    )


def test_without_a_column_of_images_the_text_stays(load, jsonl):
    (question,) = load(f"data={jsonl([{'question': 'What does <image> mean in <image1>?'}])}").questions
    assert question.text == "What does <image> mean in <image1>?"
    assert parts_of(question) == [question.text]


def test_placeholders_in_options_count(load, jsonl, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())
    row = {"question": "Which?", "options": ["<image2>", "<image1>"], "images": ["a.png", "b.png"], "answer": "A"}
    (question,) = load(f"data={jsonl([row])}", "data.columns.choices=options").questions
    assert parts_of(question) == [
        "Which?\nA. ",
        ImageRef(str(tmp_path / "b.png")),
        "\nB. ",
        ImageRef(str(tmp_path / "a.png")),
    ]


def test_parts_of_a_question():
    a, b = ImageRef("/a"), ImageRef("/b")
    assert parts_of(Question("1", "text")) == ["text"]
    assert parts_of(Question("1", "text", images=(a, b))) == [a, b, "text"]
    assert parts_of(Question("1", "<image><image>text", images=(a, b))) == [a, b, "text"]
    assert parts_of(Question("1", "x<image>y<image>", images=(a, b))) == ["x", a, "y", b]
    message, _ = refusal(parts_of, Question("1", "x<image>", images=(a, b)))
    assert message == "question '1': the text has 1 image placeholder, the question 2 images"


# Loading, checking, showing


@pytest.fixture
def mixed(jsonl, tmp_path):
    """A file of nine rows, two of them sound."""
    whole = saved(noise())
    (tmp_path / "whole.png").write_bytes(whole)
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "huge.png").write_bytes(png_claiming(60000, 60000))
    rows = [
        {"id": "a", "question": "q", "image": "whole.png"},
        {"id": "b", "question": "q", "image": "gone.png"},
        {"id": "c", "question": "q", "image": "half.png"},
        {"id": "d", "question": "q", "image": ["huge.png", "gone.png"]},
        {"id": "a", "question": "q"},
        "{oops}",
        {"id": "e", "question": ["q"]},
        {"id": "f", "question": "<image> <image>", "image": "whole.png"},
        {"id": "g", "question": "q"},
    ]
    return jsonl(rows)


def test_a_load_stops_at_a_bad_header_and_not_for_a_truncated_file(load, mixed, tmp_path):
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: image {tmp_path}/gone\.png: there is no such file"):
        load(f"data={mixed}")
    (tmp_path / "gone.png").write_bytes((tmp_path / "whole.png").read_bytes())
    with pytest.raises(InputError, match=r"rows\.jsonl, line 4: image .*huge\.png: claims 60000 x 60000"):
        load(f"data={mixed}")
    assert len(load(f"data={mixed}", "data.max_questions=3").questions) == 3  # the third's pixels are not looked at


def test_bad_rows_are_skipped_with_a_count(load, mixed):
    questions = load(f"data={mixed}", "data.on_bad_row=skip")
    assert [question.id for question in questions.questions] == ["a", "g"]
    assert dict(questions.skipped) == {
        "missing image": 1,
        "broken image": 1,
        "oversized image": 1,
        "repeated id": 1,
        "unreadable row": 1,
        "bad cell": 1,
        "wrong number of image placeholders": 1,
    }


def test_when_every_row_is_bad_the_first_fault_is_said(load, jsonl):
    path = jsonl([{"question": ["a"]}, {"question": ["b"]}])
    with pytest.raises(InputError, match=r"no question \(2 rows: bad cell\); .*; the first fault: line 1: column"):
        load(f"data={path}", "data.on_bad_row=skip")


def test_check_decodes_every_image_and_lists_every_fault(configure, mixed):
    report = check(configure(f"data={mixed}"))
    assert not report.ok
    assert [(f.severity, f.where) for f in report.findings] == [("error", f"line {n}") for n in (2, 3, 4, 5, 6, 7, 8)]
    assert "half.png: is truncated or corrupt" in report.lines()[2]
    assert "claims 60000" in report.lines()[3]
    assert "gone.png" in report.lines()[3]
    report = check(configure(f"data={mixed}", "data.on_bad_row=skip"))
    assert report.ok
    assert {f.severity for f in report.findings} == {"warning"}
    assert report.num_questions == 2
    assert all(line.endswith(": left out") for line in report.lines()[1:])


def test_an_image_that_is_a_line_is_a_warning(configure, jsonl, picture, tmp_path):
    for name, size in (("line", (3000, 1)), ("long", (200, 1)), ("high", (2, 402))):
        (tmp_path / f"{name}.png").write_bytes(picture("PNG", size))
    rows = [{"question": name, "images": [f"{name}.png"]} for name in ("line", "long", "high")]
    report = check(configure(f"data={jsonl(rows)}"))
    assert report.ok
    assert [(f.severity, f.where, f.what.partition(":")[0]) for f in report.findings] == [
        ("warning", "line 1", "image 1 is 3000 x 1"),
        ("warning", "line 3", "image 1 is 2 x 402"),
    ]


def test_preview_shows_where_images_stand(configure, jsonl, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    rows = [
        {"question": "What is it?", "images": ["a.png", "a.png"]},
        {"question": "Is <image2> more than <image1>?", "images": ["a.png", "a.png"]},
    ]
    shown = preview(configure(f"data={jsonl(rows)}", "prompt.instruction=''"))
    assert [row.text for row in shown] == [
        "Question: <image><image>What is it?\n\nAnswer:",
        "Question: Is <image> more than <image>?\n\nAnswer:",
    ]


def test_preview_has_a_line_per_image(configure, jsonl, picture, tmp_path):
    (tmp_path / "a.jpg").write_bytes(picture("JPEG", (30, 20)))
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    (row,) = preview(configure(f"data={jsonl([{'question': 'q', 'images': ['a.jpg', uri]}])}"), n=1)
    size = len(picture("JPEG", (30, 20)))
    assert row.images == (
        f"image 1: {tmp_path / 'a.jpg'}: JPEG, 30 x 20 pixels, {size:,} bytes",
        f"image 2: in the row: PNG, 4 x 3 pixels, {len(picture())} bytes",
    )


def test_bundled_questions_about_images(load, configure, jsonl, picture, monkeypatch):
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    rows = [
        {"id": "1", "question": "How many?", "images": [uri]},
        {"id": "2", "question": "Which is there most of?", "images": [uri], "choices": ["circles", "squares"]},
    ]
    files = {"plain": jsonl(rows[:1], "plain.jsonl"), "mixed": jsonl(rows, "mixed.jsonl")}
    gold = jsonl([{"id": "1", "answer": "4"}, {"id": "2", "answer": "B"}], "gold.jsonl")
    monkeypatch.setattr(tiny, "suite_path", lambda name, family: Path(files[name]) if family == "tiny-vqa" else None)
    monkeypatch.setattr(tiny, "gold_path", lambda name, family: Path(gold) if family == "tiny-vqa" else name)
    questions, answers = load_data(configure("data=tiny-vqa/mixed").data)
    first, second = questions.questions
    assert (questions.source, dict(answers)) == ("tiny-vqa/mixed", {"1": "4", "2": "B"})
    assert (first.answer_kind, second.answer_kind, second.choices) == ("text", "choice", ("circles", "squares"))
    assert first.images == second.images
    assert first.images[0] is second.images[0]  # held once
    config = resolve(configure("data=tiny-vqa/plain"))
    assert (config.answer.kind, config.data.columns.choices) == ("text", None)
    assert [question.id for question in load("data=tiny-vqa/plain").questions] == ["1"]
    assert check(configure("data=tiny-vqa/mixed")).ok


@pytest.mark.parametrize("suite", tiny.VQA_SUITES)
def test_every_bundled_suite_about_images_loads(configure, suite):
    if not tiny.suite_path(suite, "tiny-vqa").is_file():
        pytest.skip("needs the bundled questions about images")
    questions, gold = load_data(configure(f"data=tiny-vqa/{suite}").data)
    assert [question.id for question in questions.questions] == list(gold)
    assert {question.answer_kind for question in questions.questions} == {"text", "choice"}
    assert check(configure(f"data=tiny-vqa/{suite}")).lines()[1:] == []


def test_unknown_suites_about_images_are_refused(load):
    with pytest.raises(InputError, match="unknown suite 'nothing': choose one of in-domain, shift-dev"):
        load("data=tiny-vqa/nothing")


def test_fingerprints_follow_the_files_bytes(load, jsonl, picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    uri = "data:image/png;base64," + base64.b64encode(picture()).decode()
    by_path = load(f"data={jsonl([{'question': 'q', 'image': 'a.png'}])}").fingerprint
    assert load(f"data={jsonl([{'question': 'q', 'image': uri}])}").fingerprint == by_path
    without = load(f"data={jsonl([{'question': 'q'}])}").fingerprint
    (tmp_path / "a.png").write_bytes(picture(color="blue"))
    other = load(f"data={jsonl([{'question': 'q', 'image': 'a.png'}])}").fingerprint
    assert len({by_path, without, other}) == 3
    # Questions without images keep the fingerprints that earlier runs have written down.
    assert fingerprint([Question("1", "a")]) == hashlib.sha256(b'["1", "a"]\n').hexdigest()
