"""A store goes on from its position only in the log that it was made of."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from tests.unit.index.tails_kit import LOG, PLACE, message, read
from worker.index.freshness import SavedIndex
from worker.index.tails import LENGTH, Beside, Comparison, Tail, extended, extended_beside
from worker.stream import Message, OffsetRange, Partition


def compared(
    tails: Mapping[Partition, Tail], position: int, log: Sequence[Message], end: int | None = None
) -> str | None:
    """What comes of it in this log, read in small pieces."""
    if end is None:
        end = log[-1].offset + 1 if log else 0
    comparison = Comparison(tails, {PLACE: position}, {PLACE: OffsetRange(0, end)})
    there = [m for m in log if m.offset >= comparison.starts.get(PLACE, end)]
    while comparison.open and comparison.reason is None:
        some, there = there[:2], there[2:]
        for one in some:
            comparison.take(one)
        comparison.moved({PLACE: there[0].offset if there else end})
    return comparison.reason


@pytest.mark.parametrize("at_once", [1, 3, LENGTH, LENGTH + 1, 20])
@pytest.mark.parametrize("position", [0, 1, 7, 12, 20])
def test_the_log_that_was_read_is_known_again(position: int, at_once: int) -> None:
    tails = read(LOG, position, at_once=at_once)
    assert compared(tails, position, LOG) is None
    assert Tail.decode(tails[PLACE].encode()) == tails[PLACE]


@pytest.mark.parametrize("at_once", [1, 3, LENGTH, LENGTH + 1, 20])
def test_a_tail_has_every_message_from_its_beginning_on(at_once: int) -> None:
    tail = read(LOG, 20, at_once=at_once)[PLACE]
    assert [mark.offset for mark in tail.marks] == list(range(tail.since, 20))
    assert len(tail.marks) == LENGTH
    assert read(LOG[3:5], 10)[PLACE].since == 0, "nothing else had been there"


@pytest.mark.parametrize(
    "change",
    [{"timestamp": 1}, {"key": b"other"}, {"value": None}, {"value": b"w"}, {"headers": ()}],
)
def test_any_change_of_the_last_message_is_another_log(change: dict[str, object]) -> None:
    other = [*LOG[:9], msgspec.structs.replace(LOG[9], **change), *LOG[10:]]
    reason = compared(read(LOG, 10), 10, other)
    assert reason is not None
    assert "partition 0 of topic b.accepted.users holds another message at offset 9" in reason


def test_a_message_where_there_was_none_is_another_log() -> None:
    gap = [*LOG[:8], *LOG[12:]]
    assert compared(read(gap, 10), 10, gap) is None
    for offset in (8, 9):
        other = sorted([*gap, LOG[offset]], key=lambda m: m.offset)
        assert f"at offset {offset}" in str(compared(read(gap, 10), 10, other))
    assert "at offset 1" in str(compared(read([], 2), 2, [LOG[1]])), "nothing had been read"


def test_a_message_that_was_overtaken_may_be_gone() -> None:
    log = [*LOG[:9], message(9, "k"), LOG[10], message(11, "k")]
    assert compared(read(log, 10), 10, [*log[:9], *log[10:]]) is None
    assert compared(read(log, 10), 10, [*log[:7], log[9]]) is None, "the newest is there"


@pytest.mark.parametrize("left", [[], LOG[:3], LOG[:9], [*LOG[:9], *LOG[10:]], LOG[10:]])
def test_a_message_that_is_gone_without_a_later_one_of_its_key_cannot_be_explained(
    left: list[Message],
) -> None:
    reason = compared(read(LOG, 10), 10, left, end=20)
    assert reason is not None
    assert "whether it is the log that was read cannot be told" in reason


def test_none_of_the_messages_is_left() -> None:
    again = [message(20 + n, f"k{n}") for n in range(20)]
    reason = compared(read(LOG, 20), 20, again)
    assert "no longer holds the messages before position 20" in (reason or "")


def test_a_damaged_partition_cannot_be_told() -> None:
    comparison = Comparison(read(LOG, 10), {PLACE: 10}, {PLACE: OffsetRange(0, 20)})
    for place, words in ((Partition("other", 0), "None"), (PLACE, "is damaged")):
        comparison.unreadable(place)
        assert words in str(comparison.reason)


def test_what_a_release_without_tails_has_read_is_not_compared() -> None:
    begun = extended({}, {PLACE: 10}, [], {PLACE: 10})
    assert begun == {PLACE: Tail(10)}
    assert Comparison(begun, {PLACE: 10}, {PLACE: OffsetRange(0, 20)}).starts == {}
    tails = extended(begun, {PLACE: 10}, LOG[10:12], {PLACE: 12})
    assert compared(tails, 12, LOG) is None
    other = [*LOG[:11], message(11, time=1)]
    assert compared(tails, 12, other) is not None
    assert extended({}, {PLACE: 10}, LOG[10:12], {PLACE: 12}) == tails, "also in one step"


def test_messages_that_are_read_again_change_nothing() -> None:
    tails = read(LOG, 12)
    assert extended(tails, {PLACE: 12}, LOG[2:12], {PLACE: 12}) == {}
    assert extended(tails, {PLACE: 12}, LOG[2:13], {PLACE: 13})[PLACE] == read(LOG, 13)[PLACE]


@pytest.mark.parametrize("data", [b"", b"1234567", b"12345678x", bytes(8 + 23)])
def test_bytes_that_are_no_tail_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="length of a tail"):
        Tail.decode(data)


def test_whoever_goes_on_ends_with_what_the_log_says() -> None:
    """Logs that part anywhere, with gaps, compacted as far as it may be: no silent divergence."""
    outcomes = {True: 0, False: 0}
    for seed in range(4_000):
        chance = random.Random(seed)
        log = _grown([], chance.randrange(1, 25), chance, time=1)
        position = chance.randrange(log[-1].offset + 2) if log else 0
        parted = chance.randrange(position + 2)
        now = _grown(log[: parted if chance.random() < 0.7 else len(log)], 30, chance, time=2)
        end = now[-1].offset + 1
        if end < position:
            continue  # `freshness.outside_the_log`
        left = _compacted(now, chance)
        reason = compared(read(log, position, at_once=chance.randrange(1, 12)), position, left, end)
        is_same = [m for m in now if m.offset < position] == [m for m in log if m.offset < position]
        if reason is None:
            went_on = _table([m for m in log if m.offset < position], {})
            assert _table([m for m in left if m.offset >= position], went_on) == _table(left, {})
        elif left == now:
            assert not is_same, f"rebuilt for nothing: {seed}"
        outcomes[reason is None] += 1
    assert min(outcomes.values()) > 500, outcomes


def _grown(log: list[Message], count: int, chance: random.Random, time: int) -> list[Message]:
    """More messages of a few keys, with gaps as transaction markers leave them."""
    grown = list(log)
    offset = log[-1].offset + 1 if log else 0
    for _ in range(chance.randrange(count) + 1):
        offset += chance.random() < 0.2
        value = None if chance.random() < 0.2 else f"{time}/{offset}"
        grown.append(message(offset, f"k{chance.randrange(chance.choice([2, 30]))}", value, time))
        offset += 1
    return grown


def _compacted(log: list[Message], chance: random.Random) -> list[Message]:
    """Some of the messages are gone that a later one of their key has overtaken."""
    last = {m.key: m.offset for m in log}
    share = chance.choice([0, 0, 0.5, 1])
    return [m for m in log if m.offset == last[m.key] or chance.random() >= share]


def _table(log: list[Message], before: Mapping[bytes | None, bytes]) -> dict[bytes | None, bytes]:
    table = dict(before)
    for one in log:
        if one.value is None:
            table.pop(one.key, None)
        else:
            table[one.key] = one.value
    return table


# --- what was read beside it ----------------------------------------------------------------------


def read_beside(log: Sequence[Message], identity: str = "one") -> dict[Partition, Beside]:
    """What is kept of a topic that nothing is made of, read message by message."""
    known: dict[Partition, Beside] = {}
    for one in log:
        known |= extended_beside(known, [one], identity)
    return known


def compared_beside(
    known: Mapping[Partition, Beside], log: Sequence[Message], end: int
) -> str | None:
    comparison = Comparison({}, {}, {PLACE: OffsetRange(0, end)}, known)
    if comparison.reason is None:
        for one in log:
            if one.offset >= comparison.starts[PLACE]:
                comparison.take(one)
        comparison.moved({PLACE: end})
    assert comparison.reason or not comparison.open
    return comparison.reason


def test_beside_the_log_that_was_read_is_known_again() -> None:
    known = read_beside(LOG[:10])
    assert known[PLACE].position == 10
    assert Beside.decode(known[PLACE].encode()) == known[PLACE]
    assert compared_beside(known, LOG, 20) is None


@pytest.mark.parametrize("left", [[], LOG[:8], LOG[12:]], ids=["none", "older", "newer"])
def test_what_is_compacted_away_beside_proves_nothing(left: list[Message]) -> None:
    """Each round of a task replaces the one before: a rebuild each time would be for nothing."""
    assert compared_beside(read_beside(LOG[:10]), left, 20) is None


def test_another_message_beside_and_a_log_that_ends_before_are_told() -> None:
    other = [*LOG[:9], message(9, time=1), *LOG[10:]]
    known = read_beside(LOG[:10])
    assert "holds another message at offset 9" in str(compared_beside(known, other, 20))
    assert "ends at 9, before position 10" in str(compared_beside(known, LOG[:9], 9))


def test_damage_beside_is_for_others_to_tell() -> None:
    comparison = Comparison({}, {}, {PLACE: OffsetRange(0, 20)}, read_beside(LOG[:10]))
    comparison.unreadable(PLACE)
    assert (comparison.reason, comparison.open) == (None, [])


def test_a_topic_beside_that_is_another_now_or_gone_is_not_compared() -> None:
    saved = SavedIndex(1, 0, {}, beside=read_beside(LOG[:10]))
    spans = {PLACE: OffsetRange(0, 0)}
    assert saved.now(spans, {PLACE.topic: "one"}).beside == saved.beside
    assert saved.now(spans, {}).beside == saved.beside, "an old broker cannot tell"
    assert saved.now(spans, {PLACE.topic: "two"}).beside == {}
    assert saved.now({}, {}).beside == {}
    anew = extended_beside(saved.beside, [LOG[3]], "two")
    assert (anew[PLACE].identity, anew[PLACE].tail.since, anew[PLACE].position) == ("two", 3, 4)
