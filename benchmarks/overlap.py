"""Two ranks (gloo) over a link of set bandwidth: time of reduce-after-backward over ours.

The sums are real gloo all-reduces between two processes. gloo computes them on the cores that compute the
network, and memory of one machine is a faster link than any network. So a communication thread also waits
until a link would have moved the bytes, at the bandwidth that moves all gradients in half the time of a pass
forwards and backwards. `plain_gloo` in the detail is the ratio without this wait. Buckets are 1/16 of the
gradients; of the 8.9B network's they would be less.
"""

from __future__ import annotations

import json
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from benchmarks.passes import Inputs, network, random_inputs
from benchmarks.timing import Measured
from flowloom.engine.parallel import gradients
from flowloom.engine.parallel.ranks import Ranks
from flowloom.nn.chroma import Chroma
from flowloom.nn.varlen import predict

TARGET = 1.15
BATCH, TEXT_TOKENS, REPEATS, BUCKETS = 2, 40, 7, 16
TRANSFER_SHARE = 0.5
"""Time that the link needs for all gradients, in passes forwards and backwards."""


class LinkedRanks(Ranks):
    """Ranks whose sums pass through a link of `bytes_per_s`, one after the other."""

    bytes_per_s = float("inf")

    def start_sum(self, value: Tensor) -> Any:
        sum_ = _Sum(value, self.bytes_per_s)
        _link().put(sum_)
        return sum_


class _Sum:
    """A sum on its way; `wait` is that of torch's `Work`."""

    def __init__(self, value: Tensor, bytes_per_s: float):
        self._value, self._bytes_per_s = value, bytes_per_s
        self._is_done = threading.Event()

    def wait(self) -> None:
        self._is_done.wait()

    def run(self) -> None:
        end = time.perf_counter() + self._value.nbytes / self._bytes_per_s
        dist.all_reduce(self._value)
        time.sleep(max(0.0, end - time.perf_counter()))
        self._is_done.set()


_links: list[queue.SimpleQueue[_Sum]] = []


def _link() -> queue.SimpleQueue[_Sum]:
    """The queue of this process's communication thread."""
    if not _links:
        _links.append(queue.SimpleQueue())

        def work() -> None:
            while True:
                _links[0].get().run()

        threading.Thread(target=work, daemon=True).start()
    return _links[0]


def run() -> Measured:
    """Correct when the gradients of both are equal bit for bit on both ranks."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_work_of_rank, (folder,), nprocs=2, start_method="spawn")
        results = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in (0, 1)]
    # A pass ends when both ranks end it: barriers make their times equal.
    return Measured(
        ratio=results[0]["ratio"],
        target=TARGET,
        correct=all(result["is_equal"] for result in results),
        detail={name: results[0][name] for name in ("plain_gloo", "transfer_s", "pass_s", "mib")},
    )


def _work_of_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model, inputs = network(), random_inputs([TEXT_TOKENS] * BATCH, seed=rank)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    gradients.BUCKET_BYTES = num_bytes // BUCKETS
    ranks = LinkedRanks(rank, 2)
    summed = gradients.SummedGradients(ranks, parameters)
    overlapped, after = (_update(model, inputs, summed, overlaps=overlaps) for overlaps in (True, False))
    found = [_gradients(call, parameters) for call in (overlapped, after)]
    is_equal = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    plain_s, plain_after_s = _medians(overlapped, after)
    (pass_s,) = _medians(lambda: predict(model, *inputs).square().mean().backward())
    transfer_s = torch.tensor(TRANSFER_SHARE * pass_s)
    dist.broadcast(transfer_s, 0)
    LinkedRanks.bytes_per_s = num_bytes / transfer_s.item()
    ours_s, theirs_s = _medians(overlapped, after)
    result = {
        "ratio": theirs_s / ours_s,
        "plain_gloo": plain_after_s / plain_s,
        "transfer_s": transfer_s.item(),
        "pass_s": pass_s,
        "mib": num_bytes / 2**20,
        "is_equal": is_equal,
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _update(
    model: Chroma, inputs: Inputs, summed: gradients.SummedGradients, *, overlaps: bool
) -> Callable[[], None]:
    """A pass forwards and backwards with summed gradients; without overlap they are sent after it."""

    def update() -> None:
        model.zero_grad(set_to_none=True)
        summed.backward(predict(model, *inputs).square().mean(), is_last=overlaps)
        summed.finish(None)

    return update


def _gradients(call: Callable[[], None], parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    call()
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


def _medians(*calls: Callable[[], None]) -> list[float]:
    """Median wall seconds of each call, run alternately; both ranks begin each together."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, kept in zip(calls, seconds, strict=True):
            dist.barrier()
            began = time.perf_counter()
            call()
            kept.append(time.perf_counter() - began)
    return [statistics.median(kept) for kept in seconds]
