"""Log lines of what may happen very often."""

from __future__ import annotations

from typing import Any

from worker.log import Sparing


def test_the_first_are_told_one_by_one_and_the_others_as_a_sum_a_minute() -> None:
    said: list[dict[str, Any]] = []
    now = 0.0
    sparing = Sparing(lambda **fields: said.append(fields), lambda: now)
    sparing.tell([{"offset": n} for n in range(12)])
    assert said == [{"count": 1, "offset": n} for n in range(10)]
    now = 59.0
    sparing.tell([{"offset": 12}])
    assert len(said) == 10
    now = 60.0
    sparing.tell([])
    assert said[10:] == [{"count": 3, "offset": 12}]
    sparing.tell([{"offset": 13}])
    assert len(said) == 11
    sparing.rest()
    sparing.rest()
    assert said[11:] == [{"count": 1, "offset": 13}]
