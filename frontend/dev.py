"""The studio for development: the API restarts when Python changes, `next dev` reloads the pages.

    python frontend/dev.py [PORT] [ARGS OF flowloom up ...]      or ./loom dev

One address serves both, so that the API accepts the pages' requests. Ctrl-C ends everything; runs continue.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from contextlib import suppress

from build import HERE, install, node_environment, node_home, say

SOURCES = HERE.parent / "src" / "flowloom"
PORT = 7860
MARK = b"/__flowloom__"
POLL_S = 1.0


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def newest() -> float:
    """When a Python file last changed."""
    return max((path.stat().st_mtime for path in SOURCES.rglob("*.py")), default=0.0)


async def run_api(port: int, args: list[str]) -> None:
    """Run `flowloom up`, again after each change."""
    while True:
        changed_at = newest()
        command = [sys.executable, "-m", "flowloom.cli.main", "up", "--port", str(port), *args]
        process = await asyncio.create_subprocess_exec(*command)
        try:
            while newest() == changed_at:
                await asyncio.sleep(POLL_S)
            say("Python changed: restarting the API")
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def run_pages(port: int) -> None:
    """Run `next dev` until it ends."""
    program = (HERE / "node_modules" / ".bin" / "next").resolve()
    command = [node_home() / "bin" / "node", program, "dev", "--hostname", "127.0.0.1", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, cwd=HERE, env=node_environment())
    try:
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.terminate()


def routed(head: bytes) -> tuple[bool, bytes]:
    """True if the API answers a request, and the request's head for a separate connection."""
    verb, path, rest = head.split(b" ", 2)
    is_api = path.removeprefix(MARK).startswith(b"/api/")
    if not re.search(rb"\r\nupgrade:", rest, re.IGNORECASE):
        rest = re.sub(rb"\r\nconnection:[^\r]*", b"", rest, flags=re.IGNORECASE)
        rest = rest.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    return is_api, b" ".join([verb, path.removeprefix(MARK) if is_api else path, rest])


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until either side closes."""
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def serve(port: int, api_port: int, pages_port: int) -> None:
    """Pass each request to the API or the pages."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            is_api, head = routed(await reader.readuntil(b"\r\n\r\n"))
            target = await asyncio.open_connection("127.0.0.1", api_port if is_api else pages_port)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            writer.close()
            return
        target[1].write(head)
        await asyncio.gather(pump(reader, target[1]), pump(target[0], writer))

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    say(f"open http://127.0.0.1:{port}{MARK.decode()}/")
    await server.serve_forever()


async def develop(port: int, args: list[str]) -> None:
    """Run the API, the pages and the one address in front of them until one of them ends."""
    api_port, pages_port = free_port(), free_port()
    parts = [run_api(api_port, args), run_pages(pages_port), serve(port, api_port, pages_port)]
    tasks = [asyncio.create_task(part) for part in parts]
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, tasks[0].cancel)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    port, args = (
        (int(sys.argv[1]), sys.argv[2:]) if sys.argv[1:2] and sys.argv[1].isdigit() else (PORT, sys.argv[1:])
    )
    install()
    asyncio.run(develop(port, args))
