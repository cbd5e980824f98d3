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
        """A connection to one of the host's addresses, all of which were checked.

        The host is resolved once, because its DNS server may return another address the second time.

        Raises:
            Denied: one of its addresses is not allowed.
        """
        host = self._dns_host
        try:
            addresses = resolve(host.strip("[]"), self.port or self.default_port, self.allowed)
        except Unavailable as error:
            cause = error.__cause__
            unresolved = cause if isinstance(cause, socket.gaierror) else socket.gaierror(str(error))
            raise NameResolutionError(host, self, unresolved) from error
        try:
            for address in addresses[:-1]:
                self._dns_host = address
                try:
                    return super()._new_conn()
                except NewConnectionError:
                    continue  # the host may have another address that responds
            self._dns_host = addresses[-1]
            return super()._new_conn()
        finally:
            self._dns_host = host  # the certificate must be for the name


class _Secure(_Plain, HTTPSConnection):
    pass


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
