"""Workers whose wall clock is set while they run."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import milestone, user

pytestmark = pytest.mark.timeout(400)

TASKS = 4
NOBODY = 900_000
HOUR = 3_600_000
GRACE = 60_000


@pytest.mark.parametrize("step", [-HOUR, 24 * HOUR])
async def test_verdicts_come_after_the_grace_whatever_the_clock_is_set_to(
    stage: Stage, step: int
) -> None:
    running = await stage.started(grace=GRACE)
    before = await stage.send("milestones", milestone(1, NOBODY), milestone(2, NOBODY))
    await stage.until(lambda: running.parked() == 2, "both are parked")
    with capture_logs() as logs:
        stage.clock.step(step)
        after = await stage.send("milestones", milestone(3, NOBODY), milestone(4, NOBODY))
        await stage.until(lambda: running.parked() == 4, "all are parked")
        await stage.until(
            lambda: running.counted("buddy_clock_steps_total") == 1, "the step is counted"
        )
    (said,) = (entry for entry in logs if entry["event"] == "clock_stepped")
    assert abs(said["by_ms"] - step) < 2_000
    stage.clock.put_forward(GRACE)
    await stage.judged()
    lost = {"rejected orphaned_user_id": 4}
    assert stage.verdicts([*before, *after]) == lost
    await stage.books_balance()


async def test_a_clock_that_was_a_day_ahead_for_a_moment_leaves_nothing_behind(
    stage: Stage,
) -> None:
    running = await stage.started(grace=GRACE)
    stage.clock.step(24 * HOUR)
    ahead = await stage.send("milestones", milestone(1, NOBODY), milestone(2, NOBODY))
    await stage.until(lambda: running.parked() == 2, "both are parked")
    stage.clock.step(-24 * HOUR)
    later = await stage.send("milestones", milestone(3, NOBODY))
    await stage.until(lambda: running.parked() == 3, "all are parked")
    await stage.end(running)  # what is held gets its copy, with the stamp of then

    await stage.started("two", grace=GRACE)
    stage.clock.put_forward(GRACE)
    await stage.judged()
    assert stage.verdicts([*ahead, *later]) == {"rejected orphaned_user_id": 3}
    await stage.books_balance()


async def test_an_outage_is_over_when_it_is_over(stage: Stage) -> None:
    running = await stage.started(grace=GRACE)
    stage.clock.step(24 * HOUR)
    assert running.session is not None
    await running.session.close()  # its tasks are taken over anew
    await stage.send("users", *(user(n) for n in range(8)))
    stage.clock.step(-24 * HOUR)
    await stage.judged()
    await stage.books_balance()
