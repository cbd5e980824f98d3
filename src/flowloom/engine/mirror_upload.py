"""The mirror of a run as part of its events: it follows what is saved, and its results are events."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from flowloom.config.run import RunConfig
from flowloom.engine.retention import size_of
from flowloom.errors import Denied, NotFound, SourceError, one_line
from flowloom.run.directory import RunDir, checkpoint_name, step_of
from flowloom.run.mirror.layout import CHECKPOINTS, Place, open_mirror, place_of
from flowloom.run.mirror.lease import Lease, LeaseLostError
from flowloom.run.mirror.upload import Mirror, Notice
from flowloom.storage.hub_upload import PATIENCE_S, SLOWEST


class MirrorUploads:
    """Follows a run's events; the first rank has one."""

    def __init__(
        self,
        run_dir: RunDir,
        config: RunConfig,
        emit: Callable[..., None],
        seconds_since_request: Callable[[], float | None],
    ):
        """
        Args:
            seconds_since_request: time since the signal that ends the run; None without one.
        """
        self.run_dir, self.config, self.emit = run_dir, config, emit
        self._seconds_since_request = seconds_since_request
        self._notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._mirror: Mirror | None = None
        self._place: Place | None = None

    def start(self) -> None:
        """Take the mirror and start to upload.

        Raises:
            LeaseLostError: it belongs to another run directory.
            Denied, NotFound, SourceError: it cannot be used. A store that is down is only a warning.
        """
        place = place_of(self.run_dir, self.config)
        store = open_mirror(place.url, self.config.storage)
        lease = Lease(store, place.owner)
        try:
            lease.take()
        except (Denied, NotFound, LeaseLostError) as error:
            error.hint = error.hint or "Set mirror.url to a bucket that can be written, or to null."
            raise
        except SourceError as error:
            hint = "Training starts, and the upload catches up when the store is back."
            self.emit("warning", message=f"mirror: {one_line(str(error))}", hint=hint)
        limit = self.config.mirror.bandwidth_mib
        keep = self.config.checkpoint
        self._mirror = Mirror(self.run_dir, store, lease, keep, self._notices.put, mib_per_s=limit)
        self._place = place
        self._mirror.start()

    def log(self, event: dict[str, Any]) -> None:
        """Pass on what was saved and removed, and emit the results."""
        if self._mirror is None:
            return
        if event["kind"] == "saved":
            self._mirror.saved(event["step"])
        if event["kind"] == "removed":
            self._mirror.removed(event["step"])
        if event["kind"] in ("step", "saved"):
            # Not from the mirror's thread, so that events are written by one thread.
            self._emit_notices()

    def close(self) -> None:
        """Upload the rest within a limited time, and report what is missing."""
        if self._mirror is None:
            return
        seconds = self._seconds_left()
        is_complete = self._mirror.finish(seconds)
        self._emit_notices()
        if not is_complete:
            self._report_missing(self._mirror, seconds)
            return
        try:
            self._mirror.close()
        except (SourceError, LeaseLostError, OSError) as error:
            self.emit(
                "warning",
                message=f"mirror: {one_line(str(error))}",
                hint="Its last events are missing there.",
            )

    def _seconds_left(self) -> float:
        since = self._seconds_since_request()
        if since is not None:
            return max(2.0, self.config.mirror.seconds_to_finish - since)
        # As much as a slow connection needs for the newest checkpoint.
        return PATIENCE_S + size_of(self.run_dir.latest_checkpoint()) / SLOWEST

    def _report_missing(self, mirror: Mirror, seconds: float) -> None:
        missing = [f.name for f in self.run_dir.checkpoints() if step_of(f) not in mirror.complete]
        what = ", ".join(missing[-3:]) or "the last events or samples"
        newest = checkpoint_name(max(mirror.complete)) if mirror.complete else "none"
        self.emit(
            "warning",
            message=f"mirror: not uploaded within {seconds:.0f} s: {what}. Its newest checkpoint: {newest}.",
            hint=f"'flowloom resume {self.run_dir.path}' on this machine uploads the rest.",
        )

    def _emit_notices(self) -> None:
        for _ in range(self._notices.qsize()):
            notice = self._notices.get()
            if notice.step is None:
                hint = {"hint": notice.hint} if notice.hint else {}
                self.emit("warning", message=f"mirror: {one_line(notice.problem)}", **hint)
                continue
            url = f"{self._url}/{CHECKPOINTS}/{checkpoint_name(notice.step)}"
            self.emit("uploaded", step=notice.step, url=url)

    @property
    def _url(self) -> str:
        return self._place.url if self._place else ""
