"""Streamed blocks over a simulated copy engine: wall time over the longer of copying and computing."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.full_step import SMALL
from benchmarks.passes import forward_backward, network, random_inputs
from benchmarks.timing import Measured, one_thread
from flowloom.engine.offload.copies import CpuCopies
from flowloom.engine.offload.streaming import BlockStreamer
from flowloom.nn.chroma import Chroma
from flowloom.nn.recompute import Recompute
from flowloom.nn.varlen import predict

TARGET = 1 / 0.85
BATCH, TEXT_TOKENS, REPEATS = 2, 40, 5
SPEEDS = {"compute_bound": 2.0, "copy_bound": 0.25}
"""Bandwidth in multiples of that at which a block is copied in the time of its forward pass."""


class SimulatedCopies(CpuCopies):
    """A copy engine that works beside the computation at a set bandwidth, one copy after the other."""

    def __init__(self, bytes_per_s: float):
        self.bytes_per_s = bytes_per_s
        self.copied_bytes = 0
        self._queue: queue.SimpleQueue[tuple[Tensor, Tensor, threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def start(self, target: Tensor, source: Tensor) -> threading.Event:
        arrived = threading.Event()
        self._queue.put((target, source, arrived))
        return arrived

    def wait(self, copy: threading.Event) -> None:
        copy.wait()

    def _work(self) -> None:
        while True:
            target, source, arrived = self._queue.get()
            end = time.perf_counter() + source.nbytes / self.bytes_per_s
            target.copy_(source)
            self.copied_bytes += source.nbytes
            time.sleep(max(0.0, end - time.perf_counter()))
            arrived.set()


def run() -> Measured:
    """The larger ratio of two bandwidths; correct when gradients are equal and the device holds the ring."""
    inputs = random_inputs([TEXT_TOKENS] * BATCH)
    resident, streamed = frozen_network(), frozen_network()
    blocks = [block for _, block in streamed.blocks()]
    copies = SimulatedCopies(1e12)
    streamer = BlockStreamer(blocks, torch.device("cpu"), copies)
    streamer.adopt()
    passes = [
        forward_backward(model, lambda model=model: predict(model, *inputs)) for model in (streamed, resident)
    ]
    with one_thread():
        for one_pass in passes:
            one_pass()
        is_equal = all(
            torch.equal(a.grad, b.grad)
            for a, b in zip(streamed.parameters(), resident.parameters(), strict=True)
            if a.grad is not None and b.grad is not None
        )
        # A pass with recomputation is four forward passes of each block.
        forward_s = median_of(passes[1])[0] / 4
        ratios: dict[str, float] = {}
        for name, speed in SPEEDS.items():
            copies.bytes_per_s = speed * streamer.host_bytes / forward_s
            ratios[name] = ratio_at(copies, *passes)
    largest = max(sum(weight.nbytes for weight in block.parameters()) for block in blocks)
    return Measured(
        ratio=max(ratios.values()),
        target=TARGET,
        correct=is_equal and streamer.device_bytes <= 3 * largest,
        higher_is_better=False,
        detail=ratios
        | {"device_mib": streamer.device_bytes / 2**20, "host_mib": streamer.host_bytes / 2**20},
    )


def ratio_at(copies: SimulatedCopies, ours: Callable[[], None], theirs: Callable[[], None]) -> float:
    """Wall time of the streamed pass over the longer of its copies and the resident pass."""
    before = copies.copied_bytes
    ours()
    copy_s = (copies.copied_bytes - before) / copies.bytes_per_s
    wall_s, compute_s = median_of(ours, theirs)
    return wall_s / max(copy_s, compute_s)


def median_of(*calls: Callable[[], None]) -> list[float]:
    """Median wall seconds of each call, run alternately."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, kept in zip(calls, seconds, strict=True):
            began = time.perf_counter()
            call()
            kept.append(time.perf_counter() - began)
    return [statistics.median(kept) for kept in seconds]


def frozen_network() -> Chroma:
    """16 frozen blocks that recompute, behind a trained layer."""
    model = network(params=replace(SMALL, depth=4, depth_single_blocks=12))
    model.requires_grad_(False)
    model.img_in.requires_grad_(True)
    model.recompute = Recompute(len(model.blocks()))
    return model
