"""Settings: overrides by dotted path, fingerprints that address results, and user-facing errors."""
