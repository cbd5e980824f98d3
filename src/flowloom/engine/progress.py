"""A run's events for a terminal: a progress line, and one line for each other event."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between progress lines if the output is no terminal, such as a log file."""
MAX_SKIPPED_SHOWN = 5


class Progress:
    """Writes each event to `stream` as text."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._last_line = float("-inf")
        self._num_skipped = 0
        self._is_line_open = False

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            self.move(step_line(event))
        elif event["kind"] == "skipped":
            self._skipped(event)
        elif event["kind"] in LINES:
            self.say(LINES[event["kind"]](event))

    def move(self, line: str) -> None:
        """Replace the progress line; if the output is no terminal, write one every ten seconds."""
        now = time.monotonic()
        if self.is_terminal:
            self.stream.write(f"\r{line}\x1b[K")
            self._is_line_open = True
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.stream.write(f"{line}\n")
        self.stream.flush()

    def _skipped(self, event: dict[str, Any]) -> None:
        self._num_skipped += 1
        if self._num_skipped <= MAX_SKIPPED_SHOWN:
            self.say(f"skipped    line {event['line']}, {event['file']}: {event['reason']}")
        elif self._num_skipped == MAX_SKIPPED_SHOWN + 1:
            self.say("skipped    ... see events.jsonl for the others")

    def say(self, line: str) -> None:
        """Write a permanent line."""
        if self._is_line_open:
            self.stream.write("\n")
            self._is_line_open = False
        self.stream.write(f"{line}\n")
        self.stream.flush()


def step_line(event: dict[str, Any]) -> str:
    """The progress line: step, loss, speed, time left."""
    eta = "" if event["eta_s"] is None else f"   {duration(event['eta_s'])} left"
    return (
        f"step {event['step']:>7,}   epoch {event['epoch'] + 1}   loss {event['loss_smooth']:.4f}   "
        f"lr {event['lr']:.2e}   {event['samples_per_s']:.1f} samples/s{eta}"
    )


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _started(event: dict[str, Any]) -> str:
    resumed = "" if event["resumed_from"] is None else f", resumed from step {event['resumed_from']}"
    trained, total = event["trained_params"], event["total_params"]
    return f"started    {event['method']} on {event['device']}, {trained:,} of {total:,} parameters{resumed}"


def _validated(event: dict[str, Any]) -> str:
    return f"validated  loss {event['loss']:.4f} ({event['weights']} weights) at step {event['step']}"


LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "started": _started,
    "phase": lambda event: f"{event['name']} ...",
    "validated": _validated,
    "sampled": lambda event: f"sampled    {event['dir']}",
    "saved": lambda event: f"saved      {event['dir']}",
    "removed": lambda event: f"removed    {event['dir']}: {event['reason']}",
    "warning": lambda event: f"warning    {event['message']} {event.get('hint', '')}".rstrip(),
    "finished": lambda event: f"finished   at step {event['step']}",
    "stopped": lambda event: f"stopped    at step {event['step']}; 'flowloom resume' continues from there",
}
