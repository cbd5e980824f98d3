"""Generated images of runs."""

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
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from flowloom.image_suffixes import CLIP_SUFFIXES, COMMON_SUFFIXES, POSTER
from flowloom.run.directory import RunDir
from flowloom.run.results import samples_of
from flowloom.server.deps import RunDep, Studio, StudioDep
from flowloom.server.media.images import UNCHANGED, image_response
from flowloom.server.media.thumbnails import NotAnImage, thumbnail
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchFile, NoSuchRun, OutsideRoots, problems

router = Router(tags=["samples"], responses=problems())
_FOLDER = re.compile(r"step_(\d{1,11})")
Size = Literal["128", "256", "512", "1024"]


class SampleLora(BaseModel):
    """A LoRA that an image was generated with."""

    path: str
    strength: float


Setting = str | int | float | bool | list[SampleLora] | None
_SETTING: TypeAdapter[Setting] = TypeAdapter(Setting)


class Sample(BaseModel):
    """One generated image or clip."""

    file: str = Field(description="Path in the samples folder.", examples=["step_00000100/00.png"])
    step: int | None
    url: str
    media: Literal["image", "video"] = "image"
    prompt: str | None = None
    seed: int | None = None
    from_batch: bool = Field(False, description="The prompt is a caption from the batch of this step.")
    settings: dict[str, Setting] = Field({}, examples=[{"steps": 30, "cfg": 4.0}])


class Samples(BaseModel):
    """A page of a run's images, newest step first."""

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
    """With prompt, seed and settings. Add `?size=256` to a url for a thumbnail."""
    found = sorted(_within(studio, run), key=_newest_first)
    records_of: dict[Path, dict[str, Any]] = {}
    samples: list[Sample] = []
    base_url = studio.api(f"runs/{run.path.name}")
    for folder, path in found[skip : skip + limit]:
        records = records_of.setdefault(path.parent, _records(path.parent))
        samples.append(_sample(base_url, path.relative_to(folder), records.get(path.name, {})))
    return Samples(total=len(found), samples=samples)


@router.get(
    "/runs/{run_id}/samples/{file:path}",
    summary="Read a sample or its thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchRun, NoSuchFile, OutsideRoots, NotAnImage) | UNCHANGED,
)
@in_group("images")
def read_sample(
    run: RunDep,
    file: Annotated[str, UrlPath(description="As listed.", examples=["step_00000100/00.png"])],
    studio: StudioDep,
    size: Annotated[
        Size | None, Query(description="Longer side of a thumbnail in pixels; default: the original image.")
    ] = None,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The original image or clip, or a cached WebP thumbnail; a clip can be read by ranges."""
    path = studio.result(run, "samples", file)
    if path.suffix.lower() not in (*COMMON_SUFFIXES, *CLIP_SUFFIXES) or not path.is_file():
        raise NoSuchFile(file)
    if size:
        path = _still(path)
        path = thumbnail(path, int(size), studio.settings.state_dir / "thumbnails")
    # A resumed run, or a new run of the same name, may replace the image.
    return image_response(path, if_none_match, "private, no-cache")


def _still(path: Path) -> Path:
    """The image at `path`, or the poster of the clip there.

    Raises:
        NoSuchFile: the clip has none.
    """
    if path.suffix.lower() not in CLIP_SUFFIXES:
        return path
    posters = (path.with_name(f"{path.stem}{POSTER}{suffix}") for suffix in COMMON_SUFFIXES)
    found = next((poster for poster in posters if poster.is_file()), None)
    if found is None:
        raise NoSuchFile(path.name)
    return found


def _within(studio: Studio, run: RunDir) -> Iterator[tuple[Path, Path]]:
    """The run's images in the studio's roots."""
    folders = studio.result_folders(run, "samples")
    return ((folder, path) for folder, path in samples_of(run) if folder in folders)


def _newest_first(found: tuple[Path, Path]) -> tuple[int, float, str]:
    """By the step of the folder, as our engine names it, else by modification time."""
    _, path = found
    folder = _FOLDER.fullmatch(path.parent.name)
    return (-int(folder[1]), 0.0, str(path)) if folder else (0, -path.stat().st_mtime, str(path))


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of samples.json by file."""
    try:
        records = json.loads((folder / "samples.json").read_text())
    except (OSError, ValueError):
        return {}
    return {record["file"]: record for record in records if isinstance(record, dict) and "file" in record}


def _sample(base_url: str, file: Path, record: dict[str, Any]) -> Sample:
    own = ("file", "poster", "prompt", "seed", "step", "from_batch")
    settings = {name: _setting(value) for name, value in record.items() if name not in own}
    return Sample(
        file=file.as_posix(),
        step=record.get("step", _step(file)),
        url=f"{base_url}/samples/{quote(file.as_posix())}",
        media="video" if file.suffix.lower() in CLIP_SUFFIXES else "image",
        prompt=record.get("prompt"),
        seed=record.get("seed"),
        from_batch=bool(record.get("from_batch")),
        settings=settings,
    )


def _setting(value: Any) -> Setting:
    """The value, as JSON text if it is of a form that only its trainer knows."""
    try:
        return _SETTING.validate_python(value)
    except ValidationError:
        return json.dumps(value)


def _step(path: Path) -> int | None:
    """The step in a path: our folder's, FLOW's bare batch number, or Kohya's six digits."""
    folder = _FOLDER.fullmatch(path.parent.name)
    if folder:
        return int(folder[1])
    if path.stem.isdecimal() and len(path.stem) < 12:
        return int(path.stem) + 1
    found = re.search(r"(?<![\de])(\d{4,11})(?!\d)", path.stem)
    return int(found[1]) if found else None
