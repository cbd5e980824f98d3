"""The HTTP client of huggingface_hub, restricted to allowed addresses like all other connections."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from flowloom.errors import Unavailable
from flowloom.storage.ssrf import Allowed, resolve

_HUB = "huggingface.co"


def check_hub_addresses() -> None:
    """Make huggingface_hub connect to public and allowed addresses only, also after redirects.

    A proxy in the environment makes its own connections. Xet's client connects wherever the hub says, so it
    is used with huggingface.co only.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _http  # pyright: ignore[reportPrivateUsage]

    def make_client() -> Any:
        client: Any = _http.default_client_factory()
        client._transport._pool._network_backend = _backend(Allowed.from_environment())
        return client

    huggingface_hub.set_client_factory(make_client)
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint and urlsplit(endpoint).hostname != _HUB:
        constants.HF_HUB_DISABLE_XET = True


def _backend(allowed: Allowed) -> Any:
    import httpcore2

    class Checked(httpcore2.SyncBackend):
        """Resolves a name once and connects to checked addresses."""

        def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> httpcore2.NetworkStream:
            failure: httpcore2.NetworkError | httpcore2.TimeoutException | None = None
            try:
                addresses = resolve(host, port, allowed)
            except Unavailable as error:
                raise httpcore2.ConnectError(str(error)) from error
            for address in addresses:
                try:
                    return super().connect_tcp(address, port, timeout, local_address, socket_options)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                    failure = error
            raise failure or httpcore2.ConnectError(f"{host} has no address.")

    return Checked()
