"""GPU usage of a run: one line every ten seconds in its `studio/gpu_usage.jsonl`.

The studio records it, so every trainer has it and no training step waits for it; there are no records for
times without a running studio. A line for one GPU has about 60 bytes: 0.5 MB a day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from flowloom.files import open_plain, parsed
from flowloom.json_types import is_array, is_object
from flowloom.server.background import isolate_errors
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.system import Gpu, SystemMonitor

GPU_USAGE_INTERVAL_S = 10.0
_OLD_NAME = "cards.jsonl"
FIGURES = ("load_percent", "memory_used_mib", "temperature_c", "power_w")
Figure = float | None
_MAX_LINE_BYTES = 65_536


class GpuCurves(BaseModel):
    """Curves of one GPU, a value for each time. Null: not reported by the driver."""

    load_percent: list[Figure]
    memory_used_mib: list[Figure]
    temperature_c: list[Figure]
    power_w: list[Figure]


class GpuUsage(BaseModel):
    """GPU usage of a run."""

    times: list[float] = Field(description="Time of the last record of each interval, in seconds since 1970.")
    gpus: dict[str, GpuCurves] = Field(description="Mean of each interval, by device.")


def record_gpu_usage(registry: RunRegistry, monitor: SystemMonitor) -> None:
    """Record the GPU usage of every running run. The driver is queried only if there is one."""
    runs = [run for run in registry.store.with_states("running", "stopping") if set(run.devices) - {"cpu"}]
    if not runs:
        return
    now = monitor.read()
    for run in runs:
        with isolate_errors(partial(registry.notes.__setitem__, run.id)):
            append_usage(
                registry.path(run.id), now.time, [gpu for gpu in now.gpus if gpu.device in run.devices]
            )


def append_usage(run_path: Path, time: float, gpus: list[Gpu]) -> None:
    """Append a line to the run's records, if there are GPUs."""
    if not gpus:
        return
    values = {gpu.device: [getattr(gpu, figure) for figure in FIGURES] for gpu in gpus}
    with open_plain(_path(run_path), append=True) as file:
        file.write(f"{json.dumps([round(time, 1), values], separators=(',', ':'))}\n".encode())


def read_gpu_usage(run_path: Path, max_points: int) -> GpuUsage:
    """Usage of the whole run in at most `max_points` intervals. Reads the records one by one."""
    path = _path(run_path)
    if not path.exists():
        path = path.with_name(_OLD_NAME)
    num = sum(1 for _ in _records(path))
    points = min(num, max_points)
    times: list[float] = []
    gpus: dict[str, dict[str, list[Figure]]] = {}
    records = _records(path)
    for i in range(points):
        interval = list(islice(records, (i + 1) * num // points - i * num // points))
        if not interval:
            break
        times.append(interval[-1][0])
        for device in {device for _, values in interval for device in values} - gpus.keys():
            gpus[device] = {figure: [None] * i for figure in FIGURES}
        for device, curves in gpus.items():
            of_device = [values[device] for _, values in interval if device in values]
            for column, figure in enumerate(FIGURES):
                curves[figure].append(_mean([values[column] for values in of_device]))
    devices = sorted(gpus, key=lambda name: (len(name), name))
    return GpuUsage(times=times, gpus={device: GpuCurves.model_validate(gpus[device]) for device in devices})


def _path(run_path: Path) -> Path:
    return run_path / "studio" / "gpu_usage.jsonl"


def _records(path: Path) -> Iterator[tuple[float, dict[str, list[Figure]]]]:
    """The valid lines: a power loss may have left a partial one."""
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_MAX_LINE_BYTES):
            if record := _parsed(line):
                yield record


def _parsed(line: bytes) -> tuple[float, dict[str, list[Figure]]] | None:
    try:
        content = parsed(line)
    except ValueError:
        return None
    if not is_array(content) or len(content) != 2:
        return None
    time, values = content
    if not isinstance(time, int | float) or not is_object(values):
        return None
    return (time, values) if all(map(_are_figures, values.values())) else None


def _are_figures(values: Any) -> bool:
    if not is_array(values) or len(values) != len(FIGURES):
        return False
    return all(isinstance(value, int | float | None) for value in values)


def _mean(values: list[Figure]) -> Figure:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None
