"""The studio: 500 status reads/s, p99 under 50 ms, with 50 listeners and a niced process that computes."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.timing import Measured

TARGET = 1.0
READS_PER_S, P99_LIMIT_S, DELAY_LIMIT_S, START_LIMIT_S, MEMORY_LIMIT_MIB = 500, 0.05, 0.2, 2.0, 150.0
SECONDS, CONNECTIONS, LISTENERS, EVENTS_PER_S = 10, 20, 50, 5


@contextmanager
def studio(home: Path) -> Iterator[tuple[int, int, float]]:
    """A studio over `home`: its port, its process, and the seconds until its first answer."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "flowloom.cli", "up", "--home", str(home), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        note = home / ".flowloom" / "server.json"
        while not note.exists():
            time.sleep(0.005)
        port = int(json.loads(note.read_text())["url"].rpartition(":")[2])
        asyncio.run(read_once(port))
        yield port, process.pid, time.perf_counter() - began
        process.terminate()


async def read_once(port: int) -> None:
    """One status read on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await status(reader, writer)
    writer.close()


async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether a status read was answered with 200."""
    writer.write(b"GET /api/runs/load HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    await reader.readexactly(length)
    return b" 200 " in head.split(b"\r\n")[0]


async def read_steadily(port: int, number: int, until: float, times: list[float]) -> int:
    """Status reads at one connection's share of the rate, timed from when each was due; how many failed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due, failed = time.perf_counter() + number / READS_PER_S, 0
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        failed += not await status(reader, writer)
        times.append(time.perf_counter() - due)
        due += CONNECTIONS / READS_PER_S
    writer.close()
    return failed


async def listen(port: int, delays: list[float]) -> None:
    """Take in events until cancelled, with how long each was under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /api/runs/load/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while line := await reader.readline():
        if line.startswith(b"data: "):
            delays.append(time.time() - json.loads(line[6:])["time"])


async def emit(events: Path, until: float) -> None:
    """Append events as an engine does."""
    seq = 0
    with events.open("ab", buffering=0) as file:
        while time.perf_counter() < until:
            event = {"seq": seq, "time": time.time(), "kind": "step", "step": seq, "loss": 1.0}
            file.write(json.dumps(event).encode() + b"\n")
            seq += 1
            await asyncio.sleep(1 / EVENTS_PER_S)


async def load(port: int, events: Path) -> tuple[list[float], list[float], int]:
    """Read times, event delays, failed reads."""
    times: list[float] = []
    delays: list[float] = []
    listeners = [asyncio.create_task(listen(port, delays)) for _ in range(LISTENERS)]
    await asyncio.sleep(0.5)
    until = time.perf_counter() + SECONDS
    reads = [read_steadily(port, i, until, times) for i in range(CONNECTIONS)]
    failed = await asyncio.gather(*reads, emit(events, until))
    await asyncio.sleep(0.5)
    for listener in listeners:
        listener.cancel()
    return times, delays, sum(failed[:-1])


def run() -> Measured:
    """How many times over the tightest limit is kept; correct when every read and every event arrived."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run_dir = home / "runs" / "load"
        run_dir.mkdir(parents=True)
        (run_dir / "run.json").write_text(json.dumps({"config": {}, "created": 1.0}))
        (run_dir / "events.jsonl").touch()
        busy = [sys.executable, "-c", "while True: pass"]
        with (
            studio(home) as (port, pid, start_s),
            subprocess.Popen(["nice", "-n19", *busy]) as other,
        ):
            times, delays, failed = asyncio.run(load(port, run_dir / "events.jsonl"))
            other.kill()
            memory_mib = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
        num_events = len((run_dir / "events.jsonl").read_text().splitlines())
    p99, delay = statistics.quantiles(times, n=100)[98], statistics.quantiles(delays, n=100)[98]
    limits = (
        (P99_LIMIT_S, p99),
        (DELAY_LIMIT_S, delay),
        (START_LIMIT_S, start_s),
        (MEMORY_LIMIT_MIB, memory_mib),
    )
    return Measured(
        ratio=min(limit / found for limit, found in limits),
        target=TARGET,
        correct=not failed and len(delays) == LISTENERS * num_events,
        detail={
            "reads_per_s": len(times) / SECONDS,
            "read_p50_ms": 1000 * statistics.median(times),
            "read_p99_ms": 1000 * p99,
            "event_p99_ms": 1000 * delay,
            "start_s": start_s,
            "memory_mib": memory_mib,
        },
    )
