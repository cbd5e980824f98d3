"""Small images that differ in every pixel, and builds of them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

from flowloom.datasets.build.build import BuildReport, build
from flowloom.datasets.build.options import BuildOptions

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP"}


def image_bytes(number: int = 0, size: tuple[int, int] = (40, 30), suffix: str = ".png") -> bytes:
    """A image whose grey is `number`."""
    file = io.BytesIO()
    Image.new("RGB", size, (number,) * 3).save(file, FORMATS[suffix])
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    """Write `content` to `path`, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def built(source: Path | str, output: Path, **options: Any) -> tuple[list[dict[str, Any]], BuildReport]:
    """The rows that `build` writes, and its report."""
    report = build(str(source), output, BuildOptions(**options), lambda report: None)
    return [orjson.loads(line) for line in output.read_bytes().splitlines()], report


def greys(rows: list[dict[str, Any]], root: Path | None) -> dict[int, list[str]]:
    """Captions by the grey of the image that each row's name leads to."""
    assert root is not None
    found: dict[int, list[str]] = {}
    for row in rows:
        with Image.open(root / row["filename"]) as image:
            value = image.convert("L").getpixel((0, 0))
            assert (row["width"], row["height"]) == image.size
        assert isinstance(value, int)
        found.setdefault(value, []).append(row["caption_or_tags"])
    return found


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a web server over `folder`, with its pages of links."""
    folder.mkdir(exist_ok=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()
