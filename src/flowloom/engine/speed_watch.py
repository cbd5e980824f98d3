"""Runs that become slow, or wait for data: seen while they train, with the cause."""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple, cast

import torch

from flowloom.engine.gradients import Finding

WINDOW = 10
"""Steps averaged at a time: on an accelerator only each tenth step waits for its result, and looks slow."""
SLOW_FACTOR = 3.0
"""A window is slow if its steps take so many times the median of the windows before."""
SLOW_WINDOWS = 2
"""Slow windows in a row that are reported."""
KNOWN_WINDOWS = 5
"""Windows that are needed to know a run's usual speed, and over which waiting for data is measured."""
WAITING_SHARE = 0.3
"""Share of the time spent waiting for data that is reported."""
SPILLED_SHARE = 0.98
"""Share of the device's memory above which a driver moves memory to the host instead of failing."""


class _Window(NamedTuple):
    step_s: float
    """Mean."""
    waiting_share: float
    """Of the time, 0 to 1."""


class SpeedWatch:
    """Compares step times with those before, in windows of some steps."""

    def __init__(self, device: torch.device):
        self._device = device
        self._steps: list[tuple[float, float]] = []
        self._usual: deque[_Window] = deque(maxlen=100)
        self._slow: list[_Window] = []
        self._is_slow_reported = False
        self._is_waiting_reported = False

    def after_step(self, step_s: float, wait_s: float) -> Finding | None:
        """The finding, if any, after a step of `step_s` seconds, `wait_s` of which it waited for data."""
        self._steps.append((step_s, wait_s))
        if len(self._steps) < WINDOW:
            return None
        seconds, waited = (sum(column) for column in zip(*self._steps, strict=True))
        self._steps = []
        window = _Window(seconds / WINDOW, min(1.0, waited / seconds) if seconds else 0.0)
        return self._slow_finding(window) or self._waiting_finding()

    def _slow_finding(self, window: _Window) -> Finding | None:
        if len(self._usual) >= KNOWN_WINDOWS:
            usual_s = statistics.median(known.step_s for known in self._usual)
            if window.step_s > SLOW_FACTOR * usual_s:
                self._slow.append(window)
                if len(self._slow) < SLOW_WINDOWS or self._is_slow_reported:
                    return None
                self._is_slow_reported = True
                return self._explained(usual_s)
        # Only windows of usual speed: otherwise a run that stays slow would become the new standard.
        self._slow, self._is_slow_reported = [], False
        self._usual.append(window)
        return None

    def _explained(self, usual_s: float) -> Finding:
        now_s = statistics.mean(window.step_s for window in self._slow)
        waiting = statistics.mean(window.waiting_share for window in self._slow)
        slower = f"Steps take {now_s:.2f} s instead of {usual_s:.2f} s"
        if waiting > 0.5:
            return Finding(
                f"{slower}: {waiting:.0%} of the time they wait for data.",
                "Check the disk or network that the images are on; cache.latents disk reads each image once.",
            )
        if is_spilled(self._device):
            return Finding(
                f"{slower}: device memory is full, and the driver uses host memory in its place.",
                "Lower training.train_minibatch, raise memory.checkpointed_blocks or memory.streamed_blocks, "
                "or close other programs that use the GPU.",
            )
        return Finding(
            f"{slower}, and not because of data.",
            "Check for other programs on the device, and its temperature and power limits.",
        )

    def _waiting_finding(self) -> Finding | None:
        if self._is_waiting_reported or len(self._usual) < 2 * KNOWN_WINDOWS:
            return None
        # The first windows fill the loader's queue and caches.
        last = list(self._usual)[-KNOWN_WINDOWS:]
        share = statistics.mean(window.waiting_share for window in last)
        if share < WAITING_SHARE:
            return None
        self._is_waiting_reported = True
        return Finding(
            f"Steps wait for data {share:.0%} of the time.",
            "Set cache.latents to disk, raise dataloader.num_workers, or move the images to a faster disk.",
        )


def is_spilled(device: torch.device) -> bool:
    """True if torch holds nearly all or more memory than `device` has: drivers then may use host memory."""
    if device.type != "cuda":
        return False
    total = cast("int", torch.cuda.get_device_properties(device).total_memory)
    return torch.cuda.memory_reserved(device) > SPILLED_SHARE * total
