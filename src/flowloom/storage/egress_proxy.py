"""`python -m flowloom.storage.egress_proxy`: a proxy on loopback for the client of object stores.

obstore follows redirects with all headers, session tokens included, and resolves names itself. Neither can be
turned off. Through this proxy it reaches only the origin of its endpoint, at checked addresses.

Each line of standard input is a JSON object and gets one line in response: a Pass gets the number of a new
port; {"why": TOKEN} gets the last refusal under that pass. The process ends with its input.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import secrets
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flowloom.errors import Denied, SourceError, Unavailable
from flowloom.storage.ssrf import Allowed, origin_of, resolve

REFUSED, UNREACHED = 421, 523
"""Statuses of this proxy, which stores do not use; a response to HEAD has nothing but a status."""
CHUNK = 2**18
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing sends RST, so that an incomplete body is not taken for a complete one."""
Origin = tuple[str, str, int]


class _Refused(Exception):
    """The pass is for another origin, or its origin has a private address."""


@dataclass(frozen=True)
class Pass:
    """Hosts that a client may reach."""

    port: int
    """Port that the proxy listens on; 0: any free port."""
    token: str
    """The password, because other processes on this machine can connect too."""
    endpoint: str
    names: list[str]
    networks: list[str]
    given: list[tuple[str, int]]
    connect_s: float

    @property
    def allowed(self) -> Allowed:
        """The private hosts and networks of the pass."""
        networks = tuple(ipaddress.ip_network(network) for network in self.networks)
        return Allowed(frozenset(self.names), networks, frozenset((host, port) for host, port in self.given))


@dataclass(frozen=True)
class Request:
    """The head of a request to a proxy."""

    method: str
    origin: Origin
    token: bytes
    length: int
    """Bytes of the body."""
    forwarded: bytes
    """The head as sent to the origin."""

    @classmethod
    def read(cls, head: bytes) -> Request:
        """The request with this head.

        Raises:
            ValueError: a proxy cannot forward it.
        """
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        fields = {name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        if "transfer-encoding" in fields:
            raise ValueError("a body without a length")
        password = base64.b64decode(fields.get("proxy-authorization", "").removeprefix("Basic "))
        kept = [line for line in lines if not line.lower().startswith("proxy-")]
        url = f"https://{target}" if method == "CONNECT" else target
        parts = urlsplit(url)
        path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        return cls(
            method,
            _origin(url),
            password.partition(b":")[2],
            int(fields.get("content-length", "0")),
            "\r\n".join([f"{method} {path} {version}", *kept, "", ""]).encode("latin-1"),
        )


def _origin(url: str) -> Origin:
    try:
        scheme, host, port = origin_of(url)
    except SourceError as error:
        raise ValueError(str(error)) from error
    with suppress(ValueError):  # clients write IPv6 addresses in their shortest form
        host = str(ipaddress.ip_address(host))
    return scheme, host, port


class Proxy:
    """Forwards the requests of one pass."""

    def __init__(self, held: Pass) -> None:
        self.held = held
        self.refusal = ""
        """The last one."""

    async def listen(self) -> int:
        """Start to serve; returns the port."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", self.held.port, limit=CHUNK, backlog=256)
        return server.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, until either side ends it."""
        writer.transport.set_write_buffer_limits(4 * CHUNK)
        try:
            await self._requests(reader, writer)
        except _Refused:
            await _answer(writer, f"{REFUSED} Refused")
        except Unavailable:
            await _answer(writer, f"{UNREACHED} Unreached")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the client is gone, or is not a client of the proxy
        finally:
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        answers: asyncio.Task[None] | None = None
        try:
            while True:
                request = Request.read(await reader.readuntil(b"\r\n\r\n"))
                self._check(request)
                if upstream is None:
                    source, upstream = await self._connect()
                    if request.method == "CONNECT":
                        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    answers = asyncio.create_task(_pump(source, writer))
                    if request.method == "CONNECT":
                        await _pump(reader, upstream)
                        return
                upstream.write(request.forwarded)
                await _copy(reader, upstream, request.length)
        finally:
            if answers:
                answers.cancel()
            if upstream:
                upstream.close()

    def _check(self, request: Request) -> None:
        # Check the origin first: clients omit the password after a redirect to another host.
        if request.origin != _origin(self.held.endpoint):
            scheme, host, port = request.origin
            self.refusal = (
                f"the store redirects to {scheme}://{host}:{port}, which is not its endpoint. Redirects to "
                "other servers are not followed, because the keys would go with them. If the bucket is "
                "there, set storage.endpoint to that address."
            )
            raise _Refused
        if not secrets.compare_digest(request.token, self.held.token.encode()):
            raise ValueError("not the client of this pass")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the endpoint, at a checked address.

        Raises:
            _Refused: the address is private and not allowed.
            Unavailable: no connection.
        """
        _, host, port = _origin(self.held.endpoint)
        try:
            addresses = await asyncio.to_thread(resolve, host, port, self.held.allowed)
        except Denied as error:
            self.refusal = str(error)
            raise _Refused from error
        for address in addresses:
            try:
                opening = asyncio.open_connection(address, port, limit=CHUNK)
                reader, writer = await asyncio.wait_for(opening, self.held.connect_s)
            except OSError:  # TimeoutError among them
                continue
            writer.transport.set_write_buffer_limits(4 * CHUNK)
            return reader, writer
        raise Unavailable(f"{host}:{port}: no connection.")


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    try:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
    except OSError:
        return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length:
        data = await reader.read(min(length, CHUNK))
        if not data:
            raise asyncio.IncompleteReadError(b"", length)
        length -= len(data)
        writer.write(data)
        await writer.drain()
    await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy everything, then close the writer; reset it if the reader's connection broke."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        connection: Any = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    finally:
        writer.close()


def _serve_input(loop: asyncio.AbstractEventLoop) -> None:
    """Respond to the lines of standard input; end the process with it."""
    proxies: dict[str, Proxy] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "why" in request:
            response: str | int = proxies[request["why"]].refusal
        else:
            proxy = proxies[request["token"]] = Proxy(Pass(**request))
            response = asyncio.run_coroutine_threadsafe(proxy.listen(), loop).result()
        sys.stdout.write(f"{json.dumps(response)}\n")
        sys.stdout.flush()
    os._exit(0)


async def _main() -> None:
    threading.Thread(target=_serve_input, args=(asyncio.get_running_loop(),), daemon=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main())
