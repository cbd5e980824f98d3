"""Pictures that runs drew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from flowloom.server.deps import RunDep, StudioDep
from flowloom.server.problems import NoSuchFile, NoSuchRun, OutsideRoots, problems
from flowloom.server.roots import inside
from flowloom.server.thumbnails import NotAnImage, thumbnail

router = APIRouter(tags=["samples"], responses=problems())
PICTURES = {".png", ".webp", ".jpg", ".jpeg"}
Size = Literal["128", "256", "512", "1024"]


class Sample(BaseModel):
    """One picture."""

    file: str = Field(description="Below the run's samples/.", examples=["step_00000100/00.png"])
    step: int | None
    url: str
    prompt: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = {}


class Samples(BaseModel):
    """Some of a run's pictures, the newest step first."""

    total: int
    samples: list[Sample]


@router.get("/runs/{run_id}/samples", summary="List a run's samples", responses=problems(NoSuchRun))
def list_samples(
    run: RunDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Samples:
    """With the prompt, seed and settings of each; add `?size=256` to its url for a thumbnail."""
    folder = run.path / "samples"
    paths = [
        path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and ".tmp" not in str(path)
    ]
    paths.sort(key=lambda path: (-(_step(path) or 0), str(path)))
    told: dict[Path, dict[str, Any]] = {}
    samples = []
    for path in paths[skip : skip + limit]:
        records = told.setdefault(path.parent, _records(path.parent))
        samples.append(_sample(run.path.name, path.relative_to(folder), records.get(path.name, {})))
    return Samples(total=len(paths), samples=samples)


@router.get(
    "/runs/{run_id}/samples/{file:path}",
    summary="A sample, or its thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots, NotAnImage),
)
def read_sample(
    run: RunDep,
    file: str,
    studio: StudioDep,
    size: Annotated[
        Size | None, Query(description="Longer side in pixels; none: the picture itself.")
    ] = None,
) -> FileResponse:
    """The picture as it was drawn, or a WebP of it that is made once."""
    path = inside(run.path / "samples", file)
    if path.suffix.lower() not in PICTURES or not path.is_file():
        raise NoSuchFile(file)
    kept = {"cache-control": "private, max-age=3600"}
    if size:
        path = thumbnail(path, int(size), studio.settings.state_dir / "thumbnails")
    return FileResponse(path, headers=kept)


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """What samples.json says of each file."""
    try:
        records = json.loads((folder / "samples.json").read_text())
    except (OSError, ValueError):
        return {}
    return {record["file"]: record for record in records if isinstance(record, dict) and "file" in record}


def _sample(run_id: str, file: Path, record: dict[str, Any]) -> Sample:
    settings = {name: value for name, value in record.items() if name not in ("file", "prompt", "seed")}
    return Sample(
        file=file.as_posix(),
        step=_step(file),
        url=f"/api/runs/{run_id}/samples/{quote(file.as_posix())}",
        prompt=record.get("prompt"),
        seed=record.get("seed"),
        settings=settings,
    )


def _step(path: Path) -> int | None:
    """The step that a path tells: its folder's, or a long number in its name, as others name samples."""
    folder = re.fullmatch(r"step_(\d+)", path.parent.name)
    found = folder.groups() if folder else re.findall(r"(\d{4,})", path.stem)
    return int(found[0]) if found and len(found[0]) < 12 else None
