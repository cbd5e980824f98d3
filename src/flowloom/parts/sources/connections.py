"""Connections by urllib3 that go to allowed addresses alone, redirects' included."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from flowloom.errors import Unavailable
from flowloom.parts.sources.addresses import Allowed, check, resolve


class _Plain(HTTPConnection):
    allowed = Allowed()

    def _new_conn(self) -> socket.socket:
        return _checked(self.host, self.port or 80, self.allowed, super()._new_conn)


class _Secure(HTTPSConnection):
    allowed = Allowed()

    def _new_conn(self) -> socket.socket:
        return _checked(self.host, self.port or 443, self.allowed, super()._new_conn)


def _checked(host: str, port: int, allowed: Allowed, connect: Any) -> socket.socket:
    """What `connect` gives, if it leads where it may; nothing was sent yet.

    Raises:
        Denied: it does not.
    """
    name = host.strip("[]")
    with suppress(Unavailable):  # the connection says it in its own words
        resolve(name, port, allowed)
    connected = connect()
    try:
        # Whoever answers for the name may have given another address the second time.
        check(name, connected.getpeername()[0], allowed)
    except BaseException:
        connected.close()
        raise
    return connected


def pool_manager(allowed: Allowed, **settings: Any) -> PoolManager:
    """urllib3's PoolManager; its connections go to public addresses and `allowed` ones."""
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
