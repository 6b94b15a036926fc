"""Reports: run folders in, one self-contained HTML file out.  Works without torch, the engine and the loop.

from spinerl.report import write_report
write_report([Path("runs/spine-tiny-seed0")], Path("report.html"))
"""

from __future__ import annotations

from spinerl.report.page import write_report
from spinerl.report.read import Response, RunData, Sample, read_run

__all__ = ["Response", "RunData", "Sample", "read_run", "write_report"]
