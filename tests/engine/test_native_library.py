"""How the compiled loops are compiled, kept and loaded, and what can go wrong: with real files and real compilers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from spinerl.doctor import diagnose
from spinerl.engine.cpu import bindings, kernels
from spinerl.engine.cpu import library as loader

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="compiled loops need a C compiler")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def environment(patch: pytest.MonkeyPatch, cache: Path, compiler: Path) -> None:
    patch.setenv("CC", str(compiler))
    patch.setenv("XDG_CACHE_HOME", str(cache))
    patch.setenv("SPINERL_NATIVE_FLAGS", "-O0")  # compiles in a few seconds


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """A folder with a compiler that counts its calls, and the cache that a first use leaves."""
    root = tmp_path_factory.mktemp("first-use")
    script(root / "counting-cc", f"echo called >> {root / 'calls'}", f'exec {COMPILER} "$@"')
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, root / "cache", root / "counting-cc")
        found, error = loader.load_library()
    assert error is None
    assert computes(found)
    return root


@pytest.fixture
def cached(first_use, tmp_path, monkeypatch):
    """The library's file in a copy of that cache, which the next use will look into."""
    shutil.copytree(first_use / "cache", tmp_path / "cache")
    environment(monkeypatch, tmp_path / "cache", first_use / "counting-cc")
    (first_use / "calls").write_text("")
    (file,) = (tmp_path / "cache" / "spinerl" / "native").glob("*.so")
    return file


def num_calls(first_use: Path) -> int:
    return len((first_use / "calls").read_text().splitlines())


def computes(found: bindings.Library | None) -> bool:
    with loader.library_override(found):
        ones = torch.ones(2, 16)
        return torch.allclose(kernels.rms_norm(ones, torch.ones(16), 0.0), ones)


def write_checksum(file: Path) -> None:
    file.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def put_another_library(file: Path) -> None:
    """One without our functions, its checksum right."""
    source = file.parent / "other.c"
    source.write_text("int other(void) { return 0; }\n")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(file), str(source)], check=True)
    write_checksum(file)


def put_symbolic_link(file: Path) -> None:
    target = file.with_suffix(".real")
    file.replace(target)
    file.symlink_to(target)


def test_the_second_use_compiles_nothing(cached, first_use):
    found, error = loader.load_library()
    assert error is None
    assert computes(found)
    assert num_calls(first_use) == 0
    assert sorted(path.suffix for path in cached.parent.iterdir()) == [".sha256", ".so"]
    assert cached.parent.stat().st_mode & 0o777 == 0o700
    assert cached.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("damage", [flip_byte, put_another_library])
def test_a_damaged_library_is_compiled_again(cached, first_use, damage):
    damage(cached)
    found, error = loader.load_library()
    assert error is None
    assert computes(found)
    assert num_calls(first_use) == 1
    content = cached.read_bytes()  # and put where it belongs
    assert b"rms_norm_forward" in content
    assert cached.with_suffix(".sha256").read_text().strip() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        truncate,
        put_symbolic_link,
        lambda file: file.chmod(0o770),
        lambda file: file.with_suffix(".sha256").chmod(0o666),
        lambda file: file.with_suffix(".sha256").unlink(),
        lambda file: file.with_suffix(".sha256").write_bytes(b"\xff"),
        lambda file: file.unlink(),
        pytest.param(lambda file: os.chown(file, 12345, -1), marks=as_root),
    ],
    ids=["flipped", "truncated", "link", "mode", "checksum mode", "no checksum", "bad checksum", "none", "owner"],
)  # fmt: skip
def test_what_is_not_trusted(cached, damage):
    assert loader._cached(cached) is not None
    damage(cached)
    assert loader._cached(cached) is None


def test_a_folder_that_others_may_write_to_is_not_used(cached, first_use, tmp_path, monkeypatch):
    """A library is compiled and loaded from a private temporary folder, of which nothing stays."""
    cached.parent.chmod(0o770)
    before = cached.stat().st_mtime_ns
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(loader.tempfile, "tempdir", str(scratch))
    found, error = loader.load_library()
    assert error is None
    assert computes(found)
    assert num_calls(first_use) == 1
    assert cached.stat().st_mtime_ns == before
    assert list(scratch.iterdir()) == []


def test_folders_that_are_not_used(cached, tmp_path, monkeypatch):
    folder = cached.parent
    assert loader._cache_folder() == folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert loader._cache_folder() is None
    folder.unlink()
    folder.write_text("a file")
    assert loader._cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert loader._cache_folder() is None


@as_root
def test_a_folder_of_another_user_is_not_used(cached):
    os.chown(cached.parent, 12345, -1)
    assert loader._cache_folder() is None


@pytest.mark.usefixtures("cached")
def test_without_a_home_it_works(tmp_path, monkeypatch):
    """No HOME, no entry in the list of users."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")

    def unknown(_):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(loader.tempfile, "tempdir", str(tmp_path))
    assert loader._cache_folder() is None
    found, error = loader.load_library()
    assert error is None
    assert computes(found)


@pytest.mark.usefixtures("cached")
def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert loader._cache_folder() == tmp_path / "home" / ".cache" / "spinerl" / "native"


def test_a_compiler_that_hangs_is_stopped(tmp_path, monkeypatch):
    hanging = script(tmp_path / "cc", f"sleep 300 & echo $! > {tmp_path / 'child'}; wait")
    environment(monkeypatch, tmp_path / "cache", hanging)
    start = time.monotonic()
    found, error = loader.load_library(seconds=1)
    assert time.monotonic() - start < 20
    assert found is None
    assert "longer than 1 s" in str(error)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_compilers_words_come_out_in_doctor(tmp_path, monkeypatch):
    failing = script(tmp_path / "cc", "echo 'gemm.c:7: error: unknown flag --frobnicate' >&2", "exit 1")
    environment(monkeypatch, tmp_path / "cache", failing)
    monkeypatch.setattr(loader, "_loaded", loader.load_library)
    assert loader.library() is None
    assert "unknown flag --frobnicate" in str(loader.library_error())
    rows = {what: finding for what, finding, _ in diagnose()}
    assert "unknown flag --frobnicate" in rows["compiled loops"]
    assert kernels.head_dims() == ()
    with pytest.raises(RuntimeError, match="no compiled loops"):
        kernels.rms_norm(torch.ones(1, 16), torch.ones(16), 0.0)


def test_a_compiler_that_cannot_be_run_or_found(tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/nowhere/interpreter\n")
    broken.chmod(0o755)
    environment(monkeypatch, tmp_path / "cache", broken)
    found, error = loader.load_library()
    assert found is None
    assert "cannot be run" in str(error)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert loader.load_library() == (None, "no C compiler: install gcc or clang")


def test_flags_and_compiler_are_part_of_the_name(monkeypatch):
    key = loader._key(["cc"])
    monkeypatch.setenv("SPINERL_NATIVE_FLAGS", "-g -DX")
    assert loader._key(["cc"]) != key
    assert loader._key(["gcc"]) != loader._key(["cc"])


@pytest.mark.usefixtures("cached")
def test_structs_of_another_size_are_no_library(monkeypatch):
    class Longer(ctypes.Structure):
        _fields_ = (*bindings.LayerState._fields_, ("more", ctypes.c_long))

    monkeypatch.setattr(bindings, "LayerState", Longer)
    found, error = loader.load_library()
    assert found is None
    assert str(error) == "layer_state has size 104 in C and 112 in Python"


@pytest.mark.usefixtures("cached")
def test_sizes_that_loops_do_not_know_are_errors():
    found, _ = loader.load_library()
    with loader.library_override(found):
        with pytest.raises(ValueError, match="grad_weight: a size"):
            kernels.grad_weight(torch.ones(3, 4), torch.ones(3, 8))
        with pytest.raises(ValueError, match="grad_input: a size"):
            kernels.grad_input(torch.ones(3, 4), torch.ones(4, 8))
        keys, one = torch.ones(1, 1, 2, 48), torch.zeros(1, dtype=torch.int64)
        blocks = [(torch.ones(1, 1, 16, 48), torch.ones(1, 1, 16, 48))]
        lengths, tasks = torch.tensor([2]), torch.tensor([[0], [0], [1]])
        with pytest.raises(ValueError, match="a head_dim that it was not compiled for"):
            kernels.decode_attention(
                torch.ones(1, 1, 48), 1.0, blocks, 1, kernels.pack_panels(keys), keys, lengths, tasks, one
            )
        rows = torch.ones(1, 2, 1, 24)
        prompts = torch.ones(1, 1, 2, 24)
        with pytest.raises(ValueError, match="extend_attention_forward: a size"):
            kernels.extend_attention(
                kernels.ExtendAttention(rows, rows, rows, prompts, prompts, (2,), ((0, 0, 1),), 1.0)
            )
