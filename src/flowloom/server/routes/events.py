"""Events of a run as they happen, its charts, and its GPU usage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query
from fastapi.responses import StreamingResponse

from flowloom.server.deps import RunDep, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchRun, problems
from flowloom.server.runs.gpu_usage import GpuUsage, read_gpu_usage
from flowloom.server.runs.metrics import Metrics
from flowloom.server.runs.tail import EventTail, frames

router = Router(tags=["events"], responses=problems())
_STREAM = {
    200: {
        "description": "Events without end; the data of each is a RunEvent.",
        "content": {
            "text/event-stream": {
                "example": "id: 7\nevent: step\ndata: {...}\n\n",
                "x-item-schema": {"$ref": "#/components/schemas/RunEvent"},
            }
        },
    }
}


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


def event_stream(frames: AsyncIterator[bytes]) -> EventStream:
    """A stream that is neither cached nor buffered by proxies."""
    return EventStream(frames, headers={"cache-control": "no-store", "x-accel-buffering": "no"})


@router.get(
    "/runs/{run_id}/events",
    summary="Follow a run's events",
    response_class=EventStream,
    responses={**_STREAM, **problems(NoSuchRun)},
)
async def follow_events(
    run: RunDep,
    studio: StudioDep,
    after: Annotated[int, Query(description="Only events numbered higher; -1: all.", ge=-1, le=2**53)] = -1,
    last_event_id: Annotated[
        int | None, Header(description="Same as `after`; takes precedence.", ge=-1, le=2**53)
    ] = None,
) -> EventStream:
    """Server-sent events with `seq` as id: a reconnecting client misses none and gets none twice."""
    tail = EventTail(run.events_jsonl, after if last_event_id is None else last_event_id)
    return event_stream(frames(tail, studio.is_closing))


@router.get("/runs/{run_id}/metrics", summary="A run's charts", responses=problems(NoSuchRun))
@in_group("computing")
def read_metrics(
    run: RunDep,
    studio: StudioDep,
    max_points: Annotated[int, Query(ge=10, le=10_000)] = 1000,
    first: Annotated[int, Query(description="First step.", ge=0, le=2**53)] = 0,
    last: Annotated[int | None, Query(description="Last step; default: the newest.", ge=0, le=2**53)] = None,
) -> Metrics:
    """Every curve in at most `max_points` intervals of steps, each with its mean, minimum and maximum."""
    return studio.charts.of(run.events_jsonl).chart(max_points, first, last)


@router.get("/runs/{run_id}/gpu-usage", summary="GPU usage of a run", responses=problems(NoSuchRun))
@in_group("computing")
def read_usage(run: RunDep, max_points: Annotated[int, Query(ge=10, le=10_000)] = 500) -> GpuUsage:
    """Load, memory, temperature and power of its GPUs, recorded every ten seconds. Empty on a CPU."""
    return read_gpu_usage(run.path, max_points)
