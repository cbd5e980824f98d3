"""JSON request bodies: their limits, and parsing outside the event loop.

A call into C holds the interpreter until it returns, and blocks the event loop from any thread. So the number
of values is limited before parsing, large bodies are parsed in a thread in short steps, and a body with very
many errors is rejected without listing them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from flowloom.files import as_object

MAX_VALUES = 50_000
MAX_ERRORS = 100
SMALL_BYTES = 16_384
"""Parsed within a millisecond, without a thread."""
_STRUCTURE = b",:[{"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class JsonRoute(APIRoute):
    """A route whose body is checked and parsed before FastAPI reads it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        kind: Any = self.body_field.field_info.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(kind)

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request, adapter))

        return handle_json


class _JsonRequest(Request):
    def __init__(self, request: Request, adapter: TypeAdapter[Any]):
        super().__init__(request.scope, request.receive)
        self._adapter = adapter

    async def json(self) -> Any:
        """The parsed body."""
        body = await self.body()
        if len(body) <= SMALL_BYTES:
            return _read(body, self._adapter)
        return await anyio.to_thread.run_sync(_read, body, self._adapter)


def _read(body: bytes, adapter: TypeAdapter[Any]) -> Any:
    # FastAPI passes on only these exceptions while it reads a body.
    if not _holds_few_values(body):
        raise HTTPException(413, f"A body may have at most {MAX_VALUES:,} values.")
    content = json.loads(body, parse_int=_integer, object_pairs_hook=as_object)
    try:
        adapter.validate_python(content)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:
            raise HTTPException(422, f"{error.error_count():,} fields are invalid.") from None
    return content


def _holds_few_values(body: bytes) -> bool:
    """True if a body has at most MAX_VALUES values; punctuation in strings does not count."""
    num = _num_marks(body)
    if num <= MAX_VALUES:
        return True
    if json.detect_encoding(body) != "utf-8":
        return False
    for num_strings, string in enumerate(_STRING.finditer(body)):
        num -= _num_marks(string[0])
        if num <= MAX_VALUES:
            return True
        if num_strings > 2 * MAX_VALUES:
            break
    return False


def _num_marks(text: bytes) -> int:
    return len(text) - len(text.translate(None, _STRUCTURE))


def _integer(text: str) -> int:
    # In Python, as in `as_object`: a long number takes long.
    return int(text)
