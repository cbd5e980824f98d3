"""Errors of the service, returned as RFC 9457 problem+json.

ServiceError
├── NotJson                                              400
├── TooLarge                                             413
├── TooSlow                                              408
├── NoSuchRun, NoSuchTrainer, NoSuchTask, NoSuchFile, NoSuchRoot     404
├── OutsideRoots, Forbidden                              403
├── NotSignedIn                                          401
├── NotNow                                               409  the run is in another state
├── Damaged                                              409  a file is damaged or of the wrong kind
├── InUse, NeededToResume, NameTaken                        409
├── Invalid                                              422  all problems, each with a JSON pointer
├── Unreadable                                           403  the studio's user may not read it
└── Unwritable                                           507  the disk is full or read-only

`title` says what is wrong, `detail` where, `hint` what to do.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from starlette.exceptions import HTTPException

from flowloom.config.validation import code_of
from flowloom.errors import ConfigError, DamagedError, FlowloomError, Problem, ProblemCode
from flowloom.printable import printable
from flowloom.run.events import RunEvent

MEDIA_TYPE = "application/problem+json"
_REFERENCE = "#/components/schemas/ProblemView"


Printable = Annotated[str, AfterValidator(printable)]


class FieldProblem(BaseModel):
    """One problem of a request."""

    code: ProblemCode = Field(default="invalid", examples=["out-of-range"])
    where: str = Field(description="JSON pointer into the request.", examples=["/config/training/lr"])
    detail: Printable = Field(examples=["must be greater than 0, not -1."])
    hint: Printable = Field(default="", description="What to do.")


class ProblemView(BaseModel):
    """RFC 9457: one shape for every error."""

    type: str = Field(examples=["urn:flowloom:no-such-run"])
    code: str = Field(description="The last part of `type`.", examples=["no-such-run"])
    title: str = Field(examples=["There is no such run."])
    status: int = Field(examples=[404])
    detail: Printable = Field(examples=["No run is called 'fox'."])
    hint: Printable = Field(default="", examples=["GET /api/runs lists them."])
    errors: list[FieldProblem] = []


class ServiceError(FlowloomError):
    """An error that is returned as a problem."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad-request"
    title: ClassVar[str] = "The request failed."

    def __init__(self, detail: str, hint: str = "", errors: Iterable[FieldProblem] = ()):
        super().__init__(detail)
        self.hint, self.errors = hint, list(errors)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """An example for OpenAPI."""
        return {
            "type": f"urn:flowloom:{cls.code}",
            "code": cls.code,
            "title": cls.title,
            "status": cls.status,
            "detail": "...",
        }

    def view(self) -> ProblemView:
        """The content of the response."""
        return ProblemView(
            type=f"urn:flowloom:{self.code}",
            code=self.code,
            title=self.title,
            status=self.status,
            detail=str(self),
            hint=self.hint,
            errors=self.errors,
        )


class NotJson(ServiceError):
    status, code, title = 400, "not-json", "The body is not JSON."


class TooLarge(ServiceError):
    status, code, title = 413, "too-large", "The request is too large."


class TooSlow(ServiceError):
    status, code, title = 408, "too-slow", "The request body took too long to arrive."


class NoSuchRun(ServiceError):
    status, code, title = 404, "no-such-run", "There is no such run."

    def __init__(self, run_id: str):
        super().__init__(f"No run is called {run_id!r}.", "GET /api/runs lists them.")


class NoSuchTrainer(ServiceError):
    status, code, title = 404, "no-such-trainer", "There is no such trainer."

    def __init__(self, name: str, known: Iterable[str]):
        super().__init__(f"There is no trainer {name!r}.", f"Choose one of {', '.join(known)}.")


class NoSuchTask(ServiceError):
    status, code, title = 404, "no-such-task", "There is no such task."

    def __init__(self, name: str, known: Iterable[str]):
        super().__init__(f"There is no task {name!r}.", f"Choose one of {', '.join(known)}.")


class NoSuchFile(ServiceError):
    status, code, title = 404, "no-such-file", "There is no such file."

    def __init__(self, name: str):
        super().__init__(f"{name!r} does not exist.", "List its folder to see the available files.")


class NoSuchRoot(ServiceError):
    status, code, title = 404, "no-such-root", "There is no such folder."

    def __init__(self, name: str, known: Iterable[str]):
        super().__init__(
            f"{name!r} is not one of the studio's folders.", f"Choose one of {', '.join(known)}."
        )


class OutsideRoots(ServiceError):
    status, code, title = 403, "outside-roots", "The path is outside the studio's folders."

    def __init__(self, name: str):
        hint = "To add a folder, start the studio with --root NAME=DIR."
        super().__init__(f"{name!r} is outside the studio's folders.", hint)


class Forbidden(ServiceError):
    status, code, title = 403, "forbidden", "This request is refused."


class NotSignedIn(ServiceError):
    status, code, title = 401, "not-signed-in", "Sign-in is required."

    def __init__(self) -> None:
        hint = "Send 'Authorization: Bearer TOKEN', or open the URL that the studio printed."
        super().__init__("The token is missing or wrong.", hint)


class TooManyTries(ServiceError):
    status, code, title = 429, "too-many-tries", "Too many wrong tokens came from this address."

    def __init__(self, wait_s: float):
        super().__init__("The token was not checked.", f"Try again in {math.ceil(wait_s)} s.")
        self.wait_s = wait_s


class NotNow(ServiceError):
    status, code, title = 409, "not-now", "The run is in another state."


class Damaged(ServiceError):
    status, code, title = 409, "damaged", "A file cannot be read."


class InUse(ServiceError):
    status, code, title = 409, "in-use", "A run needs this file."


class NeededToResume(ServiceError):
    status, code, title = 409, "needed-to-resume", "A run needs this file to resume."


class NameTaken(ServiceError):
    status, code, title = 409, "name-taken", "There is a run of this name."


class Invalid(ServiceError):
    status, code, title = 422, "invalid", "The request is invalid."

    @classmethod
    def of(cls, problems: Iterable[Problem], below: str = "/config") -> Invalid:
        """From problems whose dotted paths begin at `below` in the request."""
        places = [
            FieldProblem(
                code=problem.code,
                where=_pointer(below, problem.where),
                detail=problem.message,
                hint=problem.hint,
            )
            for problem in problems
        ]
        return cls(
            f"{len(places)} problem{'s' * (len(places) != 1)}.",
            "Fix them, then send the request again.",
            places,
        )


class Unreadable(ServiceError):
    status, code, title = 403, "unreadable", "The studio may not read this file."


class Unwritable(ServiceError):
    status, code, title = 507, "unwritable", "The studio cannot write."


def _pointer(below: str, path: str) -> str:
    parts = [part.replace("~", "~0").replace("/", "~1") for part in path.split(".") if part]
    return "/".join([below, *parts])


_ANYWHERE = (NotJson, NotSignedIn, Forbidden, TooLarge, Invalid, Unwritable)


def problems(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: its errors, and those of all routes."""
    by_status: dict[int | str, list[type[ServiceError]]] = {}
    for error in (*errors, *_ANYWHERE):
        by_status.setdefault(error.status, []).append(error)
    return {status: _documented(errors) for status, errors in by_status.items()}


def _documented(errors: Sequence[type[ServiceError]]) -> dict[str, Any]:
    return {
        "description": " ".join(error.title for error in errors),
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE}, "example": errors[0].example()}},
    }


def shows(answer: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: an example of its response."""
    return {200: {"content": {"application/json": {"example": answer}}}}


def describe(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add the schemas of problems and events, and 408 of routes with a body, to an OpenAPI document."""
    schemas = openapi.setdefault("components", {}).setdefault("schemas", {})
    types: dict[str, Any] = {"ProblemView": ProblemView, "RunEvent": RunEvent}
    for name, type_ in types.items():
        view = TypeAdapter(type_).json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**view.pop("$defs"), name: view}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operation in chain.from_iterable(path.values() for path in openapi["paths"].values()):
        if "requestBody" in operation:
            operation["responses"]["408"] = _documented([TooSlow])
    return openapi


def answer(error: ServiceError) -> JSONResponse:
    """The problem as a response."""
    headers: dict[str, str] = {}
    if isinstance(error, NotSignedIn):
        headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, TooManyTries):
        headers = {"Retry-After": str(math.ceil(error.wait_s))}
    elif isinstance(error, TooSlow):
        headers = {"Connection": "close"}
    return JSONResponse(error.view().model_dump(), error.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make `app` return every error as a problem."""
    app.add_exception_handler(FlowloomError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RecursionError, _on_nested)
    app.add_exception_handler(OSError, _on_system)
    app.add_exception_handler(Exception, _on_fault)


def _on_ours(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ServiceError):
        return answer(error)
    if isinstance(error, ConfigError):
        return answer(Invalid.of(error.problems))
    if isinstance(error, DamagedError):
        return answer(Damaged(str(error), "Repair that file, or delete the run."))
    return answer(NotNow(str(error)))


def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    places: list[FieldProblem] = []
    for detail in error.errors():
        where, *path = detail["loc"]
        below = "" if where == "body" else f"/{where}"
        pointer = "/".join([below, *(str(part).replace("~", "~0").replace("/", "~1") for part in path)])
        is_unknown = detail["type"] == "extra_forbidden"
        places.append(
            FieldProblem(
                code=code_of(detail["type"]),
                where=pointer,
                detail="is not a field of this request." if is_unknown else detail["msg"],
            )
        )
    hint = "Correct these fields. /api/openapi.json describes every request."
    return answer(Invalid(f"{len(places)} problem{'s' * (len(places) != 1)}.", hint, places))


def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == TooSlow.status:
        return answer(TooSlow(str(error.detail), "Check the connection, then send the request again."))
    known = {400: NotJson, 413: TooLarge, 422: Invalid}.get(error.status_code)
    if known:
        hint = "Send a JSON object of at most 4 MiB. /api/openapi.json describes every request."
        return answer(known(str(error.detail), hint))
    view = ProblemView(
        type="about:blank",
        code="http",
        title=str(error.detail),
        status=error.status_code,
        detail=f"{request.method} {request.url.path}",
        hint="/api/openapi.json lists all routes.",
    )
    headers = dict(error.headers or {})
    return JSONResponse(view.model_dump(), error.status_code, headers, media_type=MEDIA_TYPE)


def _on_system(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    reasons = {
        errno.ENOSPC: "Make room on the disk, then try again.",
        errno.EDQUOT: "Make room in your quota, then try again.",
        errno.EROFS: "The file system is read-only: mount it writable, or move the studio's home.",
        errno.EACCES: "Give the studio's user permission to read and write it.",
    }
    where = f"{error.strerror}: {error.filename}"
    if error.errno == errno.EACCES and _is_closed(error.filename):
        return answer(Unreadable(where, "Give the studio's user permission to read it."))
    if error.errno in _NO_FILE:
        return answer(Damaged(f"{error.filename}: {error.strerror}.", "Replace or remove it."))
    if error.errno in reasons:
        return answer(Unwritable(where, reasons[error.errno]))
    return _on_fault(request, error)


_NO_FILE = (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.EOVERFLOW)
"""A folder, a FIFO, a circular link or a huge file instead of a plain file."""


def _is_closed(path: object) -> bool:
    """True if it exists and is not readable."""
    return (
        isinstance(path, str) and os.path.lexists(path) and not os.access(path, os.R_OK, effective_ids=True)
    )


def _on_nested(_: Request, _error: Exception) -> JSONResponse:
    return answer(Invalid("The body is nested too deeply.", "Send a flatter one."))


def _on_fault(_: Request, error: Exception) -> JSONResponse:
    view = ProblemView(
        type="urn:flowloom:fault",
        code="fault",
        title="Internal error of the studio.",
        status=500,
        detail=f"{type(error).__name__}; the studio's log has the traceback.",
        hint="Please report it with the log.",
    )
    return JSONResponse(view.model_dump(), 500, media_type=MEDIA_TYPE)
