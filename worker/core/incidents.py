"""Incidents as the books name them; the log events have the same names."""

from __future__ import annotations

from typing import Final

INPUT_TRUNCATED: Final = "input_truncated"
INPUT_EXPIRED: Final = "input_expired"
INPUT_RECREATED: Final = "input_recreated"
UNREADABLE_INTERNAL: Final = "unreadable_internal"
ACCEPTED_RECREATED: Final = "accepted_recreated"
INTERNAL_RECREATED: Final = "internal_recreated"
REJECTED_RECREATED: Final = "rejected_recreated"
PARKED_LOST: Final = "parked_lost"
PROGRESS_LOST: Final = "progress_lost"
INTERNAL_TRUNCATED: Final = "internal_truncated"
INTERNAL_SKIPPED: Final = "internal_skipped"
FOREIGN_ROW: Final = "foreign_row"
CLOCK_STEPPED: Final = "clock_stepped"

ROWS_GONE: Final = "its rows are gone; have them judged again with 'buddy reprocess'"
REJECTIONS_GONE: Final = (
    "its rejections are gone; have the records judged again with 'buddy reprocess'"
)
"""What is lost with an accepted topic, and with one of rejections."""

RECREATED: Final = {
    "accepted": ACCEPTED_RECREATED,
    "rejected": REJECTED_RECREATED,
    "internal": INTERNAL_RECREATED,
}
"""By the first part of a recreated topic's name."""
