"""`buddy serve` as a process beside the worker: records by HTTP, tokens, signals, a busy port."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.kit import DEADLINE, Another, Buddy, Service, eventually
from tests.unit.rows_kit import user

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


def address_of(service: Service) -> str:
    service.wait_for("http_started")
    (started,) = service.logged("http_started")
    return f"http://127.0.0.1:{started['port']}"


def test_records_by_http_are_judged_and_a_stop_lets_requests_finish(another: Another) -> None:
    buddy = another(grace_seconds=1, http_port=0)
    buddy.start("run").ready()
    service = buddy.start("serve")
    with httpx.Client(base_url=address_of(service), timeout=DEADLINE) as client:
        rows = [user(n) for n in range(20)]
        body = b"\n".join(value for _, value in rows) + b'\n{"id": 1}\n'
        answer = client.post(
            "/v1/records/users?wait=30s",
            content=body,
            headers={"content-type": "application/x-ndjson"},
        )
        report = answer.json()
        assert (answer.status_code, report["accepted"], report["rejected"]) == (200, 20, 1)

        def while_it_stops() -> Iterator[bytes]:
            yield rows[0][1]
            service.process.terminate()
            service.wait_for("stopping")
            yield b"\n" + rows[1][1]

        answer = client.post("/v1/records/users", content=while_it_stops())
        assert (answer.status_code, answer.json()["sent"]) == (202, 2)
    service.end().succeeded()
    assert not service.complaints


def test_a_token_that_buddy_made_lets_a_client_in(local: Buddy, tmp_path: Path) -> None:
    made = local.run("token", "crm", "--role", "send").succeeded().out
    found = re.search(r"^# The token, shown this once: (\S+)$", made, re.MULTILINE)
    assert found is not None
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(made)
    local.settings |= {"http_port": 0, "http_tokens_file": tokens}
    service = local.start("serve")
    with httpx.Client(base_url=address_of(service), timeout=DEADLINE) as client:
        assert client.post("/v1/records/users", content=b"{}").status_code == 401
        known = {"authorization": f"Bearer {found[1]}"}
        answer = client.post("/v1/records/users", content=b'{"email": "ada@x"}', headers=known)
        assert answer.status_code == 202
        tokens.write_text("")
        answer = client.post("/v1/records/users", content=b"{}", headers=known)
        assert answer.status_code == 401, "rotated without a restart"
    service.stop().succeeded()
    (sent,) = service.logged("records_sent")
    assert (sent["caller"], sent["count"]) == ("crm", 1)
    log = "".join(service.lines)
    assert found[1] not in log
    assert "ada@x" not in log


def test_run_serves_the_api_from_a_process_of_its_own(another: Another) -> None:
    buddy = another(grace_seconds=1, http=True, http_port=0)
    service = buddy.start("run").ready()
    address = address_of(service)
    with httpx.Client(base_url=address, timeout=DEADLINE) as client:
        answer = client.post("/v1/records/users?wait=30s", content=user(1)[1])
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        assert client.get("/live").text.strip() == "alive"
        eventually(lambda: client.get("/ready").status_code == 200, "all is ready")
        metrics = client.get("/metrics").text
        assert "buddy_rows_accepted_total" in metrics
        assert 'buddy_http_records_sent_total{entity="users"} 1.0' in metrics
        names = re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE)
        assert len(set(names)) == len(names), "no name comes twice"

        (child,) = children(service)
        pid = service.process.pid
        nice, ours = (os.getpriority(os.PRIO_PROCESS, one) for one in (child, pid))
        assert nice > ours, "the services come first"
        assert os.getsid(child) == os.getsid(pid), "else Linux compares sessions, not priorities"
        assert os.getpgid(child) != os.getpgid(pid), "Ctrl-C is for the parent"
        os.kill(child, signal.SIGKILL)
        service.wait_for("http_ended")
        service.wait_for("http_started", 2)
        (another_child,) = children(service)
        assert another_child != child
        eventually(lambda: client.get("/ready").status_code == 200, "it is ready again")

        assert not service.logged("desk_beside"), "beside the desk the API stands in for nobody"
        os.kill(another_child, signal.SIGSTOP)
        service.wait_for("http_hangs")
        os.kill(another_child, signal.SIGCONT)
        service.wait_for("http_answers")
        eventually(lambda: client.get("/ready").status_code == 200, "it goes on")

        os.kill(another_child, signal.SIGSTOP)
    service.kill()
    eventually(lambda: not Path(f"/proc/{another_child}").exists(), "it ends with its parent")
    buddy.settings["http_port"] = int(address.rpartition(":")[2])
    service = buddy.start("run").ready()
    address_of(service)
    (child,) = children(service)
    service.stop().succeeded()
    assert not Path(f"/proc/{child}").exists()


def children(service: Service) -> list[int]:
    """The processes that a service has started."""
    pid = service.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_cannot_be_served_is_one_line(local: Buddy) -> None:
    all_hosts = {"BUDDY_HTTP_HOST": "0.0.0.0"}  # noqa: S104 -- this is refused
    assert "http_tokens_file" in local.run("serve", env=all_hosts).complained(3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = local.run("serve", env={"BUDDY_HTTP_PORT": str(port)}).complained(3)
    assert f"port {port} on 127.0.0.1 is in use" in line
    tokens = {"BUDDY_HTTP": "true", "BUDDY_HTTP_TOKENS_FILE": "none"}
    for command in ("serve", "run"):
        assert "tokens file none" in local.run(command, env=tokens).complained(3)
    assert "name" in local.run("token", "a b", "--role", "send").complained(2)
    assert json.dumps("all")[1:-1] in local.run("token", "a", "--role", "all").complained(2)
