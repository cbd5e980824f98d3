"""A checkpoint in the background: the training's delay over that of one that training waits for, equal files.

The delay of a save is the time of all steps until its checkpoint is on the disk, over that of as many steps
without a save: the copy to host memory, and what the writing takes from the steps beside it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_step import network, random_batch
from benchmarks.timing import Measured
from flowloom.config.run import RunConfig
from flowloom.engine.objective import Objective
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.report import Reporter
from flowloom.engine.retention import size_of
from flowloom.engine.saves import Saves
from flowloom.engine.state import Network, Precision, TrainState
from flowloom.engine.step import train_step
from flowloom.flow_matching.noise_level import flow_quantile
from flowloom.nn.chroma import ChromaParams
from flowloom.run.directory import RunDir

TARGET = 0.2
WIDE = ChromaParams(64, 256, 640, 4.0, 20, 2, 4, (4, 14, 14), 10_000, True, 64, 2, 256)
"""49 million parameters: a checkpoint of 900 MB with the average and AdamW's moments."""
ROUNDS = 3


def run() -> Measured:
    """Ratio of the delays' medians. The steps leave a core to the writing, as an accelerator would."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured()
    finally:
        torch.set_num_threads(num_threads)


def _measured() -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir.create("save-stall", folder)
        state = make_state()
        (saves, waiting_saves), step = (_saver(run_dir, state) for _ in range(2)), _step(state)
        for _ in range(2):
            step()
        is_equal = _both_equal(run_dir, saves, waiting_saves)
        delays: dict[bool, list[float]] = {True: [], False: []}
        copies: list[float] = []
        usual = 0.0
        for _ in range(ROUNDS):
            usual = statistics.median(_seconds(step) for _ in range(3))
            for in_background in (True, False):
                delay, stopped = _delay(saves, step, usual, in_background=in_background)
                delays[in_background].append(delay)
                if in_background:
                    copies.append(stopped)
        size = size_of(run_dir.latest_checkpoint())
        beside, waiting = statistics.median(delays[True]), statistics.median(delays[False])
    return Measured(
        ratio=beside / waiting,
        target=TARGET,
        correct=is_equal,
        higher_is_better=False,
        detail={
            "checkpoint_mib": size / 2**20,
            "step_s": usual,
            "delay_in_background_s": beside,
            "delay_waiting_s": waiting,
            "copy_s": statistics.median(copies),
        },
    )


def make_state() -> TrainState:
    """A full fine-tune with an average, on the CPU."""
    config = RunConfig.model_validate(
        {"ema": {"decay": 0.99}, "checkpoint": {"keep_last": 1}, "training": {"train_minibatch": 1}}
    )
    precision = Precision(torch.device("cpu"), torch.float32, torch.float32)
    return TrainState(config, Network(network(params=WIDE)), Objective(flow_quantile), precision, Ranks())


def _saver(run_dir: RunDir, state: TrainState) -> Saves:
    return Saves(run_dir, state, Reporter(None, lambda _event: None), {})


def _step(state: TrainState) -> Callable[[], object]:
    (batch, *_) = random_batch().split(1)
    return lambda: train_step(state, batch).loss.item()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _delay(
    saves: Saves, step: Callable[[], object], usual: float, *, in_background: bool
) -> tuple[float, float]:
    """Seconds that a save adds to the steps until it is finished, and those in which no step runs."""
    stopped = _seconds(lambda: saves.save(in_background=in_background))
    steps = 0.0
    for count in itertools.count(1):
        steps += _seconds(step)
        if not saves.is_writing:
            saves.wait()
            return stopped + steps - count * usual, stopped
    raise AssertionError


def _both_equal(run_dir: RunDir, saves: Saves, waiting: Saves) -> bool:
    """True if the checkpoint in the background equals the other, byte for byte."""
    saves.save(in_background=True)
    saves.wait()
    written = run_dir.checkpoint_dir(saves.state.position.step)
    kept = Path(shutil.move(written, run_dir.path / "in_background"))
    waiting.save()
    is_equal = _content(kept) == _content(written)
    shutil.rmtree(kept)
    return is_equal


def _content(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    files["state/trainer.json"] = json.loads(files["state/trainer.json"])
    return files
