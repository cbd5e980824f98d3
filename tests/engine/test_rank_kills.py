"""kill -9 of any ranks at any moment loses nothing, and the run continues on any number of ranks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flowloom.engine.checkpoint import SHARDS
from flowloom.run.directory import RunDir
from flowloom.run.events import read_events
from tests.engine.processes import ForkedProcess, free_port, rank_environment, run_ranks, start_engine
from tests.engine.test_resume import losses, tensors_of, wait_for_first_step

pytestmark = pytest.mark.slow
STEPS = 16
SECTIONS: dict[str, Any] = {
    "training": {"save_every": 1, "lr": 1e-3, "warmup_steps": 2, "updates_per_large_batch": 2},
    "ema": {"decay": 0.9},
    "limits": {"max_steps": STEPS},
}
STRATEGIES: dict[str, dict[str, Any]] = {"ranks": {}, "fsdp": {"strategy": "fsdp"}}
VICTIMS = ([0], [1], [0, 1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_killed_at_random_moments_lose_nothing(
    make_run: Callable[..., RunDir], record_property: Callable[[str, object], None], strategy: str
) -> None:
    """Each step is saved in the background, so that most kills fall within a save."""
    parallel = {"device": "cpu", "num_threads": 1, **STRATEGIES[strategy]}
    whole, killed = (make_run(name, **SECTIONS, parallel=parallel) for name in ("whole", "killed"))
    assert run_ranks(whole, 2) == 0
    seed = int.from_bytes(os.urandom(4))
    record_property("seed", seed)
    draw = random.Random(seed)
    num_kills = 0
    for victims in VICTIMS:
        ranks = start(killed, 2)
        wait_for_first_step(killed, ranks[0])
        time.sleep(draw.uniform(0, 0.6))
        num_kills += kill(ranks, victims)
    assert num_kills, f"seed {seed}: the run was over before the first kill"
    assert run_ranks(killed, 2) == 0
    assert losses(killed) == losses(whole), f"seed {seed}"
    assert sorted(losses(killed)) == list(range(1, STEPS + 1))
    latest = killed.latest_checkpoint()
    assert latest is not None
    assert (latest / "state" / SHARDS).exists() == (strategy == "fsdp")
    expected, found = tensors_of(whole), tensors_of(killed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    assert list(read_events(killed.events_jsonl))[-1]["kind"] == "finished"
    assert not list(killed.path.rglob("*.tmp"))


def start(run_dir: RunDir, num_ranks: int) -> list[ForkedProcess]:
    port = free_port()
    return [start_engine(run_dir, rank_environment(rank, num_ranks, port)) for rank in range(num_ranks)]


def kill(ranks: Sequence[ForkedProcess], victims: Sequence[int]) -> int:
    """Kill some ranks, then end the others as torchrun does; the number of ranks that were alive."""
    num_alive = sum(rank.poll() is None for rank in ranks)
    for victim in victims:
        ranks[victim].send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    for rank in ranks:
        while rank.poll() is None:
            if time.monotonic() > deadline:
                rank.send_signal(signal.SIGKILL)
            time.sleep(0.02)
    return num_alive
