"""Speeds that a memory plan depends on: measured once on a machine, and kept in the user's cache."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from flowloom.engine.offload.copies import page_locked
from flowloom.files import read_json, write_json
from flowloom.json_types import is_array, is_object
from flowloom.locks import hold
from flowloom.optimizers.updates.single import SingleUpdates

USEFUL_SHARE = 0.35
"""Share of a large matrix product's speed that a training step is assumed to reach."""
PRODUCT_SIDE = {"cuda": 8192, "mps": 2048, "cpu": 1024}
COPIED_BYTES = 2**26
UPDATED = 2**23
"""Weights of the host update that is measured: more than a processor's cache holds."""
LONGEST_S = 0.3
"""Of each of the measurements, after its first round."""
PATIENCE_S = 10.0
"""For another process that measures the same device."""
DRIVER = Path("/proc/driver/nvidia/version")


class Speed(NamedTuple):
    """Speeds that the slow-down of a measure depends on."""

    product_flops_per_s: float
    """Of a large matrix product."""
    copy_bytes_per_s: float
    """Between host and device, in the slower direction."""
    updates_per_s: float
    """Weights that AdamW updates on the host."""
    is_measured: bool = True

    @property
    def flops_per_s(self) -> float:
        """Of a training step."""
        return USEFUL_SHARE * self.product_flops_per_s

    @property
    def source(self) -> str:
        """The speeds in a sentence."""
        copies, updates = self.copy_bytes_per_s / 1e9, self.updates_per_s / 1e9
        numbers = f"products {self.product_flops_per_s / 1e12:.3g} TFLOP/s, of which a step reaches " + (
            f"{USEFUL_SHARE:.0%}; copies {copies:.3g} GB/s; host updates {updates:.2g} billion weights/s"
        )
        return f"{'measured here' if self.is_measured else 'assumed, not measured'}: {numbers}"

    def slowest(self, other: Speed) -> Speed:
        """The slower of each; measured if both are."""
        return Speed(
            min(self.product_flops_per_s, other.product_flops_per_s),
            min(self.copy_bytes_per_s, other.copy_bytes_per_s),
            min(self.updates_per_s, other.updates_per_s),
            self.is_measured and other.is_measured,
        )


ASSUMED = Speed(80e12 / USEFUL_SHARE, 20e9, 2e9, is_measured=False)
"""About a card of 24 GB, PCIe 4 and a desktop processor: for a device that is not in this machine."""


def speed_of(device: torch.device) -> Speed:
    """The speeds of `device` and of the host beside it, measured the first time.

    Processes that ask at once measure one after the other. A device without memory for it gets `ASSUMED`.
    """
    path, key = speeds_path(), _name_of(device)
    if known := _known(path, key):
        return known
    try:
        lock = hold(path.with_suffix(".lock"), PATIENCE_S)
    except OSError:
        lock = None  # a folder that cannot be written
    try:
        return _known(path, key) or _measured_and_kept(device, path, key)
    finally:
        if lock is not None:
            os.close(lock)


def _measured_and_kept(device: torch.device, path: Path, key: str) -> Speed:
    try:
        measured = measure(device)
    except torch.OutOfMemoryError:
        return ASSUMED
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**_read(path), key: list(measured[:3])})
    except OSError:
        pass  # measured again by the next process
    return measured


def measure(device: torch.device) -> Speed:
    """The speeds of `device`, within two seconds on an idle machine.

    Raises:
        torch.OutOfMemoryError: too little memory is free.
    """
    try:
        return Speed(_products(device), _copies(device), _updates())
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def speeds_path() -> Path:
    """The file with the speeds of all devices that this user has measured."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "flowloom" / "speeds.json"


def _name_of(device: torch.device) -> str:
    """Names everything that the speeds depend on; several machines may share the folder."""
    parts = [platform.node(), f"torch {torch.__version__}", f"{torch.get_num_threads()} threads"]
    if device.type == "cuda":
        driver = DRIVER.read_text().partition("\n")[0] if DRIVER.exists() else ""
        return ", ".join([*parts, torch.cuda.get_device_name(device), driver.strip()])
    return ", ".join([*parts, device.type])


def _known(path: Path, key: str) -> Speed | None:
    found = _read(path).get(key)
    numbers = [each for each in found if isinstance(each, float)] if is_array(found) else []
    if len(numbers) != 3 or not all(math.isfinite(number) and number > 0 for number in numbers):
        return None
    return Speed(numbers[0], numbers[1], numbers[2])


def _read(path: Path) -> dict[str, object]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if is_object(content) else {}


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few rounds."""
    best, started = math.inf, time.perf_counter()
    for number in range(8):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        spent = time.perf_counter() - start
        # The first one also starts threads and libraries.
        best = min(best, spent) if number else best
        if number > 1 and time.perf_counter() - started > LONGEST_S:
            break
    return best


def _products(device: torch.device) -> float:
    """Operations per second."""
    side = PRODUCT_SIDE[device.type]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty_like(left)
    return 2 * side**3 / _shortest(lambda: torch.mm(left, left, out=out), device)


def _copies(device: torch.device) -> float:
    """Bytes per second; on a device without separate memory, of copies within it."""
    is_separate = device.type == "cuda"
    host = page_locked(COPIED_BYTES) if is_separate else torch.empty(COPIED_BYTES, dtype=torch.uint8)
    host.zero_()
    there = torch.empty_like(host, device=device)
    to = _shortest(lambda: there.copy_(host, non_blocking=True), device)
    back = _shortest(lambda: host.copy_(there, non_blocking=True), device)
    return COPIED_BYTES / max(to, back)


def _updates() -> float:
    """Weights per second, from gradients in bfloat16, as `optimizer.device: cpu` updates them."""
    weight = nn.Parameter(torch.zeros(UPDATED))
    gradient, target = (torch.zeros(UPDATED, dtype=torch.bfloat16) for _ in range(2))
    updates = SingleUpdates(torch.optim.AdamW([weight], fused=True))
    return UPDATED / _shortest(lambda: updates.step_from(weight, gradient, target), torch.device("cpu"))
