"""The machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, Field

from flowloom.server.datasets.subprocess_task import Failed, TakesLong, last_line, run_process
from flowloom.server.deps import Studio, StudioDep
from flowloom.server.off_loop import Router, in_group, off_loop
from flowloom.server.problems import problems
from flowloom.server.routes.events import EventStream, event_stream
from flowloom.server.system import System

router = Router(tags=["system"], responses=problems())
_EVERY_S = 2.0
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"example": "event: system\ndata: {...}\n\n"}}}
}


class DoctorFinding(BaseModel):
    """One checked item."""

    name: str = Field(examples=["torch"])
    text: str = Field(examples=["2.13.0, 8 CPU threads"])
    is_ok: bool


@router.get("/system", summary="The machine now")
def read_system(studio: StudioDep) -> System:
    """CPUs, memory, disks and GPUs."""
    return studio.system_monitor.read()


@router.get(
    "/system/events", summary="Follow the machine's usage", response_class=EventStream, responses=_STREAM
)
async def follow_system(studio: StudioDep) -> EventStream:
    """Every two seconds, as server-sent events."""
    return event_stream(_figures(studio))


@router.get("/system/doctor", summary="Check this machine", responses=problems(TakesLong, Failed))
@in_group("waiting")
def run_doctor(studio: StudioDep) -> list[DoctorFinding]:
    """The output of `flowloom doctor`: Python, torch, devices, packages, other trainers, secrets, disk, port.

    It imports every package in a separate process, which takes some seconds."""
    settings = studio.settings
    done = run_process(["flowloom.engine.doctor", str(settings.port), settings.host])
    try:
        # Packages may print text before it when they are imported.
        items = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise Failed(last_line(done.stderr), "Run 'flowloom doctor' on the machine itself.") from None
    findings = [DoctorFinding.model_validate(item) for item in items]
    failures = studio.jobs.failures.items()
    return [
        *findings,
        *(DoctorFinding(name=name, text=f"fails: {why}", is_ok=False) for name, why in failures),
    ]


async def _figures(studio: Studio) -> AsyncIterator[bytes]:
    while not studio.is_closing():
        system = await off_loop("following", studio.system_monitor.read)
        yield b"event: system\ndata: %b\n\n" % system.model_dump_json().encode()
        for _ in range(round(_EVERY_S / 0.2)):
            if studio.is_closing():
                return
            await asyncio.sleep(0.2)
