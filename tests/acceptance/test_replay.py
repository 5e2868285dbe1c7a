"""`buddy rejections replay`: each rejection is sent again once, whoever is killed and when."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from typing import Final

import pytest

from tests.acceptance.accounts import broker_of, everything
from tests.acceptance.kit import DEADLINE, Another, Buddy
from tests.acceptance.material import write_rows
from tests.unit.rows_kit import match, user, uuid
from worker.core.decode import Invalid
from worker.core.rejection import reject
from worker.core.violations import Code, Violation
from worker.desk.audit import ORIGIN_HEADER, read_audit
from worker.stream import Message, Partition, ProducerRecord

pytestmark = pytest.mark.acceptance

NOW: Final = 1_764_547_200_000
REJECTIONS: Final = 2_000
KILLS: Final = 6
STATE: Final = 6


async def fill(buddy: Buddy) -> None:
    """Rejections of users that nobody settles."""
    names = buddy.names
    batch = []
    for number in range(REJECTIONS):
        source = Message(names.input("users"), 0, number, NOW, b"k", b'{"n":%d}' % number, ())
        invalid = Invalid(b"%d" % number, (Violation(Code.INVALID_ENUM, "role", "why", "error"),))
        value, _ = reject("users", source, invalid, NOW, 1 << 20)
        batch.append(ProducerRecord(names.rejected("users"), b"%d" % number, value))
    async with broker_of(buddy) as broker:
        await broker.publish(batch)


async def sent(buddy: Buddy) -> tuple[list[Message], list[Message]]:
    """Everything in the input of users, and everything in the audit."""
    topics = buddy.names.input("users"), buddy.names.replays
    async with broker_of(buddy) as broker:
        found = await everything(broker, topics)
    return found[topics[0]], found[topics[1]]


async def test_after_the_fix_one_replay_empties_the_list(another: Another) -> None:
    buddy = another(grace_seconds=1)
    service = buddy.start("run").ready()
    users, matches = [user(n) for n in range(20)], [match(100 + n, n, n + 1) for n in range(19)]
    write_rows(buddy.directory, {"matches": [json.loads(row or b"") for _, row in matches]})
    assert buddy.run("send", "matches.ndjson", "--wait").code == 1
    write_rows(buddy.directory, {"users": [json.loads(row or b"") for _, row in users]})
    buddy.run("send", "users.ndjson", "--wait").succeeded()
    chosen = ("--entity", "matches", "--code", "orphaned_user_id")
    dry = buddy.run("rejections", "replay", *chosen, "--dry-run", "--json").succeeded().json
    assert (dry["would_send"], dry["sent"], len(dry["examples"])) == (19, 0, 10)
    done = buddy.run("rejections", "replay", *chosen, "--wait", "--json").succeeded().json
    assert (done["sent"], done["accepted"], done["rejected"], done["skipped"]) == (19, 19, 0, {})
    again = buddy.run("rejections", "replay", *chosen, "--json").succeeded().json
    assert (again["sent"], again["skipped"]) == (0, {"sent again before": 19})
    summary = buddy.run("rejections", "summary", "--json").succeeded().json
    assert (summary["rejections"], summary["open"]) == (19, 0)
    (shown, *_) = buddy.run("rejections", "list", "--all", "--json").succeeded().out.splitlines()
    assert json.loads(shown)["state"] == "replayed"
    service.stop().succeeded()


async def test_a_newer_version_that_is_not_judged_yet_is_waited_for(local: Buddy) -> None:
    """Else the older one that is sent again would come after it, and win."""
    buddy = local.create_topics()
    local.settings["grace_seconds"] = 1
    service = buddy.start("run").ready()
    rows = [match(100 + n, n, n + 1) for n in range(9)]
    write_rows(buddy.directory, {"matches": [json.loads(row or b"") for _, row in rows]})
    assert buddy.run("send", "matches.ndjson", "--wait").code == 1
    users = [json.loads(user(n)[1] or b"") for n in range(10)]
    write_rows(buddy.directory, {"users": users})
    buddy.run("send", "users.ndjson", "--wait").succeeded()
    service.stop().succeeded()
    newer = [{**json.loads(row or b""), "status": "ended"} for _, row in rows]
    write_rows(buddy.directory, {"matches": newer})
    buddy.run("send", "matches.ndjson").succeeded()
    replay = buddy.start("rejections", "replay", "--entity", "matches", "--json")
    service = buddy.start("run").ready()
    assert replay.end().succeeded().json["skipped"] == {"accepted or deleted since": 9}
    service.stop().succeeded()


async def test_a_replay_that_is_killed_and_repeated_sends_each_rejection_once(
    another: Another,
) -> None:
    buddy = another()
    await fill(buddy)
    dice = random.Random(5)
    command = ("rejections", "replay", "--entity", "users", "--json", "--at-once", "--rate", "400")
    killed = 0
    for _ in range(KILLS):
        process = buddy.start(*command)
        try:
            process.process.wait(dice.uniform(0.8, 2.5))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
    assert killed
    report = buddy.run(*command, "--rate", "100000").succeeded().json
    records, audits = await sent(buddy)
    assert report["sent"] + report["skipped"].get("sent again before", 0) == REJECTIONS
    origins = Counter(dict(record.headers)[ORIGIN_HEADER] for record in records)
    topic = buddy.names.input("users")
    assert origins == {f"{topic}/0/{n}".encode(): 1 for n in range(REJECTIONS)}
    assert {record.value for record in records} == {b'{"n":%d}' % n for n in range(REJECTIONS)}
    assert Counter(a.origin.encode() for a in map(read_audit, audits) if a) == origins
    assert buddy.run(*command).succeeded().json["sent"] == 0


async def test_a_second_replay_takes_over_from_the_first(another: Another) -> None:
    buddy = another()
    await fill(buddy)
    command = ("rejections", "replay", "--entity", "users", "--json", "--at-once")
    first = buddy.start(*command, "--rate", "200")
    async with broker_of(buddy) as broker:
        reader = broker.reader()
        reader.assign({Partition(buddy.names.replays, 0): 0})
        assert await reader.read(1, DEADLINE), "the first one has begun"
    elsewhere = buddy.elsewhere("elsewhere")
    second = elsewhere.run(*command, "--rate", "100000").succeeded().json
    ended = first.end()
    if ended.code:  # else it was done when the second one came
        assert ended.code == STATE
        assert "another 'buddy rejections replay' has begun" in ended.err
    else:
        assert ended.json["sent"] + second["sent"] == REJECTIONS
    records, audits = await sent(buddy)
    assert len(records) == len(audits) == REJECTIONS
    assert len({record.value for record in records}) == REJECTIONS


async def test_originals_are_written_to_files_that_check_reads(local: Buddy) -> None:
    buddy = local.create_topics()
    await fill(buddy)
    names = buddy.names
    pretty = b'{\r\n "a": "b\\n"\n}'
    async with broker_of(buddy) as broker:
        for entity, value in (("events", pretty), ("events", None)):
            source = Message(names.input(entity), 0, 0, NOW, b"k", value, ())
            invalid = Invalid(b"k", (Violation(Code.WRONG_TYPE, "a", "why", "error"),))
            encoded, _ = reject(entity, source, invalid, NOW, 1 << 20)
            await broker.publish([ProducerRecord(names.rejected(entity), b"k", encoded)])
    report = buddy.run("rejections", "export", "found", "--json").succeeded().json
    assert report == {
        "written": {"users": REJECTIONS, "events": 1},
        "skipped": {"a deletion, or too large to be kept": 1},
    }
    lines = (buddy.directory / "found" / "users.ndjson").read_bytes().splitlines()
    assert {json.loads(line)["n"] for line in lines} == {*range(REJECTIONS)}
    (event,) = (buddy.directory / "found" / "events.ndjson").read_bytes().splitlines()
    assert json.loads(event) == {"a": "b\n"}
    checked = buddy.run("check", "found", "--json")
    assert checked.code == 1
    assert sum(checked.json["rejected"].values()) == REJECTIONS + 1
    assert "not empty" in buddy.run("rejections", "export", "found").complained(2)


async def test_rejections_that_are_gone_or_that_nobody_chose(local: Buddy) -> None:
    buddy = local.create_topics()
    for arguments, why in (
        ((), "say what to send again"),
        (("in.users/0/1", "--code", "invalid_enum"), "coordinates go alone"),
        (("in.users/0/1", "--with-orphans"), "coordinates go alone"),
        (("in.users/0/1",), "there is no rejection at buddy.in.users/0/1"),
        (("users/1",), "'users/1' is no coordinate"),
    ):
        assert why in buddy.run("rejections", "replay", *arguments).err
    await fill(buddy)
    coordinate = f"{buddy.names.rejected('users')}/"
    listed = buddy.run("rejections", "list", "--limit", "1", "--json").succeeded().json
    assert listed["coordinate"].startswith(coordinate)
    done = buddy.run("rejections", "replay", listed["coordinate"], listed["source"], "--json")
    assert done.succeeded().json["sent"] == 1
    async with broker_of(buddy) as broker:
        await broker.publish(
            [ProducerRecord(buddy.names.accepted("users"), uuid(1).encode(), None, (), 0)]
        )
    chosen = ("--since", "99999d", "--json", "--by", "me", "--at-once")
    everything_ = buddy.run("rejections", "replay", *chosen)
    report = everything_.succeeded().json
    assert (report["sent"], report["skipped"]) == (REJECTIONS - 1, {"sent again before": 1})
    _, audits = await sent(buddy)
    assert {audit.by for audit in map(read_audit, audits[1:]) if audit} == {"me"}
