"""How many rejections are open, and since when: as a look at each of them says."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.desk_kit import NAMES, START, apply, rejection, settling
from worker.desk.still_open import OpenCount, still_open
from worker.desk.store import RejectionStore

DAYS = 3 * 86_400_000
MINUTE = 60_000

REJECTED = st.tuples(st.sampled_from(["users", "matches"]), st.integers(0, 9), st.integers(0, DAYS))


@given(
    found=st.lists(REJECTED, max_size=30),
    settled=st.sets(st.tuples(st.sampled_from(["users", "matches"]), st.integers(0, 9))),
)
def test_as_a_look_at_each_says(
    found: list[tuple[str, int, int]], settled: set[tuple[str, int]], tmp_path_factory: Any
) -> None:
    desk = RejectionStore(tmp_path_factory.mktemp("desk") / "desk", NAMES)
    apply(
        desk,
        *(
            rejection(offset, entity=entity, key=str(key), at=at)
            for offset, (entity, key, at) in enumerate(found)
        ),
        settled=tuple(settling(str(key), entity=entity, at=DAYS + 1) for entity, key in settled),
    )
    for entity, count in still_open(desk).items():
        left = [at for e, key, at in found if e == entity and (e, key) not in settled]
        oldest = (START + min(left)) // MINUTE * MINUTE if left else None
        assert count == OpenCount(len(left), oldest)
    desk.close()
