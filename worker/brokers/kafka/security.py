"""Security of a connection to Kafka: TLS, and SASL with PLAIN, SCRAM or OAUTHBEARER."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError

from worker.errors import ConfigurationError
from worker.small_files import open_regular, read_small

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]

_SECRETS = frozenset({"password", "key_password"})
_TLS_FIELDS = ("ca_file", "cert_file", "key_file", "key_password")
_SASL_FIELDS = ("sasl_mechanism", "username", "password", "token_file")


class KafkaSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """The security settings of a connection. An invalid combination raises `ConfigurationError`.

    Files are PEM. If `ca_file` is None, the system's certificate authorities are trusted.
    `token_file` holds the OAUTHBEARER token and is read again for each new connection: to renew
    the token, replace the file. Secrets are masked wherever this object is printed.
    """

    security_protocol: Protocol = "PLAINTEXT"
    sasl_mechanism: Mechanism | None = None
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = None
    token_file: str | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ConfigurationError(f"kafka security: {problem}")

    def __repr__(self) -> str:
        return f"KafkaSecurity({', '.join(f'{k}={v!r}' for k, v in self._shown())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # rich does not use __repr__, for example in tracebacks with locals.
        return list(self._shown())

    def client_arguments(self) -> dict[str, Any]:
        """The keyword arguments that every aiokafka client takes.

        Reads the certificates. Raises `ConfigurationError` if a file cannot be used.
        """
        arguments: dict[str, Any] = {"security_protocol": self.security_protocol}
        if self.security_protocol.endswith("SSL"):
            arguments["ssl_context"] = self._tls()
        if self.sasl_mechanism:
            arguments["sasl_mechanism"] = self.sasl_mechanism
        if self.sasl_mechanism == "OAUTHBEARER":
            arguments["sasl_oauth_token_provider"] = TokenFile(str(self.token_file))
        elif self.sasl_mechanism:
            arguments["sasl_plain_username"] = self.username
            arguments["sasl_plain_password"] = self.password
        return arguments

    def _shown(self) -> Iterator[tuple[str, object]]:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None:
                yield name, "***" if name in _SECRETS else value

    def _problem(self) -> str | None:
        protocol, mechanism = self.security_protocol, self.sasl_mechanism
        stray = None
        if not protocol.endswith("SSL"):
            stray = self._first_set(_TLS_FIELDS)
        if not protocol.startswith("SASL"):
            stray = stray or self._first_set(_SASL_FIELDS)
        elif mechanism is None:
            return f"{protocol} needs sasl_mechanism"
        elif mechanism == "OAUTHBEARER":
            stray = stray or self._first_set(("username", "password"))
            if not self.token_file:
                return "OAUTHBEARER needs token_file"
        elif not self.username or not self.password:
            return f"{mechanism} needs username and password"
        else:
            stray = stray or self._first_set(("token_file",))
        if stray:
            return f"{stray} does not go with {mechanism or protocol}"
        if self.key_file and not self.cert_file:
            return "key_file needs cert_file"
        if self.key_password and not self.cert_file:
            return "key_password needs cert_file"
        return None

    def _why(self, error: OSError) -> str:
        # OpenSSL gives no reason for a password that is missing or wrong, nor for what is no PEM.
        if isinstance(error, ssl.SSLError) and not error.reason:
            return f"no PEM in it, or key_password is {'wrong' if self.key_password else 'missing'}"
        return _reason(error)

    def _first_set(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if getattr(self, name) is not None), None)

    def _tls(self) -> ssl.SSLContext:
        try:
            if self.ca_file:
                open_regular(Path(self.ca_file)).close()
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # includes ssl.SSLError
            raise ConfigurationError(
                f"kafka security: ca_file {self.ca_file} cannot be used: {_reason(error)}"
            ) from None
        if self.cert_file:
            try:
                for file in (self.cert_file, self.key_file):
                    if file:
                        open_regular(Path(file)).close()
                # Never None: OpenSSL would then prompt on the terminal for a missing password.
                context.load_cert_chain(self.cert_file, self.key_file, self.key_password or "")
            except OSError as error:
                raise ConfigurationError(
                    f"kafka security: cert_file {self.cert_file} with"
                    f" key_file {self.key_file or 'in it'} cannot be used: {self._why(error)}"
                ) from None
        return context


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Provides the token that a file holds at the time of the call."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def token(self) -> str:
        """The token. If there is none, raises an `AuthenticationFailedError` for aiokafka."""
        try:
            token = (await asyncio.to_thread(read_small, self._path)).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = _reason(error) if isinstance(error, OSError) else "not ASCII"
            raise AuthenticationFailedError(
                f"token_file {self._path} cannot be read: {reason}"
            ) from None
        if not token or not token.isprintable():
            what = "holds more than one line" if token else "is empty"
            raise AuthenticationFailedError(f"token_file {self._path} {what}")
        return token


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "no PEM in it"
    return error.strerror or type(error).__name__
