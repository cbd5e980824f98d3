"""`flowloom up`: the studio on a port of this machine."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flowloom.config.local_paths import local_path
from flowloom.errors import RunError, is_disk_full
from flowloom.files import read_plain, replacing, write_json
from flowloom.server.locks import hold
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
        help="holds runs, data, models; default: FLOWLOOM_HOME, the studio that is here, "
        "/workspace/flowloom where a volume is mounted at /workspace, or here",
    )
    add(
        "--host",
        type=_host,
        default=LOOPBACK,
        metavar="ADDRESS",
        help="to listen on; any but loopback demands a token",
    )
    add("--port", type=port, default=PORT, metavar="N", help=f"default: {PORT}; 0: a free one")
    add(
        "--path",
        type=path_prefix,
        default=os.environ.get("FLOWLOOM_PATH", ""),
        metavar="PATH",
        help="where a proxy shows it, /studio say; default: FLOWLOOM_PATH, or a host name of its own",
    )
    add(
        "--root",
        type=_root,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="one more folder it may use; repeat it",
    )
    add(
        "--token",
        type=str.strip,
        default=os.environ.get("FLOWLOOM_TOKEN"),
        help="demand it; default: FLOWLOOM_TOKEN, or one is made when needed",
    )
    add(
        "--device",
        action="append",
        default=[],
        metavar="NAME",
        help="to share out, cuda:0 say; default: all that are found",
    )
    add(
        "--when-idle",
        metavar="COMMAND",
        help="for a shell, once nothing has run and nothing was changed for --idle-minutes",
    )
    add("--idle-minutes", type=minutes, default=30.0, metavar="N", help="default: 30")


def up(parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Serve what the command line says until a signal ends it; runs go on. The exit status.

    Raises:
        RunError: another studio serves this home, it cannot be written, or the address is taken.
    """
    _add_flags(parser)
    asked = parser.parse_args(words)
    home = (asked.home or default_home()).expanduser().absolute()
    with _writing_to(home):
        (home / ".flowloom").mkdir(mode=0o700, parents=True, exist_ok=True)
        made = None if asked.token or is_loopback(asked.host) else _kept_token(home)
        lock = hold(home / ".flowloom" / "lock", patience_s=0.5)
    # Runs inherit the environment, and have no business with it.
    os.environ.pop("FLOWLOOM_TOKEN", None)
    token = asked.token or made
    settings = Settings(
        home,
        dict(asked.root),
        host=asked.host,
        port=asked.port,
        path=asked.path,
        token=token,
        devices=tuple(asked.device),
        when_idle=asked.when_idle,
        idle_minutes=asked.idle_minutes,
    )
    if lock is None:
        raise RunError(f"{home}: another studio serves it already: {_who(settings.state_dir)}")
    with _listen(settings) as listener:
        settings = replace(settings, port=listener.getsockname()[1])
        url, *others = _addresses(settings)
        with _writing_to(home):
            write_json(settings.state_dir / "server.json", {"pid": os.getpid(), "url": url})
        # One that somebody chose is known to them, and standard error may be a journal that others read.
        sign_in = f"/#token={made}" if made else ""
        sys.stderr.write(f"studio     {url}{sign_in}\n           Open this address in your browser.\n")
        for other in others:
            sys.stderr.write(f"           From other machines: {other}{sign_in}\n")
        sys.stderr.write(f"home       {home}\nstop       Ctrl-C stops the studio; runs go on.\n")
        sys.stderr.flush()
        _serve(settings, listener)
    return 0


def default_home(volume: Path = Path("/workspace")) -> Path:
    """Where a studio lives that was told nothing: FLOWLOOM_HOME; here, where one lives already; on the volume
    that outlives a rented box, where one is mounted; or here.
    """
    if named := os.environ.get("FLOWLOOM_HOME"):
        return Path(named)
    if not Path(".flowloom").is_dir() and volume.is_mount() and os.access(volume, os.W_OK):
        return volume / "flowloom"
    return Path()


@contextmanager
def _writing_to(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else error.strerror
        todo = "Make it writable, with room on its disk, or choose another --home."
        raise RunError(f"{home}: {reason}. {todo}") from error


def _serve(settings: Settings, listener: socket.socket) -> None:
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
    # Named TCP, or asyncio leaves Nagle's algorithm on: 40 ms more for each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        todo = "Choose another --port, or end what listens there."
        raise RunError(f"{where}: {error.strerror}. {todo}") from error
    return listener


def _kept_token(home: Path) -> str:
    """The token of this home: made once, readable by its owner only."""
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
    # An empty one, left by a full disk, would let everybody in.
    made = secrets.token_urlsafe(32)
    with replacing(path, permissions=0o600) as file:
        file.write(made.encode())
    return made


def _who(state_dir: Path) -> str:
    note = state_dir / "server.json"
    return note.read_text().strip() if note.exists() else "an unknown one"


def _addresses(settings: Settings) -> list[str]:
    """Where browsers find the studio: those of this machine first, then others' by each of its addresses."""
    host = settings.host
    hosts = [{"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)]
    if host in ("0.0.0.0", "::"):
        hosts += _own_addresses(with_v6=host == "::")
    shown = (f"[{each}]" if ":" in each else each for each in hosts)
    return [f"http://{each}:{settings.port}{settings.path}" for each in shown]


def _own_addresses(*, with_v6: bool) -> list[str]:
    """The addresses of this machine's network interfaces, without those that mean only the machine itself."""
    families = (socket.AF_INET, socket.AF_INET6) if with_v6 else (socket.AF_INET,)
    found = [one for each in psutil.net_if_addrs().values() for one in each if one.family in families]
    numbers = [ipaddress.ip_address(one.address.partition("%")[0]) for one in found]
    return [str(number) for number in numbers if not (number.is_loopback or number.is_link_local)]


def serving_at(home: Path) -> tuple[int, str]:
    """Port and host of the studio that serves `home` or did so last; the usual ones where there was none."""
    try:
        url = urlsplit(json.loads((home / ".flowloom" / "server.json").read_bytes())["url"])
        return url.port or PORT, url.hostname or LOOPBACK
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return PORT, LOOPBACK


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("write an address or a name; 0.0.0.0 means every address")
    return text


def port(text: str) -> int:
    """A port on a command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"write a number from 0 to 65535, not {text!r}")
    return int(text)


def minutes(text: str) -> float:
    """Minutes on a command line.

    Raises:
        ArgumentTypeError: it is no number above 0.
    """
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"write minutes, more than 0, not {text!r}")
    return found


def _root(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    local_path(folder)
    if not name.isidentifier() or not folder or not Path(folder).expanduser().is_dir():
        raise argparse.ArgumentTypeError(f"write it as NAME=DIR, with a folder that is there, not {text!r}")
    return name, Path(folder).expanduser().absolute()
