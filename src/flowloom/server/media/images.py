"""Image responses with ETags, so that browsers can reuse cached ones."""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import FileResponse

from flowloom.image_suffixes import MEDIA_TYPES

UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Not modified: If-None-Match contains its ETag."}
}
"""For a route's `responses`."""


def image_response(path: Path, if_none_match: str, cache_control: str) -> Response:
    """The file, or 304 if `if_none_match` contains its ETag."""
    status = path.stat()
    # Hashed, because file names may contain characters that headers cannot.
    name = blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    tag = f'"{name}-{status.st_size:x}-{status.st_mtime_ns:x}"'
    headers = {"etag": tag, "cache-control": cache_control}
    if tag in re.findall(r'"[^"]*"', if_none_match):
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        return FileResponse(path, headers=headers, media_type="application/octet-stream", filename=path.name)
    return FileResponse(path, headers=headers, media_type=media_type)
