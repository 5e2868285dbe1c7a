"""What is taken for the outcome of a record that was sent; the rest is in tests/acceptance."""

from __future__ import annotations

from typing import cast

import pytest

from worker.brokers.contract import Broker, Reader
from worker.cli.outcomes import Outcomes
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.topics import Names
from worker.stream import Message, ProducerRecord

NAMES = Names()
SENT = b"buddy.in.users/0/5"
REJECTION = b'{"violations":[{"code":"invalid_enum"}]}'


class Given:
    """A broker, and a reader that gives these messages at once."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages

    async def identities(self, names: object) -> dict[str, str]:
        return {}

    async def topics(self, names: object) -> dict[str, object]:
        return {}

    async def spans(self, partitions: object) -> dict[object, object]:
        return {}

    def reader(self) -> Reader:
        return cast("Reader", self)

    def assign(self, positions: object) -> None:
        pass

    async def read(self, limit: int, timeout: float) -> list[Message]:
        return self._messages


def rejected(value: bytes | None, source: bytes = SENT) -> Message:
    return Message(NAMES.rejected("users"), 0, 0, 0, b"k", value, ((SOURCE_HEADER, source),))


@pytest.mark.parametrize(
    "garbage",
    [
        rejected(REJECTION, b"\xff\xfe"),
        rejected(REJECTION, "buddy.in.users/0/\N{SUPERSCRIPT FIVE}".encode()),
        rejected(REJECTION, b"buddy.in.users/0/" + b"9" * 5_000),
        rejected(REJECTION, b"5"),
        rejected(None),
        rejected(b"\xff"),
        rejected(b'{"violations":[{"code":"\xff"}]}'),
        rejected(b'{"zz":' + b"[" * 5_000),
        Message(
            NAMES.accepted("users"),
            0,
            0,
            0,
            b"k",
            None,
            ((SOURCE_HEADER, SENT), (WARNINGS_HEADER, b"\xff")),
        ),
    ],
)
async def test_what_no_worker_wrote_is_no_outcome(garbage: Message) -> None:
    outcomes = Outcomes(cast("Broker", Given([garbage, rejected(REJECTION)])), NAMES)
    await outcomes.open()
    outcomes.add_sent([ProducerRecord(NAMES.input("users"), b"k", b"{}")], [(0, 5)])
    await outcomes.refresh()
    assert (outcomes.accepted, outcomes.rejected) == (0, 1)
    assert outcomes.codes == {("users", "invalid_enum"): 1}
