"""Parameters and AdamW's states of a sharded rank, of 2 and of 4: bytes over 1/2 and 1/4 of one rank's.

Counts all tensors that live between two steps, buffers and padding included.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.full_step import BATCH, SMALL, random_batch
from benchmarks.timing import Measured
from flowloom.config.run import RunConfig
from flowloom.engine.build import load_for_training
from flowloom.engine.objective import Objective
from flowloom.engine.parallel.ranks import Ranks, join_ranks, leave_ranks
from flowloom.engine.state import Precision, TrainState
from flowloom.engine.step import train_step
from flowloom.flow_matching.noise_level import flow_quantile
from flowloom.models.weights import save_weights
from flowloom.nn.tiny import random_chroma_weights

TARGET = 1.1
SIZES = (1, 2, 4)
STEPS = 2


def run() -> Measured:
    """The largest rank's bytes against an even share; correct when losses equal those of one rank."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chroma.safetensors"
        weights = random_chroma_weights(SMALL, seed=0)
        draw = torch.Generator().manual_seed(0)
        save_weights(
            path, {n: w + 0.02 * torch.randn(w.shape, generator=draw) for n, w in weights.items()}, {}
        )
        found = {size: _on_ranks(size, path) for size in SIZES}
    losses = {size: [loss for loss, _ in ranks] for size, ranks in found.items()}
    sizes = {size: max(num_bytes for _, num_bytes in ranks) for size, ranks in found.items()}
    difference = max(abs(loss / losses[1][0] - 1) for of_size in losses.values() for loss in of_size)
    ratios = {size: sizes[size] * size / sizes[1] for size in SIZES[1:]}
    return Measured(
        ratio=max(ratios.values()),
        target=TARGET,
        correct=difference < 1e-5,
        higher_is_better=False,
        detail={f"mib_of_{size}": num_bytes / 2**20 for size, num_bytes in sizes.items()}
        | {f"ratio_of_{size}": ratio for size, ratio in ratios.items()},
    )


def _on_ranks(size: int, path: Path) -> list[tuple[float, int]]:
    """The last loss, and the bytes of each rank."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command = [sys.executable, *launch, "-m", "benchmarks.fsdp_memory", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def _train(path: Path) -> None:
    ranks = join_ranks("cpu")
    loss, num_bytes = _steps(ranks, path)
    everything = ranks.gathered([(loss, num_bytes)])
    if ranks.is_first:
        print(json.dumps(everything))
    leave_ranks(ranks)


def _steps(ranks: Ranks, path: Path) -> tuple[float, int]:
    config = RunConfig.model_validate(
        {
            "training": {"train_minibatch": 1, "lr": 1e-4},
            "model": {"chroma_path": str(path)},
            "parallel": {"strategy": "fsdp", "device": "cpu", "num_threads": 1},
        }
    )
    precision = Precision(torch.device("cpu"), torch.float32, torch.float32)
    batch = random_batch()
    batch = batch.part(ranks.rank * BATCH // ranks.size, (ranks.rank + 1) * BATCH // ranks.size)
    before = _live_bytes()
    network = load_for_training(config, ranks, precision, num_streamed=0)
    state = TrainState(config, network, Objective(flow_quantile), precision, ranks)
    losses = [train_step(state, batch).loss.item() for _ in range(STEPS)]
    return losses[-1], _live_bytes() - before


def _live_bytes() -> int:
    """Bytes of all tensors, each memory once."""
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter))
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
