"""Do no harm: seeing, without labels, whether an adaptation helps, and acting on it.  docs/guard.md."""
