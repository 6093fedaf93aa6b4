"""Which commit of the code is running."""

import os
import subprocess
from pathlib import Path


def code_commit(directory: Path = Path(__file__).parent) -> str:
    """Give the commit hash of the repository that holds this package, with `-dirty` where tracked files were edited.

    Outside a repository (an installed wheel, a Ray worker) it is RAYSTILL_COMMIT, or "unknown"."""
    here = ["git", "-C", str(directory)]
    try:
        # A package installed below somebody else's repository must not report that repository's commit.
        tracked = subprocess.run([*here, "ls-files", "--error-unmatch", "."], capture_output=True, check=False)
        describe = [*here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        found = subprocess.run(describe, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git in the image
        return os.environ.get("RAYSTILL_COMMIT", "unknown")
    if tracked.returncode == 0 and found.returncode == 0:
        return found.stdout.strip()
    return os.environ.get("RAYSTILL_COMMIT", "unknown")
