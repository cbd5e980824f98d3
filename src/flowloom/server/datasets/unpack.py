"""A separate process unpacks an uploaded zip: `python -m flowloom.server.datasets.unpack UPLOAD_DIR`."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowloom.datasets.archives.unpack import ArchiveRefused, UnpackReport, UnpackRequest, unpack
from flowloom.files import write_json
from flowloom.locks import try_lock

MEMORY_BYTES = 4 * 2**30
SECONDS_BETWEEN_REPORTS = 0.5


def main() -> int:
    """Unpack the archive in the folder that the command line names."""
    upload_dir = Path(sys.argv[1])
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with (upload_dir / "lock").open("a") as lock:
        if not try_lock(lock):
            return 0
        if (upload_dir / "report.json").exists():
            return 0
        about: dict[str, Any] = json.loads((upload_dir / "about.json").read_text())
        what = UnpackRequest(
            upload_dir / "data",
            upload_dir / "unpacked",
            upload_dir.parent.parent,
            about["replaces"],
            about["encoding"],
        )
        write_json(upload_dir / "report.json", asdict(_reported(what, upload_dir / "progress.json")))
        (upload_dir / "data").unlink(missing_ok=True)
        shutil.rmtree(upload_dir / "unpacked", ignore_errors=True)
    return 0


def _reported(what: UnpackRequest, progress: Path) -> UnpackReport:
    reported_at = 0.0

    def report(done: UnpackReport) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at > SECONDS_BETWEEN_REPORTS:
            reported_at = time.monotonic()
            write_json(progress, {"num_done": done.num_done, "num_entries": done.num_entries})

    try:
        done = unpack(what, report)
        done.state = "done"
    except ArchiveRefused as error:
        done = UnpackReport("refused", error=f"{error}.")
    except OSError as error:
        done = UnpackReport(
            "failed",
            error=f"{error.strerror}: free disk space, or give the studio's user permission to write.",
        )
    return done


if __name__ == "__main__":
    sys.exit(main())
