"""Steps of a run that is mirrored to SeaweedFS, 100 MiB every 60 steps: mean time over that without a mirror.

The mirror uploads events, and each checkpoint as it is saved, at full speed; both sides write the same
events. The steps have the first core and the mirror and the store the others: a store is another machine in
practice, and its work must not count as the mirror's.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.full_step import random_batch
from benchmarks.save_stall import make_state
from benchmarks.timing import Measured, one_thread
from flowloom.config.run import RunConfig
from flowloom.engine.mirror_upload import MirrorUploads
from flowloom.engine.step import train_step
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.run.mirror.layout import mirrored_steps, open_mirror, read_manifest, verified
from flowloom.storage.base import StorageSection
from tests.fakes.seaweed import running_seaweed

TARGET = 1.01
ROUNDS, STEPS = 2, 60
FILES, FILE_BYTES = 4, 25 * 2**20


def run() -> Measured:
    """Ratio of the means; the store must have every byte at the end."""
    first, *others = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, {first, *others})
        # Processes and threads inherit the cores of the thread that starts them.
        os.sched_setaffinity(0, others or {first})
        place = stack.enter_context(tempfile.TemporaryDirectory())
        seaweed = stack.enter_context(running_seaweed(Path(place)))
        stack.enter_context(one_thread())
        os.environ.update(seaweed.environ)
        storage = StorageSection(endpoint=seaweed.endpoint)
        config = RunConfig.model_validate(
            {
                "mirror": {"url": "s3://loom/runs"},
                "storage": storage.model_dump(),
            }
        )
        folder = Path(place) / "runs"
        mirrored, plain = (
            _Run(RunDir.create("mirrored", folder), config),
            _Run(RunDir.create("plain", folder)),
        )
        os.sched_setaffinity(0, {first})
        state, (batch, *_) = make_state(), random_batch().split(1)
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(ROUNDS + 1):
            for run in (mirrored, plain) if number % 2 else (plain, mirrored):
                spent = run.round(number, lambda: train_step(state, batch).loss.item())
                if number:
                    times[run is mirrored] += spent
                run.wait_until_mirrored()
        is_equal = mirrored.close()
    with_mirror, without = statistics.mean(times[True]), statistics.mean(times[False])
    return Measured(
        ratio=with_mirror / without,
        target=TARGET,
        correct=is_equal,
        higher_is_better=False,
        detail={
            "step_s": without,
            "mirrored_step_s": with_mirror,
            "checkpoint_mib": FILES * FILE_BYTES / 2**20,
        },
    )


class _Run:
    """A run directory that gets events and checkpoints, with a mirror if it has a configuration."""

    def __init__(self, run_dir: RunDir, config: RunConfig | None = None):
        self.run_dir, self.config = run_dir, config
        self.events = EventWriter(run_dir.events_jsonl)
        self.mirror: MirrorUploads | None = None
        self.step = 0
        self.uploaded = 0
        run_dir.write_run(config or RunConfig(), "a benchmark")
        if config:
            self.mirror = MirrorUploads(run_dir, config, self._emit, lambda: None)
            self.mirror.start()

    def round(self, number: int, train: Callable[[], object]) -> list[float]:
        """Seconds of each of `STEPS` steps, after a checkpoint was saved."""
        self._save(number + 1)
        spent: list[float] = []
        for _ in range(STEPS):
            start = time.perf_counter()
            train()
            self.step += 1
            self._emit("progress", step=self.step, epoch=None, max_steps=None, samples_per_s=None, eta_s=None)
            if self.mirror:
                self.mirror.log({"kind": "step"})
            spent.append(time.perf_counter() - start)
        return spent

    def _save(self, step: int) -> None:
        folder = self.run_dir.checkpoint_dir(step)
        folder.mkdir()
        for number in range(FILES):
            (folder / f"{number}.bin").write_bytes(secrets.token_bytes(FILE_BYTES))
        if self.mirror:
            self.mirror.log({"kind": "saved", "step": step})

    def _emit(self, kind: str, **fields: object) -> None:
        self.uploaded += kind == "uploaded"
        self.events.write(kind, **fields)

    def wait_until_mirrored(self) -> None:
        """Return when the checkpoints are in the store, so that the other side is not slowed by them."""
        while self.mirror and self.uploaded < len(self.run_dir.checkpoints()):
            time.sleep(0.1)
            self.mirror.log({"kind": "step"})

    def close(self) -> bool:
        """End the mirror; True if the store has what is on the disk."""
        assert self.mirror, "only the mirrored run is closed"
        assert self.config, "only the mirrored run is closed"
        self.mirror.close()
        store = open_mirror("s3://loom/runs/mirrored", self.config.storage)
        newest = mirrored_steps([info.name for info in store.list()])[-1]
        folder = self.run_dir.checkpoint_dir(newest)
        files = read_manifest(store, newest)
        stored = store.read("events/00000000.jsonl")
        return stored == self.run_dir.events_jsonl.read_bytes() and all(
            verified(folder / name, file) for name, file in files.items()
        )
