"""Each role with the least rights that docs/operations/configuring.md grants it, on a real Kafka.

The broker has TLS, SCRAM and an authorizer. Then rights are revoked and granted again while
services run.

By default two of each service, both at a time; `BUDDY_RIGHTS=all` takes away all that matter, one
after the other.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.acceptance.kit import Buddy, Service
from tests.kafka_rights import Right, Rights, rights_of
from tests.kafka_server import KafkaServer, running
from tests.maven import free_ports
from tests.paths import ROOT
from worker.brokers.kafka.broker import KafkaBroker
from worker.brokers.kafka.security import KafkaSecurity
from worker.errors import BrokerUnavailable, ConfigurationError
from worker.stream import ProducerRecord

pytestmark = [pytest.mark.kafka, pytest.mark.acceptance, pytest.mark.timeout(600)]

NOT_READY_WITHIN = READY_WITHIN = 30.0
UNREACHABLE = 4
NDJSON = "application/x-ndjson"

_CONFIGURING = ROOT / "docs" / "operations" / "configuring.md"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required"
_USERS = ("worker", "sink", "client", "watch", "maker", "serve")


class Site(NamedTuple):
    """A broker that lets nobody do anything, and what its clients need to log in."""

    server: KafkaServer
    ca_file: Path
    directory: Path

    def buddy(self, user: str, **settings: Any) -> Buddy:
        """`buddy` as that user; all share one place for exports."""
        return Buddy(
            self.directory / user,
            f"kafka://{self.server.address}",
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_mechanism="SCRAM-SHA-512",
            kafka_username=user,
            kafka_password=f"{user}-secret",
            kafka_ca_file=self.ca_file,
            exports=self.directory / "exports",
            grace_seconds=1,
            **settings,
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=kafka", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    both = directory / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    users = [
        word
        for name in _USERS
        for word in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={name}-secret]")
    ]
    server = KafkaServer(
        listener="SASL_SSL",
        settings={
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.clients.scram-sha-512.sasl.jaas.config": f"{_SCRAM};",
            "listener.name.clients.ssl.keystore.type": "PEM",
            "listener.name.clients.ssl.keystore.location": str(both),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
        format_options=users,
    )
    with running(server) as started:
        yield Site(started, certificate, directory)


def documented(role: str) -> list[Right]:
    """The rights of a role, as the table in docs/operations/configuring.md grants them."""
    section = _CONFIGURING.read_text().split("### Rights on Kafka")[1].split("\n## ")[0]
    (row,) = [line for line in section.splitlines() if re.match(rf"\| `?{role}`?[ ,]", line)]
    _, _, topics, rest, _ = row.split("|")
    found = []
    for cell in (topics.replace(" on ", " on topics "), rest):
        for operations, kind, names in re.findall(
            r"([A-Z_]+(?: and [A-Z_]+)*) on (topic|group|transactional id)s? ([^;]+)", cell
        ):
            for operation in operations.split(" and "):
                found += [Right(operation, kind, n) for n in re.findall(r"`([^`]+)`", names)]
    assert found
    return found


def ready(service: Service, port: int) -> tuple[bool, str]:
    """What `/ready` says."""
    assert service.process.poll() is None, f"{service.name} has ended\n{service}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        answer = json.loads(connection.getresponse().read())
        return answer["ready"], "\n".join(answer["reasons"])
    finally:
        connection.close()


async def becomes(service: Service, port: int, says: str | None, within: float) -> None:
    """Until a service is ready (`says` None), or is not and gives that reason."""
    end = time.monotonic() + within
    while True:
        is_ready, reasons = await asyncio.to_thread(ready, service, port)
        if is_ready if says is None else (not is_ready and re.search(says, reasons)):
            return
        assert time.monotonic() < end, f"{service.name}: wants {says}, says {reasons}\n{service}"
        await asyncio.sleep(0.1)


def one(name: str) -> ProducerRecord:
    """A user, who is accepted, or a record that is rejected."""
    key = str(uuid.uuid4())
    record = {"id": key, "first_name": "A", "last_name": "B", "email": f"{key}@b.org"}
    record |= {"role": "participant", "joined_at": "2026-01-01T00:00:00Z"}
    value = json.dumps(record if name == "good" else {"id": key}).encode()
    return ProducerRecord("buddy.in.users", key.encode(), value)


@asynccontextmanager
async def trickle(address: str) -> AsyncIterator[None]:
    """Records come in meanwhile, good ones and bad ones."""
    broker = KafkaBroker(address)
    await broker.open()

    async def send() -> None:
        while True:
            await broker.publish([one(name) for name in ("good", "bad") for _ in range(3)])
            await asyncio.sleep(0.3)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        await broker.close()


def topic(operation: str, name: str) -> Right:
    return Right(operation, "topic", name)


TAKEN: dict[str, list[tuple[Right, str]]] = {
    "worker": [
        (Right("READ", "group", "buddy-worker"), "cannot join group buddy-worker"),
        (topic("READ", "buddy.accepted.users"), "index: cannot read topic"),
        (topic("READ", "buddy.in.users"), "cannot read topics"),
        (topic("WRITE", "buddy.accepted.users"), "cannot commit as buddy-task-"),
        (topic("WRITE", "buddy.rejected.users"), "cannot commit as buddy-task-"),
        (topic("WRITE", "buddy.internal.progress"), "cannot commit as buddy-task-"),
        (topic("READ", "buddy.internal.progress"), "index: cannot read topics"),
        (Right("WRITE", "transactional id", "buddy-task-*"), "cannot start the writer buddy-task-"),
        (topic("DESCRIBE", "buddy.in.users"), "cannot describe topics"),
    ],
    "sink": [
        (topic("READ", "buddy.accepted.users"), "cannot read topics"),
        (Right("READ", "group", "buddy-sink"), "cannot join group buddy-sink"),
        (topic("READ", "buddy.internal.progress"), "cannot read topic"),
        (topic("READ", "buddy.export-requests"), "cannot read topic buddy.export-requests"),
        (Right("WRITE", "transactional id", "buddy-sink"), "cannot start the writer buddy-sink"),
    ],
}
ALL = os.environ.get("BUDDY_RIGHTS") == "all"


def turns(user: str) -> list[list[tuple[Right, str]]]:
    """What is taken away at a time."""
    return [[each] for each in TAKEN[user]] if ALL else [TAKEN[user][:2]]


async def test_least_rights_do_and_each_that_is_missing_is_told(site: Site) -> None:
    async with rights_of(site.server.inner_address) as rights:
        await topics_are_created(site, rights)
        for user, role in (
            *zip(TAKEN, TAKEN, strict=True),
            ("client", "send"),
            ("watch", "status"),
            ("serve", "serve"),
        ):
            await rights.grant(user, [*documented("all"), *documented(role)])
        ports = [int(port) for port in free_ports(2)]
        services = {
            user: site.buddy(user, metrics_port=port).start(user)
            for user, port in zip(TAKEN, ports, strict=True)
        }
        try:
            for service in services.values():
                await asyncio.to_thread(service.ready)
            await asyncio.to_thread(everything_works, site)
            await asyncio.to_thread(everything_works_over_http, site)
            async with trickle(site.server.inner_address):
                # Side by side: they know nothing of each other.
                await asyncio.gather(
                    *(
                        taken_and_given_back(site, rights, services[user], port)
                        for user, port in zip(TAKEN, ports, strict=True)
                    )
                )
            await rights.grant("client", documented("rejections replay"))
            await asyncio.to_thread(a_record_is_sent_again, site)
            for service in services.values():
                assert (await asyncio.to_thread(service.stop)).code == 0
                assert service.complaints == []
        finally:
            for service in services.values():
                if service.process.poll() is None:
                    service.kill()


async def topics_are_created(site: Site, rights: Rights) -> None:
    """Without DESCRIBE too: what was made is told, and which right is missing."""
    maker = site.buddy("maker")
    await rights.grant("maker", documented("topics create"))
    blind = await asyncio.to_thread(maker.run, "topics", "create", "--partitions", "2")
    assert "35 topics created" in blind.out
    line = blind.complained(UNREACHABLE)
    assert "grant this user DESCRIBE on" in line
    assert "leader" not in line
    await rights.grant("maker", documented("all"))
    again = await asyncio.to_thread(maker.run, "topics", "create", "--partitions", "2")
    assert "0 topics created, 35 were there" in again.succeeded().out


def everything_works(site: Site) -> None:
    """Each command of a client does what it is for."""
    client = site.buddy("client")
    lines = [one(name).value or b"" for name in ("good", "good", "bad")]
    (client.directory / "users.ndjson").write_bytes(b"\n".join(lines) + b"\n")
    sent = client.run("send", "users.ndjson", "--wait")
    assert "2 accepted, 1 rejected" in sent.out, f"{sent}"
    answer = client.run("export", "--wait", "--json", "--format", "json").succeeded().json
    assert answer["counts"]["users"] == 2
    assert "1 rejection, 1 open\n" in client.run("rejections", "summary").succeeded().out
    site.buddy("watch").run("status").succeeded()


def everything_works_over_http(site: Site) -> None:
    """Each kind of request of the API does what it is for."""
    service = site.buddy("serve", http_port=0).start("serve").wait_for("http_started")
    (started,) = service.logged("http_started")
    body = b"\n".join(one(name).value or b"" for name in ("good", "bad"))
    keyed = {"content-type": NDJSON, "idempotency-key": "of this test"}
    with httpx.Client(base_url=f"http://127.0.0.1:{started['port']}", timeout=90) as client:

        def asked(method: str, path: str, **options: Any) -> Any:
            answer = client.request(method, path, **options)
            assert answer.is_success, answer.text
            return answer.json()

        for headers, repeated in ((keyed, 0), (keyed, 2), ({"content-type": NDJSON}, None)):
            wait = "/v1/records/users?wait=60s"
            report = asked("POST", wait, content=body, headers=headers)
            assert (report["accepted"], report["rejected"]) == (1, 1), f"{report}\n{service}"
            assert report.get("repeated") == repeated
        assert asked("GET", "/v1/rejections")["rejections"]
        assert asked("POST", "/v1/replays", json={"entity": "users"})["sent"] >= 1
        assert asked("POST", "/v1/exports?wait=60s", json={})["status"] == "finished"
    service.stop().succeeded()
    assert service.complaints == []


def a_record_is_sent_again(site: Site) -> None:
    replay = site.buddy("client").run("rejections", "replay", "--entity", "users", "--json")
    assert replay.succeeded().json["sent"] >= 1


async def taken_and_given_back(site: Site, rights: Rights, service: Service, port: int) -> None:
    """Not ready, with a line for each right that says what to grant; then ready again."""
    user = service.name
    for turn in turns(user):
        for right, _ in turn:
            await rights.take(user, right)
        if ALL and user == "sink":
            # Some rights are for exports alone: something must be asked for. Who waits for it is
            # told in time.
            ask = ("export", "--wait", "--timeout", "3", "--format", "json")
            asked_at = time.monotonic()
            await asyncio.to_thread(site.buddy("client").run, *ask)
            assert time.monotonic() - asked_at < 20
        for right, operation in turn:
            asked = f"{operation}.*: Kafka refuses it; grant this user {right}".removesuffix("*")
            await becomes(service, port, asked, NOT_READY_WITHIN)
        for right, _ in turn:
            await rights.give_back(user, right)
        await becomes(service, port, None, READY_WITHIN)


# --- certificates and logins --------------------------------------------------------------------


def security(site: Site, **changes: Any) -> KafkaSecurity:
    login = {"username": "worker", "password": "worker-secret"}
    settings = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "ca_file": str(site.ca_file),
        **login,
        **changes,
    }
    return KafkaSecurity(**{k: v for k, v in settings.items() if v is not None})


@pytest.mark.parametrize(
    ("host", "changes", "says"),
    [
        ("127.0.0.1", {"ca_file": None}, "has a certificate that is not accepted: .* ca_file"),
        ("localhost", {}, "not valid for 'localhost'; name the broker as its certificate does"),
    ],
)
async def test_a_certificate_that_is_not_accepted_says_which_setting(
    site: Site, host: str, changes: dict[str, Any], says: str
) -> None:
    address = site.server.address.replace("127.0.0.1", host)
    broker = KafkaBroker(address, security(site, **changes))
    with pytest.raises(ConfigurationError, match=says) as caught:
        await broker.open()
    await broker.close()
    assert "start it" not in str(caught.value)


async def test_a_listener_without_tls_is_told(site: Site) -> None:
    broker = KafkaBroker(site.server.inner_address, security(site))
    with pytest.raises((ConfigurationError, BrokerUnavailable), match="security_protocol"):
        await broker.open()
    await broker.close()


async def test_a_login_that_is_refused_while_running_is_waited_out(site: Site) -> None:
    async with rights_of(site.server.inner_address) as rights:
        await rights.grant("client", [Right("WRITE", "transactional id", "mine")])
        client = {"username": "client", "password": "client-secret"}
        broker = KafkaBroker(site.server.address, security(site, **client))
        await broker.open()
        try:
            await rights.set_password("client", "another")
            with pytest.raises(BrokerUnavailable) as caught:
                await broker.committer("mine", "group")
            assert str(caught.value).startswith("cannot start the writer mine: Kafka at")
            assert "refuses the login" in str(caught.value)
            assert "client-secret" not in str(caught.value)
            await rights.set_password("client", "client-secret")
            await broker.committer("mine", "group")
        finally:
            await broker.close()
