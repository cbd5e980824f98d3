"""Signing in, and whether the studio is there."""

from __future__ import annotations

from fastapi import Request, Response, status
from pydantic import BaseModel, ConfigDict, Field

import flowloom
from flowloom.server.deps import StudioDep
from flowloom.server.off_loop import Router
from flowloom.server.problems import NotSignedIn, TooManyTries, problems
from flowloom.server.security import COOKIE, address_of, cookie_of, refusal_of
from flowloom.server.sessions import GOOD_FOR_S

router = Router(tags=["session"], responses=problems())


class Health(BaseModel):
    """The studio answers."""

    version: str = Field(examples=["0.1.0"])
    needs_token: bool


class SignIn(BaseModel):
    """The token that the studio printed."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=500, examples=["the one that the studio printed"])


@router.get("/health", summary="Is the studio there?")
async def read_health(studio: StudioDep) -> Health:
    """Answers without a token."""
    return Health(version=flowloom.__version__, needs_token=studio.settings.token is not None)


@router.post(
    "/session",
    summary="Sign in",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NotSignedIn, TooManyTries),
)
def sign_in(body: SignIn, studio: StudioDep, request: Request, response: Response) -> None:
    """Trades the token for a cookie; scripts send the token itself, as a bearer."""
    token = studio.settings.token
    if token is None:
        return
    if refusal := refusal_of(body.token, token, address_of(request.scope), request.app.state.tries):
        raise refusal
    is_https = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    response.set_cookie(
        COOKIE,
        request.app.state.sessions.begin(),
        max_age=GOOD_FOR_S,
        path=studio.settings.path or "/",
        httponly=True,
        samesite="strict",
        secure=is_https,
    )


@router.delete("/session", summary="Sign out", status_code=status.HTTP_204_NO_CONTENT)
def sign_out(studio: StudioDep, request: Request, response: Response) -> None:
    """Ends the session: a copy of its cookie opens nothing any more."""
    request.app.state.sessions.end(cookie_of(request.headers))
    path = studio.settings.path or "/"
    response.delete_cookie(COOKIE, path=path, httponly=True, samesite="strict")
