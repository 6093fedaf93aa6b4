"""An S3 bucket, or a prefix in one, as a store."""

import builtins
import dataclasses
import io
import re

import botocore.exceptions

from raystill.data import s3
from raystill.data.objects import Entry, StoreError, checked_key

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class S3Store:
    """A bucket, or a prefix in one, as a store; the client is made in each process when it is first needed."""

    uri: str

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise StoreError(
                f"{self.uri}: {self.bucket!r} is no bucket name; expected s3://bucket/prefix, 3-63 of a-z 0-9 . -"
            )

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """The prefix of every key in the bucket: empty, or ending with '/'."""
        rest = self.uri.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{rest}/" if rest else ""

    def _name(self, key: str) -> str:
        return self.prefix + checked_key(key)

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def list(self, prefix: str = "") -> list[Entry]:
        """List all objects whose key begins with `prefix`, sorted by key, over as many pages as it takes."""
        entries: list[Entry] = []
        with s3.translated(self._where(prefix)):
            pages = s3.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self.prefix)
                    if key and not key.endswith("/"):  # a name ending in "/" is how some tools mark a folder
                        written = item["LastModified"].timestamp()
                        entries.append(
                            Entry(key=key, size=item["Size"], etag=item["ETag"].strip('"'), modified=written)
                        )
        return sorted(entries, key=lambda entry: entry.key)

    def folders(self) -> builtins.list[str]:
        """List the names of the folders directly below the uri, sorted, over as many pages as it takes."""
        with s3.translated(self._where("")):
            pages = s3.client().get_paginator("list_objects_v2")
            found = pages.paginate(Bucket=self.bucket, Prefix=self.prefix, Delimiter="/")
            names = [item["Prefix"] for page in found for item in page.get("CommonPrefixes", [])]
        return sorted(name.removeprefix(self.prefix).rstrip("/") for name in names)

    def read(self, key: str) -> bytes:
        """Read one object whole; s3transfer fetches again what breaks off."""
        buffer = io.BytesIO()
        with s3.translated(self._where(key)):
            s3.client().download_fileobj(self.bucket, self._name(key), buffer)
        return buffer.getvalue()

    def write(self, key: str, data: bytes) -> Entry:
        """Write one object in one request, so that its etag is the MD5 of its bytes; at most 5 GiB."""
        with s3.translated(self._where(key)):
            answer = s3.client().put_object(Bucket=self.bucket, Key=self._name(key), Body=data)
        return Entry(key=key, size=len(data), etag=answer["ETag"].strip('"'))

    def exists(self, key: str) -> bool:
        """Say whether an object is there; a missing bucket is an error."""
        return any(entry.key == key for entry in self.list(checked_key(key)))

    def delete(self, key: str) -> None:
        """Delete one object; one that is not there is no error."""
        with s3.translated(self._where(key)):
            s3.client().delete_object(Bucket=self.bucket, Key=self._name(key))

    def join(self, sub: str) -> "S3Store":
        """Give the store of everything below `sub`."""
        return S3Store(uri=f"{self.uri.rstrip('/')}/{checked_key(sub.strip('/'))}")

    def check(self) -> None:
        """Make sure, by asking for one entry, that the bucket exists and that the access key may list it."""
        with s3.translated(self.uri):
            s3.client().list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

    def create(self) -> None:
        """Create the bucket; one that is there already is no error if the access key may list it."""
        region = s3.client().meta.region_name
        abroad = region not in {None, "us-east-1", "aws-global"} and ".amazonaws.com" in s3.endpoint()
        options = {"CreateBucketConfiguration": {"LocationConstraint": region}} if abroad else {}
        with s3.translated(self.uri):
            try:
                s3.client().create_bucket(Bucket=self.bucket, **options)
            except botocore.exceptions.ClientError as error:
                if s3.code(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                    raise
        self.check()  # a bucket of that name may be someone else's
