"""`flowloom up`: the studio on a port of this machine."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flowloom.config.local_paths import local_path
from flowloom.errors import RunError, is_disk_full
from flowloom.files import read_plain, replacing, write_json
from flowloom.locks import hold
from flowloom.server.path_prefix import path_prefix
from flowloom.server.settings import Settings, is_loopback

USAGE = "[--home DIR] [--host ADDRESS] [--port N] [--root NAME=DIR ...] [--token TOKEN] [...]"
PORT, LOOPBACK = 7860, "127.0.0.1"
_GRACE_S = 3


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--home",
        type=Path,
        metavar="DIR",
        help="contains runs, data and models; default: FLOWLOOM_HOME, an existing studio in this folder, "
        "/workspace/flowloom if a volume is mounted at /workspace, or this folder",
    )
    add(
        "--host",
        type=_host,
        default=LOOPBACK,
        metavar="ADDRESS",
        help="address to listen on; any but loopback requires a token",
    )
    add("--port", type=port, default=PORT, metavar="N", help=f"default: {PORT}; 0: a free one")
    add(
        "--path",
        type=path_prefix,
        default=os.environ.get("FLOWLOOM_PATH", ""),
        metavar="PATH",
        help="path prefix behind a proxy, such as /studio; default: FLOWLOOM_PATH, or none",
    )
    add(
        "--root",
        type=_root,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another folder that the studio may use; can be repeated",
    )
    add(
        "--token",
        type=str.strip,
        default=os.environ.get("FLOWLOOM_TOKEN"),
        help="required for access; default: FLOWLOOM_TOKEN, or generated when needed",
    )
    add(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="device for runs, such as cuda:0; can be repeated; default: all",
    )
    add(
        "--when-idle",
        metavar="COMMAND",
        help="shell command to run after --idle-minutes without a run or a change",
    )
    add("--idle-minutes", type=minutes, default=30.0, metavar="N", help="default: 30")


def serve(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Serve a studio until a signal ends it, and return the exit status. Runs continue.

    Raises:
        RunError: another studio serves this home, it is not writable, or the address is in use.
    """
    _add_flags(parser)
    options = parser.parse_args(words)
    home = (options.home or default_home()).expanduser().absolute()
    with _writing_to(home):
        (home / ".flowloom").mkdir(mode=0o700, parents=True, exist_ok=True)
        new_token = None if options.token or is_loopback(options.host) else _kept_token(home)
        lock = hold(home / ".flowloom" / "lock", patience_s=0.5)
    # Runs inherit the environment and must not see the token.
    os.environ.pop("FLOWLOOM_TOKEN", None)
    token = options.token or new_token
    settings = Settings(
        home,
        dict(options.root),
        host=options.host,
        port=options.port,
        path=options.path,
        token=token,
        devices=tuple(options.device),
        when_idle=options.when_idle,
        idle_minutes=options.idle_minutes,
    )
    if lock is None:
        raise RunError(f"{home}: another studio already serves it: {_who(settings.state_dir)}")
    with _listen(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        url, *others = _addresses(settings)
        with _writing_to(home):
            write_json(settings.state_dir / "server.json", {"pid": os.getpid(), "url": url})
        # A token chosen by the user is not printed: others may read the journal.
        sign_in = f"/#token={new_token}" if new_token else ""
        sys.stderr.write(f"studio     {url}{sign_in}\n           Open this address in your browser.\n")
        for other in others:
            sys.stderr.write(f"           From other machines: {other}{sign_in}\n")
        sys.stderr.write(f"home       {home}\nstop       Ctrl-C stops the studio; runs continue.\n")
        sys.stderr.flush()
        _run_server(settings, listener)
    return 0


def default_home(volume: Path = Path("/workspace")) -> Path:
    """The home without --home: FLOWLOOM_HOME, an existing studio in this folder, the persistent volume of a
    rented machine, or this folder.
    """
    if named := os.environ.get("FLOWLOOM_HOME"):
        return Path(named)
    if not Path(".flowloom").is_dir() and volume.is_mount() and os.access(volume, os.W_OK):
        return volume / "flowloom"
    return Path()


@contextmanager
def _writing_to(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else error.strerror
        hint = "Make it writable, with room on its disk, or choose another --home."
        raise RunError(f"{home}: {reason}. {hint}") from error


def _run_server(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    from flowloom.server.app import create_app
    from flowloom.server.connections import Connection, raise_file_limit
    from flowloom.server.log_format import keep_logs_printable

    raise_file_limit()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
    )
    keep_logs_printable()
    server = uvicorn.Server(config)
    app.state.is_closing = lambda: server.should_exit
    server.run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With IPPROTO_TCP, asyncio disables Nagle's algorithm, which would delay each response by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        hint = "Choose another --port, or stop the program that uses it."
        raise RunError(f"{where}: {error.strerror}. {hint}") from error
    return listener


def _kept_token(home: Path) -> str:
    """The token of this home, generated once and readable by its owner only."""
    path = home / ".flowloom" / "token"
    try:
        kept = read_plain(path, 4096).decode("ascii").strip()
    except FileNotFoundError:
        kept = ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a token"
        raise RunError(f"{path}: {reason}. Remove it: the next start makes a new token.") from error
    if kept:
        return kept
    # Atomic: an empty file left by a full disk would be an empty token.
    made = secrets.token_urlsafe(32)
    with replacing(path, permissions=0o600) as file:
        file.write(made.encode())
    return made


def _who(state_dir: Path) -> str:
    note = state_dir / "server.json"
    return note.read_text().strip() if note.exists() else "unknown"


def _addresses(settings: Settings) -> list[str]:
    """The studio's URLs: for browsers on this machine first, then for other machines."""
    host = settings.host
    hosts = [{"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)]
    if host in ("0.0.0.0", "::"):
        hosts += _own_addresses(with_v6=host == "::")
    shown = (f"[{each}]" if ":" in each else each for each in hosts)
    return [f"http://{each}:{settings.port}{settings.path}" for each in shown]


def _own_addresses(*, with_v6: bool) -> list[str]:
    """The addresses of this machine's network interfaces, without loopback and link-local ones."""
    families = (socket.AF_INET, socket.AF_INET6) if with_v6 else (socket.AF_INET,)
    interfaces = psutil.net_if_addrs().values()
    found = [address for each in interfaces for address in each if address.family in families]
    numbers = [ipaddress.ip_address(each.address.partition("%")[0]) for each in found]
    return [str(number) for number in numbers if not (number.is_loopback or number.is_link_local)]


def serving_at(home: Path) -> tuple[int, str]:
    """Port and host of the studio that serves `home`, or served it last; else the defaults."""
    try:
        url = urlsplit(str(json.loads((home / ".flowloom" / "server.json").read_bytes())["url"]))
        return url.port or PORT, url.hostname or LOOPBACK
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return PORT, LOOPBACK


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("write an address or host name; 0.0.0.0 means every address")
    return text


def port(text: str) -> int:
    """Parse a port number.

    Raises:
        ArgumentTypeError: it is not one.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"write a number from 0 to 65535, not {text!r}")
    return int(text)


def minutes(text: str) -> float:
    """Parse a number of minutes.

    Raises:
        ArgumentTypeError: it is not a number above 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"write minutes, more than 0, not {text!r}")
    return number


def _root(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    local_path(folder)
    if not name.isidentifier() or not folder or not Path(folder).expanduser().is_dir():
        raise argparse.ArgumentTypeError(f"write it as NAME=DIR with an existing folder, not {text!r}")
    return name, Path(folder).expanduser().absolute()
