"""The table of fields that have no column, each with the column that may have been meant."""

from __future__ import annotations

from difflib import get_close_matches

from schemas import ENTITIES
from worker.cli.console import print_table
from worker.core.unknown import UnknownNames


def print_unknown(unknown: UnknownNames) -> None:
    """Print the table, or nothing if there are no such fields."""
    rows = []
    for entity, names in unknown.by_entity.items():
        columns = [column.name for column in ENTITIES[entity].columns]
        for name, count in names.most_common():
            near = get_close_matches(name.lower(), columns, 1, 0.75)
            rows.append((entity, name, count, near[0] if near else ""))
    if rows:
        titles = ("entity", "field", "records", "did you mean")
        print_table("Fields that no column is for, left out", titles, rows, whole=("entity",))
