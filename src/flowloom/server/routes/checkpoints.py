"""What runs saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, status
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from flowloom.server.deps import RunDep, ShelfDep
from flowloom.server.problems import NoSuchFile, NoSuchRun, NotNow, OutsideRoots, problems
from flowloom.server.roots import inside
from flowloom.server.runs import ACTIVE

router = APIRouter(tags=["checkpoints"], responses=problems())


class SavedFile(BaseModel):
    """One file of a checkpoint."""

    name: str = Field(examples=["adapter.safetensors"])
    size: int = Field(description="In bytes.")
    url: str


class Checkpoint(BaseModel):
    """One checkpoint: its weights; the state for exact resume is counted, not listed."""

    name: str = Field(examples=["step_00000100"])
    time: float
    size: int = Field(description="In bytes, with the state.")
    files: list[SavedFile]


class Checkpoints(BaseModel):
    """A run's checkpoints, the newest first."""

    checkpoints: list[Checkpoint]


@router.get("/runs/{run_id}/checkpoints", summary="List a run's checkpoints", responses=problems(NoSuchRun))
def list_checkpoints(run: RunDep) -> Checkpoints:
    """Only whole ones: a checkpoint has its name when it is on the disk."""
    folder = run.path / "checkpoints"
    entries = (
        [entry for entry in folder.glob("*") if not entry.name.endswith(".tmp")] if folder.exists() else []
    )
    return Checkpoints(
        checkpoints=[_checkpoint(run.path.name, entry) for entry in sorted(entries, reverse=True)]
    )


@router.get(
    "/runs/{run_id}/checkpoints/{file:path}",
    summary="Download a checkpoint's file",
    response_class=FileResponse,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots),
)
def download(run: RunDep, file: str) -> FileResponse:
    """As a download that can be resumed (Range)."""
    path = inside(run.path / "checkpoints", file)
    if not path.is_file():
        raise NoSuchFile(file)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{run.path.name}-{path.name}")


@router.delete(
    "/runs/{run_id}/checkpoints/{name}",
    summary="Delete a checkpoint",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots, NotNow),
)
def delete_checkpoint(run: RunDep, name: str, shelf: ShelfDep) -> None:
    """For good. The newest one of a run that is not over stays: it is what the run goes on from."""
    path = inside(run.path / "checkpoints", name)
    view = shelf.look(run.path.name)
    if view.state in ACTIVE and view.checkpoint == path.name:
        raise NotNow(f"{name} is what {run.path.name!r} goes on from.", "Stop or cancel the run first.")
    gone = path.rename(path.with_name(f"{path.name}.removed.tmp"))
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    shelf.look(run.path.name)


def _checkpoint(run_id: str, entry: Path) -> Checkpoint:
    files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else [entry]
    weights = sorted(path for path in files if path.parent in (entry, entry.parent))
    return Checkpoint(
        name=entry.name,
        time=entry.stat().st_mtime,
        size=sum(path.stat().st_size for path in files),
        files=[_file(run_id, entry, path) for path in weights],
    )


def _file(run_id: str, entry: Path, path: Path) -> SavedFile:
    below = quote(path.relative_to(entry.parent).as_posix())
    return SavedFile(name=path.name, size=path.stat().st_size, url=f"/api/runs/{run_id}/checkpoints/{below}")
