"""A bucket of a test's own on the server of the session, and processes that end there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import EndpointConnectionError

from tests.s3_server import S3Server
from tests.unit.place_kit import ID, KilledError
from worker.exports.places.bucket import BucketPlace
from worker.exports.places.objects import Bucket
from worker.exports.places.outages import PATIENCE_SECONDS
from worker.exports.places.s3_errors import refuse_strangers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024
PART = 5 * MIB
"""The smallest that S3 takes."""
LARGE = {"large.bin": bytes(range(256)) * (13 * MIB // 256)}
"""Three parts, the last one a short one."""


class Clock:
    """A moment that passes when told to; the server's own clock goes on."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Gate:
    """The way to a server, which can be closed: then nobody answers."""

    def __init__(self) -> None:
        self.client: S3Client | None = None
        self.connects = 0
        self.asked = 0
        self.refused: list[str] = []
        self.shut_at: Callable[[int], bool] = lambda _asked: False
        """Whether it is shut for a request, the first of which is number 0."""

    def shut_from(self, number: int) -> None:
        """Shut from that request on, counted from now."""
        self.asked = 0
        self.refused.clear()
        self.shut_at = lambda asked: asked >= number

    def open(self) -> None:
        """Whoever comes may pass."""
        self.shut_at = lambda _asked: False

    def pass_by(self, request: Any, **_: Any) -> None:
        number, self.asked = self.asked, self.asked + 1
        if self.shut_at(number):
            self.refused.append(request.url)
            raise EndpointConnectionError(endpoint_url=request.url)


class World:
    """A bucket of a test's own, and sinks that publish there."""

    def __init__(self, server: S3Server, directory: Path) -> None:
        self.server = server
        self.name = server.new_bucket()
        self.clock = Clock()
        self._rooms = (directory / f"room-{n}" for n in range(1000))
        self.clients: list[S3Client] = []
        self.places: list[BucketPlace] = []
        self.client = self.new_client()

    def new_client(self, **options: Any) -> S3Client:
        client = self.server.client(**options)
        refuse_strangers(client)
        self.clients.append(client)
        return client

    def sink(self, client: S3Client | None = None, bucket: str | None = None) -> BucketPlace:
        there = client or self.client
        held = Bucket(lambda: there, bucket or self.name, "exports", part=PART)
        return BucketPlace(held, next(self._rooms), self.clock)

    def sink_behind(self, gate: Gate, patience: float = PATIENCE_SECONDS) -> BucketPlace:
        """One whose clients come to the server through a gate, by the server's clock."""

        if gate.client is None:
            gate.client = self.new_client()
            gate.client.meta.events.register("before-send.s3", gate.pass_by)
        client = gate.client

        def connect() -> S3Client:
            """The same one each time: to make one takes a tenth of a second."""
            gate.connects += 1
            return client

        held = Bucket(connect, self.name, "exports", part=PART, patience=patience)
        return BucketPlace(held, next(self._rooms))

    def held(self, below: str = "exports/2") -> list[str]:
        """What there is, without seals."""
        answer = self.client.list_objects_v2(Bucket=self.name, Prefix=below)
        return [found["Key"] for found in answer.get("Contents", ())]

    def uploads(self) -> int:
        answer = self.client.list_multipart_uploads(Bucket=self.name)
        return len(answer.get("Uploads", ()))

    def seal(self) -> Any:
        answer = self.client.get_object(Bucket=self.name, Key=f"exports/.seals/{ID}.json")
        return json.loads(answer["Body"].read())

    def close(self) -> None:
        for place in self.places:
            place.close()
        for client in self.clients:
            client.close()


@contextmanager
def killed(client: S3Client, step: int, *, answered: bool) -> Iterator[list[str]]:
    """Within, the process ends at that request: before it is sent, or when it has been answered.

    Gives the requests that were made. Everything after the end fails as well.
    """
    made: list[str] = []

    def before(request: Any, **_: Any) -> None:
        if len(made) > step or (len(made) == step and not answered):
            raise KilledError
        made.append(request.method)

    def after(parsed: Any, **_: Any) -> None:
        if len(made) > step:
            if "Body" in parsed:
                parsed["Body"].close()  # the process would end, and its connection with it
            raise KilledError

    client.meta.events.register("before-send.s3", before)
    client.meta.events.register("after-call.s3", after)
    try:
        yield made
    finally:
        client.meta.events.unregister("before-send.s3", before)
        client.meta.events.unregister("after-call.s3", after)
