"""Runs the notebooks as written, each in a kernel and an empty folder of its own: `make test-notebooks`.

With --write, `make notebooks`, their outputs are kept.

    python scripts/notebooks.py [--write] [NOTEBOOK...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def sources_digest(notebook: dict[str, Any]) -> str:
    """Of all cells' text: kept with the outputs, so that a test sees outputs of other cells than those there are."""
    return hashlib.sha256("\0".join("".join(cell["source"]) for cell in notebook["cells"]).encode()).hexdigest()[:16]


def run(file: Path) -> dict[str, Any]:
    """The notebook with new outputs.  Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        client.record_timing, client.coalesce_streams = False, True
        client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})  # no widgets here
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sources": sources_digest(notebook),
    }
    return json.loads(nbformat.writes(notebook))


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the notebooks as written.")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    parser.add_argument("notebooks", type=Path, nargs="*", help="default: all in notebooks/")
    args = parser.parse_args()
    for file in args.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        began = time.monotonic()
        done = run(file)
        if args.write:
            file.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file.name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
