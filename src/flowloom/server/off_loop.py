"""Bounded thread groups for work that would block the event loop: file access, SQLite, JSON, waiting.

Every route is called in a thread of its group, and its response is serialised there. Each group has a limited
number of threads, so that no kind of work takes the threads of another, and few threads compete with the loop
for the interpreter.
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
Group = Literal["quick", "computing", "images", "waiting", "following", "uploading", "own"]
THREADS: dict[Group, int] = {
    "quick": 8,
    "computing": 2,
    "images": 6,
    "waiting": 8,
    "following": 4,
    "uploading": 4,
    "own": 4,
}
"""quick: a few files or rows. computing: Python work on whole files. images: thumbnails. waiting: networks,
other processes, long edits. following: streams of run events and system usage. own: the server's periodic
jobs, which requests must not delay."""
SHARED_THREADS = 16
"""For dependencies and file responses."""
SWITCH_S = 0.001
"""How soon a computing thread yields the interpreter to the event loop."""
_limiters = {group: anyio.CapacityLimiter(number) for group, number in THREADS.items()}


async def off_loop(group: Group, work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`, called in a thread of `group`. A cancelled caller waits for it, too."""
    return await anyio.to_thread.run_sync(work, *args, limiter=_limiters[group])


def is_idle() -> bool:
    """True if no request is being handled in a thread."""
    return not any(limiter.borrowed_tokens for group, limiter in _limiters.items() if group != "own")


def in_group(group: Group) -> Callable[[Call], Call]:
    """A decorator that sets the thread group of a route (default: quick)."""

    def mark(function: Call) -> Call:
        function.__dict__["thread_group"] = group
        return function

    return mark


class Router(APIRouter):
    """A router that calls plain functions, and serialises their results, in threads."""

    def __init__(self, **options: Any):
        super().__init__(route_class=JsonRoute, **options)

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Like FastAPI's. Coroutine functions stay in the loop and must not block it."""
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = _in_thread(endpoint, options.get("status_code"))
        super().add_api_route(path, endpoint, **options)


def _in_thread(endpoint: Callable[..., Any], status_code: int | None) -> Callable[..., Any]:
    group: Group = endpoint.__dict__.get("thread_group", "quick")
    kind = get_type_hints(endpoint, include_extras=True).get("return", Any)
    is_response = inspect.isclass(kind) and issubclass(kind, Response)
    adapter: TypeAdapter[Any] | None = None if is_response else TypeAdapter(kind)

    def answer(values: dict[str, Any]) -> Response:
        result = endpoint(**values)
        if adapter is None or isinstance(result, Response):
            return result
        has_body = status_code != 204
        content = adapter.dump_json(adapter.validate_python(result, from_attributes=True), by_alias=True)
        response = Response(content if has_body else None, status_code or 200, media_type="application/json")
        for given in (value for value in values.values() if isinstance(value, Response)):
            # FastAPI merges a response given as a parameter in the same way.
            response.status_code = given.status_code or response.status_code
            response.headers.raw.extend(given.headers.raw)
        return response

    @functools.wraps(endpoint)
    async def call(**values: Any) -> Response:
        return await off_loop(group, answer, values)

    return call
