"""Writes the reference pages that are made from the code: `python -m spinerl.reference [--check]`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

from spinerl import api
from spinerl.config import PROFILES, describe_keys, split_override
from spinerl.methods import LOSSES, METHODS

__all__ = ["api_page", "configuration_page", "main"]

PAGE, API_PAGE, EXAMPLES = Path("docs/configuration.md"), Path("docs/api.md"), Path("examples")


_BY_HAND = "## Starting points for real models\n"


def configuration_page() -> str:
    """docs/configuration.md: every key, every method's row, every bundled model's profile; its last part is written by
    hand and stays."""
    lines = [
        "# Configuration",
        "",
        "Made by `make docs` from `src/spinerl/config/`; `spinerl config --keys` prints the same, `spinerl config",
        "--schema` as a JSON Schema for editors ([commands.md](commands.md#a-recipe-of-ones-own)).",
        "Keys come from a recipe file and from `key=value` overrides; `spinerl config [RECIPE] [KEY=VALUE]...` prints",
        "what they resolve to. Later layers win: defaults, the bundled model's profile, the method's row, the recipe,",
        "the overrides.",
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
    made = "\n".join(lines) + "\n"
    _, heading, text = (PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "").partition(_BY_HAND)
    return f"{made}\n{heading}{text}" if heading else made


def api_page() -> str:
    """docs/api.md: the functions one imports, from their docstrings, and the examples."""
    lines = [
        "# Python",
        "",
        "Made by `make docs` from `src/spinerl/api.py` and `examples/`, whose files `tests/e2e/test_api.py` runs.",
        "`import spinerl` reads no torch; functions that need it do.",
        "",
        inspect.cleandoc(api.__doc__ or "").partition("\n\n")[2],
        "",
        "## Examples",
        "",
    ]
    for file in sorted(EXAMPLES.glob("*.py")):
        lines += [f"`{file}`", "", "```python", file.read_text(encoding="utf-8").strip(), "```", ""]
    lines += ["## Functions", ""]
    for name in ("adapt", "evaluate", "compare", "preflight", "vote", "Run"):
        member = getattr(api, name)
        shown = str(inspect.signature(member)) if inspect.isfunction(member) else ""
        lines += [f"### `{name}`", ""]
        if shown:
            lines += ["```python", f"spinerl.{name}{_plain(shown)}", "```", ""]
        lines += ["```text", inspect.cleandoc(member.__doc__ or ""), "```", ""]
    lines += [
        '`spinerl.load_config(recipe, ["key=value", ...])` gives a `spinerl.Config`; `spinerl.Question` and',
        "`spinerl.Vote` are the records that rewards see ([extending.md](extending.md)).",
    ]
    return "\n".join(lines) + "\n"


def _plain(signature: str) -> str:
    """A signature whose types stand without quotes and modules."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature))


def main() -> None:
    """Write the pages, or with --check fail if one is stale."""
    for page, text in ((PAGE, configuration_page()), (API_PAGE, api_page())):
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif not page.is_file() or page.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{page} is stale: run `make docs`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _flat(tree: dict[str, object], prefix: str = "") -> str:
    parts = []
    for key, value in tree.items():
        parts.append(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else f"`{prefix}{key}={_value(value)}`")
    return " ".join(parts)


def _value(value: object) -> str:
    """A value as a `key=value` override has it: read again, it is the same (an empty text is '', nothing is null)."""
    if value == "":
        return "''"
    plain = isinstance(value, str) and split_override(f"k={value}") == ("k", value)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
