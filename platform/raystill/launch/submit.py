"""`raystill submit`: send a job to a cluster that runs already, and follow its log to the end."""

import asyncio
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from raystill.config.errors import UserError
from raystill.tracking.commit import code_commit
from raystill.tracking.delivery import without_password

log = logging.getLogger(__name__)
SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
)  # fmt: skip
# environment variables that Ray asks, in this order, before an argument
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def submit(address: str | None, runtime_env: Path, line: Sequence[str], *, follow: bool = True) -> str:
    """Send a command line with its code to a cluster and print the job's log until the job ends; return how it ended.
    UserError where the cluster does not answer, the line holds a secret, or the job fails.
    """
    environment = read_runtime_env(runtime_env)
    check_secrets(line, environment)
    client = connect(address)
    try:
        number = client.submit_job(entrypoint=shlex.join(line), runtime_env=environment)
    except (RuntimeError, RayError) as error:
        raise UserError(f"the cluster did not take the job: {_first_line(error)}") from error
    goes_on = f"{number} goes on. See it: ray job logs -f {number}. Stop it: ray job stop {number}"
    if not follow:
        return goes_on
    log.info("submitted as %s", number)
    try:
        asyncio.run(_tail(client, number))
        return _ended(client, number)
    except KeyboardInterrupt:
        return goes_on
    except (RuntimeError, ConnectionError, RayError) as error:
        raise UserError(f"the cluster cannot be heard any more ({_first_line(error)}); {goes_on}") from error


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's dashboard; UserError where no dashboard answers."""
    if address is not None:
        os.environ.update(dict.fromkeys(ADDRESSES, address))
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        named = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), "this machine")
        raise UserError(
            f"no Ray cluster takes jobs at {named}: {_first_line(error)}\n"
            "Give the address of its dashboard: raystill submit --address http://HEAD:8265 -- python jobs/distill.py"
        ) from error


def read_runtime_env(path: Path) -> dict[str, Any]:
    """The runtime environment of a job, read from a YAML file; UserError where the file is missing or no mapping."""
    if not path.is_file():
        raise UserError(f"there is no {path}; type the line in the root of a checkout, or give --runtime-env FILE")
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {found!r}; a runtime environment is a mapping, as in cluster/runtime_env.yaml")
    variables = {"RAYSTILL_COMMIT": code_commit(), **found.get("env_vars", {})}  # the checkout travels without its .git
    return {**found, "env_vars": variables}


def check_secrets(line: Sequence[str], environment: dict[str, Any]) -> None:
    """Refuse, with UserError, a command line or runtime environment that would show a secret to everybody who sees the
    cluster's jobs.
    """
    shown = f"{shlex.join(line)} {environment}"
    held = [name for name in SECRETS if name in shown or (os.environ.get(name) or "\0") in shown]
    if held or without_password(shown) != shown:
        what = ", ".join(held) or "a password in an address"
        raise UserError(
            f"the line or its runtime environment holds a secret ({what}), and "
            "Ray shows both to everybody who sees its jobs: set it in the environment of the cluster's nodes"
        )


async def _tail(client: JobSubmissionClient, number: str) -> None:
    async for lines in client.tail_job_logs(number):
        print(lines, end="", flush=True)


def _ended(client: JobSubmissionClient, number: str) -> str:
    status = client.get_job_status(number)
    if status != JobStatus.SUCCEEDED:
        message = client.get_job_info(number).message or "see its log above"
        raise UserError(f"{number} {str(status).lower()}: {_first_line(message)}")
    return f"{number}: {status}"


def _first_line(message: object) -> str:
    return str(message).strip().partition("\n")[0]
