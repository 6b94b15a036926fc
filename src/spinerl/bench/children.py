"""Starts worker processes, listens to them, and ends them when the user does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spinerl import errors
from spinerl.bench.settings import Settings
from spinerl.errors import RunError
from spinerl.pipes import python_command, python_environment

__all__ = ["run_worker"]

# Nothing is fetched, no usage is reported, and a peer's remarks about its own arguments are left out.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run_worker(
    task: str,
    settings: Settings,
    scratch: Path,
    note: Callable[[str], None] = lambda _: None,
    *,
    tune: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """What one task measures, in a process of its own.

    Raises what the worker raised, if it is an error of ours, and RunError with its last line if it crashed.  Any
    exception here, Ctrl-C too, ends the worker.

    Args:
        note: called with a line about what is being done.
        tune: whether the worker tunes its allocator as spinerl does.
    """
    given = {"task": task, "settings": settings.model_dump(), "scratch": str(scratch), "tune": tune, "options": options}
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as last_lines:
        process = subprocess.Popen(
            python_command("spinerl.bench.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=last_lines,
            text=True,
            env={**python_environment(), **_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C comes only to us, and we end the worker
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                if "note" in message:
                    note(message["note"])
                elif "error" in message:
                    raise getattr(errors, message["kind"], RunError)(message["error"])
                else:
                    return message["result"]
            process.wait()  # it stopped talking by itself: its exit code says how
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started itself
            process.wait()
            process.stdin.close()
            process.stdout.close()
        last_lines.seek(0)
        lines = [line.strip() for line in last_lines if line.strip()] or ["it said nothing"]
        raise RunError(f"measuring {task} failed (exit code {process.returncode}): {lines[-1]}")
