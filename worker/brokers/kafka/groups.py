"""The members of a Kafka group, decoded from a DescribeGroups response."""

from __future__ import annotations

import struct
from typing import Any, Final

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import for_code

from worker.stream import GroupMember

_NO_SUCH_GROUP: Final = 69
"""GROUP_ID_NOT_FOUND of newer brokers; older brokers report such a group as dead and empty."""


def members_of(groups: list[Any], client_id: str) -> list[GroupMember] | None:
    """The members of the groups in one response; those with this client id are ours.

    None if there is no such group that this request can see. Raises the error that the response
    contains.
    """
    found = []
    is_there = False
    for code, group, state, _kind, _protocol, members, *_ in groups:
        if code not in (0, _NO_SUCH_GROUP):
            raise for_code(code)(group)
        is_there |= code == 0 and state != "Dead"
        found += [
            GroupMember(name, _numbers(assignment), client == client_id)
            for name, client, _host, _metadata, assignment in members
        ]
    return found if is_there else None


def _numbers(assignment: bytes) -> frozenset[int]:
    if not assignment:  # the group is rebalancing
        return frozenset()
    try:
        decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    except (ValueError, TypeError, struct.error):  # not a consumer's
        return frozenset()
    return frozenset(number for _, numbers in decoded.assignment for number in numbers)
