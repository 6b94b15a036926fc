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
        found, error, note = loader.load_library()
    assert (error, note) == (None, None)
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


def put_other_structs(file: Path) -> None:
    """One compiled from sources in which a struct is longer, its checksum right."""
    sources = file.parent / "sources"
    shutil.copytree(loader._SOURCES, sources)
    header = sources / "kernels.h"
    text = header.read_text()
    assert text.count("} layer_state;") == 1
    header.write_text(text.replace("} layer_state;", "  long more;\n} layer_state;"))
    flags = [flag for flag in loader._FLAGS if flag != "-O3"]
    subprocess.run([str(COMPILER), *flags, "-o", str(file), *map(str, sources.glob("*.c")), "-lm"], check=True)
    shutil.rmtree(sources)
    write_checksum(file)


def put_empty_file(file: Path) -> None:
    file.write_bytes(b"")
    write_checksum(file)


def put_symbolic_link(file: Path) -> None:
    target = file.with_suffix(".real")
    file.replace(target)
    file.symlink_to(target)


def test_the_second_use_compiles_nothing(cached, first_use):
    found, error, note = loader.load_library()
    assert (error, note) == (None, None)
    assert computes(found)
    assert num_calls(first_use) == 0
    assert sorted(path.suffix for path in cached.parent.iterdir()) == [".sha256", ".so"]
    assert cached.parent.stat().st_mode & 0o777 == 0o700
    assert cached.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (flip_byte, "its checksum is not that of kernels-"),
        (put_another_library, "was another library (a function is missing"),
        (put_other_structs, "was another library (layer_state has size 112 in C and 104 in Python)"),
        (put_empty_file, "could not be loaded"),
    ],
    ids=["flipped", "other functions", "other structs", "empty"],
)
def test_a_damaged_library_is_compiled_again(cached, first_use, damage, note):
    damage(cached)
    found, error, said = loader.load_library()
    assert error is None
    assert str(said).startswith(f"compiled again: {cached}")
    assert note in said
    assert computes(found)
    assert num_calls(first_use) == 1
    content = cached.read_bytes()  # and put where it belongs
    (first,) = (first_use / "cache").glob("*/*/*.so")
    assert content == first.read_bytes()  # to the byte, since a run's manifest names its checksum
    assert cached.with_suffix(".sha256").read_text().strip() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        pytest.param(damage, note, id=note, marks=marks)
        for damage, note, *marks in (
            (flip_byte, "its checksum is not that of"),
            (truncate, "its checksum is not that of"),
            (put_symbolic_link, "is a symbolic link"),
            (lambda file: file.chmod(0o770), ".so: others may write to it (mode 770)"),
            (lambda file: file.with_suffix(".sha256").chmod(0o666), ".sha256: others may write to it (mode 666)"),
            (lambda file: file.with_suffix(".sha256").unlink(), ".sha256 was missing"),
            (lambda file: file.with_suffix(".sha256").write_bytes(b"\xff"), ".sha256 was damaged"),
            (lambda file: (file.unlink(), file.mkdir()), "is of another kind"),
            (lambda file: os.chown(file, 12345, -1), "belongs to another user (number 12345)", as_root),
        )
    ],
)
def test_what_is_not_trusted(cached, damage, note):
    assert loader._cached(cached)[0] is not None
    damage(cached)
    found, said = loader._cached(cached)
    assert found is None
    assert note in str(said)


def test_a_library_that_is_not_there_yet_is_no_news(cached):
    cached.unlink()
    assert loader._cached(cached) == (None, None)


def test_a_folder_that_others_may_write_to_is_not_used(cached, first_use, tmp_path, monkeypatch):
    """A library is compiled and loaded from a private temporary folder, of which nothing stays."""
    cached.parent.chmod(0o770)
    before = cached.stat().st_mtime_ns
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(loader.tempfile, "tempdir", str(scratch))
    found, error, note = loader.load_library()
    assert error is None
    assert note == f"compiled by every process again: {cached.parent}: others may write to it (mode 770)"
    assert computes(found)
    assert num_calls(first_use) == 1
    assert cached.stat().st_mtime_ns == before
    assert list(scratch.iterdir()) == []


def test_folders_that_are_not_used(cached, tmp_path, monkeypatch):
    folder = cached.parent
    assert loader._cache_folder() == (folder, None)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert loader._cache_folder() == (None, f"{folder} is a symbolic link")
    folder.unlink()
    folder.write_text("a file")
    assert loader._cache_folder() == (None, f"{folder} cannot be used (File exists)")
    folder.unlink()
    folder.parent.chmod(0o777)
    assert loader._cache_folder() == (None, f"{folder.parent}: others may write to it (mode 777)")
    folder.parent.chmod(0o700)
    (tmp_path / "cache").chmod(0o777)
    assert loader._cache_folder() == (None, f"{tmp_path / 'cache'}: others may write to it (mode 777)")
    (tmp_path / "cache").chmod(0o1777)  # as /tmp: no one renames what is another's
    assert loader._cache_folder() == (folder, None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert loader._cache_folder() == (None, "/proc/nowhere cannot be used (No such file or directory)")


@as_root
def test_a_folder_of_another_user_is_not_used(cached):
    os.chown(cached.parent, 12345, -1)
    assert loader._cache_folder() == (None, f"{cached.parent} belongs to another user (number 12345)")


@pytest.mark.usefixtures("cached")
def test_without_a_home_it_works(tmp_path, monkeypatch):
    """No HOME, no entry in the list of users."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")

    def unknown(_):
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(loader.tempfile, "tempdir", str(tmp_path))
    found, error, note = loader.load_library()
    assert error is None
    assert "there is no home folder" in str(note)
    assert computes(found)


@pytest.mark.usefixtures("cached")
def test_a_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert loader._cache_folder() == (tmp_path / "home" / ".cache" / "spinerl" / "native", None)


def test_a_compiler_that_hangs_is_stopped(tmp_path, monkeypatch):
    hanging = script(tmp_path / "cc", f"sleep 300 & echo $! > {tmp_path / 'child'}; wait")
    environment(monkeypatch, tmp_path / "cache", hanging)
    start = time.monotonic()
    found, error, _ = loader.load_library(seconds=1)
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
    found, error, _ = loader.load_library()
    assert found is None
    assert "cannot be run" in str(error)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert loader.load_library() == (None, "no C compiler: install gcc or clang", None)


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
    found, error, _ = loader.load_library()
    assert found is None
    assert str(error) == "layer_state has size 104 in C and 112 in Python"


@pytest.mark.usefixtures("cached")
def test_sizes_that_loops_do_not_know_are_errors():
    found, *_ = loader.load_library()
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
