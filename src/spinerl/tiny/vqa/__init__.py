"""Questions about pictures: `tiny-vlm`'s world, its suites and its pre-training; see docs/tiny.md."""
