"""Teachers by their names on the Hugging Face Hub: a pipeline's files of one commit, by way of the library's cache.
Only settings, vocabularies and safetensors are fetched, and nothing that could be run.
"""

import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from glob import escape
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.models.backbones.settings import INDEX
from raystill.models.weight_files import PICKLED, chosen

log = logging.getLogger(__name__)
NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def teacher_at(address: str) -> Path:
    """The directory of a teacher's address: a directory, what comes with raystill, or OWNER/NAME[@REVISION] on the Hub,
    whose files are fetched into the cache first; UserError where they cannot be.
    """
    path = located(address)
    found = None if path.exists() else NAME.fullmatch(address)
    return path if found is None else _snapshot(found["repo"], found["revision"])


def pinned(address: str) -> str:
    """The same address with the commit that it leads to now, where it is a name on the Hub: all workers of a run and
    every later run of it fetch the same files.
    """
    path = located(address)
    found = None if path.exists() else NAME.fullmatch(address)
    return address if found is None else f"{found['repo']}@{_snapshot(found['repo'], found['revision']).name}"


def base_at(name: str, revision: str | None) -> Path:
    """The directory of an adapter's base by its name and revision on the adapter's card."""
    return teacher_at(f"{name}@{revision}") if COMMIT.fullmatch(revision or "") else located(name)


def published(address: str) -> tuple[str, str] | None:
    """The name on the Hub and the commit of a pinned address; None for any other."""
    found = NAME.fullmatch(address)
    if found is None or not COMMIT.fullmatch(found["revision"] or ""):
        return None
    return found["repo"], found["revision"]


@cache
def _snapshot(repo: str, revision: str | None) -> Path:
    """The directory in the cache with a pipeline's files of one commit, fetched unless they are there."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    away = not _answers()
    with _told(repo, revision):
        index = Path(hf_hub_download(repo, INDEX, revision=revision, local_files_only=away))
        commit = index.parent.name
        if away:
            log.info("%s: the Hub does not answer; commit %s is taken as it lies in the cache", repo, commit[:12])
            return index.parent
        files = list(_needed(repo, json.loads(index.read_text()), HfApi().list_repo_files(repo, revision=commit)))
        return Path(snapshot_download(repo, revision=commit, allow_patterns=[escape(name) for name in files]))


def _answers() -> bool:
    """Whether somebody listens at the Hub's address; the library itself would try for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # whose answer would not be the Hub's
        return True
    at = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection(
            (at.hostname or "", at.port or (80 if at.scheme == "http" else 443)), timeout=5
        ).close()
    except OSError:
        return False
    return True


def _needed(repo: str, index: dict[str, object], names: list[str]) -> Iterator[str]:
    """The files of a repository that its pipeline is loaded from, of all names there."""
    yield from (name for name in (INDEX, "README.md") if name in names)
    for part, entry in index.items():
        if not (isinstance(entry, list) and entry[0]):
            continue
        own = [name.removeprefix(f"{part}/") for name in names if re.fullmatch(rf"{re.escape(part)}/[^/]+", name)]
        found = chosen(own)
        pickled = [name for name in own if name.endswith(PICKLED)]
        if pickled and not any(name.endswith(".safetensors") for name in found):
            raise UserError(
                f"{repo}: {part} has pickled weights only ({pickled[0]}), which can run anything when they are read; "
                "they are not fetched: ask its owner for safetensors, or convert a copy that you trust"
            )
        yield from (f"{part}/{name}" for name in found)


def _transport_error() -> type[Exception]:
    """The class of all errors of the library's HTTP client, which differs among its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    found: type[Exception] = HfHubHTTPError.__bases__[0]
    return found


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the library's errors into UserErrors that say what to type."""
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{at} is gated: accept its licence at https://huggingface.co/{repo}, then log in with the same account: "
            "hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no directory {at!r} here, and no model of that name on the Hub that you may read; give a "
            "directory, or log in where it is private: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r} on the Hub: leave it out for the newest one") from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"{at} on the Hub is not a diffusers pipeline: it has no {INDEX}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"there is no directory {at!r} here, and the Hub does not answer; give a directory, or fetch the model in "
            f"a place with a network: hf download {repo}"
        ) from error
    except (OSError, _transport_error()) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{at} could not be fetched from the Hub: {said}") from error
