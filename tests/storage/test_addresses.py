"""Downloads connect to public addresses alone, however a private one is spelled or hidden."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from flowloom.errors import Denied, SourceError, Unavailable
from flowloom.storage.base import StorageSection
from flowloom.storage.downloads.request import DownloadClient, get
from flowloom.storage.open import open_source
from flowloom.storage.ssrf import STRICT, VARIABLE, Allowed, host_of, is_public, resolve
from tests.fakes.files import Files

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1",
    "fe80::1", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "fd00:ec2::254",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "100::1",
]  # fmt: skip
SPECIAL_V4 = [
    "0.0.0.0/8", "0.0.0.0/32",
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
    "192.88.99.2/32",
    "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
    "255.255.255.255/32",
]  # fmt: skip
"""IANA's IPv4 Special-Purpose Address Registry, every row of it."""
SPECIAL_V6 = [
    "::1/128", "::/128", "::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32",
    "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
    "5f00::/16", "fc00::/7", "fe80::/10",
]  # fmt: skip
"""IANA's IPv6 registry but for the rows that stand for IPv4 addresses."""
EMBEDDED = ["::ffff:0:0/96", "64:ff9b::/96"]
"""Prefixes of IPv6 with an IPv4 address in the last 32 bits."""
PUBLIC = [
    "1.1.1.1",
    "191.255.255.255",
    "192.0.1.0",
    "192.1.0.1",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "2002:808:808::1",
    "2001:200::1",
    "8.8.8.8",
    "18.164.174.23",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
SPELLINGS = ["http://2130706433/x", "http://0x7f.1/x", "http://0177.0.0.1/x", "http://127.1/x", "http://[::1]/x",
             "http://[::ffff:7f00:1]/x", "http://localhost/x", "http://LOCALHOST/x",
             "http://[::ffff:127.0.0.1]/x"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_private(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("block", [*SPECIAL_V4, "224.0.0.0/4", *SPECIAL_V6, "ff00::/8", "fec0::/10"])
def test_no_block_of_the_special_purpose_registries_is_public(block: str):
    network = ipaddress.ip_network(block)
    assert not is_public(network.network_address)
    assert not is_public(network.broadcast_address)


@pytest.mark.parametrize("prefix", EMBEDDED)
@pytest.mark.parametrize("block", SPECIAL_V4)
def test_no_special_address_of_ipv4_is_public_within_one_of_ipv6(block: str, prefix: str):
    base = int(ipaddress.ip_network(prefix).network_address)
    network = ipaddress.ip_network(block)
    for inner in (network.network_address, network.broadcast_address):
        assert not is_public(ipaddress.IPv6Address(base + int(inner)))
        assert not is_public(ipaddress.IPv6Address((0x2002 << 112) + (int(inner) << 80))), "6to4"


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", SPELLINGS)
def test_this_machine_is_refused_however_it_is_spelled(url: str):
    with pytest.raises(Denied, match=VARIABLE):
        get(DownloadClient(), url, {})


@pytest.mark.parametrize("host", ["localhost.", "127.0.0.1.", "0x7f000001.", "①②⑦.⓪.⓪.①"])
def test_spellings_that_only_some_resolvers_know_do_not_get_in(files: Files, host: str):
    with pytest.raises((Denied, Unavailable), match=f"{VARIABLE}|no such host"):
        get(DownloadClient(), f"http://{host}:{files.server_port}/x", {})
    assert files.requests == []


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "file:///etc/passwd", "http://", "http:///x", "//x/y", "http://a:99999/", "http://[::1/x"],
)
def test_text_that_is_no_address_is_refused(url: str):
    with pytest.raises(SourceError, match="not a URL"):
        host_of(url)


def test_passwords_have_no_place_in_an_address():
    with pytest.raises(SourceError, match="name and password"):
        host_of("https://me:secret@example.org/x")


def test_the_operator_allows_by_name_address_and_network(monkeypatch: pytest.MonkeyPatch):
    allowed = Allowed.from_environment({VARIABLE: "nas.lan, 10.0.0.0/8 fd00::/8,[::1]"})
    for host, address, is_held in (
        ("NAS.lan", "192.168.1.9", True),
        ("x", "10.9.9.9", True),
        ("x", "::1", True),
        ("x", "fd00::1", True),
        ("x", "11.0.0.1", False),
        ("evil-nas.lan", "192.168.1.9", False),
    ):
        assert allowed.holds(host, ipaddress.ip_address(address)) is is_held


def test_a_hub_that_the_operator_names_is_allowed():
    allowed = Allowed.from_environment({"HF_ENDPOINT": "http://127.0.0.1:8080"})
    assert resolve("127.0.0.1", 8080, allowed) == ["127.0.0.1"]
    with pytest.raises(Denied):
        resolve("127.0.0.2", 8080, allowed)


def answers(*addresses: str):
    """A resolver in place of the system's: the owner of a name decides its addresses."""
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    return lambda *_, **__: entries


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", answers("8.8.8.8", "169.254.169.254"))
    with pytest.raises(Denied, match=r"169\.254\.169\.254"):
        resolve("rebound.example", 80, Allowed())


def test_a_name_that_changes_its_address_after_the_check_does_not_get_in(
    files: Files, monkeypatch: pytest.MonkeyPatch
):
    files.contents["/x"] = b"what only this machine may see"
    real, hosts = socket.getaddrinfo, []

    def rebinding(host: str, *more, **named):
        if host != "rebound.example":
            return real(host, *more, **named)
        hosts.append(host)
        # Public when it is checked; what it would be the second time is this machine.
        return answers("192.0.2.1" if len(hosts) == 1 else "127.0.0.1")()

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr("flowloom.storage.downloads.request.CONNECT_S", 0.3)
    allowed = Allowed(networks=(ipaddress.ip_network("192.0.2.0/24"),))
    with pytest.raises(SourceError, match=r"no connection|timed out|broke"):
        get(DownloadClient(allowed), f"http://rebound.example:{files.server_port}/x", {})
    assert hosts == ["rebound.example"], "resolved once, and connected to what was checked"
    assert files.requests == []


def test_a_given_name_that_was_public_does_not_become_private_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(STRICT, raising=False)
    allowed = Allowed().and_given("http://store-that-moves.example:9000")
    monkeypatch.setattr(socket, "getaddrinfo", answers("8.8.8.8"))
    assert resolve("store-that-moves.example", 9000, allowed) == ["8.8.8.8"]
    monkeypatch.setattr(socket, "getaddrinfo", answers("169.254.169.254"))
    with pytest.raises(Denied, match=r"169\.254\.169\.254"):
        resolve("store-that-moves.example", 9000, allowed)


def test_a_given_private_name_may_change_its_private_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(STRICT, raising=False)
    allowed = Allowed().and_given("http://nas-at-home.example/images")
    for address in ("192.168.1.9", "192.168.1.77"):
        monkeypatch.setattr(socket, "getaddrinfo", answers(address))
        assert resolve("nas-at-home.example", 80, allowed) == [address]
        assert resolve("NAS-at-home.example.", 443, allowed) == [address], "servers send on to https"
    with pytest.raises(Denied):
        resolve("nas-at-home.example", 22, allowed)


def test_addresses_that_a_configuration_gives_a_studio_are_not_trusted(monkeypatch: pytest.MonkeyPatch):
    assert Allowed().and_given("http://127.0.0.1:9000", {STRICT: "1"}) == Allowed()
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(Denied, match=VARIABLE):
        open_source("http://127.0.0.1:9", StorageSection(tries=1)).read("x")


def test_the_owner_names_object_stores_by_their_own_variables():
    allowed = Allowed.for_stores({"AWS_ENDPOINT_URL": "http://Minio.lan.:9000", VARIABLE: "10.0.0.0/8"})
    assert allowed.holds("minio.lan", ipaddress.ip_address("192.168.1.5"))
    assert allowed.holds("x", ipaddress.ip_address("10.1.1.1"))
    assert not allowed.holds("x", ipaddress.ip_address("192.168.1.5"))


def test_a_server_of_the_user_s_does_not_send_on_to_another_port_of_this_machine(
    files: Files, elsewhere: Files
):
    files.moved["/x"] = f"{elsewhere.url}/secret"
    elsewhere.contents["/secret"] = b"what only this machine may see"
    files.contents["/y"] = b"what was asked for"
    source = open_source(files.url, StorageSection(tries=1))
    assert source.read("y") == b"what was asked for"
    with pytest.raises(Denied, match=VARIABLE):
        source.read("x")
    assert elsewhere.requests == []


def test_a_redirect_to_this_machine_is_refused(files: Files, elsewhere: Files):
    files.moved["/x"] = f"http://127.0.0.2:{elsewhere.server_port}/secret"
    client = DownloadClient(Allowed(networks=(ipaddress.ip_network("127.0.0.1/32"),)))
    with pytest.raises(Denied, match=r"127\.0\.0\.2"):
        get(client, f"{files.url}/x", {})
    assert elsewhere.requests == []


def test_a_redirect_to_another_scheme_is_refused(files: Files):
    files.moved["/x"] = "file:///etc/passwd"
    with pytest.raises(SourceError, match="not a URL"):
        get(DownloadClient(Allowed(networks=(ipaddress.ip_network("127.0.0.0/8"),))), f"{files.url}/x", {})


def test_redirects_end(files: Files):
    files.moved["/x"] = "/x"
    with pytest.raises(SourceError, match="redirects"):
        get(DownloadClient(Allowed(networks=(ipaddress.ip_network("127.0.0.0/8"),))), f"{files.url}/x", {})


def test_the_token_goes_to_the_hub_alone(files: Files, elsewhere: Files, tmp_path: Path):
    elsewhere.contents["/stored/here"] = b"model"
    files.moved["/me/model/resolve/main/x.safetensors"] = f"{elsewhere.url}/stored/here"
    client = DownloadClient(Allowed(networks=(ipaddress.ip_network("127.0.0.0/8"),)), files.url, "hf_secret")
    response, _ = get(client, client.hub_url("me/model", "x.safetensors", "main"), {})
    response.close()
    response, _ = get(client, f"{elsewhere.url}/stored/here", {})
    response.close()
    assert [headers.get("authorization") for _, headers in files.requests] == ["Bearer hf_secret"]
    assert [headers.get("authorization") for _, headers in elsewhere.requests] == [None, None]


def test_a_page_of_the_hub_means_its_file():
    client = DownloadClient()
    page = "https://huggingface.co/lodestones/Chroma1-HD/blob/main/Chroma1-HD.safetensors"
    assert client.file_url(page) == page.replace("/blob/", "/resolve/")
    other = "https://example.org/blob/x"
    assert client.file_url(other) == other


@pytest.fixture
def tls_files(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The same server by TLS, with a certificate for files.example alone that this process trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=files.example"]
    names = ["-addext", "subjectAltName=DNS:files.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *arguments, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    files.socket = context.wrap_socket(files.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: real("127.0.0.1" if host.endswith(".example") else host, *more, **named),
    )
    return files


def test_the_certificate_must_be_the_host_s_though_the_address_is_pinned(tls_files: Files):
    tls_files.contents["/x"] = b"content"
    client = DownloadClient(Allowed(names=frozenset({"files.example", "other.example"})))
    response, _ = get(client, f"https://files.example:{tls_files.server_port}/x", {})
    assert response.read() == b"content"
    assert tls_files.requests[0][1]["host"] == f"files.example:{tls_files.server_port}"
    with pytest.raises(SourceError, match="certificate"):
        get(client, f"https://other.example:{tls_files.server_port}/x", {})
    assert len(tls_files.requests) == 1


def test_https_is_not_left_for_http(tls_files: Files):
    tls_files.moved["/x"] = "http://files.example/x"
    client = DownloadClient(Allowed(names=frozenset({"files.example"})))
    with pytest.raises(SourceError, match="not encrypted"):
        get(client, f"https://files.example:{tls_files.server_port}/x", {})
