"""The service: `create_app(settings)` returns it for any ASGI server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio.to_thread
from fastapi import FastAPI
from fastapi.routing import APIRoute

import flowloom
from flowloom.server import problems
from flowloom.server.allowed_roots import AllowedRoots
from flowloom.server.datasets.registry import DatasetRegistry
from flowloom.server.deps import Studio
from flowloom.server.garbage import Collector
from flowloom.server.off_loop import SHARED_THREADS, SWITCH_S, off_loop
from flowloom.server.pages import Pages
from flowloom.server.path_prefix import PathPrefix
from flowloom.server.routes import (
    checkpoints,
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
    tasks,
    training,
)
from flowloom.server.runs.clusters import UPDATE_S, update_clusters
from flowloom.server.runs.gpu_usage import GPU_USAGE_INTERVAL_S, record_gpu_usage
from flowloom.server.runs.idle import IdleHook
from flowloom.server.runs.queue import Queue
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.runs.store import RunStore
from flowloom.server.security import Guard
from flowloom.server.sessions import Sessions, Tries
from flowloom.server.settings import Settings
from flowloom.server.system import SystemMonitor, find_devices
from flowloom.tasks import ALL as TASKS
from flowloom.trainers import ALL

TICK_S = 0.2
SCAN_S = 1.0
SECONDS_BETWEEN_COLLECTIONS = 5.0
_RUNS = (runs, events, samples, checkpoints, kohya, preflight, training, tasks)
_PICTURES = (datasets_images, datasets_edits, datasets_uploads)
_DATASETS = (datasets, *_PICTURES, datasets_import, datasets_work, stores)
_ROUTES = (session, system, files, secrets, *_DATASETS, models, hub, *_RUNS)


def create_app(settings: Settings) -> FastAPI:
    """The studio over `settings.home`."""
    app = FastAPI(
        title="Flowloom studio",
        version=flowloom.__version__,
        summary="Runs, queue, datasets and models of Flowloom over HTTP.",
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
    app.state.sessions = Sessions(settings.state_dir / "sessions.json", settings.token)
    app.state.tries = Tries()
    app.add_middleware(Guard, token=settings.token, sessions=app.state.sessions, tries=app.state.tries)
    app.add_middleware(PathPrefix, path=settings.path)
    problems.install(app)
    for routes in _ROUTES:
        app.include_router(routes.router, prefix="/api")
    # Not mounted: the API answers wrong requests to its own paths.
    app.router.default = Pages(settings.path)
    plain = app.openapi
    app.openapi = lambda: app.openapi_schema or problems.describe(plain())
    return app


def open_studio(settings: Settings, is_closing: Callable[[], bool]) -> Studio:
    """Open the home folder with the runs and settings in it."""
    for folder in (settings.runs_dir, settings.state_dir / "locks"):
        folder.mkdir(parents=True, exist_ok=True)
    registry = RunRegistry(settings.runs_dir, RunStore(settings.state_dir / "studio.sqlite"))
    registry.clean_up()
    registry.refresh_all()
    devices = settings.devices or find_devices()
    roots = AllowedRoots(settings.roots)
    return Studio(
        settings=settings,
        roots=roots,
        runs=registry,
        queue=Queue(registry, {**ALL, **TASKS}, devices, settings.state_dir),
        trainers=ALL,
        system_monitor=SystemMonitor(settings.roots),
        datasets=DatasetRegistry(roots, settings.state_dir),
        is_closing=is_closing,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    sys.setswitchinterval(SWITCH_S)
    collector = Collector()
    anyio.to_thread.current_default_thread_limiter().total_tokens = SHARED_THREADS
    studio = await off_loop("own", open_studio, app.state.settings, lambda: app.state.is_closing())
    app.state.studio = studio
    jobs = studio.jobs
    endless = [
        asyncio.create_task(jobs.repeat(name, work, every_s))
        for name, work, every_s in (
            ("the queue", studio.queue.tick, TICK_S),
            ("the list of runs", studio.runs.refresh_all, SCAN_S),
            ("clusters", partial(update_clusters, studio.queue), UPDATE_S),
            (
                "GPU usage",
                partial(record_gpu_usage, studio.runs, studio.system_monitor),
                GPU_USAGE_INTERVAL_S,
            ),
            ("garbage collection", collector.collect_if_idle, SECONDS_BETWEEN_COLLECTIONS),
            *_idle_hook(app, studio),
        )
    ]
    yield
    for each in endless:
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each
    studio.runs.store.close()


def _idle_hook(app: FastAPI, studio: Studio) -> Iterator[tuple[str, Callable[[], None], float]]:
    settings = studio.settings
    if settings.when_idle is not None:
        hook = IdleHook(settings.when_idle, settings.idle_minutes * 60, settings.home)
        yield "--when-idle", lambda: hook.check(studio.queue.is_busy, app.state.used_at), 1.0


def _route_id(route: APIRoute) -> str:
    """The operation id for generated clients, such as `runs-read_run`."""
    return f"{route.tags[0] if route.tags else 'studio'}-{route.name}"
