"""Outcomes that the records alone foretell, whoever works and dies. Each says what is not so."""

from __future__ import annotations

from collections.abc import Mapping

from tests.proofs.simulation.records import Outcome, Sent


def out_of_turn(sent: Mapping[str, Sent], outcomes: Mapping[str, Outcome]) -> str | None:
    """With one task, addresses go from hand to hand in the order of the records."""
    held: dict[str, str] = {}
    for record in sent.values():
        if record.entity != "users" or record.kind == "invalid":
            continue
        if record.ambiguous:  # nobody knows which of two deletions it was (seed 1216)
            return None
        outcome = outcomes.get(record.source)
        if outcome is None or "internal_error" in outcome.codes:  # gone with its topic, or refused
            continue
        holders = [user for user, address in held.items() if address == record.address]
        taken = record.address is not None and holders not in ([], [record.key])
        if taken != ("duplicate_email" in outcome.codes):
            return f"{record.source}: {outcome}, held by {holders}"
        if record.address is None:
            held.pop(record.key, None)
        elif not taken:
            held[record.key] = record.address
    return None


def unexpected(sent: Mapping[str, Sent], outcomes: Mapping[str, Outcome]) -> str | None:
    """Where nothing hangs on who comes first: what is an orphan, and that nothing else is wrong."""
    for source, orphans in _orphans(sent).items():
        outcome = outcomes[source]
        if set(outcome.orphans) != orphans or "duplicate_email" in outcome.codes:
            return f"{source}: {outcome}, expected the orphans {orphans}"
    return None


def _orphans(sent: Mapping[str, Sent]) -> dict[str, set[tuple[str, str]]]:
    rows = [record for record in sent.values() if record.kind == "row"]
    users = {record.key for record in rows if record.entity == "users"}
    matches = {r.key for r in rows if r.entity == "matches" and users.issuperset(r.users)}
    found = {}
    for record in rows:
        orphans = {("users", user) for user in record.users if user not in users}
        orphans |= {("matches", match) for match in record.matches if match not in matches}
        found[record.source] = orphans
    return found
