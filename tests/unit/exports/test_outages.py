"""Calls to a server that is away: tried again for minutes with growing pauses, and told."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from worker.exports.places import outages
from worker.exports.places.outages import FIRST_PAUSE, LAST_PAUSE, PATIENCE_SECONDS, Persistent


class AwayError(Exception):
    """Nobody answers."""


class Client:
    """One of many, which must be closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Server:
    """Away for so long, by a clock that passes by its pauses alone; each try takes a second."""

    def __init__(self, away: float) -> None:
        self.now = 0.0
        self.away = away
        self.pauses: list[float] = []
        self.clients: list[Client] = []
        self.used: list[Client] = []
        self.told: list[str | None] = []

    def connect(self) -> Client:
        self.clients.append(Client())
        return self.clients[-1]

    def ask(self, client: Client) -> str:
        self.used.append(client)
        self.now += 1.0
        if self.now <= self.away:
            raise AwayError("nobody answers")
        return "here"

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server(0)
    clock = SimpleNamespace(monotonic=lambda: made.now)
    monkeypatch.setattr("tenacity.time", clock)
    monkeypatch.setattr(outages, "time", clock)
    monkeypatch.setattr(outages, "sleep_using_event", lambda _: made.pause)
    return made


def persistent(server: Server) -> Persistent[Client]:
    made = Persistent(server.connect, lambda e: isinstance(e, AwayError), str)
    made.tell = server.told.append
    return made


@pytest.mark.parametrize("away", [4.0, 60.0, PATIENCE_SECONDS - LAST_PAUSE])
def test_a_server_that_is_away_for_a_while_fails_nothing(server: Server, away: float) -> None:
    client = persistent(server)
    server.away = away
    with capture_logs() as logs:
        assert client.call(server.ask) == "here"
    assert len(set(server.used)) == len(server.used), "each try has a fresh client"
    assert [c for c in server.clients if not c.closed] == server.used[-1:]
    assert server.told == ["nobody answers"] * len(server.pauses) + [None]
    assert [entry["event"] for entry in logs] == [
        *["export_place_away"] * len(server.pauses),
        "export_place_back",
    ]
    assert logs[-1]["seconds"] == pytest.approx(server.now - 1.0, abs=0.06)


def test_calls_that_fail_with_one_client_share_its_successor(server: Server) -> None:
    """A client takes time and memory, and many downloads may wait for one server."""
    client = persistent(server)
    server.away = 1.0
    others: list[str] = []

    def fails_later(used: Client) -> str:
        if not others:  # another call fails meanwhile, and goes on with a new client
            others.append(client.call(server.ask))
            raise AwayError("nobody answers")
        return server.ask(used)

    assert client.call(fails_later) == others[0] == "here"
    assert len(server.clients) == 2
    assert server.used == [server.clients[0], server.clients[1], server.clients[1]]


def test_pauses_grow_up_to_a_limit(server: Server) -> None:
    server.away = PATIENCE_SECONDS - LAST_PAUSE
    persistent(server).call(server.ask)
    assert FIRST_PAUSE <= server.pauses[0] <= 2 * FIRST_PAUSE
    assert all(b > a or b == LAST_PAUSE for a, b in pairwise(server.pauses))
    assert server.pauses[-1] == LAST_PAUSE


def test_patience_ends_and_the_next_call_begins_anew(server: Server) -> None:
    client = persistent(server)
    server.away = 10 * PATIENCE_SECONDS
    with pytest.raises(AwayError):
        client.call(server.ask)
    assert PATIENCE_SECONDS <= server.now <= PATIENCE_SECONDS + LAST_PAUSE + 2.0
    assert server.told[-1] == "nobody answers", "it is still away"
    server.away = server.now + 4.0
    assert client.call(server.ask) == "here"
    assert server.told[-1] is None


def test_what_is_no_outage_is_raised_at_once(server: Server) -> None:
    def refuse(_: Client) -> None:
        raise PermissionError

    client = persistent(server)
    with pytest.raises(PermissionError):
        client.call(refuse)
    assert (server.pauses, server.told, len(server.clients)) == ([], [], 1)


def test_cleaning_up_is_tried_once(server: Server) -> None:
    client = persistent(server)
    server.away = 1.0
    with pytest.raises(AwayError):
        client.call_once(server.ask)
    assert server.pauses == []


def test_closing_ends_a_wait() -> None:
    asked = threading.Event()

    def ask(_: Client) -> None:
        asked.set()
        raise AwayError

    client: Persistent[Client] = Persistent(Client, lambda e: isinstance(e, AwayError), str)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            client.call(ask)
        except AwayError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert asked.wait(10)
    client.close()
    waiting.join(10)
    assert len(raised) == 1
    with pytest.raises(AwayError):
        client.call(ask)
