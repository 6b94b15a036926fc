"""The wheel holds all that a run needs, from any folder, and is under 12 MB."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_wheel_runs_from_any_folder(tmp_path):
    sources = tmp_path / "sources"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.startswith(("src/", "pyproject", "README", "LICENSE")) and (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", sources],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 12_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    overrides = [
        "steps=1",
        "data.max_questions=2",
        "questions_per_step=2",
        "group_size=2",
        "threads=1",
        "eval.samples=0",
    ]
    code = (
        "import spinerl, sys; from spinerl.cli import main; assert 'installed' in spinerl.__file__; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "adapt", *overrides],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = elsewhere / "runs" / "spine-tiny-reasoner-tiny-shift-a-seed0"
    assert (run / "report.html").is_file()
    assert (run / "model" / "model.safetensors").is_file()
