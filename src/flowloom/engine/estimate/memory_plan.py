"""The memory plan: how many blocks recompute and stream, and what is in host memory, so that a run fits.

The preflight shows it, and the run uses it: both call `plan_memory`. Explicit values are kept. Of what is
`auto`, the measure with the smallest slow-down for a byte comes first, and no more of it than needed.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import torch

from flowloom.config.memory_checks import largest_update
from flowloom.config.run import ADAPTERS, RunConfig
from flowloom.engine.estimate.footprint import (
    PARKED,
    block_input_bytes,
    device_bytes,
    host_bytes,
    snapshot_bytes,
    streamed_bytes,
)
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.estimate.speed import ASSUMED, Speed, speed_of
from flowloom.engine.host_memory import SNAPSHOT_ROOM
from flowloom.engine.memory import (
    HEADROOM,
    Choice,
    free_bytes,
    free_host_bytes,
    sample_tokens,
    streamed_blocks,
)
from flowloom.engine.parallel.ranks import Ranks
from flowloom.errors import ConfigError, Problem
from flowloom.models.family import family_for


class Machine(NamedTuple):
    """The memory and speed that a plan is made for."""

    device: torch.device
    free: int
    """Bytes that are free on the device before the run."""
    host_free: int | None = None
    """Bytes that are free on the host for this device; None: not known, or the same memory."""
    speed: Speed = ASSUMED
    num_ranks: int = 1
    """Ranks that share a batch."""

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """This machine, with assumed speeds; each local rank takes a part of the host's memory."""
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if device.type != "cuda":
            return cls(device, free_bytes(device), num_ranks=num_ranks)
        host_free, sharing = free_host_bytes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        each = None if host_free is None else host_free // sharing
        return cls(device, free_bytes(device), each, num_ranks=num_ranks)

    def measured(self) -> Machine:
        """With the speeds of this machine; see `speed_of`."""
        return self._replace(speed=speed_of(self.device))

    @property
    def has_host_memory(self) -> bool:
        """True if the host has memory that is not the device's."""
        return self.device.type == "cuda"


class Taken(NamedTuple):
    """A measure of a plan, with what it saves and costs after those before it."""

    key: str
    value: int | bool | str
    saved: int
    """Bytes on the device."""
    slow_down: float
    """Added share of a step's time, expected."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a step by part, and how it is made to fit."""

    choice: Choice
    parts: dict[str, int]
    """Bytes on the device."""
    host_parts: dict[str, int]
    room: float
    """Bytes on the device to plan with."""
    host_free: int | None
    measures: tuple[Taken, ...]
    slow_down: float
    """Expected share of a step's time that all measures add."""
    snapshot: int
    """Bytes of host memory for a copy of what training changes, while a checkpoint is written."""
    snapshot_room: float | None
    """Bytes that are left for it; None: not known."""
    speed: Speed

    @property
    def total(self) -> int:
        """All parts on the device."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> int:
        """All parts on the host."""
        return sum(self.host_parts.values())

    @property
    def fits_host(self) -> bool:
        """True if the host has room for the parts that it needs from the start."""
        later = self.host_parts.get(PARKED, 0)
        return self.host_free is None or self.host_total - later <= self.host_free

    @property
    def fits(self) -> bool:
        """True if device and host have room."""
        return self.total <= self.room and self.fits_host


def plan_memory(config: RunConfig, networks: Networks, machine: Machine) -> MemoryPlan:
    """The plan for `config`; if nothing suffices, the one with every measure that `auto` allows."""
    run = _Planned(config, networks, machine)
    choice = run.given()
    while run.total(choice) > run.room:
        offers = [offered for offer in MEASURES.values() if (offered := run.allowed(offer, choice))]
        if not offers:
            break
        choice = min((run.least(offered) for offered in offers), key=partial(run.price, choice))
    return run.plan(choice)


class _Planned:
    """A run on a machine, to compare choices."""

    def __init__(self, config: RunConfig, networks: Networks, machine: Machine):
        self.config, self.networks, self.machine = config, networks, machine
        self.room = HEADROOM * machine.free
        self.num_blocks = networks.params.num_blocks
        self.activations = family_for(config.model).defaults.activations
        family, samples = family_for(config.model), config.training.train_minibatch
        flops = family.flops(networks.params, *sample_tokens(config))
        useful = flops.adapter_training if config.method_kind in ADAPTERS else flops.full_training
        self._forward_s = samples * flops.forward / machine.speed.flops_per_s
        self._step_s = samples * useful / machine.speed.flops_per_s
        self._update_s = self._host_update_s(samples)

    def _host_update_s(self, samples: int) -> float:
        """Seconds of a micro-batch's share of an update on the host."""
        config, machine = self.config, self.machine
        if config.optimizer.device != "cpu" or not machine.has_host_memory:
            return 0.0
        micro_batches = math.ceil(largest_update(config) / machine.num_ranks / samples)
        return self.networks.trained / machine.speed.updates_per_s / micro_batches

    def given(self) -> Choice:
        """The choice that the configuration makes, with as little as possible where it is `auto`."""
        memory, num_blocks = self.config.memory, self.num_blocks
        count = {"auto": 0, "all": num_blocks}
        blocks = count.get(str(memory.checkpointed_blocks), memory.checkpointed_blocks)
        streamed = count.get(str(memory.streamed_blocks), memory.streamed_blocks)
        assert isinstance(blocks, int)
        assert isinstance(streamed, int)
        is_offloaded = memory.offload_activations is True
        is_auto = memory.checkpointed_blocks == "auto"
        if streamed or (is_offloaded and is_auto):
            return Choice(num_blocks, 0, min(streamed, num_blocks), is_offloaded)
        blocks = min(blocks, num_blocks)
        return Choice(0, blocks) if memory.checkpointed_parts == "ffn" else Choice(blocks, 0, 0, is_offloaded)

    def allowed(self, offer: Callable[[_Planned, Choice], Sequence[Choice]], choice: Choice) -> list[Choice]:
        """The choices of a measure that the host has room for; empty if the last one saves no memory."""
        offered, free = offer(self, choice), self.machine.host_free
        if free is not None:
            offered = offered[: bisect_left(offered, True, key=lambda each: self.host_total(each) > free)]
        return list(offered) if offered and self.total(offered[-1]) < self.total(choice) else []

    def least(self, offered: list[Choice]) -> Choice:
        """The first choice that fits; the last one if none does."""
        index = bisect_left(offered, True, key=lambda each: self.total(each) <= self.room)
        return offered[min(index, len(offered) - 1)]

    def price(self, choice: Choice, other: Choice) -> float:
        """Seconds that each byte costs which `other` saves."""
        return (self.seconds(other) - self.seconds(choice)) / (self.total(choice) - self.total(other))

    def total(self, choice: Choice) -> int:
        return sum(device_bytes(self.config, self.networks, self.machine.device, choice).values())

    def host_total(self, choice: Choice) -> int:
        parts = host_bytes(self.config, self.networks, self.machine.device, choice)
        return sum(parts.values()) - parts.get(PARKED, 0)

    def seconds(self, choice: Choice) -> float:
        """Expected duration of a micro-batch: the longer of computing and copying, and the host's update.

        With fused backward the host updates meanwhile; otherwise it begins after the last micro-batch.
        """
        shares = choice.blocks * self.activations.block_cost + choice.ffn * self.activations.ffn_cost
        computing = self._step_s + shares / self.num_blocks * self._forward_s
        device = self.machine.device
        # Streamed weights are copied to the device twice, inputs once in each direction.
        copied = 2 * streamed_bytes(self.config, self.networks, device, choice)
        if choice.is_offloaded:
            copied += choice.blocks * block_input_bytes(self.config, self.networks, device)
        busy = max(computing, copied / self.machine.speed.copy_bytes_per_s)
        return max(busy, self._update_s) if self.config.memory.fused_backward else busy + self._update_s

    def plan(self, choice: Choice) -> MemoryPlan:
        """The plan with this choice."""
        config, networks, device = self.config, self.networks, self.machine.device
        return MemoryPlan(
            choice,
            device_bytes(config, networks, device, choice),
            host_bytes(config, networks, device, choice) if self.machine.has_host_memory else {},
            self.room,
            self.machine.host_free,
            tuple(self._taken(choice)),
            self.seconds(choice) / self._step_s - 1,
            snapshot_bytes(config, networks, device),
            self._snapshot_room(choice),
            self.machine.speed,
        )

    def _snapshot_room(self, choice: Choice) -> float | None:
        """Host memory beside that of the steps."""
        machine = self.machine
        if machine.has_host_memory:
            return None if machine.host_free is None else machine.host_free - self.host_total(choice)
        return machine.free - self.total(choice)

    def _taken(self, choice: Choice) -> list[Taken]:
        """The measures in `choice`, each after those before it."""
        stages = (
            ("memory.checkpointed_parts", "ffn", Choice(0, choice.ffn)),
            ("memory.checkpointed_blocks", choice.blocks, choice._replace(streamed=0, is_offloaded=False)),
            ("memory.offload_activations", choice.is_offloaded, choice._replace(streamed=0)),
            ("memory.streamed_blocks", choice.streamed, choice),
        )
        taken: list[Taken] = []
        before, whole = Choice(), self._step_s
        if self._update_s:
            taken.append(
                Taken("optimizer.device", "cpu", self._saved_on_host(), self.seconds(before) / whole - 1)
            )
        for key, value, after in stages:
            if after != before:
                saved = self.total(before) - self.total(after)
                slow_down = (self.seconds(after) - self.seconds(before)) / whole
                taken.append(Taken(key, value, saved, slow_down))
            before = after
        return taken

    def _saved_on_host(self) -> int:
        """Bytes on the device that `optimizer.device: cpu` saves."""
        optimizer = self.config.optimizer.model_copy(update={"device": "auto"})
        config = self.config.model_copy(update={"optimizer": optimizer})
        resident = device_bytes(config, self.networks, self.machine.device, Choice())
        return sum(resident.values()) - self.total(Choice())


def _recompute_ffn(run: _Planned, choice: Choice) -> Sequence[Choice]:
    memory = run.config.memory
    if memory.checkpointed_blocks != "auto" or memory.checkpointed_parts == "block":
        return ()
    return [choice._replace(ffn=count) for count in range(choice.ffn + 1, run.num_blocks - choice.blocks + 1)]


def _recompute_blocks(run: _Planned, choice: Choice) -> Sequence[Choice]:
    memory = run.config.memory
    if memory.checkpointed_blocks != "auto" or memory.checkpointed_parts == "ffn":
        return ()
    counts = range(choice.blocks + 1, run.num_blocks + 1)
    return [choice._replace(blocks=count, ffn=min(choice.ffn, run.num_blocks - count)) for count in counts]


def _offload(run: _Planned, choice: Choice) -> Sequence[Choice]:
    if run.config.memory.offload_activations != "auto" or choice.is_offloaded or not _may_copy(run, choice):
        return ()
    return [choice._replace(is_offloaded=True)]


def _stream(run: _Planned, choice: Choice) -> Sequence[Choice]:
    config = run.config
    is_trained = config.method_kind == "full" and config.optimizer.device != "cpu"
    if config.memory.streamed_blocks != "auto" or is_trained or not _may_copy(run, choice):
        return ()
    if config.parallel.strategy in ("fsdp", "deepspeed"):
        return ()
    most = config.memory.offload_param_count or math.inf
    sizes = run.networks.block_sizes
    counts = range(choice.streamed + 1, run.num_blocks + 1)
    return [choice._replace(streamed=n) for n in counts if sum(streamed_blocks(n, sizes)) <= most]


def _may_copy(run: _Planned, choice: Choice) -> bool:
    """True if copies to the host save memory, and all blocks recompute."""
    return run.machine.has_host_memory and choice.blocks == run.num_blocks


MEASURES: Mapping[str, Callable[[_Planned, Choice], Sequence[Choice]]] = {
    "memory.checkpointed_parts": _recompute_ffn,
    "memory.checkpointed_blocks": _recompute_blocks,
    "memory.offload_activations": _offload,
    "memory.streamed_blocks": _stream,
}
"""Measures by the key whose `auto` allows them: choices from a choice, each with more of the measure."""


def shared_plan(config: RunConfig, device: torch.device, ranks: Ranks) -> MemoryPlan:
    """The plan of a run for the rank with the least memory, so that all ranks have the same.

    Raises:
        ConfigError: the host has too little memory.
    """
    here, networks = Machine.here(device), Networks.from_config(config)
    machines = ranks.gathered([(here.free, here.host_free or 0)])
    free, host_free = (min(sizes) for sizes in zip(*machines, strict=True))
    least = here._replace(free=free, host_free=None if here.host_free is None else host_free)
    parallel = config.parallel
    if parallel.strategy == "fsdp":
        networks = networks.shard(parallel.shard_ranks or ranks.size)
    elif parallel.strategy == "deepspeed" and parallel.zero_stage == 3:
        networks = networks.shard(ranks.size)
    plan = plan_memory(config, networks, least)
    if plan.measures:
        # Only their order depends on the speeds. All ranks need the same plan.
        speeds = ranks.gathered([speed_of(device)])
        plan = plan_memory(config, networks, least._replace(speed=reduce(Speed.slowest, speeds)))
    require_host_memory(plan)
    return plan


def snapshot_hint(plan: MemoryPlan) -> str | None:
    """A sentence if training will wait while checkpoints are written, because the host has no room."""
    needed, room = SNAPSHOT_ROOM * plan.snapshot, plan.snapshot_room
    if room is None or not plan.snapshot or needed <= room:
        return None
    return (
        f"checkpoint.in_background: training waits while checkpoints are written, because their copy needs "
        f"{needed / 1e9:.1f} GB of host memory, and {max(room, 0) / 1e9:.1f} GB are left."
    )


def require_host_memory(plan: MemoryPlan) -> None:
    """Check that the host has room.

    Raises:
        ConfigError: it has not.
    """
    if not plan.fits_host:
        raise ConfigError("the configuration", [host_problem(plan)])


def host_problem(plan: MemoryPlan) -> Problem:
    """The problem of a plan for which the host has too little memory."""
    parts = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in plan.host_parts.items())
    free = (plan.host_free or 0) / 1e9
    message = (
        f"needs {plan.host_total / 1e9:.1f} GB of host memory ({parts}), and {free:.1f} GB are free. Stream "
        "fewer blocks or quantize the base."
    )
    return Problem("memory.streamed_blocks", message)
