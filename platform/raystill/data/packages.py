"""Packages of the npm registry, unpacked into a cache folder: where the emoji sets and their captions come from."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from raystill.config.errors import UserError

FETCH_TIMEOUT_S = 600


def fetch_package(spec: str, cache: Path) -> Path:
    """Give the unpacked folder of `name@version`, fetched once with `npm pack`; UserError if npm fails."""
    target = cache / spec.replace("/", "+")
    if (target / "package.json").is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"npm is not on PATH and has to fetch {spec}; install Node.js, or unpack the package into {target}."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        unpack_package(_npm_pack(npm, spec, work), work / "unpacked")
        # Renamed into place as the last step, so that an interrupted fetch is never taken for a whole package.
        if not target.exists():
            (work / "unpacked" / "package").rename(target)
    return target


def _npm_pack(npm: str, spec: str, folder: Path) -> Path:
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"npm did not fetch {spec} within {FETCH_TIMEOUT_S} s; check the network and try again."
        ) from error
    found = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(found) != 1:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise UserError(
            f"npm could not fetch {spec} (status {done.returncode}): {said or 'no message'}. Try: npm view {spec}"
        )
    return found[0]


def unpack_package(archive: Path, folder: Path) -> None:
    """Unpack a .tgz into `folder`; members that would leave it are refused with UserError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive.name}: cannot be unpacked: {error}. Delete it and fetch it again.") from error
