"""What goes wrong with the compiled loops, in processes that adapt a model: one line says so, the answers are right.

Compilers, folders, users and mounts are real.  `tests/engine/test_native_library.py` has the details of the cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fork_server import COMPILER, Server

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces, LD_PRELOAD"),
    pytest.mark.skipif(COMPILER is None, reason="compiled loops need a C compiler"),
]

KEYS = [
    "data.max_questions=4", "questions_per_step=2", "group_size=2", "steps=1", "threads=1", "rollout.max_new_tokens=12",
    "answer.truncated=count", "eval.samples=0", "guard=off", "optim.lr=1e-3", "checkpoint.every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """Its `whole` run is the plain path's; its processes have not looked for compiled loops yet."""
    made = Server(tmp_path_factory.mktemp("plain").resolve(), [*KEYS, "engine.disable=[cpu]"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """A folder of what a compiler may make of the sources: good.so, and others."""
    from spinerl.engine.cpu.library import build

    root = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPINERL_NATIVE_FLAGS", "-O1")  # compiles in a few seconds
        build(root / "good.so")
    content = (root / "good.so").read_bytes()
    (root / "cut.so").write_bytes(content[: len(content) // 2])
    (root / "garbage.so").write_bytes(bytes(range(256)) * 20)
    sources = {
        "other": "int other(void) { return 0; }",
        "crash": "#include <stdlib.h>\n__attribute__((constructor)) static void begin(void) { abort(); }",
    }
    for name, text in sources.items():
        (root / f"{name}.c").write_text(text + "\n")
        command = [str(COMPILER), "-shared", "-fPIC", "-o", str(root / f"{name}.so"), str(root / f"{name}.c")]
        subprocess.run(command, check=True)
    return root


# ---- in the process ----

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOEXEC = 8


def adapt_with(folder: str) -> None:
    """Adapt in the circumstances that job.json in the folder says; what was said goes to report.json."""
    root = Path(folder)
    job = json.loads((root / "job.json").read_text())
    if job.get("user"):
        _become_unknown_user()
    for mounted in job.get("noexec", ()):
        if ctypes.CDLL(None).mount(b"tmpfs", os.fsencode(mounted), b"tmpfs", _MS_NOEXEC, None):
            os._exit(77)
    if job.get("user"):
        _drop_capabilities()
    for name in job.get("unset", ()):
        os.environ.pop(name, None)
    os.environ.update(job["environment"])
    tempfile.tempdir = None
    if job.get("no_temporary_folder"):
        tempfile._candidate_tempdir_list = lambda: ["/nowhere"]  # pyright: ignore

    from spinerl.config import load_config
    from spinerl.doctor import diagnose
    from spinerl.train import adapt
    from tests.e2e.test_guarded_runs import Quiet

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("spinerl").addHandler(handler)
    adapt(load_config(overrides=[*KEYS, f"steps={job['steps']}", f"run={folder}/run"]), Quiet())
    (doctor,) = (finding for what, finding, _ in diagnose() if what == "compiled loops")
    (root / "report.json").write_text(json.dumps({"doctor": doctor, "said": said}))


def _become_unknown_user() -> None:
    """Number 12345, which has no entry in the list of users, in name spaces of its own."""
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        os._exit(77)
    Path("/proc/self/uid_map").write_text(f"12345 {user} 1")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/gid_map").write_text(f"12345 {group} 1")
    assert os.getuid() == 12345


def _drop_capabilities() -> None:
    """From here on this is no root, to whom all folders are open."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0


# ---- faults ----


def compiler(path: Path, *lines: str) -> dict[str, str]:
    """The environment with a compiler that runs these lines of shell, `$out` being the file that it shall write."""
    find = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done'
    path.write_text("\n".join(["#!/bin/sh", find, *lines, ""]))
    path.chmod(0o755)
    return {"CC": str(path)}


def works(libraries: Path, root: Path) -> dict[str, str]:
    """A compiler that is done at once."""
    return compiler(root / "cc", f'cp {libraries / "good.so"} "$out"')


def symbolic_link(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "cache" / "spinerl").mkdir(parents=True)
    (root / "cache" / "spinerl" / "native").symlink_to(root / "elsewhere")


def read_only(root: Path) -> None:
    (root / "cache" / "spinerl" / "native").mkdir(parents=True)
    (root / "cache" / "spinerl" / "native").chmod(0o500)
    (root / "cache" / "spinerl").chmod(0o700)


def few(cases, *names):
    """All cases, of which only these are part of `make test`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.faults) for name in cases]


# (lines of the compiler, more of the job, the end of doctor's line: there are no loops)
NO_LOOPS: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "it hangs": (["sleep 300 & wait"], {"SPINERL_NATIVE_SECONDS": "1"}, "was stopped: it took longer than 1 s"),
    "it fails": (["echo 'cc: error: no such thing' >&2; exit 1"], {}, "cc failed: cc: error: no such thing"),
    "it crashes": (["kill -SEGV $$"], {}, "cc failed (signal 11): without a word"),
    "it prints garbage": (["head -c 3000000 /dev/urandom; exit 3"], {}, "cc failed: "),
    "it prints and prints": (["exec yes 'error: again'"], {}, "cc failed (signal 25): error: again"),
    "it writes nothing": (["exit 0"], {}, "cc wrote no library: without a word"),
    "it writes an empty file": ([': > "$out"'], {}, "wrote cannot be used: "),
    "it writes garbage": (['cp LIBRARIES/garbage.so "$out"'], {}, "wrote cannot be used: "),
    "it writes half a library": (['cp LIBRARIES/cut.so "$out"'], {}, "wrote cannot be used"),
    "its library crashes": (['cp LIBRARIES/crash.so "$out"'], {}, "wrote cannot be used (signal 6): without a word"),
    "its library is another": (['cp LIBRARIES/other.so "$out"'], {}, "wrote cannot be used: a function is missing: "),
    "it cannot be named": ([], {"CC": "gcc 'x"}, "CC=gcc 'x cannot be split into words: No closing quotation"),
    "its flags cannot be read": (
        [],
        {"SPINERL_NATIVE_FLAGS": '-DX="'},
        'SPINERL_NATIVE_FLAGS=-DX=" cannot be split into words: No closing quotation',
    ),
    "its time cannot be read": (
        [],
        {"SPINERL_NATIVE_SECONDS": "soon"},
        "SPINERL_NATIVE_SECONDS=soon is no number of seconds",
    ),
    "there is none": ([], {"CC": "", "PATH": "/nowhere"}, "no C compiler: install gcc or clang"),
}


def report_of(server: Server, root: Path, environment: dict[str, str], steps: int = 0, **job: Any) -> dict[str, Any]:
    """What a process in these circumstances says, once its answers are checked: those of the plain path, at the
    beginning and, with `steps` 1, after a step."""
    environment = {"XDG_CACHE_HOME": str(root / "cache"), **environment}
    for name in job.get("unset", ()):
        environment.pop(name, None)
    (root / "job.json").write_text(json.dumps({"environment": environment, "steps": steps, **job}))
    code = server.ask(root, call="tests.faults.test_native:adapt_with")
    if code == 77:
        pytest.skip("no name spaces or mounts here")
    assert code == 0, server.words()
    assert greedy_answers(root / "run", steps) == greedy_answers(server.whole, steps)
    return json.loads((root / "report.json").read_text())


def greedy_answers(run: Path, steps: int) -> list[Any]:
    rows = [(run / "predictions" / f"step-{step:06d}.jsonl").read_text().splitlines() for step in range(steps + 1)]
    assert [len(lines) for lines in rows] == [4] * (steps + 1)
    return [json.loads(line)["greedy"]["text"] for lines in rows for line in lines]


@pytest.mark.parametrize("case", few(NO_LOOPS, "it hangs", "its library crashes", "there is none"))
def test_a_compiler_that_does_not_do_it(server, libraries, tmp_path, case):
    lines, more, reason = NO_LOOPS[case]
    environment = compiler(tmp_path / "cc", *(line.replace("LIBRARIES", str(libraries)) for line in lines))
    report = report_of(server, tmp_path, environment | more, steps=int(case in ("it hangs", "there is none")))
    start = "none, so CPU runs are slower: "
    assert report["doctor"].startswith(start)
    assert reason in report["doctor"]
    assert report["doctor"].isprintable()
    assert len(report["doctor"]) < 3000
    assert report["said"] == [f"no compiled loops, so runs on this CPU are slower: {report['doctor'][len(start) :]}"]
    assert list((tmp_path / "cache").glob("*/*/*")) == []


def nothing(_: Path) -> None: ...


# (what is done first, more of the job, what doctor says after "yes; compiled by every process again: ")
NO_CACHE: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "a link": (symbolic_link, {}, "ROOT/cache/spinerl/native is a symbolic link"),
    "a file in its place": (
        lambda root: (root / "cache").write_text(""),
        {},
        "ROOT/cache/spinerl cannot be used (Not a directory)",
    ),
    "read only": (read_only, {"user": True}, "ROOT/cache/spinerl/native cannot be written to"),
    "no home and no name": (
        nothing,
        {"user": True, "unset": ["HOME", "XDG_CACHE_HOME"]},
        "there is no home folder to keep it in (HOME, XDG_CACHE_HOME)",
    ),
    "nothing may be run there": (
        lambda root: (root / "cache").mkdir(),
        {"user": True, "noexec": ["cache"]},
        "ROOT/cache/spinerl/native cannot be used (what ROOT/cc wrote cannot be used: ",
    ),
}


@pytest.mark.parametrize("case", few(NO_CACHE, "a link", "read only"))
def test_a_cache_folder_that_cannot_be_used(server, libraries, tmp_path, case):
    """The library is compiled in a temporary folder, of which nothing stays."""
    prepare, job, reason = NO_CACHE[case]
    prepare(tmp_path)
    (tmp_path / "scratch").mkdir()
    job = {**job, "noexec": [str(tmp_path / name) for name in job.get("noexec", ())]}
    environment = {**works(libraries, tmp_path), "TMPDIR": str(tmp_path / "scratch")}
    report = report_of(server, tmp_path, environment, **job)
    assert report["doctor"].startswith(f"yes; compiled by every process again: {reason.replace('ROOT', str(tmp_path))}")
    assert report["said"] == [report["doctor"].replace("yes; ", "compiled loops: ")]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_folder_from_which_anything_may_be_run(server, libraries, tmp_path):
    for name in ("cache", "scratch"):
        (tmp_path / name).mkdir()
    environment = {**works(libraries, tmp_path), "TMPDIR": str(tmp_path / "scratch")}
    noexec = [str(tmp_path / "cache"), str(tmp_path / "scratch")]
    report = report_of(server, tmp_path, environment, user=True, noexec=noexec)
    assert report["doctor"].startswith(f"none, so CPU runs are slower: what {tmp_path}/cc wrote cannot be used: ")
    assert len(report["said"]) == 1


def test_no_temporary_folder(server, libraries, tmp_path):
    """It is needed only where there is no cache folder."""
    cache = tmp_path / "cache" / "spinerl" / "native"
    report = report_of(server, tmp_path, works(libraries, tmp_path), no_temporary_folder=True)
    assert report == {"doctor": "yes", "said": []}
    assert sorted(file.suffix for file in cache.iterdir()) == [".sha256", ".so"]
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(cache)
    cache.write_text("")
    report = report_of(server, tmp_path, works(libraries, tmp_path), no_temporary_folder=True)
    assert report["doctor"].startswith("none, so CPU runs are slower: ")
    assert "temporary" in report["doctor"]


def test_a_missing_temporary_folder_that_is_named(server, libraries, tmp_path):
    environment = {**works(libraries, tmp_path), "TMPDIR": str(tmp_path / "nowhere")}
    assert report_of(server, tmp_path, environment, steps=1) == {"doctor": "yes", "said": []}


def test_what_a_killed_process_was_compiling_goes(server, libraries, tmp_path):
    folder = tmp_path / "cache" / "spinerl" / "native"
    folder.mkdir(parents=True)
    for one in (folder.parent, folder):
        one.chmod(0o700)
    for name in ("building-old", "building-new"):
        (folder / name).mkdir()
        (folder / name / "kernels.so").write_text("half")
    os.utime(folder / "building-old", (0, 0))
    assert report_of(server, tmp_path, works(libraries, tmp_path)) == {"doctor": "yes", "said": []}
    assert {file.name.partition("-")[0] for file in folder.iterdir()} == {"building", "kernels"}
    assert not (folder / "building-old").exists()
    assert (folder / "building-new").is_dir()


def load_at_once(folder: str) -> None:
    """Six processes that want the library at the same time."""
    root = Path(folder)
    os.environ.update(json.loads((root / "job.json").read_text()))
    from spinerl.engine.cpu.library import load_library

    children = []
    for number in range(6):
        if not (pid := os.fork()):
            found = load_library()
            (root / f"said-{number}").write_text(str(found[1:]))
            os._exit(0 if found.library is not None else 1)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)


def test_many_processes_compile_at_once(server, libraries, tmp_path):
    environment = compiler(
        tmp_path / "cc", f'cp {libraries / "good.so"} "$out"', f"echo >> {tmp_path}/calls", "sleep .3"
    )
    (tmp_path / "job.json").write_text(json.dumps({**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}))
    for _ in range(2):
        assert server.ask(tmp_path, call="tests.faults.test_native:load_at_once") == 0, server.words()
        assert {file.read_text() for file in tmp_path.glob("said-*")} == {"(None, None)"}
        calls = (tmp_path / "calls").read_text().count("\n")
    assert 1 < calls <= 6  # the second six found what the first had made
    library, checksum = sorted((tmp_path / "cache" / "spinerl" / "native").iterdir(), reverse=True)
    assert hashlib.sha256(library.read_bytes()).hexdigest() == checksum.read_text().strip()
