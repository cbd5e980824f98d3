"""The root folders and their content."""

from __future__ import annotations

import os
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Annotated

from fastapi import Path as UrlPath
from fastapi import Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from flowloom.server.deps import Studio, StudioDep
from flowloom.server.media.thumbnails import NotAnImage, thumbnail
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import NoSuchFile, NoSuchRoot, OutsideRoots, problems
from flowloom.server.routes.samples import Size

router = Router(tags=["files"], responses=problems())
SORTED_AT_ONCE = 2000
RelativePath = Annotated[
    str, Query(description="Relative to the root; empty: the root itself.", max_length=4096)
]


RootName = Annotated[str, UrlPath(description="As listed.", examples=["models"])]


class Root(BaseModel):
    """A folder that the studio may use."""

    name: str = Field(examples=["models"])
    path: str
    exists: bool


class FolderEntry(BaseModel):
    """A file or folder."""

    name: str
    path: str = Field(description="Absolute path, as used in configurations.")
    is_folder: bool
    size: int
    time: float


class Folder(BaseModel):
    """A page of a folder's content by name, folders first."""

    total: int = Field(examples=[12])
    entries: list[FolderEntry]


@router.get("/roots", summary="The studio's folders")
def list_roots(studio: StudioDep) -> list[Root]:
    """Nothing outside of these is read or written."""
    folders = studio.roots.folders.items()
    return [Root(name=name, path=str(path), exists=path.is_dir()) for name, path in folders]


@router.get(
    "/roots/{root}/list", summary="List a folder", responses=problems(NoSuchRoot, NoSuchFile, OutsideRoots)
)
def list_folder(
    root: RootName,
    studio: StudioDep,
    path: RelativePath = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    skip: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Folder:
    """Without hidden files and links that leave the roots."""
    folder = studio.roots.resolve(root, path)
    if not folder.is_dir():
        raise NoSuchFile(path)
    with os.scandir(folder) as entries:
        seen = [
            (not entry.is_dir(), entry.name)
            for entry in entries
            if not entry.name.startswith(".") and (not entry.is_symlink() or _leads_in(studio, entry))
        ]
    # Sorting everything at once would block the event loop for too long.
    parts = (sorted(seen[start : start + SORTED_AT_ONCE]) for start in range(0, len(seen), SORTED_AT_ONCE))
    asked = islice(merge(*parts), skip, skip + limit)
    shown = (_entry(folder / name) for _, name in asked)
    return Folder(total=len(seen), entries=[entry for entry in shown if entry])


@router.get(
    "/roots/{root}/file",
    summary="Read a file or a thumbnail",
    response_class=FileResponse,
    responses=problems(NoSuchRoot, NoSuchFile, OutsideRoots, NotAnImage),
)
@in_group("images")
def read_file(
    root: RootName, studio: StudioDep, path: RelativePath, size: Size | None = None
) -> FileResponse:
    """The file as a download or, with `size`, a WebP thumbnail."""
    file = studio.roots.resolve(root, path)
    if not file.is_file():
        raise NoSuchFile(path)
    if size:
        return FileResponse(thumbnail(file, int(size), studio.settings.state_dir / "thumbnails"))
    return FileResponse(file, media_type="application/octet-stream", filename=file.name)


def _leads_in(studio: Studio, link: os.DirEntry[str]) -> bool:
    """True if a link leads to an existing file or folder in the roots."""
    return Path(link).exists() and studio.roots.contains(Path(link))


def _entry(path: Path) -> FolderEntry | None:
    """The entry, or None if it was deleted meanwhile."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return FolderEntry(
        name=path.name, path=str(path), is_folder=path.is_dir(), size=stat.st_size, time=stat.st_mtime
    )
