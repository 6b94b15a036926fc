"""The shape of the house, read off the source: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from spinerl.errors import MissingExtraError
from spinerl.trackers import TRACKERS

SOURCE = Path(__file__).parent.parent / "src" / "spinerl"


def imports(file: Path) -> set[str]:
    """Modules that a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def package(name: str) -> dict[Path, set[str]]:
    files = sorted((SOURCE / name).rglob("*.py")) if (SOURCE / name).is_dir() else [SOURCE / f"{name}.py"]
    assert files
    return {file: imports(file) for file in files}


def test_lower_packages_do_not_import_upper_ones():
    upward = ("bench", "comparison", "step", "train", "evaluation", "runs", "data", "answers", "cli", "report")
    of_steps = ("bench", "comparison", "train", "evaluation", "scoring", "runs", "data", "cli", "report")
    of_observers = ("bench", "comparison", "engine", "step", "train", "evaluation", "scoring", "data", "cli", "report")
    forbidden = {
        "maths": ("config", "engine", "step", "train", "evaluation", "runs", "data", "answers", "cli"),
        "answers": (
            "bench",
            "comparison",
            "config",
            "engine",
            "step",
            "train",
            "evaluation",
            "runs",
            "data",
            "maths",
            "cli",
        ),
        "data": ("bench", "comparison", "engine", "step", "train", "evaluation", "runs", "maths", "cli", "report"),
        "engine": upward,
        "models": ("engine", "maths", *upward),
        "report": ("bench", "comparison", "engine", "step", "train", "evaluation", "maths", "cli", "data", "watch"),
        "watch": ("bench", "comparison", "engine", "step", "train", "evaluation", "scoring", "maths", "cli", "data"),
        "bench": ("evaluation", "scoring", "comparison"),
        "comparison": ("bench", "cli"),
        "guard": ("bench", "comparison", "train", "evaluation", "scoring", "cli", "report"),
        "rewards": of_steps,
        "step": of_steps,
        "trackers": of_observers,
        "progress": of_observers,
        "views": of_steps,
        "feedback": of_steps,
        "scoring": ("bench", "comparison", "engine", "step", "train", "evaluation", "maths", "cli", "data", "report"),
        "types": ("config", "engine", "maths"),
        "errors": ("config", "engine", "maths", "types"),
    }
    for lower, upper in forbidden.items():
        for file, names in package(lower).items():
            for other in (*upper, *(("models",) if "engine" in upper and lower != "models" else ())):
                bad = {n for n in names if n == f"spinerl.{other}" or n.startswith(f"spinerl.{other}.")}
                assert not bad, f"{file.name} in {lower} imports {bad}"


def test_the_engine_is_small():
    """Under 4,000 lines without what is for CPUs only: a subject of its own gets a package of its own."""
    assert sum(len(file.read_text().splitlines()) for file in (SOURCE / "engine").glob("*.py")) < 4000


def test_only_the_backend_imports_what_is_for_cpus():
    users = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        if not file.is_relative_to(SOURCE / "engine" / "cpu")
        and any(name.startswith("spinerl.engine.cpu") for name in imports(file))
    }
    assert users == {"engine/backend.py"}


RUN_WITHOUT = """
import sys
from spinerl.config import load_config
from spinerl.train import adapt
from tests.e2e.test_guarded_runs import Quiet
overrides = ["data.max_questions=4", "steps=1", "questions_per_step=2", "group_size=2", "rollout.max_new_tokens=8",
         "guard=off", "answer.truncated=count", "engine.disable=[cpu]", "threads=1", "run=" + sys.argv[1]]
adapt(load_config(overrides=overrides), Quiet())
found = sorted(name for name in sys.modules if name.startswith("spinerl.engine.cpu"))
assert not found, found
"""


def test_a_run_without_the_cpu_backend_imports_none_of_it(tmp_path):
    command = [sys.executable, "-c", RUN_WITHOUT, str(tmp_path / "run")]
    subprocess.run(command, check=True, cwd=SOURCE.parent.parent, timeout=120)


def reachable(*files: Path) -> set[Path]:
    """Modules that these import, directly or not."""
    seen: set[Path] = set()
    todo = list(files)
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file):
            if name.startswith("spinerl"):
                path = SOURCE.parent / Path(*name.split("."))
                todo += [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
    return seen


def test_gold_answers_cannot_reach_a_step():
    """Label-free by construction: nothing a step can import, directly or not, has a name with gold in it; nor anything
    that counts votes for it."""
    seen = reachable(*(SOURCE / name for name in ("step.py", "memory.py", "voter.py", "views.py", "feedback.py")))
    assert len(seen) > 10
    assert SOURCE / "memory.py" in seen
    assert SOURCE / "answers" / "memory.py" in seen
    assert not {file.name for file in seen} & {"evaluation.py", "scoring.py", "train.py", "load.py"}
    for file in seen:
        tree = ast.parse(file.read_text())
        fields = {
            item.target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and file.name == "types.py"
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        assert not {field for field in fields if "gold" in field or field == "answer"}


def test_the_guard_reads_no_gold():
    """Nor can anything the guard imports judge an answer; its own files do not even have a word for it."""
    own = sorted((SOURCE / "guard").glob("*.py"))
    assert len(own) > 5
    seen = reachable(*(file for file in own if file.name != "preflight.py"))
    assert not {file.name for file in seen} & {"evaluation.py", "scoring.py", "train.py", "load.py"}
    for file in own:
        names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not {name for name in names if "gold" in name or name.endswith("correct")}, file


def test_every_public_name_exists():
    import importlib

    for file in SOURCE.rglob("*.py"):
        if file.name in ("__main__.py", "_worker.py"):
            continue
        if file.parent.name == "trackers" and file.stem in TRACKERS:  # of a package that need not be there
            continue
        name = ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        try:
            module = importlib.import_module(name)
        except MissingExtraError:  # a bridge to a package that is not there
            continue
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.{public}"


def test_functions_fit_on_a_screen():
    """None is over 80 lines, in the source."""
    long = [
        f"{file.relative_to(SOURCE)}: {node.name}"
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert not long
