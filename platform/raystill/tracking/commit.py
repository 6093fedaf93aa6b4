"""The commit of the code that is running."""

import os
import subprocess
from pathlib import Path


def code_commit(directory: Path = Path(__file__).parent) -> str:
    """Give the commit hash of the repository that holds this package, with `-dirty` where tracked files of it were
    edited.

    Outside a repository (an installed wheel, a Ray worker) it is RAYSTILL_COMMIT; in a job that was submitted without
    that, the name of the package that Ray made of its checkout, which is a digest of it; or "unknown"."""
    here = ["git", "-C", str(directory)]
    try:
        # A package installed below somebody else's repository must not report that repository's commit.
        tracked = subprocess.run([*here, "ls-files", "--error-unmatch", "."], capture_output=True, check=False)
        found = subprocess.run([*here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        edited = subprocess.run([*here, "diff", "--quiet", "HEAD", "--", "."], capture_output=True, check=False)
    except FileNotFoundError:  # no git in the image
        return _elsewhere()
    if tracked.returncode or found.returncode:
        return _elsewhere()
    return found.stdout.strip() + ("-dirty" if edited.returncode else "")


def _elsewhere() -> str:
    package = Path.cwd().name
    return os.environ.get("RAYSTILL_COMMIT") or (package if package.startswith("_ray_pkg_") else "unknown")
