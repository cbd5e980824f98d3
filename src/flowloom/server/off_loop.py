"""Work that would hold up the event loop, done in bounded threads: file access, SQLite, JSON, waiting.

Every route is called in a thread of its group and its answer is turned into bytes there. A group bounds how
many threads such work has, so that none of it takes the threads of another kind, and so that the threads that
compete with the loop for the interpreter stay few.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_type_hints

import anyio
import anyio.to_thread
from fastapi import APIRouter, Response
from pydantic import TypeAdapter

from flowloom.server.bodies import JsonRoute

T = TypeVar("T")
Call = TypeVar("Call", bound=Callable[..., Any])
Group = Literal["quick", "computing", "pictures", "waiting", "following", "uploading", "own"]
THREADS: dict[Group, int] = {
    "quick": 8,
    "computing": 2,
    "pictures": 6,
    "waiting": 8,
    "following": 4,
    "uploading": 4,
    "own": 3,
}
"""quick: some files or rows. computing: Python that works through whole files. pictures: thumbnails. waiting:
for networks, other processes, long edits. following: events of runs and figures of the machine. own: the
studio's own tasks, which no number of requests may hold up."""
SHARED_THREADS = 16
"""For dependencies and for files that are sent."""
SWITCH_S = 0.001
"""How soon a thread that computes lets the loop have the interpreter."""
_limiters = {group: anyio.CapacityLimiter(number) for group, number in THREADS.items()}


async def off_loop(group: Group, work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` returns, from a thread of `group`; a caller that is cancelled waits for it."""
    return await anyio.to_thread.run_sync(work, *args, limiter=_limiters[group])


def is_idle() -> bool:
    """Whether no request is being worked on in a thread."""
    return not any(limiter.borrowed_tokens for group, limiter in _limiters.items() if group != "own")


def in_group(group: Group) -> Callable[[Call], Call]:
    """A decorator for a route's function: which threads call it, in place of the quick ones."""

    def mark(function: Call) -> Call:
        function.__dict__["thread_group"] = group
        return function

    return mark


class Router(APIRouter):
    """A router whose plain functions are called, and their answers written, in threads."""

    def __init__(self, **options: Any):
        super().__init__(route_class=JsonRoute, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """As FastAPI's; coroutine functions stay in the loop and must not block it."""
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_thread(endpoint, options.get("status_code"))
        super().add_api_route(path, endpoint, **options)


def _in_thread(endpoint: Callable[..., Any], status_code: int | None) -> Callable[..., Any]:
    group: Group = endpoint.__dict__.get("thread_group", "quick")
    kind = get_type_hints(endpoint, include_extras=True).get("return", Any)
    is_response = inspect.isclass(kind) and issubclass(kind, Response)
    adapter: TypeAdapter[Any] | None = None if is_response else TypeAdapter(kind)

    def answer(values: dict[str, Any]) -> Response:
        found = endpoint(**values)
        if adapter is None or isinstance(found, Response):
            return found
        has_body = status_code != 204
        content = adapter.dump_json(adapter.validate_python(found, from_attributes=True), by_alias=True)
        response = Response(content if has_body else None, status_code or 200, media_type="application/json")
        for told in (value for value in values.values() if isinstance(value, Response)):
            # What the function said by its parameter of this type, which FastAPI would merge.
            response.status_code = told.status_code or response.status_code
            response.headers.raw.extend(told.headers.raw)
        return response

    @functools.wraps(endpoint)
    async def call(**values: Any) -> Response:
        return await off_loop(group, answer, values)

    return call
