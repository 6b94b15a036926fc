"""Label-free test-time reinforcement learning: SPINE and its family, on one loop."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("spinerl")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
