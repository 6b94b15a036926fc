"""The words that left (CONTRIBUTING.md, "Words") are nowhere in code, tests, pages, recipes and examples."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUFFIXES = {".py", ".c", ".h", ".html", ".js", ".css", ".md", ".yaml", ".ipynb"}
TABLE = "| left | use |"

# Where a word that left may stand, and why.  The start of a path; no words: any.
ALLOWED: dict[str, set[str]] = {
    "tests/test_words.py": set(),  # this list
    "docs/experiments.md": {"products"},  # a file and a key of that day: engine/products.py, optim.fast_products
    "docs/answers.md": {"products"},  # of numbers
    "src/spinerl/answers/refusals.py": {"beside"},  # a list of English words
    "src/spinerl/answers/structure.py": {"angle"},  # LaTeX
    "tests/answers/": {"angle"},
    "src/spinerl/engine/cpu/kernels.py": {"rotate"},  # rotate_half, as transformers has it
    "src/spinerl/bench/": {"slope"},  # of fitted lines; a name in saved files
    "src/spinerl/bridges/verl_export.py": {"ability"},  # a column of verl's
    "src/spinerl/config/layers.py": {"normaliser", "products"},  # old keys
    "src/spinerl/tiny/": {"told"},  # stories are told
    "tests/bench/test_bench_command.py": {"slope"},
    "tests/bridges/test_verl_export.py": {"ability"},
    "tests/data/test_images.py": {"rotate"},  # pictures
    "tests/test_config.py": {"normaliser"},
    "tests/e2e/test_init.py": {"normaliser"},
    "tests/tiny/": {"told"},
    "CHANGELOG.md": {"normaliser"},
    "docs/tiny.md": {"told"},
}


def words_that_left() -> list[str]:
    """Those of the table's first column."""
    rows = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(TABLE)[2].splitlines()[2:]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


def pattern(words: list[str]) -> re.Pattern[str]:
    """Finds any of them as a whole word, in identifiers between underscores and capitals too.

    A space in a phrase stands for a line end too, with the marks of a comment.

    >>> finds = pattern(["by_weight", "lot", "laid out"])
    >>> [match[0] for match in finds.finditer("_lot aLot lots plot; by_weight by weight LAID # out")]
    ['lot', 'Lot', 'by_weight', 'LAID # out']
    """
    found = [re.escape(word).replace(r"\ ", r"[\s#*/-]+") for word in sorted(words, key=len, reverse=True)]
    return re.compile(rf"(?:(?<![^\W_])|(?<=[a-z])(?=[A-Z]))(?i:{'|'.join(found)})(?:(?![^\W_])|(?<=[a-z])(?=[A-Z]))")


def files() -> Iterator[tuple[str, str]]:
    """(path, text) of all that is read by people or machines here, the table left out."""
    folders = [ROOT / name for name in ("src", "tests", "docs", "examples", "configs", "notebooks", "scripts")]
    paths = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in sorted(paths):
        if path.suffix in SUFFIXES and ".egg-info" not in str(path):
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":  # without its outputs, which hold pictures as text
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            yield (
                path.relative_to(ROOT).as_posix(),
                text.partition(TABLE)[0] if path.name == "CONTRIBUTING.md" else text,
            )


def allowed(path: str, word: str) -> bool:
    return any(path.startswith(start) and (not words or word.lower() in words) for start, words in ALLOWED.items())


def test_the_table_is_read():
    assert {"slope", "laid out", "split_word"} <= set(words_that_left())


def test_no_word_that_left_is_back():
    finds = pattern(words_that_left())
    found = [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for path, text in files()
        for match in finds.finditer(text)
        if not allowed(path, match[0])
    ]
    assert not found, "see the table in CONTRIBUTING.md:\n" + "\n".join(found)


def test_no_exception_is_stale():
    finds, seen = pattern(words_that_left()), set()
    for path, text in files():
        words = {match[0].lower() for match in finds.finditer(text)}
        seen |= {(start, word) for start in ALLOWED for word in words if path.startswith(start)}
    for start, words in ALLOWED.items():
        stale = {word for word in words if (start, word) not in seen}
        assert not stale, f"{start} has no {stale}"
