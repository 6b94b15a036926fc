"""Shared by all tests: shapes are checked, nothing is fetched, tiny random models of real architectures."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SPINERL_STRICT", "1")  # an unexpected error in a self-check of the engine is a failure

from jaxtyping import install_import_hook

# Before the package is imported: the shapes that `maths` promises are checked at every call, here only.
install_import_hook("spinerl.maths", "beartype.beartype")

from pathlib import Path

import hypothesis
import pytest
import torch

from tests.models import write_model
from tests.vision_models import write_vision_model

# The same examples each time: whether a commit passes is not left to chance.  HYPOTHESIS_PROFILE=default draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

torch.set_num_threads(1)  # tests are many small operators; a second thread costs more than it gives


@pytest.fixture(autouse=True)
def nothing_stays_imported(tmp_path_factory: pytest.TempPathFactory):
    """A module that a test wrote, and its folder in `sys.path`, are gone after it: two tests may write one name."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory):
    """A function: architecture name -> folder of a tiny random model with its tokenizer."""
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = write_model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def gguf_folders(tmp_path_factory: pytest.TempPathFactory):
    """A function: architecture name -> folder of a tiny random model, with the same model as FOLDER.gguf next to it."""
    pytest.importorskip("gguf", reason="GGUF files need the extra spinerl[gguf]")
    from tests.gguf_files import write_folder, write_gguf

    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = write_folder(architecture, tmp_path_factory.mktemp(architecture))
            write_gguf(made[architecture], Path(f"{made[architecture]}.gguf"))
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def vision_model_folders(tmp_path_factory: pytest.TempPathFactory):
    """A function: family name -> folder of a tiny random vision-language model with its processor."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_vision_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tests asked for by the marker `faults` that were all skipped have not passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.markexpr == "faults" and reporter is not None and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
