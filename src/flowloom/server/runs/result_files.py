"""Files named in a run's result: exports, merged models, JSONL files and others, for download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from flowloom.json_types import is_array, is_object
from flowloom.server.deps import Studio
from flowloom.server.problems import NoSuchFile, OutsideRoots

MOST = 200


class ResultFile(BaseModel):
    """A file to download."""

    name: str = Field(examples=["fox-step_00000500-comfy.safetensors"])
    size: int = Field(description="In bytes.")
    url: str


def files_of(result: Any, studio: Studio) -> list[ResultFile]:
    """The existing files that `result` names by absolute path, each once."""
    found: dict[str, ResultFile] = {}
    for path in _paths(result):
        if path not in found and (file := _file(path, studio)):
            found[path] = file
        if len(found) == MOST:
            break
    return list(found.values())


def _paths(value: Any) -> Iterator[str]:
    if is_object(value) or is_array(value):
        for item in value.values() if is_object(value) else value:
            yield from _paths(item)
    elif isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) < 4096:
        yield value


def _file(path: str, studio: Studio) -> ResultFile | None:
    """The file at `path`, addressed through the innermost root that contains it."""
    roots = sorted(studio.roots.folders.items(), key=lambda root: len(root[1].parts), reverse=True)
    for name, folder in roots:
        if not Path(path).is_relative_to(folder):
            continue
        relative = Path(path).relative_to(folder).as_posix()
        try:
            real = studio.roots.resolve(name, relative)
        except (NoSuchFile, OutsideRoots):
            return None
        if not real.is_file():
            return None
        url = f"{studio.api(f'roots/{quote(name)}/file')}?path={quote(relative)}"
        return ResultFile(name=Path(path).name, size=real.stat().st_size, url=url)
    return None
