"""Writes the reference pages that are made from the code: `python -m spinerl.reference [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from spinerl.config import PROFILES, describe_keys
from spinerl.methods import LOSSES, METHODS

__all__ = ["configuration_page", "main"]

PAGE = Path("docs/configuration.md")


def configuration_page() -> str:
    """docs/configuration.md: every key, every method's row, every bundled model's profile."""
    lines = [
        "# Configuration",
        "",
        "Made by `make docs` from `src/spinerl/config.py`; `spinerl config --keys` prints the same.",
        "Keys come from a recipe file and from `key=value` words; `spinerl config [RECIPE] [KEY=VALUE]...` prints what",
        "they resolve to. Later layers win: defaults, the bundled model's profile, the method's row, the recipe,",
        "the words.",
        "`model=X` and `data=X` are short for `model.name=X` and `data.name=X`, `loss=X` for a row of Losses below.",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, kind, default, description in describe_keys():
        shown = "null" if default is None else repr(default) if isinstance(default, str) else str(default).lower()
        lines.append(f"| `{key}` | {_cell(kind)} | `{shown}` | {_cell(description)} |")
    for title, table in (("Methods", METHODS), ("Losses", LOSSES)):
        lines += ["", f"## {title}", "", "| name | what it is | source | sets |", "|---|---|---|---|"]
        for name, row in table.items():
            lines.append(f"| `{name}` | {_cell(row.summary)} | {row.source} | {_flat(dict(row.sets))} |")
    lines += ["", "## Profiles of bundled models", "", "| model | sets |", "|---|---|"]
    lines += [f"| `{name}` | {_flat(sets)} |" for name, sets in PROFILES.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the pages, or with --check fail if one is stale."""
    if "--check" not in sys.argv:
        PAGE.write_text(configuration_page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != configuration_page():
        raise SystemExit(f"{PAGE} is stale: run `make docs`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flat(tree: dict[str, object], prefix: str = "") -> str:
    words = []
    for key, value in tree.items():
        words.append(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else f"`{prefix}{key}={value}`")
    return " ".join(words)


if __name__ == "__main__":
    main()
