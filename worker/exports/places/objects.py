"""The objects below a prefix of an S3-compatible bucket, as exports use them.

Objects that must not be overwritten are put only if absent (`If-None-Match: *`), as the server
decides. A client that retries after a lost answer must recognise its own object, so each uploaded
file carries its attempt. Memory is bounded: a file is streamed, or sent in parts, one part in
memory. Calls are retried while the server is away (`outages`). Clean-up is not: it can wait.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from botocore.exceptions import ClientError

from worker.errors import StateError
from worker.exports.manifest import MOST_BYTES
from worker.exports.places.outages import PATIENCE_SECONDS, Persistent, Tell
from worker.exports.places.place import stop_if
from worker.exports.places.s3_errors import (
    MISSING,
    NO_SUCH_KEY,
    S3_FAILURES,
    THERE,
    S3Failure,
    code_of,
    is_outage,
    is_refusal,
    problem_of,
)
from worker.exports.places.staging import create_private

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, MultipartUploadTypeDef

PART: Final = 16 * 1024 * 1024
"""Bytes. Larger files are sent in parts of this size, or of more if the parts were too many."""
_MOST_PARTS: Final = 10_000


class TakenError(Exception):
    """Another attempt wrote an object of that name."""


class Held(msgspec.Struct, frozen=True):
    """An existing object: its name below the prefix, its size in bytes, when it was written."""

    name: str
    bytes: int
    modified: datetime


class Bucket:
    """Objects by name below the prefix. Every method blocks, and raises `StateError` on failure."""

    def __init__(
        self,
        connect: Callable[[], S3Client],
        bucket: str,
        prefix: str,
        *,
        part: int = PART,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """`connect` returns a client that tries each call once. Raises what `connect` raises."""
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._part = part
        self._server = Persistent(connect, is_outage, self._problem, patience)
        self._left: set[str] = set()
        """Uploads that could not be aborted."""

    def tell(self, tell: Tell) -> None:
        """Set the callback for outages of the server."""
        self._server.tell = tell

    def close(self) -> None:
        """Stop waiting for a server that is away."""
        self._server.close()

    def url(self, name: str = "") -> str:
        """The URL of an object, for people."""
        return f"s3://{self._bucket}/{self._prefix}{name}".rstrip("/")

    def now(self) -> datetime:
        """The time by the server's clock, which also dates objects; else by the local clock."""
        with self._guard():
            answer = self._server.call(
                lambda s3: s3.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            )
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return datetime.now(UTC) if date is None else parsedate_to_datetime(date)

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if it does not exist.

        Of one that is too large for a manifest, one byte more than a manifest can have.
        """
        with self._guard():
            try:
                return self._server.call(lambda s3: self._read(s3, name))
            except ClientError as error:
                if code_of(error) == NO_SUCH_KEY:
                    return None
                raise

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None if it does not exist."""
        key = self._prefix + name
        with self._guard():
            try:
                head = self._server.call(lambda s3: s3.head_object(Bucket=self._bucket, Key=key))
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
        return head["ContentLength"]

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of an object from `start` up to `stop`, which must not be equal.

        Waits for minutes for a server that is away, whatever the patience of other calls: somebody
        has read what is before, and would begin anew.
        """
        with self._guard():
            return self._server.call(
                lambda s3: self._read_range(s3, name, start, stop), PATIENCE_SECONDS
            )

    def link(self, name: str, kind: str, disposition: str, seconds: int) -> str:
        """A presigned URL of an object: who has it may read that object for so long.

        The answer has these headers, `Content-Type` and `Content-Disposition`. Sends no request.
        """
        wanted = {
            "Bucket": self._bucket,
            "Key": self._prefix + name,
            "ResponseContentType": kind,
            "ResponseContentDisposition": disposition,
        }
        with self._guard():
            return self._server.call(
                lambda s3: s3.generate_presigned_url("get_object", wanted, ExpiresIn=seconds)
            )

    def download(self, name: str, path: Path) -> str:
        """Write an object into a new file; returns its SHA-256."""
        with self._guard():
            return self._server.call(lambda s3: self._download(s3, name, path))

    def put(self, name: str, content: bytes) -> None:
        """Write a small object, replacing any existing one."""
        key = self._prefix + name
        with self._guard():
            self._server.call(lambda s3: s3.put_object(Bucket=self._bucket, Key=key, Body=content))

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a small object unless one exists; returns whether this call did.

        False may also mean that an earlier try of this call wrote it, and its answer was lost.
        """
        key = self._prefix + name
        with self._guard():
            try:
                self._server.call(
                    lambda s3: s3.put_object(
                        Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*"
                    )
                )
            except ClientError as error:
                if code_of(error) in THERE:
                    return False
                raise
            return True

    def upload_new(
        self, name: str, path: Path, attempt: str, abandoned: Callable[[], bool]
    ) -> None:
        """Upload a file as a new object. `TakenError` if another attempt has one of that name.

        Raises `StateError` if `abandoned` turns true between two parts.
        """
        key = self._prefix + name
        with self._guard():
            try:
                size = path.stat().st_size
                if size > self._part:
                    part = max(self._part, -(-size // _MOST_PARTS))
                    self._upload_parts(key, path, attempt, part, abandoned)
                else:
                    self._server.call(lambda s3: self._upload(s3, key, path, attempt))
            except ClientError as error:
                if code_of(error) not in THERE | {"NoSuchUpload"}:
                    raise
                if self._server.call(lambda s3: self._attempt_of(s3, name)) != attempt:
                    raise TakenError from None

    def objects(self, below: str = "") -> list[Held]:
        """All objects whose names begin with `below`."""
        with self._guard():
            return self._server.call(lambda s3: self._objects(s3, below))

    def folders(self) -> list[str]:
        """The first segments of all names that contain a `/`."""
        with self._guard():
            return self._server.call(self._folders)

    def delete(self, name: str) -> None:
        """Remove an object. A missing object is fine."""
        key = self._prefix + name
        with self._guard():
            self._server.call(lambda s3: s3.delete_object(Bucket=self._bucket, Key=key))

    def discard(self, name: str, attempt: str) -> None:
        """Remove an object if that attempt wrote it. Not retried."""

        def remove(s3: S3Client) -> None:
            if self._attempt_of(s3, name) == attempt:
                s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)

        with self._guard():
            self._server.call_once(remove)

    def abort_uploads(self, ours: Callable[[str], bool], before: datetime) -> None:
        """Abort incomplete uploads in parts that began before that moment and that `ours` accepts.

        Also aborts all uploads that this object failed to abort earlier.
        """
        with self._guard():
            for upload in self._server.call(self._uploads):
                key, number = upload["Key"], upload["UploadId"]
                abandoned = upload["Initiated"] < before and ours(key[len(self._prefix) :])
                if abandoned or number in self._left:
                    self._end_upload(key, number)
            self._left.clear()

    # --- Single requests --------------------------------------------------------------------------

    def _read(self, s3: S3Client, name: str) -> bytes:
        answer = s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
        content = bytearray()
        with closing(answer["Body"]) as body:
            # botocore notices a connection that broke off only in the read at the end.
            while piece := body.read(MOST_BYTES + 1 - len(content)):
                content += piece
        return bytes(content)

    def _read_range(self, s3: S3Client, name: str, start: int, stop: int) -> bytes:
        answer = s3.get_object(
            Bucket=self._bucket, Key=self._prefix + name, Range=f"bytes={start}-{stop - 1}"
        )
        with closing(answer["Body"]) as body:
            return body.read()

    def _download(self, s3: S3Client, name: str, path: Path) -> str:
        digest = hashlib.sha256()
        answer = s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
        path.unlink(missing_ok=True)  # left by an earlier try
        descriptor = create_private(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file, closing(answer["Body"]) as body:
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def _upload(self, s3: S3Client, key: str, path: Path, attempt: str) -> None:
        with path.open("rb") as file:
            s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=file,
                IfNoneMatch="*",
                Metadata={"attempt": attempt},
            )

    def _objects(self, s3: S3Client, below: str) -> list[Held]:
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + below
        )
        return [
            Held(found["Key"][len(self._prefix) :], found["Size"], found["LastModified"])
            for page in pages
            for found in page.get("Contents", ())
        ]

    def _folders(self, s3: S3Client) -> list[str]:
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        return [
            found["Prefix"][len(self._prefix) : -1]
            for page in pages
            for found in page.get("CommonPrefixes", ())
        ]

    def _uploads(self, s3: S3Client) -> list[MultipartUploadTypeDef]:
        pages = s3.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        return [upload for page in pages for upload in page.get("Uploads", ())]

    def _upload_parts(
        self, key: str, path: Path, attempt: str, part: int, abandoned: Callable[[], bool]
    ) -> None:
        """Upload in parts. Each request is retried by itself: sending a part is idempotent."""
        upload = self._server.call(lambda s3: self._begin_upload(s3, key, attempt))
        parts: list[CompletedPartTypeDef] = []
        try:
            with path.open("rb") as file:
                while data := file.read(part):
                    stop_if(abandoned)
                    parts.append(self._upload_part(key, upload, len(parts) + 1, data))
            self._server.call(
                lambda s3: s3.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                    IfNoneMatch="*",
                )
            )
        except BaseException:
            self._left.add(upload)
            with suppress(*S3_FAILURES):
                self._end_upload(key, upload)
                self._left.discard(upload)
            raise

    def _begin_upload(self, s3: S3Client, key: str, attempt: str) -> str:
        """Begin an upload in parts; returns its id.

        If checksums are in use, the server checks each part and the whole.
        """
        config: Any = s3.meta.config  # the stubs lack this setting
        checked = config.request_checksum_calculation == "when_supported"
        return s3.create_multipart_upload(
            Bucket=self._bucket,
            Key=key,
            Metadata={"attempt": attempt},
            # The stubs cannot express an optional keyword.
            **({"ChecksumAlgorithm": "CRC32"} if checked else {}),  # type: ignore[arg-type]
        )["UploadId"]

    def _upload_part(self, key: str, upload: str, number: int, data: bytes) -> CompletedPartTypeDef:
        answer = self._server.call(
            lambda s3: s3.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
            )
        )
        sent: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            sent["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return sent

    def _end_upload(self, key: str, upload: str) -> None:
        try:
            self._server.call_once(
                lambda s3: s3.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
            )
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    def _attempt_of(self, s3: S3Client, name: str) -> str | None:
        try:
            head = s3.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise
        return head["Metadata"].get("attempt")

    # --- Failures ---------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn any failure into one line, without the server's own text: it may hold secrets."""
        try:
            yield
        except S3_FAILURES as error:
            if is_refusal(error):
                self._server.renew()
            raise StateError(self._problem(error)) from None
        except OSError as error:
            raise StateError(
                f"{error.filename or 'a file'} cannot be used: {error.strerror or error}"
            ) from error

    def _problem(self, error: S3Failure) -> str:
        return f"cannot use the exports in {self.url()}: {problem_of(error, self._bucket)}"
