"""A real S3 server for tests: S3Proxy, which keeps objects as files of a directory.

It checks signatures and decides conditional writes itself. The jars come through Maven as
`tests/s3/pom.xml` says.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from tests import maven
from tests.maven import started_or_skipped
from tests.paths import ROOT

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY, SECRET = "buddy", "the-secret-of-the-tests"

_POM = ROOT / "tests" / "s3" / "pom.xml"
_JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LOGGING = """<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %-5level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
"""


class S3Unavailable(Exception):
    """No server can be had here; the text says in one line why."""


class S3Server:
    """One server on a port of its own."""

    def __init__(self) -> None:
        (self._port,) = maven.free_ports(1)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._sessions: dict[tuple[str, str], boto3.Session] = {}

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    def client(self, key: str = KEY, secret: str = SECRET) -> S3Client:
        """A client that tries once."""
        style: Any = {"addressing_style": "path"}
        config = Config(
            s3=style, connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}
        )
        if (key, secret) not in self._sessions:  # making one takes a tenth of a second
            session = boto3.Session(key, secret, region_name="us-east-1")
            self._sessions[key, secret] = session
        return self._sessions[key, secret].client("s3", endpoint_url=self.endpoint, config=config)

    def new_bucket(self) -> str:
        """The name of a bucket that has just been made."""
        name = f"bucket-{next(self._numbers)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def start(self) -> None:
        """Start it and wait until it answers. Raises `S3Unavailable`."""
        java = shutil.which("java")
        if java is None:
            raise S3Unavailable("no Java to run S3Proxy with (17 or newer)")
        try:
            lib = maven.jars(_POM, f"s3proxy-{maven.version(_POM, 's3proxy')}")
        except maven.NotFetched as error:
            raise S3Unavailable(str(error)) from None
        home = self._directory = Path(tempfile.mkdtemp(prefix="buddy-s3-"))
        (home / "data").mkdir()
        (home / "logback.xml").write_text(_LOGGING)
        settings = {
            "s3proxy.endpoint": self.endpoint,
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": KEY,
            "s3proxy.credential": SECRET,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(home / "data"),
        }
        (home / "s3proxy.conf").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        with (home / "s3proxy.log").open("wb") as log:
            self._process = subprocess.Popen(
                [java, *_JVM, f"-Dlogback.configurationFile={home / 'logback.xml'}",
                 "-cp", f"{lib}/*", "org.gaul.s3proxy.Main",
                 "--properties", str(home / "s3proxy.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._await_ready(home / "s3proxy.log")

    def stop(self) -> None:
        """End it, and remove the data."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _await_ready(self, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        assert self._process is not None
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                pass
            else:
                return
            if self._process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise S3Unavailable(f"S3Proxy exited with {self._process.returncode}: {last}")
            if time.monotonic() > deadline:
                raise S3Unavailable(f"S3Proxy did not answer within {_START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


@contextmanager
def running(server: S3Server) -> Iterator[S3Server]:
    """For fixtures: the server, started, and stopped at the end.

    Where none can be had the test is skipped, or fails if `BUDDY_REQUIRE_KAFKA=1` (which is set
    where Java and Maven must be there).
    """
    with started_or_skipped(server, S3Unavailable, "S3"):
        yield server
