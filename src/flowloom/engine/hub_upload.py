"""Upload of checkpoints to the hub as they are saved; the results are events of the run."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, one_line
from flowloom.storage.hub_upload import Uploaded, Uploader


class HubUploads:
    """Follows a run's events like a tracker and uploads at each `saved`. No failure ends the run."""

    def __init__(self, repo_id: str, is_private: bool, run_dir: Path, emit: Callable[..., None]):
        self.run_dir = run_dir
        self.emit = emit
        self._results: queue.SimpleQueue[Uploaded] = queue.SimpleQueue()
        self._uploader: Uploader | None = None
        try:
            scratch_dir = run_dir / "uploads"
            scratch_dir.mkdir(exist_ok=True)
            # The uploader's thread must not write events: its results wait for the next event.
            self._uploader = Uploader(repo_id, scratch_dir, self._results.put, is_private=is_private)
        except ConfigError as error:
            self._give_up(" ".join(problem.text for problem in error.problems))
        except OSError as error:
            self._give_up(str(error))

    def log(self, event: dict[str, Any]) -> None:
        """Upload a saved checkpoint, and emit the results of earlier uploads."""
        if self._uploader is None:
            return
        if event["kind"] == "saved":
            try:
                # Synchronously: the checkpoint may be deleted before the uploader reads it.
                self._uploader.submit(self.run_dir / event["dir"])
            except OSError as error:
                self.emit("warning", message=f"{event['dir']} is not uploaded: {one_line(str(error))}.")
        if event["kind"] in ("step", "saved"):
            self._say_results()

    def close(self) -> None:
        """Wait for the uploads in progress, up to their time limit; the event file is still open."""
        if self._uploader is None:
            return
        waiting = self._uploader.close(wait=True)
        self._say_results()
        if waiting:
            names = ", ".join(folder.name for folder in waiting)
            self.emit(
                "warning",
                message=f"hub: not uploaded in time: {names}.",
                hint="They stay in uploads/ and are uploaded when the run is resumed.",
            )

    def _give_up(self, reason: str) -> None:
        self.emit(
            "warning",
            message=f"hub: {one_line(reason)}",
            hint="The run continues without uploads; its checkpoints are on this machine.",
        )

    def _say_results(self) -> None:
        while not self._results.empty():
            result = self._results.get()
            if result.error:
                self.emit("warning", message=result.error)
            else:
                self.emit("uploaded", step=result.step, url=result.url)
