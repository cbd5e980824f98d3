"""Pictures as answers: with what tells whether the browser has them already."""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import FileResponse

UNCHANGED: dict[int | str, dict[str, Any]] = {
    304: {"description": "It is as it was: If-None-Match names its ETag."}
}
"""For a route's `responses`."""
_SHOWN_AS = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".jxl": "image/jxl",
}
"""What a browser may show; everything else, SVG with its scripts above all, is a download."""


def picture(path: Path, if_none_match: str, cache_control: str) -> Response:
    """The file, or 304 where `if_none_match` names it as it is."""
    status = path.stat()
    # Thumbnails are named after what they were made of; names of others may hold what no header can.
    name = blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    tag = f'"{name}-{status.st_size:x}-{status.st_mtime_ns:x}"'
    headers = {"etag": tag, "cache-control": cache_control}
    if tag in re.findall(r'"[^"]*"', if_none_match):
        return Response(status_code=304, headers=headers)
    media_type = _SHOWN_AS.get(path.suffix.lower())
    if media_type is None:
        return FileResponse(path, headers=headers, media_type="application/octet-stream", filename=path.name)
    return FileResponse(path, headers=headers, media_type=media_type)
