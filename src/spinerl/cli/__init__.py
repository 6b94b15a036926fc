"""The commands, a module for each subject.  Thin: they parse arguments, call the package, print."""

from spinerl.cli import adapt, before, data, evaluate, models, report, settings  # noqa: F401 - each adds its commands
from spinerl.cli.program import app, main

__all__ = ["app", "main"]
