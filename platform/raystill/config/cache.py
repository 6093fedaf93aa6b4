"""The cache directory of this user, for files that can be fetched or computed again."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Give where fetched adapters and digests of large files are kept: RAYSTILL_CACHE, or ~/.cache/raystill."""
    chosen = os.environ.get("RAYSTILL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "raystill"
