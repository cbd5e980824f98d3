"""500 status reads/s, p99 below 50 ms, while a run trains (niced) and 50 clients follow it."""

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
from flowloom.config.run import RunConfig
from flowloom.demo.images import build
from flowloom.demo.network import write_base
from flowloom.run.directory import RunDir
from flowloom.tasks.demo import SIZE, demo_sections, model_section

TARGET = 1.0
READS_PER_S, P99_LIMIT_S, DELAY_LIMIT_S, START_LIMIT_S, MEMORY_LIMIT_MIB = 500, 0.05, 0.2, 2.0, 150.0
SECONDS, CONNECTIONS, LISTENERS = 10, 20, 50
MINUTES = 60.0
"""How long the run would take; it is stopped long before."""


@contextmanager
def studio(home: Path) -> Iterator[tuple[int, int, float]]:
    """A studio over `home`: its port, its process, and the seconds until its first answer."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "flowloom.cli.main", "up", "--home", str(home), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        note = home / ".flowloom" / "server.json"
        while not note.exists():
            time.sleep(0.005)
        port = int(json.loads(note.read_text())["url"].rpartition(":")[2])
        asyncio.run(read_once(port))
        yield port, process.pid, time.perf_counter() - began
        process.terminate()


async def read_once(port: int) -> None:
    """One status read on a separate connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await status(reader, writer)
    writer.close()


async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """True if a status read returned 200."""
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


async def listen(port: int, heard: list[tuple[int, float, float]]) -> None:
    """Take in events until cancelled: the number of each, when it happened, how long it was under way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /api/runs/load/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while line := await reader.readline():
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            heard.append((event["seq"], event["time"], time.time() - event["time"]))


async def load(port: int, events: Path) -> tuple[list[float], list[float], bool]:
    """Read times, delays of events that happened meanwhile, whether all was read and heard."""
    times: list[float] = []
    heard: list[list[tuple[int, float, float]]] = [[] for _ in range(LISTENERS)]
    listeners = [asyncio.create_task(listen(port, each)) for each in heard]
    await asyncio.sleep(1)
    began, until = time.time(), time.perf_counter() + SECONDS
    failed = await asyncio.gather(*(read_steadily(port, i, until, times) for i in range(CONNECTIONS)))
    last = json.loads(events.read_text().splitlines()[-1])["seq"]
    await asyncio.sleep(0.5)
    for listener in listeners:
        listener.cancel()
    numbers = [[number for number, _, _ in each] for each in heard]
    is_whole = all(each == list(range(len(each))) and len(each) > last for each in numbers)
    delays = [delay for each in heard for _, at, delay in each if at > began]
    return times, delays, is_whole and not sum(failed)


@contextmanager
def training(home: Path) -> Iterator[Path]:
    """A real run of the demo's small network, niced, once it trains; its events."""
    write_base(home / "base.safetensors")
    build(home / "pictures", SIZE)
    run_dir = RunDir.create("load", home / "runs")
    sections = demo_sections(home / "pictures", model_section(home / "base.safetensors"), MINUTES)
    run_dir.write_run(RunConfig.model_validate(sections), "a benchmark")
    words = ["nice", "-n19", sys.executable, "-m", "flowloom.engine", str(run_dir.path)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while b'"step"' not in (run_dir.events_jsonl.read_bytes() if run_dir.events_jsonl.exists() else b""):
            if process.poll() is not None:
                raise RuntimeError((run_dir.path / "log.txt").read_text())
            time.sleep(0.1)
        yield run_dir.events_jsonl
        process.kill()


def run() -> Measured:
    """How many times over the tightest limit is kept; correct when every read and every event arrived."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "runs").mkdir()
        with training(home) as events, studio(home) as (port, pid, start_s):
            times, delays, is_whole = asyncio.run(load(port, events))
            memory_mib = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
            num_steps = events.read_text().count('"kind": "step"')
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
        correct=is_whole,
        detail={
            "reads_per_s": len(times) / SECONDS,
            "read_p50_ms": 1000 * statistics.median(times),
            "read_p99_ms": 1000 * p99,
            "event_p99_ms": 1000 * delay,
            "start_s": start_s,
            "memory_mib": memory_mib,
            "steps_trained": num_steps,
        },
    )
