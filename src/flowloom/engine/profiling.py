"""`training.do_profiling`: a trace of the first steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PROFILED_STEPS = 3


class StepProfiler:
    """Records the first three steps and writes `trace.json`."""

    def __init__(self, trace_path: Path):
        self.trace_path = trace_path
        self._steps_left = PROFILED_STEPS
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.__enter__()

    def step(self) -> None:
        """Count one step; after the last one, write the trace."""
        self._steps_left -= 1
        if self._steps_left == 0:
            self.close()
            self._profile.export_chrome_trace(str(self.trace_path))

    def close(self) -> None:
        """Stop recording."""
        if self._profile is not None and self._steps_left >= 0:
            self._profile.__exit__(None, None, None)
            self._steps_left = -1
