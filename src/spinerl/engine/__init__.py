"""Everything that owns a model or a device."""
