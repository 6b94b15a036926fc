"""The compiled loops under AddressSanitizer and UndefinedBehaviorSanitizer, in child processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
CHECKS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
FLAGS = f"-O1 -g -fno-omit-frame-pointer {CHECKS}"
LOADED = "import torch\nfrom spinerl.engine.cpu.calls import addresses, call\nfrom spinerl.engine.cpu import library\n"
LOADED += "assert library.library() is not None, library.library_error()\nprint('loaded', flush=True)\n"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Runs Python on words in a child whose loops are checked; returns its exit code and all that it said."""
    root = tmp_path_factory.mktemp("sanitized")
    preloaded = [runtime(name) for name in ("libasan.so", "libstdc++.so.6")]  # its throw is looked up at the start
    if COMPILER is None or not all(preloaded) or not compiles(root):
        pytest.skip("the C compiler has no sanitizers")
    environment = {
        **os.environ,
        "CC": COMPILER,
        "SPINERL_NATIVE_FLAGS": FLAGS,
        "XDG_CACHE_HOME": str(root / "cache"),
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT / "src"),
    }

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
        )
        return done.returncode, done.stdout + done.stderr

    return run


def runtime(name: str) -> str:
    """Where the compiler has this library; empty where it has none."""
    if COMPILER is None:
        return ""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if os.path.isabs(found) else ""


def compiles(folder: Path) -> bool:
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    command = [str(COMPILER), *CHECKS.split(), "-o", str(folder / "nothing"), str(folder / "nothing.c")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_tests_of_all_loops_pass(sanitized):
    """All kernels against their formulas, and a rollout through the whole decoder."""
    cases = (
        "(test_kernels and this and not other and not model)",
        "test_threads or compiled_one or unlike_lengths or continue_nothing",
        "(change_no_sample and once and qwen3)",
    )
    code, said = sanitized(
        *("-m", "pytest", "-q", "-s", "-x", "-rs", "-p", "no:cacheprovider", "-o", "addopts="),
        *("tests/engine/test_kernels.py", "tests/engine/test_extend_attention.py", "-k", " or ".join(cases)),
    )
    assert code == 0, said[-6000:]
    assert re.search(r"\b\d{3} passed", said)
    skipped = re.findall("^SKIPPED.*", said, re.MULTILINE)
    assert all("needs a CPU with AMX or AVX-512 BF16" in line for line in skipped), skipped


@pytest.mark.slow
def test_a_write_out_of_bounds_is_found(sanitized):
    """Two rows into memory for one."""
    code, said = sanitized(
        "-c",
        LOADED + "two, one, index = torch.ones(2, 16), torch.ones(1, 16), torch.zeros(2, dtype=torch.int64)\n"
        "call('add_indexed', 2, 16, *addresses(index, two, two, two, one))\n",
    )
    assert "loaded" in said, said[-6000:]
    assert code != 0
    assert "AddressSanitizer: heap-buffer-overflow" in said
    assert "add_indexed" in said


@pytest.mark.slow
def test_undefined_behavior_is_found(sanitized):
    """A number of numbers that does not fit."""
    code, said = sanitized("-c", LOADED + "call('rms_norm_forward', 2**62, 4, *[None] * 4, 0.0, None, None)\n")
    assert "loaded" in said, said[-6000:]
    assert code != 0
    assert "signed integer overflow" in said
