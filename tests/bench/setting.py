"""What a run of the bench is made with: sizes, room on disk, a Kafka of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Self

from tests.bench.figures import Skipped
from tests.kafka_server import KafkaServer, KafkaUnavailable

RECORDS = 200_000
QUICK_RECORDS = 50_000
SECONDS = 60.0
QUICK_SECONDS = 8.0
EXPORT_ROWS = 1_000_000


class Bench:
    """Everything that is started or made here is gone when it is closed.

    `rates` are the highest rates of the paths, once they have been measured, by broker. `seconds`
    is the length of what runs for a time: a step of the live rate; the rest takes a share of it.
    """

    def __init__(
        self,
        *,
        quick: bool,
        records: int | None = None,
        seconds: float | None = None,
        export_rows: int | None = None,
    ) -> None:
        self.quick = quick
        self.records = records or (QUICK_RECORDS if quick else RECORDS)
        self.seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
        self.export_rows = export_rows or (EXPORT_ROWS // 10 if quick else EXPORT_ROWS)
        self.rounds = 1 if quick else 3
        self.rates: dict[str, float] = {}
        self._stack = ExitStack()
        self._directory = Path(tempfile.mkdtemp(prefix="buddy-bench-"))
        self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._kafka: str | None = None
        self._prefixes = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A directory for as long as it is needed."""
        made = Path(tempfile.mkdtemp(dir=self._directory))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def prefix(self) -> str:
        """Of topics that no other part of the bench has."""
        return f"bench-{next(self._prefixes)}"

    def kafka(self) -> str:
        """`host:port` of a Kafka that is warm. Raises Skipped."""
        if self._kafka is None:
            from tests.bench.copying import warm_up

            server = KafkaServer(bench=True)
            self.say("starting Kafka")
            try:
                server.start()
            except KafkaUnavailable as error:
                server.stop()
                raise Skipped(f"no Kafka: {error}") from None
            self._stack.callback(server.stop)
            warm_up(self, server.address)
            self._kafka = server.address
        return self._kafka

    def say(self, what: str) -> None:
        """Tell people what is going on; standard output is for the table."""
        print(f"  {what} …", file=sys.stderr, flush=True)
