"""The objects below a prefix of an S3-compatible bucket, as far as exports need them.

What matters is written on condition that it is not there yet (`If-None-Match: *`), which the
server decides; a client that asks again because an answer was lost must not take itself for
another one, so each object says whose attempt it is. Memory is bounded: a file is sent as it is
read, or in parts of which one is held at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection

from worker.errors import StateError
from worker.exports.place import stop_if
from worker.exports.staging import create_private

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART: Final = 16 * 1024 * 1024
"""Larger files are sent in parts of this size or, where that is not enough, larger ones."""
_MOST_PARTS: Final = 10_000

_MISSING: Final = frozenset({"NoSuchKey", "404"})
_THERE: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_REFUSED: Final = frozenset(
    {"403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
     "SignatureDoesNotMatch"}
)  # fmt: skip
_RIGHTS: Final = "check the credentials and their rights (docs/operations.md, Exports in a bucket)"


class TakenError(Exception):
    """Another attempt holds an object of that name."""


class Held(msgspec.Struct, frozen=True):
    """An object that is there: its name below the prefix, its size, when it was written."""

    name: str
    bytes: int
    modified: datetime


class Bucket:
    """Objects by their names below the prefix. Every method blocks and raises `StateError`."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, part: int = PART) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part = part

    def url(self, name: str = "") -> str:
        """Where an object is, for a person."""
        return f"s3://{self._bucket}/{self._prefix}{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if it is not there."""
        with self._guard():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                with closing(answer["Body"]) as body:
                    return body.read()
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def download(self, name: str, path: Path) -> Iterator[bytes]:
        """Write an object into a new file, chunk by chunk; gives each chunk that is written."""
        with self._guard():
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            descriptor = create_private(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(descriptor, "wb") as file, closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(1 << 20):
                    file.write(chunk)
                    yield chunk

    def put(self, name: str, content: bytes) -> None:
        """Write a small object, whether it is there or not."""
        with self._guard():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a small object unless there is one; whether this call (or its repeat) did.

        False may also mean that an earlier try of this very call did, whose answer was lost.
        """
        with self._guard():
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + name, Body=content, IfNoneMatch="*"
                )
            except ClientError as error:
                if _code(error) in _THERE:
                    return False
                raise
            return True

    def upload_new(
        self, name: str, path: Path, attempt: str, abandoned: Callable[[], bool]
    ) -> None:
        """Write a file as a new object. `TakenError` if another attempt has one of that name.

        When `abandoned` turns true between two parts, it gives up with `StateError`.
        """
        with self._guard():
            try:
                size = path.stat().st_size
                if size > self._part:
                    part = max(self._part, -(-size // _MOST_PARTS))
                    self._upload_parts(self._prefix + name, path, attempt, part, abandoned)
                else:
                    with path.open("rb") as file:
                        self._client.put_object(
                            Bucket=self._bucket,
                            Key=self._prefix + name,
                            Body=file,
                            IfNoneMatch="*",
                            Metadata={"attempt": attempt},
                        )
            except ClientError as error:
                if _code(error) not in _THERE | {"NoSuchUpload"}:
                    raise
                if self._attempt_of(name) != attempt:
                    raise TakenError from None

    def objects(self, below: str = "") -> Iterator[Held]:
        """All objects whose names begin so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + below
        )
        with self._guard():
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"][len(self._prefix) :]
                    yield Held(name, found["Size"], found["LastModified"])

    def folders(self) -> list[str]:
        """The first parts of names that have a `/`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        with self._guard():
            return [
                found["Prefix"][len(self._prefix) : -1]
                for page in pages
                for found in page.get("CommonPrefixes", ())
            ]

    def delete(self, name: str) -> None:
        """Remove an object; none is fine as well."""
        with self._guard():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def abort_uploads(self, ours: Callable[[str], bool], before: datetime) -> None:
        """End what was uploaded in parts, begun before that moment and never completed."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        with self._guard():
            found = [upload for page in pages for upload in page.get("Uploads", ())]
            for upload in found:
                key = upload["Key"]
                if upload["Initiated"] < before and ours(key[len(self._prefix) :]):
                    self._abort(key, upload["UploadId"])

    def _upload_parts(
        self, key: str, path: Path, attempt: str, part: int, abandoned: Callable[[], bool]
    ) -> None:
        # The server checks each part, and the whole, by its CRC32 where checksums are in use.
        config: Any = self._client.meta.config  # its stubs lack what is new
        checked = config.request_checksum_calculation == "when_supported"
        parts: list[CompletedPartTypeDef] = []
        upload = self._client.create_multipart_upload(
            Bucket=self._bucket,
            Key=key,
            Metadata={"attempt": attempt},
            # The stubs cannot say that a keyword may be missing.
            **({"ChecksumAlgorithm": "CRC32"} if checked else {}),  # type: ignore[arg-type]
        )["UploadId"]
        try:
            with path.open("rb") as file:
                while data := file.read(part):
                    stop_if(abandoned)
                    answer = self._client.upload_part(
                        Bucket=self._bucket,
                        Key=key,
                        UploadId=upload,
                        PartNumber=len(parts) + 1,
                        Body=data,
                    )
                    parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})
                    if checked and "ChecksumCRC32" in answer:
                        parts[-1]["ChecksumCRC32"] = answer["ChecksumCRC32"]
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except BaseException:
            with suppress(BotoCoreError, ClientError):
                self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if _code(error) != "NoSuchUpload":
                raise

    def _attempt_of(self, name: str) -> str | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except ClientError as error:
            if _code(error) in _MISSING:
                return None
            raise
        return head["Metadata"].get("attempt")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One line for whatever goes wrong; the server's own text may hold what it must not."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                problem = f"there is no bucket {self._bucket}: create it, or change `exports`"
            elif code in _REFUSED:
                problem = f"access was refused ({code}): {_RIGHTS}"
            else:
                problem = f"{error.operation_name} failed ({code})"
            raise StateError(f"cannot use the exports in {self.url()}: {problem}") from None
        except (NoConnection, HTTPClientError) as error:
            raise StateError(
                f"cannot use the exports in {self.url()}: no answer from the server "
                f"({type(error).__name__}): is it there, and is the endpoint right?"
            ) from None
        except BotoCoreError as error:  # no credentials, no such profile, no region
            raise StateError(
                f"cannot use the exports in {self.url()}: {type(error).__name__}: {_RIGHTS}"
            ) from None
        except OSError as error:
            raise StateError(
                f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
            ) from error


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "unknown")
