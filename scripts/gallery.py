"""Takes the pictures of docs/gallery.md from a finished run's report: `make gallery`.

    python scripts/gallery.py RUN [--browser chromium] [--out docs/gallery]

For each picture a copy of the report is written with some of its sections only, headless Chromium draws that copy, and
what is empty around them is cut off.  Needs a Chromium or Chrome, 100 or newer.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from spinerl.report import write_report

WIDTH, TALLEST = 1180, 4000  # CSS pixels
PICTURES: dict[str, tuple[tuple[str, ...], str, int]] = {
    "result": (("top", "summary", "h-result"), "", 0),
    "dynamics": (("h-dynamics",), "<h2>Inside the steps</h2>", 1),
    "labels": (("h-labels",), "", 0),
    "tokens": (("h-tokens",), "", 0),
    "responses": (("h-samples",), '<div class="pair">', 2),
}
"""File -> the sections it shows, and before which occurrence of which text they end."""

SECTION = re.compile(r'<(section|header) (?:class="(top|summary)[^"]*"|aria-labelledby="([\w-]+)").*?</\1>', re.DOTALL)


def only(page: str, sections: tuple[str, ...], mark: str = "", count: int = 0) -> str:
    """The report without its other sections, and these up to the `count`-th `mark`."""

    def kept(found: re.Match[str]) -> str:
        if (found[2] or found[3]) not in sections:
            return ""
        parts = found[0].split(mark) if mark else []
        return found[0] if len(parts) <= count else mark.join(parts[:count]) + f"</{found[1]}>"

    return re.sub(r"<footer>.*?</footer>", "", SECTION.sub(kept, page), flags=re.DOTALL)


def draw(page: Path, picture: Path, browser: str, profile: Path) -> None:
    """What a browser shows of a page, into a PNG file."""
    quiet = ("extensions", "gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
    command = [
        browser, "--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars",
        *(f"--disable-{one}" for one in quiet), f"--user-data-dir={profile}", f"--window-size={WIDTH},{TALLEST}",
        f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def cut(picture: Image.Image) -> Image.Image:
    """Without what is empty above and below, in 128 colours."""
    background = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    box = ImageChops.difference(picture, background).getbbox()
    top, bottom = max(0, box[1] - 24), min(picture.height, box[3] + 24)
    return picture.crop((0, top, picture.width, bottom)).quantize(128, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes the pictures of docs/gallery.md from a finished run's report.")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = write_report([args.run], folder / "report.html").read_text(encoding="utf-8")
        for name, shown in PICTURES.items():
            page, shot = folder / f"{name}.html", folder / f"{name}.png"
            page.write_text(only(report, *shown), encoding="utf-8")
            draw(page, shot, args.browser, folder / "profile")
            with Image.open(shot) as drawn:
                cut(drawn.convert("RGB")).save(args.out / f"{name}.png", optimize=True)
            print(args.out / f"{name}.png", (args.out / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
