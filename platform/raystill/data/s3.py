"""The S3 client, one per process, with boto3's usual credentials and endpoint, and its errors in plain words."""

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import boto3.exceptions
import botocore.exceptions
import s3transfer.exceptions
import urllib3.exceptions
from botocore.config import Config

from raystill.data.objects import StoreError

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
ATTEMPTS = 6

_WRONG_KEY = {
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key does not belong to this access key",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is not valid",
    "AccessDenied": "this access key may not do that here",
    "Forbidden": "this access key may not do that here",
    "403": "the access key is wrong or may not do that here",
}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_INSIDE = ("500", "502", "504", "InternalError")
_FULL = "has no room; free space there or raise the quota"
_BUSY = "is overloaded, several times in a row; try again with fewer readers"
_BROKEN = "failed inside, several times in a row; is the stored copy damaged? The server's log says more"
_BROKEN_WRITE = "failed inside, several times in a row; is the server's disk full (df -h there)? Its log says more"
_FAILURES = {
    **dict.fromkeys(("507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"), _FULL),
    **dict.fromkeys(("503", "SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded"), _BUSY),
    **dict.fromkeys(_INSIDE, _BROKEN),
}
_WRITES = {"PutObject", "UploadPart", "CompleteMultipartUpload", "CreateMultipartUpload", "CreateBucket"}


def client() -> Any:
    """Give this process's S3 client; a change of AWS_* in the environment gives a new one."""
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _client(os.getpid(), hashlib.sha256(repr(settings).encode()).hexdigest())


@functools.lru_cache(maxsize=8)
def _client(pid: int, fingerprint: str) -> Any:
    """Make a client; the arguments only key the cache: a forked process must not share its parent's connections."""
    del pid, fingerprint
    with translated("the S3 client"):
        session = boto3.session.Session()
        options: dict[str, Any] = {
            "retries": {"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS))},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "max_pool_connections": 32,
        }
        made = session.client("s3", config=Config(**options))
        if ".amazonaws.com" in made.meta.endpoint_url:
            return made
        # Servers other than Amazon's rarely resolve a bucket as a host name, so the bucket goes into the path.
        return session.client("s3", config=Config(**options, s3={"addressing_style": "path"}))


def endpoint() -> str:
    """Give the address that requests go to, for error messages."""
    return str(client().meta.endpoint_url)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn what boto3 raises about `uri` into a StoreError that says what to do and holds no secrets."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise StoreError(_refusal(uri, error)) from None
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
        raise StoreError(
            f"{uri}: no S3 credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "and AWS_ENDPOINT_URL for a server that is not Amazon's."
        ) from error
    except (
        botocore.exceptions.IncompleteReadError,
        botocore.exceptions.FlexibleChecksumError,
        botocore.exceptions.ResponseStreamingError,
        s3transfer.exceptions.RetriesExceededError,
        boto3.exceptions.RetriesExceededError,
        urllib3.exceptions.ProtocolError,
    ) as error:
        raise StoreError(
            f"{uri}: the object's bytes arrive cut off or changed ({_short(error)}), after several attempts. "
            "The stored copy is damaged or the connection breaks: try again, then write the object again."
        ) from error
    except (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError) as error:
        raise StoreError(
            f"{uri}: no answer from {endpoint()} ({type(error).__name__}). "
            "Check that the server runs and that AWS_ENDPOINT_URL names it."
        ) from error
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise StoreError(
            f"{uri}: the request could not be made: {_short(error)}. Check the uri, AWS_ENDPOINT_URL and AWS_REGION."
        ) from error


def _short(error: Exception) -> str:
    """Give an error's type and text with the secret key struck out, should a library ever print it."""
    inner = getattr(error, "last_exception", None) or error
    text = f"{type(inner).__name__}: {inner}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name)
        text = text.replace(secret, "***") if secret else text
    return text[:300]


def _refusal(uri: str, error: botocore.exceptions.ClientError) -> str:
    answer = code(error)
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if answer in _WRONG_KEY:
        return (
            f"{uri}: {endpoint()} refused ({answer}): {_WRONG_KEY[answer]}. "
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what that key is allowed on the bucket."
        )
    if answer == "NoSuchBucket" or (answer in _MISSING and _bucket_missing(bucket)):
        command = f"from raystill.data.store import create_bucket; create_bucket('s3://{bucket}')"
        return (
            f'{uri}: there is no bucket {bucket!r} at {endpoint()}. Check the name, or create it: python -c "{command}"'
        )
    if answer in _MISSING:
        return f"{uri}: no such object at {endpoint()}. Check the name; see: aws s3 ls s3://{bucket}/ --recursive"
    if answer in _FAILURES:
        broken_write = answer in _INSIDE and error.operation_name in _WRITES
        return f"{uri}: the server at {endpoint()} {_BROKEN_WRITE if broken_write else _FAILURES[answer]} ({answer})."
    return f"{uri}: {endpoint()} answered {answer}: {error.response.get('Error', {}).get('Message', '')}"


def code(error: botocore.exceptions.ClientError) -> str:
    """Give the name of what a server answered, such as "NoSuchKey"; a HEAD has only the status, such as "404"."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _bucket_missing(bucket: str) -> bool:
    """Tell a missing bucket from a missing object: a HEAD answers 404 for both, with no body."""
    try:
        client().head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        return code(error) in {"404", "NoSuchBucket"}
    return False
