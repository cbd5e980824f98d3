"""The service: `create_app(settings)` is all of it, ready for any ASGI server."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.routing import APIRoute

import flowloom
from flowloom.chores import ALL as CHORES
from flowloom.errors import FlowloomError
from flowloom.server import problems
from flowloom.server.below import Below
from flowloom.server.cards import SECONDS_BETWEEN_NOTES, note_loads
from flowloom.server.datasets.library import DataSets
from flowloom.server.deps import Studio
from flowloom.server.idle import IdleHook
from flowloom.server.pages import Pages
from flowloom.server.queue import Queue
from flowloom.server.roots import Roots
from flowloom.server.routes import (
    checkpoints,
    chores,
    datasets,
    datasets_edits,
    datasets_images,
    datasets_import,
    datasets_uploads,
    datasets_work,
    events,
    files,
    hub,
    kohya,
    models,
    preflight,
    runs,
    samples,
    secrets,
    session,
    stores,
    system,
    training,
)
from flowloom.server.security import Guard
from flowloom.server.settings import Settings
from flowloom.server.shelf import Shelf
from flowloom.server.store import Store
from flowloom.server.system import Gauge, find_devices
from flowloom.trainers import ALL

TICK_S = 0.2
TICKS_BETWEEN_SCANS = 5
_RUNS = (runs, events, samples, checkpoints, kohya, preflight, training, chores)
_PICTURES = (datasets_images, datasets_edits, datasets_uploads)
_DATASETS = (datasets, *_PICTURES, datasets_import, datasets_work, stores)
_ROUTES = (session, system, files, secrets, *_DATASETS, models, hub, *_RUNS)
_FAULTS = (OSError, ValueError, TypeError, LookupError, AttributeError)
"""Of ours as well: what stood still for ever because of one run would be worse than any of them."""
_log = logging.getLogger("flowloom")


def create_app(settings: Settings) -> FastAPI:
    """The studio over `settings.home`."""
    app = FastAPI(
        title="Flowloom studio",
        version=flowloom.__version__,
        summary="Runs, queue and files of Flowloom, by HTTP.",
        openapi_url="/api/openapi.json",
        servers=[{"url": settings.path}] if settings.path else None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        generate_unique_id_function=_route_id,
    )
    app.state.settings = settings
    app.state.is_closing = lambda: False
    app.state.used_at = time.monotonic()
    app.add_middleware(Guard, token=settings.token)
    app.add_middleware(Below, path=settings.path)
    problems.install(app)
    for routes in _ROUTES:
        app.include_router(routes.router, prefix="/api")
    # Not mounted: a path that has a route, asked in a wrong way, is the API's to answer.
    app.router.default = Pages(settings.path)
    plain = app.openapi
    app.openapi = lambda: app.openapi_schema or problems.describe(plain())
    return app


def open_studio(settings: Settings, is_closing: Callable[[], bool]) -> Studio:
    """Find everything again that is in the folders."""
    for folder in (settings.runs_dir, settings.state_dir / "locks"):
        folder.mkdir(parents=True, exist_ok=True)
    shelf = Shelf(settings.runs_dir, Store(settings.state_dir / "studio.sqlite"))
    shelf.clear_away()
    shelf.look_at_all()
    devices = settings.devices or find_devices()
    roots = Roots(settings.roots)
    return Studio(
        settings=settings,
        roots=roots,
        shelf=shelf,
        queue=Queue(shelf, {**ALL, **CHORES}, devices, settings.state_dir),
        trainers=ALL,
        gauge=Gauge(settings.roots),
        datasets=DataSets(roots, settings.state_dir),
        is_closing=is_closing,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    studio = await asyncio.to_thread(open_studio, app.state.settings, lambda: app.state.is_closing())
    app.state.studio = studio
    endless = [
        asyncio.create_task(each)
        for each in (_tick_for_ever(studio), _note_for_ever(studio), _rest_for_ever(app, studio))
    ]
    yield
    for each in endless:
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each
    studio.shelf.store.close()


async def _tick_for_ever(studio: Studio) -> None:
    count = 0
    while True:
        try:
            await asyncio.to_thread(studio.queue.tick)
            if count % TICKS_BETWEEN_SCANS == 0:
                await asyncio.to_thread(studio.shelf.look_at_all)
        except (*_FAULTS, sqlite3.Error, FlowloomError):
            _log.exception("the queue could not go on; trying again")
            await asyncio.sleep(1)
        count += 1
        await asyncio.sleep(TICK_S)


async def _note_for_ever(studio: Studio) -> None:
    while True:
        try:
            await asyncio.to_thread(note_loads, studio.shelf, studio.gauge)
        except (*_FAULTS, sqlite3.Error, FlowloomError):
            _log.exception("what the cards do could not be noted; trying again")
        await asyncio.sleep(SECONDS_BETWEEN_NOTES)


async def _rest_for_ever(app: FastAPI, studio: Studio) -> None:
    settings = studio.settings
    if settings.when_idle is None:
        return
    hook = IdleHook(settings.when_idle, settings.idle_minutes * 60, settings.home)
    while True:
        try:
            await asyncio.to_thread(hook.look, studio.queue.is_busy, app.state.used_at)
        except (OSError, sqlite3.Error):
            _log.exception("--when-idle could not be looked after")
        await asyncio.sleep(1)


def _route_id(route: APIRoute) -> str:
    """`runs-read_run`: what generated clients call it."""
    return f"{route.tags[0] if route.tags else 'studio'}-{route.name}"
