"""`training.do_profiling`: a trace of some early steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import profiler
from torch.profiler import ProfilerAction, ProfilerActivity, profile

# The first step allocates and chooses kernels and is not typical of the others.
FIRST_STEPS = cast("Callable[[int], ProfilerAction]", profiler.schedule(wait=0, warmup=1, active=3, repeat=1))


@contextmanager
def step_profiler(trace_path: Path | None) -> Generator[Callable[[], None]]:
    """A function to call after every step; steps 2 to 4 are written to `trace_path`, none if that is None."""
    if trace_path is None:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(recorded: profile) -> None:
        recorded.export_chrome_trace(str(trace_path))

    with profile(
        activities=activities, schedule=FIRST_STEPS, on_trace_ready=write, acc_events=True
    ) as recorder:
        yield recorder.step
