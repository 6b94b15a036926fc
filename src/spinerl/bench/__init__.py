"""How fast this is and how much memory it takes, compared with what else does the same: `spinerl bench`.

`settings` says what may be chosen, `runner` runs the parts, each measurement is a function of its own module that
`worker` calls in a fresh process, `table` shows the result.  docs/benchmarks.md defines every figure.
"""

from spinerl.bench.settings import Settings, load_settings

__all__ = ["Settings", "load_settings"]
