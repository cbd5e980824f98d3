"""Offloaded activations: the same losses and weights, bit for bit; copies overlap with computation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.offload.activations import ActivationOffload
from flowloom.engine.offload.copies import CpuCopies, copies_to
from flowloom.errors import ConfigError
from flowloom.nn.recompute import Recompute
from flowloom.run.directory import RunDir
from tests.engine.test_streaming import LORA, ROTATION, assert_equal, results, with_everything

METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({"lora": LORA, "training": {"train_minibatch": 2}}, {"checkpointed_blocks": 2}),
    "rotation, streamed": ({"training": ROTATION}, {"streamed_blocks": "all"}),
    "full": ({}, {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_offloaded_activations_equals_a_resident_one_bit_for_bit(
    method: str, make_run: Callable[..., RunDir]
) -> None:
    sections, memory = METHODS[method]
    found = []
    for name, section in (
        ("resident", {"checkpointed_blocks": 0}),
        ("offloaded", memory | {"offload_activations": True}),
    ):
        run_dir = make_run(name, **with_everything(sections), memory=section)
        run_engine(run_dir)
        found.append(results(run_dir))
    assert len(found[0][0]) > 5
    assert_equal(*found)


class TracedCopies(CpuCopies):
    """Copies that arrive when they are waited for: computation that does not wait finds NaN."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.host_bytes: list[int] = []
        self.on_device: weakref.WeakSet[Any] = weakref.WeakSet()
        self._host: set[int] = set()

    def host_buffer(self, num_bytes: int) -> Tensor:
        buffer = super().host_buffer(num_bytes)
        self._host.add(buffer.data_ptr())
        self.host_bytes.append(num_bytes)
        return buffer

    def device_buffer(self, num_bytes: int) -> Tensor:
        return super().host_buffer(num_bytes)

    def start(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        is_back = source.data_ptr() in self._host
        self.trace.append(f"{'back' if is_back else 'out'} {len(source)}")
        target.fill_(torch.nan)
        return target, source

    def wait(self, copy: tuple[Tensor, Tensor]) -> None:
        target, source = copy
        target.copy_(source)


class Chain(nn.Module):
    """Blocks whose inputs have 1, 2, 3 ... samples, so that the trace names them."""

    def __init__(self, count: int, recompute: Recompute, trace: list[str]):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Parameter(torch.ones(3))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3)) for _ in range(count))
        self.recompute, self.devices = recompute, []
        for i, block in enumerate(self.blocks):
            block.register_forward_pre_hook(lambda *_, i=i + 1: trace.append(f"run {i}"))

    def forward(self, x: Tensor) -> Tensor:
        self.recompute.start()
        x = x * self.first
        for block in self.blocks:
            self.devices.append(weakref.ref(x.untyped_storage()))
            x = self.recompute(block, x)
            x = torch.cat((x, x[:1]))
        return x


def chain(count: int) -> tuple[Chain, Chain, TracedCopies]:
    """A resident chain, the same one with offloaded activations, and its copies."""
    copies = TracedCopies()
    resident = Chain(count, Recompute(count), [])
    return (
        resident,
        Chain(count, Recompute(count, keeping=ActivationOffload(copies).keeping), copies.trace),
        copies,
    )


def test_an_input_returns_while_the_block_after_it_computes() -> None:
    resident, offloaded, copies = chain(4)
    x = torch.randn(1, 2, 3)
    for _ in range(2):
        ours, theirs = offloaded(x), resident(x)
        assert torch.equal(ours, theirs)
        ours.square().sum().backward()
        theirs.square().sum().backward()
        forward = "out 1, run 1, out 2, run 2, out 3, run 3, out 4, run 4"
        backward = "back 3, run 4, back 2, run 3, back 1, run 2, run 1"
        assert ", ".join(copies.trace) == f"{forward}, {backward}"
        copies.trace.clear()
    for ours, theirs in zip(offloaded.parameters(), resident.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad if theirs.grad is not None else torch.empty(0))


def test_the_device_keeps_one_input_after_the_forward_pass() -> None:
    _, offloaded, _ = chain(5)
    result = offloaded(torch.randn(1, 2, 3))
    gc.collect()
    assert [bool(storage()) for storage in offloaded.devices] == [False] * 4 + [True]
    result.sum().backward()
    del result
    gc.collect()
    assert not any(storage() for storage in offloaded.devices)


def test_host_buffers_are_used_again_and_grow_with_larger_inputs() -> None:
    _, offloaded, copies = chain(3)
    for tokens, total in ((2, 3), (2, 3), (1, 3), (4, 5), (4, 5)):
        offloaded(torch.randn(1, tokens, 3)).sum().backward()
        assert len(copies.host_bytes) == total


def test_two_forward_passes_before_a_backward_pass_give_equal_gradients() -> None:
    """As with captions of several lengths in a micro-batch."""
    resident, offloaded, _ = chain(3)
    inputs = [torch.randn(1, 2, 3), torch.randn(1, 5, 3)]
    for network in (resident, offloaded):
        torch.stack([network(x).square().sum() for x in inputs]).sum().backward()
    for ours, theirs in zip(offloaded.parameters(), resident.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"offload_activations": True, "checkpointed_blocks": 0}, "needs memory.checkpointed_blocks above 0"),
        (
            {"offload_activations": True, "checkpointed_parts": "ffn"},
            "or block with memory.offload_act",
        ),
        (
            {"streamed_blocks": 1, "checkpointed_parts": "ffn"},
            "or block with memory.streamed_blocks",
        ),
    ],
)
def test_settings_that_exclude_offloading_are_rejected_with_their_key(
    memory: dict[str, Any], message: str, make_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(memory=memory, lora=LORA)
    with pytest.raises(ConfigError, match=r"memory\.offload_activations"):
        copies_to(torch.device("mps"), "memory.offload_activations")
