"""Builds the documentation site, as `make docs` does: `python scripts/build_site.py [--pages-only]`.

The pages in docs/ are written for readers of the repository: their links lead to any of its files.  A generator of
sites sees one folder only.  So the pages are first written again into build/site-pages:

- a link to a page, a notebook or a picture leads to it on the site, one to another file to a page that shows it;
- a notebook becomes a page, its pictures files next to it;
- a block of code that has a file's name (```json questions.jsonl) gets it as its title, and `\\|` inside code in a
  table becomes `|`, which is how the generator's Markdown has both.

A link, an anchor or an entry of the navigation that leads nowhere ends this with exit code 1 and a line for each.  Then
Zensical builds the site from zensical.toml into site/, strictly.  Its pages load nothing from elsewhere, can be opened
as files, search included, and have the lists, tables and blocks that CommonMark has.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "site-pages"
ELSEWHERE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the repository outside docs/ that are pages of the site."""

LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})(.*)$")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml", ".yml": "yaml"}


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it, and as zensical.toml asks of the generator.

    >>> slug("`tiny-vlm`, which sees"), slug("2026-11-22 · speed against TRL")
    ('tiny-vlm-which-sees', '2026-11-22--speed-against-trl')
    """
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line) outside blocks of code."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = FENCE.match(line)
        if mark and (not fence or (mark[2].startswith(fence) and not mark[3].strip())):
            fence = "" if fence else mark[2]
        elif not fence:
            yield number, line


def anchors(text: str) -> set[str]:
    """All that a link into a page may name after `#`."""
    return {slug(line.lstrip("#")) for _, line in prose(text) if re.match(r"#{1,6} ", line)}


def on_site(path: str) -> PurePosixPath:
    """Where a file of the repository is among the site's pages.

    >>> [str(on_site(p)) for p in ("docs/guard.md", "CONTRIBUTING.md", "notebooks/a.ipynb", "src/spinerl/step.py")]
    ['guard.md', 'contributing.md', 'notebooks/a.md', 'files/src/spinerl/step.py.md']
    """
    if path in ELSEWHERE:
        return PurePosixPath(ELSEWHERE[path])
    if path.startswith("docs/"):
        return PurePosixPath(path.removeprefix("docs/"))
    if path.endswith(".ipynb"):
        return PurePosixPath(path).with_suffix(".md")
    return PurePosixPath("files", path + ".md")


def notebook_page(notebook: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with its outputs, and the pictures that it shows: (text, {file name: bytes})."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![What this cell draws]({file})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def shown_file(path: str) -> str:
    """A page that shows a text file."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n~~~~~~ {LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n~~~~~~\n"


def rewritten(text: str, link: Callable[[int, str], str]) -> str:
    """A page in the generator's Markdown; `link(line, target)` gives a target's place on the site."""
    lines = text.splitlines()
    for number, line in prose(text):
        if line.startswith("|"):
            line = re.sub(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", lambda m: m[0].replace("\\|", "|"), line)
        pieces = re.split(r"(`[^`]*`)(?![^\[]*\]\()", line) if "](" in line else [line]
        pieces[::2] = [LINK.sub(lambda m, n=number: f"{m[1]}({link(n, m[2])})", piece) for piece in pieces[::2]]
        lines[number - 1] = "".join(pieces)
    for index, line in enumerate(lines):
        if mark := re.match(r"^(```)(\w+) (\S+)$", line):
            lines[index] = f'{mark[1]}{mark[2]} title="{mark[3]}"'
    return "\n".join(lines) + "\n"


class Stage:
    """The pages being written again, and what is wrong with their links."""

    def __init__(self, out: Path) -> None:
        self.out, self.wrong, self.files = out, [], set[str]()
        named = [*ELSEWHERE, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
        self.texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in named}
        self.pictures: dict[PurePosixPath, bytes] = {}
        for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
            path = str(file.relative_to(ROOT))
            text, pictures = notebook_page(json.loads(file.read_text(encoding="utf-8")), file.stem)
            self.texts[path] = text
            self.pictures |= {on_site(path).parent / name: data for name, data in pictures.items()}

    def link(self, page: str, line: int, target: str) -> str:
        """A link's target on the site."""
        if re.match(r"[a-z]+:", target):
            return target
        path, _, anchor = target.partition("#")
        found = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        own = on_site(page).parent
        if PurePosixPath(own / path) in self.pictures:
            return target
        if not (ROOT / found).is_file() or found.startswith(".."):
            self.wrong.append(f"{page}:{line}: {target} is no file")
            return target
        if anchor and anchor not in anchors(self.texts.get(found, "")):
            self.wrong.append(f"{page}:{line}: {found} has no heading #{anchor}")
        if found not in self.texts and not found.startswith("docs/"):
            self.files.add(found)
        if not path:
            return target
        return os.path.relpath(on_site(found), own) + (f"#{anchor}" if anchor else "")

    def write(self) -> None:
        """Everything into an empty folder."""
        shutil.rmtree(self.out, ignore_errors=True)
        pages = {on_site(path): rewritten(text, partial(self.link, path)) for path, text in self.texts.items()}
        pages |= {on_site(path): shown_file(path) for path in sorted(self.files)}
        files = {place: text.encode() for place, text in pages.items()} | self.pictures
        for file in (ROOT / "docs").rglob("*"):
            if file.is_file() and file.suffix != ".md":
                files[on_site(str(file.relative_to(ROOT)))] = file.read_bytes()
        for place, data in files.items():
            target = self.out / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def listed(entries: list) -> Iterator[str]:
    """Pages in the navigation of zensical.toml."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from listed(value) if isinstance(value, list) else [value]


def stage(out: Path = PAGES) -> list[str]:
    """Write the pages; what is wrong with links and navigation, a line each."""
    work = Stage(out)
    work.write()
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    menu, there = list(listed(project["nav"])), {str(on_site(path)) for path in work.texts}
    return [
        *work.wrong,
        *(f"zensical.toml: the navigation lacks {page}" for page in sorted(there - set(menu))),
        *(f"zensical.toml: {page} is there twice" for page in sorted(set(menu)) if menu.count(page) > 1),
        *(f"zensical.toml: {page} is no page" for page in sorted(set(menu) - there)),
    ]


SHIM = "https://unpkg.com/iframe-worker/shim"
LOADS = re.compile(r'<(?:script|img|iframe|source)[^>]* src="?(?:https?:)?//[^\s>]*|<link[^>]*stylesheet[^>]*//[^>]*')


def localize(site: Path = ROOT / "site") -> list[str]:
    """Let the pages load our copy of the one script that the generator takes from elsewhere; a line for all others."""
    wrong = []
    for page in sorted(site.rglob("*.html")):
        ours = os.path.relpath(site / "assets" / "iframe-worker.js", page.parent)
        text = page.read_text(encoding="utf-8").replace(SHIM, ours)
        page.write_text(text, encoding="utf-8")
        wrong += [f"{page.relative_to(site)} loads {tag}" for tag in LOADS.findall(text)]
    return wrong


COUNTED = ("h2", "h3", "li", "tr", "td", "pre", "img")


def read_otherwise(pages: Path = PAGES, site: Path = ROOT / "site") -> list[str]:
    """Pages in which the generator has other lists, tables or blocks than CommonMark, as shown with the repository."""
    from markdown_it import MarkdownIt

    reader, wrong = MarkdownIt("commonmark").enable("table"), []
    for page in sorted(pages.rglob("*.md")):
        html = site.joinpath(page.relative_to(pages)).with_suffix(".html").read_text(encoding="utf-8")
        ours = re.search(r"<article.*</article>", html, re.DOTALL)
        texts = (reader.render(page.read_text(encoding="utf-8")), ours[0] if ours else "")
        for tag in COUNTED:
            expected, found = (len(re.findall(rf"<{tag}[ >]", text)) for text in texts)
            if expected != found:
                wrong.append(f"{page.relative_to(pages)}: {found} <{tag}> instead of {expected}: blank lines missing?")
    return wrong


def main() -> None:
    wrong = stage()
    if not wrong and "--pages-only" not in sys.argv:
        command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise SystemExit(1)
        wrong = localize() + read_otherwise()
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
