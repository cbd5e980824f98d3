"""Small pictures of large ones, each made once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from flowloom.server.problems import ServiceError

SIZES = (128, 256, 512, 1024)


class NotAnImage(ServiceError):
    status, code, title = 415, "not-an-image", "That file is no picture."


def thumbnail(source: Path, size: int, cache_dir: Path) -> Path:
    """A WebP file of `source` whose longer side has at most `size` pixels, made anew when `source` changed.

    Raises:
        NotAnImage: `source` cannot be read as a picture.
    """
    stat = source.stat()
    key = f"{source.resolve()}\0{stat.st_mtime_ns}\0{stat.st_size}\0{size}"
    name = hashlib.sha256(key.encode()).hexdigest()
    path = cache_dir / name[:2] / f"{name}.webp"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            _shrink(source, size, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _shrink(source: Path, size: int, to: Path) -> None:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            image.draft("RGB", (size, size))
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((size, size))
            mode = "RGBA" if "A" in upright.getbands() or "transparency" in upright.info else "RGB"
            upright.convert(mode).save(to, "webp", quality=80)
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise NotAnImage(f"{source.name}: {error}.", "Only pictures have thumbnails.") from error
    except OSError as error:
        if error.errno:
            raise
        raise NotAnImage(f"{source.name}: {error}.", "The picture is damaged.") from error
