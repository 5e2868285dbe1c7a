"""Rights on a real Kafka with an authorizer: granted, taken away, given back; and passwords."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_KINDS: Final = {"topic": 2, "group": 3, "cluster": 4, "transactional id": 5}
_OPERATIONS: Final = {
    "READ": 3,
    "WRITE": 4,
    "CREATE": 5,
    "DESCRIBE": 8,
    "DESCRIBE_CONFIGS": 10,
    "IDEMPOTENT_WRITE": 12,
}
_DENY, _ALLOW = 2, 3
_LITERAL, _PREFIXED = 3, 4
_SCRAM_SHA_512 = 2
_ITERATIONS = 4096


_Acl = tuple[int, str, int, str, str, int, int]


class Right(NamedTuple):
    """An operation on a resource; a name that ends in `*` is a prefix."""

    operation: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"


class Rights:
    """What users of a broker may do; the broker has an authorizer that denies by default."""

    def __init__(self, admin: Any) -> None:
        self._admin = admin

    async def grant(self, user: str, rights: Iterable[Right]) -> None:
        """Allow all of these."""
        for right in rights:
            await self._create(_acl(user, right, _ALLOW))

    async def take(self, user: str, right: Right) -> None:
        """Deny this one, whatever else allows it, until it is given back."""
        await self._create(_acl(user, right, _DENY))

    async def give_back(self, user: str, right: Right) -> None:
        """Deny it no more."""
        acl = _acl(user, right, _DENY)
        await self._send(DeleteAclsRequest(*acl))
        await self._settled(acl, there=False)

    async def _create(self, acl: _Acl) -> None:
        await self._send(CreateAclsRequest(*acl))
        await self._settled(acl, there=True)

    async def _settled(self, acl: _Acl, *, there: bool) -> None:
        """The controller has answered; the broker asks its authorizer, which hears of it later."""
        async with asyncio.timeout(20):
            while True:
                answer = await self._admin._send_request(DescribeAclsRequest(*acl))
                if bool(answer.resources) is there:
                    return
                await asyncio.sleep(0.01)

    async def set_password(self, user: str, password: str) -> None:
        """Another password for SCRAM-SHA-512; connections that are logged in stay."""
        await self._send(_ScramRequest(user, password))

    async def _send(self, request: Any) -> None:
        response = await self._admin._send_request(request)
        (answers,) = [v for v in response.to_object().values() if isinstance(v, list)]
        assert [answer["error_code"] for answer in answers] == [0], answers


@asynccontextmanager
async def rights_of(address: str) -> AsyncIterator[Rights]:
    """The rights on the broker whose listener for its operators is there."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        yield Rights(admin)
    finally:
        await admin.close()


def _acl(user: str, right: Right, permission: int) -> _Acl:
    pattern = _PREFIXED if right.name.endswith("*") else _LITERAL
    return (
        _KINDS[right.kind],
        right.name.removesuffix("*"),
        pattern,
        f"User:{user}",
        "*",
        _OPERATIONS[right.operation],
        permission,
    )


class _ScramResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString()),
                ("error_code", Int16),
                ("error_message", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScram(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = _ScramResponse
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString()), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString()),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ScramRequest(Request[_AlterScram]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 51

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password

    def build(self, version: type[Any]) -> Any:
        salt = b"a salt for tests"
        salted = hashlib.pbkdf2_hmac("sha512", self._password.encode(), salt, _ITERATIONS)
        one: tuple[Any, ...] = (self._user, _SCRAM_SHA_512, _ITERATIONS, salt, salted, {})
        return version(deletions=[], upsertions=[one], tags={})
