"""The socket of the HTTP API: where it listens, and whom it serves."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from typing import Final

from worker.errors import ConfigurationError

_BACKLOG: Final = 512


def listen(host: str, port: int, *, has_tokens: bool) -> socket.socket:
    """A listening socket. Raises ConfigurationError if host or port cannot be used.

    Also if others than this machine could ask, and there are no tokens.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        _check_served(host, str(address[0]), has_tokens=has_tokens)
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise ConfigurationError(_complaint(host, port, error)) from None
    return listening


def _check_served(host: str, address: str, *, has_tokens: bool) -> None:
    if not has_tokens and not is_loopback(address):
        raise ConfigurationError(
            f"http_host {host} serves other machines, and there are no tokens: set"
            " http_tokens_file ('buddy token' makes its entries), or http_host to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _complaint(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: set http_port (BUDDY_HTTP_PORT) to a free one"
    if error.errno == errno.EACCES:
        return f"port {port} may not be listened on: set http_port (BUDDY_HTTP_PORT) above 1023"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: set http_host (BUDDY_HTTP_HOST)"
    text = os.strerror(error.errno) if error.errno else str(error)
    return f"HTTP cannot be served on {host}, port {port}: {text}: see http_host and http_port"
