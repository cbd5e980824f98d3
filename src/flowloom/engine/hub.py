"""Checkpoints to the hub as they are saved; what becomes of them turns up among the events."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowloom.parts.hub import Uploaded, Uploader


class HubUploads:
    """Follows a run's events like a tracker: every `saved` one is an upload."""

    def __init__(self, repo_id: str, is_private: bool, run_dir: Path, say: Callable[..., None]):
        self.run_dir = run_dir
        self.say = say
        self._results: queue.SimpleQueue[Uploaded] = queue.SimpleQueue()
        scratch_dir = run_dir / "uploads"
        scratch_dir.mkdir(exist_ok=True)
        # The uploader's thread must not write events: it leaves its results for the next event's turn.
        self._uploader = Uploader(repo_id, scratch_dir, self._results.put, is_private=is_private)

    def log(self, event: dict[str, Any]) -> None:
        """Upload what was saved, and say what became of earlier uploads."""
        if event["kind"] == "saved":
            self._uploader.submit(self.run_dir / event["dir"])
        if event["kind"] in ("step", "saved"):
            self._say_results()

    def close(self) -> None:
        """Wait for the uploads under way; the event file is still open."""
        self._uploader.close(wait=True)
        self._say_results()

    def _say_results(self) -> None:
        while not self._results.empty():
            result = self._results.get()
            if result.error:
                self.say("warning", message=result.error)
            else:
                self.say("uploaded", step=result.step, url=result.url)
