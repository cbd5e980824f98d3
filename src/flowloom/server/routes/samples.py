"""Pictures that runs drew."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Header, Query, Response
from fastapi import Path as UrlPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from flowloom.run.directory import RunDir
from flowloom.run.results import PREVIEW_SUFFIXES, samples_of
from flowloom.server.deps import RunDep, Studio, StudioDep
from flowloom.server.media.images import UNCHANGED, picture
from flowloom.server.media.thumbnails import NotAnImage, thumbnail
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchFile, NoSuchRun, OutsideRoots, problems

router = Router(tags=["samples"], responses=problems())
_FOLDER = re.compile(r"step_(\d{1,11})")
Size = Literal["128", "256", "512", "1024"]


class Sample(BaseModel):
    """One picture."""

    file: str = Field(
        description="Below the folder that it was drawn into.", examples=["step_00000100/00.png"]
    )
    step: int | None
    url: str
    prompt: str | None = None
    seed: int | None = None
    from_batch: bool = Field(
        False, description="The prompt is a caption of the batch that was trained at this step."
    )
    settings: dict[str, Any] = {}


class Samples(BaseModel):
    """Some of a run's pictures, the newest step first."""

    total: int
    samples: list[Sample]


@router.get("/runs/{run_id}/samples", summary="List a run's samples", responses=problems(NoSuchRun))
@in_group("computing")
def list_samples(
    run: RunDep,
    studio: StudioDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Samples:
    """With the prompt, seed and settings of each; add `?size=256` to its url for a thumbnail."""
    found = sorted(_within(studio, run), key=_newest_first)
    told: dict[Path, dict[str, Any]] = {}
    samples, place = [], studio.api(f"runs/{run.path.name}")
    for folder, path in found[skip : skip + limit]:
        records = told.setdefault(path.parent, _records(path.parent))
        samples.append(_sample(place, path.relative_to(folder), records.get(path.name, {})))
    return Samples(total=len(found), samples=samples)


@router.get(
    "/runs/{run_id}/samples/{file:path}",
    summary="A sample, or its thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots, NotAnImage) | UNCHANGED,
)
@in_group("pictures")
def read_sample(
    run: RunDep,
    file: Annotated[str, UrlPath(description="As listed.", examples=["step_00000100/00.png"])],
    studio: StudioDep,
    size: Annotated[
        Size | None, Query(description="Longer side in pixels; none: the picture itself.")
    ] = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The picture as it was drawn, or a WebP of it that is made once."""
    path = studio.result(run, "samples", file)
    if path.suffix.lower() not in PREVIEW_SUFFIXES or not path.is_file():
        raise NoSuchFile(file)
    if size:
        path = thumbnail(path, int(size), studio.settings.state_dir / "thumbnails")
    # A run of the same name may draw another one, and a run that is resumed the same one anew.
    return picture(path, if_none_match, "private, no-cache")


def _within(studio: Studio, run: RunDir) -> Iterator[tuple[Path, Path]]:
    """The run's pictures in folders that the studio may show."""
    folders = studio.result_folders(run, "samples")
    return ((folder, path) for folder, path in samples_of(run) if folder in folders)


def _newest_first(found: tuple[Path, Path]) -> tuple[int, float, str]:
    """By the folder's step, where there is one, as our engine has it; others by when they were drawn."""
    _, path = found
    folder = _FOLDER.fullmatch(path.parent.name)
    return (-int(folder[1]), 0.0, str(path)) if folder else (0, -path.stat().st_mtime, str(path))


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """What samples.json says of each file."""
    try:
        records = json.loads((folder / "samples.json").read_text())
    except (OSError, ValueError):
        return {}
    return {record["file"]: record for record in records if isinstance(record, dict) and "file" in record}


def _sample(place: str, file: Path, record: dict[str, Any]) -> Sample:
    own = ("file", "prompt", "seed", "step", "from_batch")
    settings = {name: value for name, value in record.items() if name not in own}
    return Sample(
        file=file.as_posix(),
        step=record.get("step", _step(file)),
        url=f"{place}/samples/{quote(file.as_posix())}",
        prompt=record.get("prompt"),
        seed=record.get("seed"),
        from_batch=bool(record.get("from_batch")),
        settings=settings,
    )


def _step(path: Path) -> int | None:
    """The step that a path tells: its folder's, or FLOW's bare number of a batch, or Kohya's six digits."""
    folder = _FOLDER.fullmatch(path.parent.name)
    if folder:
        return int(folder[1])
    if path.stem.isdecimal() and len(path.stem) < 12:
        return int(path.stem) + 1
    found = re.search(r"(?<![\de])(\d{4,11})(?!\d)", path.stem)
    return int(found[1]) if found else None
