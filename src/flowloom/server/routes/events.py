"""What a run says, as it says it, and its charts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query
from fastapi.responses import StreamingResponse

from flowloom.server.deps import RunDep, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchRun, problems
from flowloom.server.runs.gpu_usage import CardLoads, read_loads
from flowloom.server.runs.metrics import Metrics
from flowloom.server.runs.tail import EventTail, frames

router = Router(tags=["events"], responses=problems())
_STREAM = {
    200: {
        "description": "Events without end.",
        "content": {"text/event-stream": {"example": "id: 7\nevent: step\ndata: {...}\n\n"}},
    }
}


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


def event_stream(frames: AsyncIterator[bytes]) -> EventStream:
    """A stream that no cache keeps and no proxy holds back."""
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
        int | None, Header(description="As `after`, and before it.", ge=-1, le=2**53)
    ] = None,
) -> EventStream:
    """Server-sent events with their `seq` as id: a client that comes back misses none and gets none twice."""
    tail = EventTail(run.events_jsonl, after if last_event_id is None else last_event_id)
    return event_stream(frames(tail, studio.is_closing))


@router.get("/runs/{run_id}/metrics", summary="A run's charts", responses=problems(NoSuchRun))
@in_group("computing")
def read_metrics(
    run: RunDep,
    studio: StudioDep,
    max_points: Annotated[int, Query(ge=10, le=10_000)] = 1000,
    first: Annotated[int, Query(description="Step to begin with.", ge=0, le=2**53)] = 0,
    last: Annotated[
        int | None, Query(description="Step to end with; none: the newest.", ge=0, le=2**53)
    ] = None,
) -> Metrics:
    """Every curve in at most `max_points` stretches of steps, each with mean and bounds; a shorter
    span of steps is told the more finely."""
    return studio.charts.of(run.events_jsonl).chart(max_points, first, last)


@router.get("/runs/{run_id}/cards", summary="What a run's cards did", responses=problems(NoSuchRun))
@in_group("computing")
def read_card_loads(run: RunDep, max_points: Annotated[int, Query(ge=10, le=10_000)] = 500) -> CardLoads:
    """Load, memory, temperature and power of its accelerators, noted every ten seconds; none on a CPU."""
    return read_loads(run.path, max_points)
