"""`python -m spinerl.cli` is `spinerl`."""

from spinerl.cli import main

main()
