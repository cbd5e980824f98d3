"""urllib3 connections to allowed addresses only, also after redirects."""

from __future__ import annotations

import socket
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NameResolutionError, NewConnectionError

from flowloom.errors import Unavailable
from flowloom.storage.ssrf import Allowed, resolve


class _Plain(HTTPConnection):
    allowed = Allowed()

    def _new_conn(self) -> socket.socket:
        return _checked(self, self.port or 80, self.allowed, super()._new_conn)


class _Secure(HTTPSConnection):
    allowed = Allowed()

    def _new_conn(self) -> socket.socket:
        return _checked(self, self.port or 443, self.allowed, super()._new_conn)


def _checked(connection: HTTPConnection, port: int, allowed: Allowed, connect: Any) -> socket.socket:
    """A connection to one of the host's addresses, all of which were checked.

    The host is resolved once, because its DNS server may return another address the second time.

    Raises:
        Denied: one of its addresses is not allowed.
    """
    host = connection._dns_host
    try:
        addresses = resolve(host.strip("[]"), port, allowed)
    except Unavailable as error:
        cause = error.__cause__
        unresolved = cause if isinstance(cause, socket.gaierror) else socket.gaierror(str(error))
        raise NameResolutionError(host, connection, unresolved) from error
    try:
        for address in addresses[:-1]:
            connection._dns_host = address
            try:
                return connect()
            except NewConnectionError:
                continue  # the host may have another address that responds
        connection._dns_host = addresses[-1]
        return connect()
    finally:
        connection._dns_host = host  # the certificate must be for the name


def pool_manager(allowed: Allowed, **settings: Any) -> PoolManager:
    """urllib3's PoolManager with connections to public and `allowed` addresses only."""
    kinds: dict[str, Any] = {}
    for scheme, pool, connection in (
        ("http", HTTPConnectionPool, _Plain),
        ("https", HTTPSConnectionPool, _Secure),
    ):
        checked = type(connection.__name__, (connection,), {"allowed": allowed})
        kinds[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": checked})
    pools = PoolManager(**settings)
    pools.pool_classes_by_scheme = kinds
    return pools
