"""Checkpoints and results of runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Path as UrlPath
from fastapi import Query, status
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from flowloom.run.directory import RunDir
from flowloom.run.results import checkpoints_of, samples_of
from flowloom.server.deps import RunDep, Studio, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchFile, NoSuchRun, NotNow, OutsideRoots, problems
from flowloom.server.runs.view import ACTIVE
from flowloom.server.zip_stream import stream_zip

router = Router(tags=["checkpoints"], responses=problems())
Name = Annotated[str, UrlPath(description="As listed.", examples=["step_00000100"])]
File = Annotated[
    str, UrlPath(description="A checkpoint's file.", examples=["step_00000100/adapter.safetensors"])
]


class SavedFile(BaseModel):
    """One file of a checkpoint."""

    name: str = Field(examples=["adapter.safetensors"])
    size: int = Field(description="In bytes.")
    url: str


class Checkpoint(BaseModel):
    """One checkpoint with its weights. The state for exact resume counts in `size`, but is not listed."""

    name: str = Field(examples=["step_00000100"])
    time: float
    size: int = Field(description="In bytes, with the state.")
    files: list[SavedFile]


class Checkpoints(BaseModel):
    """A run's checkpoints, the newest first."""

    checkpoints: list[Checkpoint]


@router.get("/runs/{run_id}/checkpoints", summary="List a run's checkpoints", responses=problems(NoSuchRun))
def list_checkpoints(run: RunDep, studio: StudioDep) -> Checkpoints:
    """Complete ones only."""
    base_url = studio.api(f"runs/{run.path.name}/checkpoints")
    return Checkpoints(checkpoints=[_checkpoint(base_url, entry) for entry in _whole(run, studio)])


@router.get(
    "/runs/{run_id}/checkpoints/{file:path}",
    summary="Download a checkpoint's file",
    response_class=FileResponse,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots),
)
def download(run: RunDep, file: File, studio: StudioDep) -> FileResponse:
    """Download a file; Range requests can resume it."""
    path = studio.result(run, "checkpoints", file)
    if not path.is_file():
        raise NoSuchFile(file)
    # Two checkpoints of a run have files of the same names.
    name = "-".join([run.path.name, *PurePosixPath(file).parts])
    return FileResponse(path, media_type="application/octet-stream", filename=name)


@router.delete(
    "/runs/{run_id}/checkpoints/{name}",
    summary="Delete a checkpoint",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots, NotNow),
)
@in_group("waiting")
def delete_checkpoint(run: RunDep, name: Name, studio: StudioDep) -> None:
    """Permanently. An active run keeps its newest checkpoint, from which it would resume."""
    path = studio.result(run, "checkpoints", name)
    # A run may save into a user's folder with other files.
    if path not in {entry.resolve() for entry in _whole(run, studio)}:
        raise NoSuchFile(name)
    view = studio.runs.refresh(run.path.name)
    if view.state in ACTIVE and view.checkpoint == path.name:
        raise NotNow(f"{run.path.name!r} would resume from {name}.", "Stop or cancel the run first.")
    gone = path.rename(path.with_name(f"{path.name}.removed.tmp"))
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    studio.runs.refresh(run.path.name)


@router.get(
    "/runs/{run_id}/results.zip",
    summary="Download a run's results as one zip",
    response_class=StreamingResponse,
    responses=problems(NoSuchRun) | {200: {"content": {"application/zip": {}}, "description": "The zip."}},
)
@in_group("computing")
def download_results(
    run: RunDep,
    studio: StudioDep,
    checkpoints: Annotated[
        Literal["newest", "all", "none"],
        Query(description="Weights of these checkpoints, without the state for exact resume."),
    ] = "newest",
    samples: Annotated[bool, Query(description="Include generated images.")] = True,
) -> StreamingResponse:
    """With its configuration, events and log, for example before a rented machine is returned.

    The zip is created while it is sent, so its size is not known in advance."""
    files = [*_texts(run), *_weights(run, studio, checkpoints), *(_samples(run, studio) if samples else ())]
    headers = {"content-disposition": f'attachment; filename="{run.path.name}.zip"'}
    return StreamingResponse(stream_zip(files), media_type="application/zip", headers=headers)


def _texts(run: RunDir) -> Iterator[tuple[str, Path]]:
    for path in (run.run_json, run.events_jsonl, run.log_txt, run.path / "command.txt"):
        if path.is_file() and not path.is_symlink():
            yield f"{run.path.name}/{path.name}", path


def _weights(run: RunDir, studio: Studio, which: str) -> Iterator[tuple[str, Path]]:
    """Weights of the requested checkpoints, without states and links that leave the roots."""
    entries = [entry for entry in _whole(run, studio) if not entry.name.endswith("-state")]
    for entry in entries[: {"newest": 1, "all": None, "none": 0}[which]]:
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            name = path.relative_to(entry.parent)
            if "state" not in name.parts and path.is_file() and studio.roots.contains(path):
                yield f"{run.path.name}/checkpoints/{name.as_posix()}", path


def _samples(run: RunDir, studio: Studio) -> Iterator[tuple[str, Path]]:
    folders = studio.result_folders(run, "samples")
    for folder, path in samples_of(run):
        if folder in folders and studio.roots.contains(path):
            yield f"{run.path.name}/samples/{path.relative_to(folder).as_posix()}", path


def _whole(run: RunDir, studio: Studio) -> list[Path]:
    folders = studio.result_folders(run, "checkpoints")
    return [entry for entry in checkpoints_of(run) if entry.parent in folders]


def _checkpoint(base_url: str, entry: Path) -> Checkpoint:
    files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
    weights = sorted(path for path in files if path.parent in (entry, entry.parent))
    return Checkpoint(
        name=entry.name,
        time=entry.stat().st_mtime,
        size=sum(path.stat().st_size for path in files),
        files=[_file(base_url, entry, path) for path in weights],
    )


def _file(base_url: str, entry: Path, path: Path) -> SavedFile:
    relative = quote(path.relative_to(entry.parent).as_posix())
    return SavedFile(name=path.name, size=path.stat().st_size, url=f"{base_url}/{relative}")
