"""The thumbnail process: reads one JSON request per line and writes one JSON result per line."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowloom.errors import ImageError, SourceError
from flowloom.server.endpoints import endpoint_problem
from flowloom.storage.base import Source, StorageSection
from flowloom.storage.open import open_source

MEMORY_BYTES = 6 * 2**30
MAX_MEGAPIXELS = 200.0
MAX_BYTES = 2**28
WHITE = (255, 255, 255)


def make_thumbnail(source: Path | bytes, size: int, to: Path) -> None:
    """Write a WebP of the image `source` whose longer side has at most `size` pixels.

    Raises:
        ImageError: `source` is not a readable image.
    """
    from PIL import Image

    from flowloom.data.images.decode import image_size, load_image

    width, height = image_size(source)
    scale = min(1.0, size / max(width, height))
    wanted = max(1, round(width * scale)), max(1, round(height * scale))
    Image.fromarray(load_image(source, wanted, WHITE, MAX_MEGAPIXELS)).save(to, "webp", quality=80)


class OpenStores:
    """The object stores opened so far."""

    def __init__(self) -> None:
        self._open: dict[str, Source] = {}

    def source(self, work: dict[str, Any]) -> Path | bytes:
        """The image that `work` names: a file, or the content of an object.

        Raises:
            SourceError: the object cannot be read.
        """
        if "url" not in work:
            return Path(work["source"])
        key = json.dumps([work["url"], work["storage"]])
        if key not in self._open:
            quick = {"tries": 2, "patience_minutes": 0.0, "timeout_s": 10.0}
            storage = StorageSection.model_validate(work["storage"] | quick)
            if reason := endpoint_problem(storage.endpoint):
                raise SourceError(reason)
            self._open[key] = open_source(work["url"], storage)
        store = self._open[key]
        if store.stat(work["source"]).size > MAX_BYTES:
            raise SourceError(f"it has more than {MAX_BYTES:,} bytes")
        return store.read(work["source"])


def main() -> None:
    """Handle requests until the studio closes the pipe."""
    os.nice(5)
    stores = OpenStores()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        work = json.loads(line)
        answer = {"error": "", "errno": 0}
        try:
            make_thumbnail(stores.source(work), work["size"], Path(work["to"]))
        except (ImageError, SourceError, MemoryError) as fault:
            answer["error"] = str(fault) or "it needs too much memory"
        except OSError as fault:
            answer["errno"] = fault.errno or 0
            answer["error"] = str(fault)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
