"""Faults that stay in a topic are counted once."""

from __future__ import annotations

from worker.core.books import Books


def test_only_new_faults_count_and_a_topic_without_any_leaves_no_entry() -> None:
    books = Books()
    assert books.note_faults("holes", "one", 0) == 0
    assert books.seen == {}
    assert [books.note_faults("holes", "one", count) for count in (2, 2, 5)] == [2, 0, 3]
    assert books.note_faults("holes", "one", 0) == 0, "compaction has removed them"
    assert books.note_faults("holes", "one", 1) == 1
    assert books.incidents == {"holes": 6}
