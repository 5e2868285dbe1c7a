"""Who may do what: bearer tokens with roles, from a file that holds only their hashes.

The file is TOML, one table for each token:

    [[tokens]]
    name = "crm"
    roles = ["send"]
    sha256 = "…"

It is read again when it changes. A changed file that cannot be used is reported, and the tokens
before it stay valid.
"""

from __future__ import annotations

import tomllib
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated, Final, Literal

import msgspec
import structlog
from msgspec import Meta

from worker.errors import ConfigurationError
from worker.small_files import read_small

Role = Literal["send", "watch", "fetch", "operate"]
ROLES: Final[tuple[Role, ...]] = ("send", "watch", "fetch", "operate")

_BYTES: Final = 32
"""The random bytes of a token: far too many to be guessed, so a plain hash suffices."""

_log = structlog.get_logger(__name__)


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tokens]]` table. `name` tells in logs who made a request."""

    name: Annotated[str, Meta(pattern=r"^[\w.@-]{1,100}$")]
    roles: Annotated[tuple[Role, ...], Meta(min_length=1)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Token, ...] = ()


class Caller(msgspec.Struct, frozen=True):
    """Who makes a request, and what they may do."""

    name: str
    roles: frozenset[Role]


ANYONE: Final = Caller("anyone", frozenset(ROLES))
"""The caller where no tokens are configured: then only this machine is served."""
NOBODY: Final = Caller("nobody", frozenset())
"""The caller without a token, where tokens are configured."""


class Tokens:
    """The tokens of a file. Raises ConfigurationError if it cannot be used at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._tokens = _read(path)

    def caller(self, token: str) -> Caller | None:
        """The caller with this token; None if there is none. Takes the same time for any token."""
        self._refresh()
        digest = sha256(token.encode(errors="surrogateescape")).hexdigest()
        found = None
        for one in self._tokens:
            if compare_digest(one.sha256, digest):
                found = Caller(one.name, frozenset(one.roles))
        return found

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._tokens = _read(self._path)
        except ConfigurationError as error:
            _log.error("tokens_not_read", error=str(error))
        else:
            _log.info("tokens_read", tokens=len(self._tokens))

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def new_token() -> tuple[str, str]:
    """A new token, and its SHA-256 for the file."""
    token = token_urlsafe(_BYTES)
    return token, sha256(token.encode()).hexdigest()


def _read(path: Path) -> tuple[Token, ...]:
    try:
        tokens = msgspec.convert(tomllib.loads(read_small(path).decode()), _File).tokens
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"tokens file {path} cannot be used: {reason}; 'buddy token' makes its entries"
        ) from None
    names = [token.name for token in tokens]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(
            f"tokens file {path}: two tokens are called {twice[0]}: each needs a name of its own"
        )
    return tokens
