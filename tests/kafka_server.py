"""A real Apache Kafka for tests and benchmarks: one node, KRaft, without Docker.

The jars come through Maven as `tests/kafka/pom.xml` says, once, into `.cache/kafka-<version>` of
the checkout; `BUDDY_KAFKA_HOME` names a directory that holds them already.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests import maven
from tests.maven import free_ports, started_or_skipped
from tests.paths import ROOT

_HERE = ROOT / "tests"
_POM = _HERE / "kafka" / "pom.xml"

_TEST_JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_BENCH_JVM = ("-Xms1g", "-Xmx1g")
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05


class KafkaUnavailable(Exception):
    """No broker can be had here; the text says in one line why."""


def version() -> str:
    """The version of Kafka that the pom names."""
    return maven.version(_POM, "kafka")


def jars() -> Path:
    """The directory of the broker's jars, fetched when it is not there yet."""
    given = os.environ.get("BUDDY_KAFKA_HOME")
    if given:
        home = Path(given)
        for candidate in (home, home / "libs"):
            if any(candidate.glob("kafka_*.jar")):
                return candidate
        raise KafkaUnavailable(f"BUDDY_KAFKA_HOME={given} holds no kafka_*.jar")
    try:
        return maven.jars(_POM, f"kafka-{version()}")
    except maven.NotFetched as error:
        raise KafkaUnavailable(f"{error}; or set BUDDY_KAFKA_HOME") from None


class KafkaServer:
    """One broker in a process group of its own; data and port survive `kill` and `restart`.

    `bench` gives it 1 GiB and the optimising compiler, `settings` adds lines to its
    server.properties, and `listener` is the security protocol of its clients' listener (which
    `settings` must then configure). Another listener without security is for the broker itself and
    for who runs it. `format_options` go to the tool that formats the storage: users for SCRAM are
    made there.
    """

    def __init__(
        self,
        *,
        bench: bool = False,
        settings: Mapping[str, str] | None = None,
        listener: str = "PLAINTEXT",
        format_options: Sequence[str] = (),
    ) -> None:
        self._jvm = _BENCH_JVM if bench else _TEST_JVM
        self._settings = dict(settings or {})
        self._listener = listener
        self._format_options = format_options
        self._port, self._inner_port, self._controller_port = free_ports(3)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def inner_address(self) -> str:
        """`host:port` for whoever runs it: no security, and with an authorizer all rights."""
        return f"127.0.0.1:{self._inner_port}"

    @property
    def log(self) -> str:
        """What the broker has printed."""
        return (self._home / "kafka.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers. Raises `KafkaUnavailable`."""
        if self._process is not None:
            return
        java = shutil.which("java")
        if java is None:
            raise KafkaUnavailable("no Java to run Kafka with (17 or newer)")
        lib = jars()
        classes = f"-XX:SharedArchiveFile={_classes(java, lib)}"
        if self._directory is None:
            self._format(java, lib, classes)
        self._launch(java, lib, classes)

    def _launch(self, java: str, lib: Path, classes: str) -> None:
        with (self._home / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [java, *self._jvm, classes, "-cp", f"{lib}/*", "kafka.Kafka", self._properties],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Kill it, and remove the data: an orderly end would only take longer."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """Kill -9; the data stay."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop in order (or kill -9) and start again on the same port with the same data."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def truncate(self, topic: str, partition: int, end: int) -> None:
        """Kill it, remove the batches of a partition from offset `end` on, and start it again.

        As after a loss of power: the last messages were acknowledged, but never reached the disk.
        """
        self.kill()
        log = self.logs(topic, partition)[-1]
        content, at = log.read_bytes(), 0
        while at < len(content) and int.from_bytes(content[at : at + 8]) < end:
            at += 12 + int.from_bytes(content[at + 8 : at + 12])
        assert at < len(content), "nothing to remove"
        with log.open("r+b") as file:
            file.truncate(at)
        for pattern in ("*.index", "*.timeindex", "*.snapshot"):
            for derived in log.parent.glob(pattern):
                derived.unlink()
        self.start()

    def logs(self, topic: str, partition: int) -> list[Path]:
        """The files that hold the messages of a partition."""
        return sorted((self._home / "data" / f"{topic}-{partition}").glob("*.log"))

    @property
    def _home(self) -> Path:
        assert self._directory is not None, "the server was never started"
        return self._directory

    @property
    def _properties(self) -> str:
        return str(self._home / "server.properties")

    def _format(self, java: str, lib: Path, classes: str = "-Xshare:auto") -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="buddy-kafka-"))
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"CLIENTS://{self.address},INNER://{self.inner_address},"
            f"CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"CLIENTS://{self.address},INNER://{self.inner_address}",
            "listener.security.protocol.map": f"CLIENTS:{self._listener},INNER:PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INNER",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._home / "data"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            # Each of the default 50 would cost files and time.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "log.cleaner.dedupe.buffer.size": "16777216",
            # After a kill -9 the broker may register again once its old session has expired.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "message.max.bytes": str(2 * 1024 * 1024),
            **self._settings,
        }
        Path(self._properties).write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [java, "-XX:TieredStopAtLevel=1", classes, "-cp", f"{lib}/*",
             "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}",
             "-c", self._properties, *self._format_options],
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise KafkaUnavailable(f"Kafka could not format its storage: {last}")

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None:
                last = self.log.strip().splitlines()[-1:]
                raise KafkaUnavailable(f"Kafka exited with {self._process.returncode}: {last}")
            if time.monotonic() > deadline:
                raise KafkaUnavailable(f"Kafka did not answer within {_START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                pass
        except OSError:
            return False
        # In a loop of its own, away from the one of a test that may be running already.
        with _quiet_aiokafka():
            outcome: list[bool] = []
            thread = threading.Thread(target=lambda: outcome.append(asyncio.run(self._serves())))
            thread.start()
            thread.join()
        return outcome == [True]

    async def _serves(self) -> bool:
        """Whether it knows itself as a member of its cluster; before, it answers with nobody."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.inner_address, request_timeout_ms=2000)
        try:
            await admin.start()
            return bool((await admin.describe_cluster())["brokers"])
        except (KafkaError, OSError):
            return False
        finally:
            await admin.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for each in (number, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, each)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                continue
            return


def _classes(java: str, lib: Path) -> Path:
    """The archive of the broker's loaded classes, made once: it halves the time of each start.

    A JVM that the archive does not fit starts without it.
    """
    archive = maven.CACHE / f"kafka-{version()}.jsa"
    with maven.locked(archive.name):
        if not archive.exists():
            aside = archive.with_suffix(".new")
            server = KafkaServer()
            try:
                server._format(java, lib)
                server._launch(java, lib, f"-XX:ArchiveClassesAtExit={aside}")
                assert server._process is not None
                server._process.terminate()
                server._process.wait(timeout=120)
            finally:
                server.stop()
            aside.touch()  # a JVM that makes no archives takes an empty one for none
            aside.rename(archive)
    return archive


@contextmanager
def _quiet_aiokafka() -> Iterator[None]:
    """Without the errors it logs for a broker that is not up yet."""
    logger = logging.getLogger("aiokafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def running(server: KafkaServer) -> Iterator[KafkaServer]:
    """For fixtures: the server, started, and stopped at the end.

    Where none can be had the test is skipped, or fails if `BUDDY_REQUIRE_KAFKA=1`.
    """
    with started_or_skipped(server, KafkaUnavailable, "Kafka"):
        yield server
