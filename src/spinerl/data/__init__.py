"""Questions: files, hub data sets and benchmarks -> `Question` records, with gold answers in a table apart.

`load_data` reads them, `render_all` turns them into prompts; no torch here, and `datasets` only in `hub.py`.
"""

from spinerl.data.benchmarks import BENCHMARKS
from spinerl.data.definitions import Definition, resolve
from spinerl.data.images import parts_of
from spinerl.data.inspect import Finding, PreviewRow, Report, check, list_datasets, preview, reading_of
from spinerl.data.load import QuestionSet, load_data
from spinerl.data.prompts import (
    PromptVision,
    Rendered,
    TextTokenizer,
    chat_messages,
    render_all,
    render_prompt,
    render_text,
)
from spinerl.types import ImageRef

__all__ = [
    "BENCHMARKS",
    "Definition",
    "Finding",
    "ImageRef",
    "PreviewRow",
    "PromptVision",
    "QuestionSet",
    "Rendered",
    "Report",
    "TextTokenizer",
    "chat_messages",
    "check",
    "list_datasets",
    "load_data",
    "parts_of",
    "preview",
    "reading_of",
    "render_all",
    "render_prompt",
    "render_text",
    "resolve",
]
