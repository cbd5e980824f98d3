"""Addresses that downloads and the URLs of rows may connect to: public ones, and those that the user allowed.

All addresses of a name are checked, and connections are made to a checked address only, so the DNS server of
the name cannot replace it afterwards.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from flowloom.errors import Denied, SourceError, Unavailable

VARIABLE = "FLOWLOOM_PRIVATE_HOSTS"
"""Environment variable: private hosts, addresses and networks, separated by commas, that downloads and rows
may use, such as `nas.lan, 10.0.0.0/8`."""

STRICT = "FLOWLOOM_STRICT_ADDRESSES"
"""Environment variable that the studio sets for its processes. Their configurations come from requests, so
an address in them was not necessarily given by the owner of the machine."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_STORES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
"""IANA's IPv4 Special-Purpose Address Registry, and multicast. Written out, because Python's `is_global`
differs between versions, and for some blocks from the registry."""
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
"""Entries of IANA's IPv6 registry in 2000::/3; no address outside of that is public."""
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_first_answers: dict[str, bool] = {}
"""For each host given by the user: True if its first addresses included a private one. A name
that was public then must not lead to a private address later."""


@dataclass(frozen=True)
class Allowed:
    """Hosts and networks that may be reached in addition to public addresses."""

    names: frozenset[str] = frozenset()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    given: frozenset[tuple[str, int]] = frozenset()
    """Hosts and ports that the user gave."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Allowed:
        """From FLOWLOOM_PRIVATE_HOSTS and HF_ENDPOINT."""
        names = set[str]()
        networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in environ.get(VARIABLE, "").replace(",", " ").split():
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
            except ValueError:
                names.add(_plain(entry))
        if environ.get("HF_ENDPOINT"):
            names.add(_plain(urlsplit(environ["HF_ENDPOINT"]).hostname or ""))
        return cls(frozenset(names - {""}), tuple(networks))

    @classmethod
    def for_stores(cls, environ: Mapping[str, str] = os.environ) -> Allowed:
        """These, and the endpoints in AWS's variables, which the owner of the machine set."""
        allowed = cls.from_environment(environ)
        endpoints = {_plain(urlsplit(environ.get(name, "")).hostname or "") for name in _STORES} - {""}
        return replace(allowed, names=allowed.names | endpoints)

    def and_given(self, url: str, environ: Mapping[str, str] = os.environ) -> Allowed:
        """These, and the host and port of `url` from the user, unless FLOWLOOM_STRICT_ADDRESSES is set.

        Port 80 includes 443, because servers redirect from one to the other.
        """
        if environ.get(STRICT):
            return self
        host, port = host_of(url, with_password=True)
        ports = {80, 443} if port == 80 else {port}
        return replace(self, given=self.given | {(_plain(host), port) for port in ports})

    def holds(self, host: str, address: Address, port: int = 0) -> bool:
        """True if `address` of `host` is allowed by name or number, or was given with this port."""
        if _plain(host) in self.names or any(address in network for network in self.networks):
            return True
        return (_plain(host), port) in self.given and _first_answers.get(_plain(host), True)


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def is_public(address: Address) -> bool:
    """True if `address` is public: not one of this machine or of a private network.

    An IPv6 address that contains an IPv4 address is public if that is.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in _SPECIAL_V4)
    inner = address.ipv4_mapped or address.sixtofour or _embedded(address)
    if inner is not None:
        return is_public(inner)
    return address in _GLOBAL_V6 and not any(address in block for block in _SPECIAL_V6)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def resolve(host: str, port: int, allowed: Allowed) -> list[str]:
    """The addresses of `host`, all of which may be connected to.

    Raises:
        Denied: one of its addresses is private and not allowed.
        Unavailable: the host has no address now.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{host}: no such host.") from error
    numbers = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries))
    if (_plain(host), port) in allowed.given:
        is_private = any(not is_public(ipaddress.ip_address(number)) for number in numbers)
        _first_answers.setdefault(_plain(host), is_private)
    return [str(_checked(host, port, number, allowed)) for number in numbers]


def connect(host: str, port: int, allowed: Allowed, timeout_s: float) -> socket.socket:
    """A connection to one of the addresses of `host`, which is resolved once.

    Raises:
        Denied, Unavailable: as `resolve`.
        OSError: no address accepts the connection.
    """
    failure: OSError | None = None
    for address in resolve(host, port, allowed):
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as error:
            failure = error
    raise failure or OSError(f"{host} has no address.")


def _checked(host: str, port: int, number: str, allowed: Allowed) -> Address:
    """The address written as `number`, if connecting to it for `host` is allowed.

    Raises:
        Denied: it is private and not allowed.
    """
    address = ipaddress.ip_address(number)
    if not is_public(address) and not allowed.holds(host, address, port):
        raise Denied(
            f"{host} is {address}, an address of a private network or of this machine. To allow it, set "
            f"{VARIABLE}={host} in the environment (of the studio, if it is in use)."
        )
    return address


def host_of(url: str, *, with_password: bool = False) -> tuple[str, int]:
    """Host and port of a URL.

    Raises:
        SourceError: its scheme is not http or https, or it contains a name or password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise SourceError("not a URL to download from: write https://HOST/FILE.")
    if not with_password and (parts.username is not None or parts.password is not None):
        raise SourceError("remove name and password from the URL, because it is stored and shown.")
    return host, port or (443 if parts.scheme == "https" else 80)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of `url`."""
    host, port = host_of(url)
    return urlsplit(url).scheme, host.lower(), port
