"""Usage of this machine: CPUs, memory, disks, GPUs."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
from pydantic import BaseModel, Field

_FRESH_S = 1.0
_MIN_INTERVAL_S = 0.2
"""Between two readings of the CPU times, which the system counts in hundredths of a second."""
_FIELDS = {
    "name": "name",
    "load_percent": "utilization.gpu",
    "memory_used_mib": "memory.used",
    "memory_total_mib": "memory.total",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}


class Gpu(BaseModel):
    """One GPU. Null: not reported by the driver."""

    device: str = Field(examples=["cuda:0"])
    name: str
    load_percent: float | None
    memory_used_mib: float | None
    memory_total_mib: float | None
    temperature_c: float | None
    power_w: float | None


class Disk(BaseModel):
    """The disk of a root folder."""

    root: str
    free_gib: float
    total_gib: float


class System(BaseModel):
    """Current usage of the machine."""

    time: float
    cpu_percent: float
    num_cpus: int
    memory_used_mib: float
    memory_total_mib: float
    studio_memory_mib: float
    disks: list[Disk]
    gpus: list[Gpu]


class SystemMonitor:
    """Measures the machine, at most once a second however often it is read."""

    def __init__(self, roots: Mapping[str, Path]):
        self._roots = roots
        self._lock = threading.Lock()
        self._process = psutil.Process()
        self._last: System | None = None
        self._cpu = _CpuTimes.now()

    def read(self) -> System:
        """Return the current usage."""
        with self._lock:
            if self._last is None or time.monotonic() - self._read_at > _FRESH_S:
                self._last, self._read_at = self._measure(), time.monotonic()
            return self._last

    def _measure(self) -> System:
        memory = psutil.virtual_memory()
        return System(
            time=round(time.time(), 3),
            cpu_percent=self._cpu_percent(),
            num_cpus=psutil.cpu_count() or 1,
            memory_used_mib=(memory.total - memory.available) / 2**20,
            memory_total_mib=memory.total / 2**20,
            studio_memory_mib=self._process.memory_info().rss / 2**20,
            disks=[_disk(name, path) for name, path in self._roots.items() if path.exists()],
            gpus=read_gpus(),
        )

    def _cpu_percent(self) -> float:
        """Load since the last measurement in any thread.

        `psutil.cpu_percent` measures per thread and returns 0 for a thread's first call.
        """
        if time.monotonic() - self._cpu.time < _MIN_INTERVAL_S:
            time.sleep(_MIN_INTERVAL_S)
        before, self._cpu = self._cpu, _CpuTimes.now()
        total = self._cpu.total - before.total
        return 100 * (self._cpu.busy - before.busy) / total if total > 0 else 0.0


class _CpuTimes(NamedTuple):
    """Seconds of all CPUs since the machine started."""

    time: float
    """Time of the reading on the monotonic clock."""
    busy: float
    total: float

    @classmethod
    def now(cls) -> _CpuTimes:
        """Read them."""
        times = psutil.cpu_times()
        # `user` includes the time of guests.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return cls(time.monotonic(), total - times.idle - getattr(times, "iowait", 0.0), total)


def _disk(name: str, path: Path) -> Disk:
    usage = shutil.disk_usage(path)
    return Disk(root=name, free_gib=usage.free / 2**30, total_gib=usage.total / 2**30)


def read_gpus() -> list[Gpu]:
    """The NVIDIA GPUs as nvidia-smi reports them; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={','.join(_FIELDS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(i, line.split(", ")) for i, line in enumerate(done.stdout.splitlines())]


def _gpu(index: int, values: list[str]) -> Gpu:
    name, *numbers = values
    figures = dict(zip(list(_FIELDS)[1:], map(_number, numbers), strict=True))
    return Gpu.model_validate({"device": f"cuda:{index}", "name": name} | figures)


def _number(text: str) -> float | None:
    """The number, or None for values such as `[N/A]`."""
    try:
        return float(text)
    except ValueError:
        return None


def find_devices() -> tuple[str, ...]:
    """The devices that runs can use, the default first."""
    return (*(gpu.device for gpu in read_gpus()), "cpu")
