"""Where downloads and reads of what rows name may connect to: public addresses, and what the user allowed.

A name's addresses are all checked, and nothing is sent but to one that was: whoever answers for the name
cannot put another one in its place afterwards.
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
"""Environment variable: hosts, addresses and networks, with commas between, that downloads and rows may
name though they are private, such as `nas.lan, 10.0.0.0/8`."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Allowed:
    """What may be reached beside public addresses."""

    names: frozenset[str] = frozenset()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Allowed:
        """What FLOWLOOM_PRIVATE_HOSTS says, and the hub that HF_ENDPOINT names."""
        names, networks = set[str](), []
        for word in environ.get(VARIABLE, "").replace(",", " ").split():
            try:
                networks.append(ipaddress.ip_network(word.strip("[]"), strict=False))
            except ValueError:
                names.add(word.lower())
        if environ.get("HF_ENDPOINT"):
            names.add((urlsplit(environ["HF_ENDPOINT"]).hostname or "").lower())
        return cls(frozenset(names), tuple(networks))

    def and_host(self, url: str) -> Allowed:
        """These, and the host of `url`: an address that the user gave."""
        return replace(self, names=self.names | {(urlsplit(url).hostname or "").lower()})

    def holds(self, host: str, address: Address) -> bool:
        """Whether `address` of `host` was allowed by name or by number."""
        return host.lower() in self.names or any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether anybody may reach `address`: no host, network or service of this machine's own surroundings.

    An IPv6 address that stands for an IPv4 one is as public as that.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_V6 or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def resolve(host: str, port: int, allowed: Allowed) -> list[str]:
    """The addresses of `host`, all of which may be connected to.

    Raises:
        Denied: one of its addresses is private, and not allowed.
        Unavailable: there is no such host now.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{host}: no such host.") from error
    addresses = [check(host, str(entry[4][0]), allowed) for entry in found]
    return [str(address) for address in dict.fromkeys(addresses)]


def check(host: str, number: str, allowed: Allowed) -> Address:
    """The address that `number` writes, if one may connect to it for `host`.

    Raises:
        Denied: it is private, and not allowed.
    """
    address = ipaddress.ip_address(number.partition("%")[0])
    if not is_public(address) and not allowed.holds(host, address):
        raise Denied(
            f"{host} is {address}, an address of a private network or of this machine. If that is meant, "
            f"set {VARIABLE}={host} in the environment (of the studio, where that is in use)."
        )
    return address


def host_of(url: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        SourceError: it is none of http or https, or carries a name and password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise SourceError("not an address to download from: write https://HOST/FILE.")
    if parts.username is not None or parts.password is not None:
        raise SourceError("take name and password out of the address: it is written down and shown.")
    return host, port or (443 if parts.scheme == "https" else 80)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: who gets what is sent to `url`."""
    host, port = host_of(url)
    return urlsplit(url).scheme, host.lower(), port
