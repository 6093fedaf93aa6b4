"""Settings: overrides by dotted path, digests and user-facing errors."""
