"""A local copy of the weights of a mirrored run, for sampling and export; its machine continues to train.

`~/.cache/flowloom/runs/DIGEST/NAME` is a run directory with run.json and one checkpoint, without its state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from flowloom.errors import RunError
from flowloom.run.directory import RunDir, step_of
from flowloom.run.mirror.download import Say, newest_checkpoint, read_run
from flowloom.run.mirror.layout import CHECKPOINTS, manifest_name, open_mirror
from flowloom.storage.base import StorageSection, shown
from flowloom.storage.downloads.fetch import Watch
from flowloom.storage.local_copy import SILENT, copies_dir


def snapshot(url: str, storage: StorageSection, say: Say, watch: Watch = SILENT) -> Path:
    """The folder of the newest undamaged checkpoint of the mirrored run at `url`, or of the named one.

    Args:
        url: `s3://bucket/runs/fox` or `s3://bucket/runs/fox/checkpoints/step_00000500`.
        say: called with lines on damaged checkpoints.

    Raises:
        RunError: there is no mirrored run, or no complete checkpoint.
        SourceError: the store cannot be read.
        DiskFullError: the disk has no room for the weights.
    """
    run_url, _, wanted = url.rstrip("/").partition(f"/{CHECKPOINTS}/")
    store = open_mirror(run_url, storage, patience_minutes=1.0)
    digest = hashlib.blake2b(run_url.encode(), digest_size=8).hexdigest()
    run_dir = RunDir(copies_dir() / "runs" / digest / run_url.rpartition("/")[2])
    checkpoints = run_dir.path / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    run_dir.run_json.write_text(json.dumps(read_run(store), indent=1))
    names = [info.name for info in store.list(CHECKPOINTS)]
    if wanted:
        names = [name for name in names if name == manifest_name(step_of(Path(wanted)))]
    found = newest_checkpoint(
        store, run_dir, names, say, watch, is_needed=lambda name: not name.startswith("state/")
    )
    if found is None:
        raise RunError(f"{shown(url)}: there is no complete checkpoint here.")
    kept = run_dir.checkpoint_dir(found[0])
    for other in checkpoints.iterdir():
        if other != kept:
            shutil.rmtree(other)
    return kept
