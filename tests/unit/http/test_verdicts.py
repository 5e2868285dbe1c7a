"""What a repeat of a request says of records that were judged again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.http.send_report import SendTally
from worker.http.verdicts import Verdict, VerdictWatch
from worker.stream import Message

PLACE = "p.in.users/0/7"


def message(verdict: str) -> Message:
    return Message("p.any", 0, 0, 0, None, verdict.encode(), ())


async def same() -> str:
    return "one"


def watched() -> VerdictWatch:
    """A watch of one record that was sent before."""
    reader = SimpleNamespace(
        input_identity=same,
        verdict_in=lambda one: Verdict(cast("Any", one.value.decode())),
    )
    watch = VerdictWatch(cast("Any", reader), "one", reads_back=True)
    watch.expect([PLACE])
    return watch


def answer(watch: VerdictWatch) -> tuple[int, str]:
    """Status and verdict of the answer."""
    tally = SendTally("users")
    tally.go_on(1, 0)
    tally.repeat(1, PLACE)
    response = tally.answer(watch)
    return response.status_code, json.loads(bytes(response.body))["records"][0]["verdict"]


@pytest.mark.parametrize("last", ["accepted", "rejected"])
async def test_a_rejection_is_final_once_all_verdicts_have_been_read(last: str) -> None:
    watch = watched()
    watch.see(PLACE, message("rejected"))
    await watch.wait(0)
    assert answer(watch) == (202, "rejected")
    watch.see(PLACE, message(last))
    watch.caught_up()
    await watch.wait(0)
    assert answer(watch) == (200, last)


async def test_an_acceptance_is_final_at_once_and_stays() -> None:
    watch = watched()
    watch.see(PLACE, message("accepted"))
    watch.see(PLACE, message("rejected"))
    await watch.wait(0)
    assert answer(watch) == (200, "accepted")
