"""The process that makes thumbnails: a line of JSON in, a line of JSON out, until its input ends."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from flowloom.errors import ImageError

MEMORY_BYTES = 6 * 2**30
MAX_MEGAPIXELS = 200.0
WHITE = (255, 255, 255)


def shrink(source: Path, size: int, to: Path) -> None:
    """Write a WebP of `source` whose longer side has at most `size` pixels.

    Raises:
        ImageError: it cannot be read as a picture.
    """
    from PIL import Image

    from flowloom.data.images import image_size, load_image

    width, height = image_size(source)
    scale = min(1.0, size / max(width, height))
    wanted = max(1, round(width * scale)), max(1, round(height * scale))
    Image.fromarray(load_image(source, wanted, WHITE, MAX_MEGAPIXELS)).save(to, "webp", quality=80)


def main() -> None:
    """Work until the studio closes the pipe."""
    os.nice(5)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        work = json.loads(line)
        answer = {"error": "", "errno": 0}
        try:
            shrink(Path(work["source"]), work["size"], Path(work["to"]))
        except (ImageError, MemoryError) as fault:
            answer["error"] = str(fault) or "it needs too much memory"
        except OSError as fault:
            answer["errno"] = fault.errno or 0
            answer["error"] = str(fault)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
