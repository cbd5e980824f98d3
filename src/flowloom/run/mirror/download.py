"""Continue a mirrored run on another machine: download it into a new run directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flowloom.config.flags import Overrides
from flowloom.config.flow_format.read import LoadedConfig, load_config
from flowloom.config.model_files import check_files
from flowloom.errors import ConfigError, DamagedError, NotFound, RunError, SourceError, size_text
from flowloom.run.directory import RUN_NAME, RunDir, checkpoint_name
from flowloom.run.mirror.layout import (
    CHECKPOINTS,
    EVENTS,
    RUN_JSON,
    Manifest,
    StoredFile,
    is_inside,
    keep_place,
    mirrored_steps,
    open_mirror,
    parsed_object,
    read_manifest,
    verified,
)
from flowloom.run.mirror.lease import Lease
from flowloom.run.resume import change_by_flags
from flowloom.storage.base import shown
from flowloom.storage.downloads.fetch import Watch, check_room
from flowloom.storage.local_copy import SILENT
from flowloom.storage.objects import PART_BYTES, Objects

Say = Callable[[str], None]


def restore(
    url: str,
    runs_dir: Path,
    name: str | None,
    overrides: Overrides,
    say: Say,
    watch: Watch = SILENT,
) -> tuple[RunDir, LoadedConfig]:
    """Download the run at `url`, with its newest complete checkpoint, into a new run directory.

    The mirror then belongs to this directory, and the old machine writes no more to it; with a flag for
    another `mirror.url` the run is forked and the mirror left alone. An interrupted download continues with
    the next call.

    Args:
        name: of the new run directory; None: that of the mirror.
        overrides: flags that change the configuration, such as paths of this machine.
        say: called with lines on the progress.
        watch: the bytes of the checkpoint, and a stop between them.

    Raises:
        ConfigError: a file that the configuration names is missing here, or a flag is wrong.
        RunError: another machine trains the run, a run directory of this name exists, or nothing is at `url`.
        SourceError: the store cannot be read.
    """
    storage = load_config({}, [flag for flag in overrides if flag[0].startswith("storage.")], Path(url))
    store = open_mirror(url, storage.config.storage, patience_minutes=1.0)
    run_dir = RunDir(runs_dir / _fit_name(name or url.rstrip("/").rpartition("/")[2]))
    if run_dir.path.exists():
        raise RunError(
            f"{run_dir.path} exists already: resume it by 'flowloom resume {run_dir.path}', or give --name."
        )
    partial = RunDir(run_dir.path.with_name(f".{run_dir.path.name}.download"))
    for folder in (partial.control_dir, partial.path / "samples", partial.path / "checkpoints"):
        folder.mkdir(parents=True, exist_ok=True)
    is_fork = any(flag in ("mirror", "mirror.url") for flag, _ in overrides)
    loaded = _configuration(store, partial, overrides, is_fork=is_fork)
    lease = None if is_fork else Lease(store, keep_place(partial, store.root).owner)
    if lease:
        lease.take_over(say)
    try:
        _download(store, partial, say, _renewing(watch, lease))
    except BaseException:
        # Nothing trains the run: the next download need not wait for this one.
        with suppress(SourceError, RunError):
            if lease:
                lease.release()
        raise
    partial.path.rename(run_dir.path)
    return run_dir, loaded


def _download(store: Objects, partial: RunDir, say: Say, watch: Watch) -> None:
    """Download the newest checkpoint, the events and the data of the run."""
    objects = {info.name: info.size for info in store.list()}
    files = newest_checkpoint(store, partial, list(objects), say, watch)
    if files is None:
        say(f"{store.root}: no complete checkpoint; the run starts from step 0")
    else:
        total = size_text(sum(file.size for file in files[1].values()))
        say(f"{store.root}: continuing from step {files[0]} ({total} downloaded)")
    _events(store, partial, sorted(name for name in objects if name.startswith(f"{EVENTS}/")))
    for path in (path for path in objects if path.startswith("data/") and is_inside(path)):
        _pour(store, path, objects[path], partial.path / path)


def _fit_name(name: str) -> str:
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"{name!r} is not a valid run name: choose one with --name.")
    return name


def _configuration(store: Objects, run_dir: RunDir, overrides: Overrides, *, is_fork: bool) -> LoadedConfig:
    """Write run.json with the flags, and check that this machine has its files."""
    content = read_run(store) | {"imported_from": store.root}
    run_dir.run_json.write_text(json.dumps(content, indent=1))
    here = [] if is_fork else [("mirror.url", store.root.rpartition("/")[0])]
    loaded = change_by_flags(run_dir, [*overrides, *here])
    if missing := check_files(loaded.config):
        error = ConfigError(f"{store.root}/{RUN_JSON}", missing)
        error.hint = (
            "Copy these files to this machine, or give their paths here as flags, such as --model.path FILE."
        )
        raise error
    return loaded


def read_run(store: Objects) -> dict[str, object]:
    """The content of `run.json` in the mirror.

    Raises:
        RunError: there is none.
        DamagedError: it is not a JSON object.
    """
    try:
        return parsed_object(store.read(RUN_JSON), f"{store.root}/{RUN_JSON}")
    except NotFound as error:
        raise RunError(f"{error} {shown(store.root)} is not a mirrored run.") from error


def _renewing(watch: Watch, lease: Lease | None) -> Watch:
    """`watch`, which also renews the lease."""

    def renew_and_check() -> None:
        if lease:
            lease.renew()
        watch.raise_if_stopped()

    return replace(watch, raise_if_stopped=renew_and_check)


def newest_checkpoint(
    store: Objects,
    run_dir: RunDir,
    names: list[str],
    say: Say,
    watch: Watch,
    *,
    is_needed: Callable[[str], bool] = lambda _: True,
) -> tuple[int, Manifest] | None:
    """Download the newest checkpoint that is undamaged; returns its step and files, None without one.

    Args:
        names: of all objects in the mirror.
        is_needed: returns False for files of a checkpoint that are left out.
    """
    for step in reversed(mirrored_steps(names)):
        final = run_dir.checkpoint_dir(step)
        try:
            listed = read_manifest(store, step)
            files = {name: file for name, file in listed.items() if is_needed(name)}
            _checkpoint(store, step, files, final, watch)
        except (DamagedError, NotFound) as error:
            say(f"{error} The one before it is used.")
            shutil.rmtree(final, ignore_errors=True)
            continue
        return step, files
    return None


def _checkpoint(store: Objects, step: int, files: Manifest, final: Path, watch: Watch) -> None:
    final.mkdir(exist_ok=True)
    missing = {name: file for name, file in files.items() if not verified(final / name, file)}
    total, done = sum(file.size for file in missing.values()), 0
    check_room(final, total)
    for name, file in missing.items():
        path = f"{CHECKPOINTS}/{checkpoint_name(step)}/{name}"
        before = done

        def between(have: int, before: int = before) -> None:
            watch.raise_if_stopped()
            watch.on_bytes(before + have, total)

        _pour(store, path, file.size, final / name, between)
        done += file.size
        _verify(store, path, final / name, file)


def _verify(store: Objects, name: str, path: Path, file: StoredFile) -> None:
    if not verified(path, file):
        path.unlink(missing_ok=True)
        raise DamagedError(f"{store.root}/{name}: damaged: its checksum is wrong.")


def _events(store: Objects, run_dir: RunDir, names: list[str]) -> None:
    with run_dir.events_jsonl.open("wb") as file:
        for name in names:
            file.write(store.read(name))


def _pour(
    store: Objects, name: str, size: int, path: Path, between: Callable[[int], None] = lambda _: None
) -> None:
    """Download an object of `size` bytes to `path`, after the bytes that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        have = file.tell()
        if have >= size:
            have = file.truncate(0)
        while have < size:
            piece = store.read_range(name, have, min(PART_BYTES, size - have))
            if not piece:
                raise DamagedError(f"{store.root}/{name}: shorter than {size:,} bytes.")
            file.write(piece)
            have += len(piece)
            between(have)
