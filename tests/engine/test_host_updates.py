"""Host optimizer and fused backward: equal updates, few gradients at a time, only whole steps are saved."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.estimate.footprint import device_bytes, host_bytes
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import Choice
from flowloom.engine.offload.copies import CpuCopies
from flowloom.engine.offload.early import FusedGradients
from flowloom.engine.offload.host_gradients import HostGradients, HostSetup
from flowloom.engine.offload.staging import RING_SIZE
from flowloom.engine.offload.streaming import BlockStreamer
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.report import Reporter
from flowloom.engine.saves import Saves
from flowloom.engine.step import train_step
from flowloom.engine.stopping import Abandoned, StopSignals
from flowloom.run.directory import RunDir
from tests.engine.processes import run_ranks
from tests.engine.test_resume import change_by_flags, losses, stop_after
from tests.engine.test_step import state_and_batch
from tests.engine.test_streaming import BOTH, FUSED, HOST, LORA, Chain, LateCopies, assert_equal, results

# torch.compile's front end, which torchao imports at its first step.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
CPU = torch.device("cpu")
ROTATION = {"change_layer_every": 2, "trained_double_blocks": 1, "trained_single_blocks": 1}


def updates(config: RunConfig, count: int = 3) -> list[Any]:
    """Losses and gradient norms of some updates, then weights and optimizer states."""
    state, batch = state_and_batch(config)
    metrics = [train_step(state, batch) for _ in range(count)]
    numbers = [number.item() for step in metrics for number in (step.loss, step.grad_norm)]
    return [
        numbers,
        {name: weight.detach() for name, weight in state.weights.items()},
        state.optimizer_states(),
    ]


def assert_same_updates(ours: list[Any], theirs: list[Any]) -> None:
    assert ours[0] == theirs[0]
    assert all(number > 0 for number in ours[0])
    assert all(torch.equal(weight, theirs[1][name]) for name, weight in ours[1].items())
    assert ours[2].keys() == theirs[2].keys()
    for name, state in ours[2].items():
        for key, value in state.items():
            assert numbers_equal(value, theirs[2][name][key]), (name, key)


def numbers_equal(ours: Any, theirs: Any) -> bool:
    if flatten := getattr(ours, "__tensor_flatten__", None):  # low-bit states: codes and scales
        return all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in flatten()[0])
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(numbers_equal(ours[key], theirs[key]) for key in ours)
    return torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adamw_bf16", "adamw_lowbit"])
def test_every_optimizer_makes_equal_updates_on_the_host_and_in_the_backward_pass(
    kind: str, make_config: Callable[..., RunConfig]
) -> None:
    optimizer: dict[str, Any] = {"kind": kind}
    device = updates(make_config(optimizer=optimizer))
    assert_same_updates(updates(make_config(optimizer=optimizer, **FUSED)), device)
    host = optimizer | HOST["optimizer"]
    assert_same_updates(updates(make_config(optimizer=host, **FUSED)), device)


def test_micro_batches_are_added_up_and_clipped_on_the_host(make_config: Callable[..., RunConfig]) -> None:
    training, optimizer = {"train_minibatch": 1}, {"max_grad_norm": 0.05}
    device = updates(make_config(training=training, optimizer=optimizer))
    assert max(device[0][1::2]) > optimizer["max_grad_norm"]  # clipping has an effect
    host = optimizer | HOST["optimizer"]
    assert_same_updates(updates(make_config(training=training, optimizer=host)), device)


def test_a_stop_within_a_fused_backward_pass_waits_for_the_end_of_the_step(
    make_config: Callable[..., RunConfig],
) -> None:
    for sections, is_kept in ((FUSED, True), (FUSED | HOST, True), ({}, False), (HOST, False)):
        state, batch = state_and_batch(make_config(**sections))
        before = {name: weight.detach().clone() for name, weight in state.trained.items()}
        signals = StopSignals(grace_s=0.0)
        state.shield = signals.committing

        def stop(_: Tensor, signals: StopSignals = signals) -> None:
            signals.is_wished, signals._abandon_at = True, 0.0
            signals._look()

        list(state.trained.values())[len(before) // 2].register_hook(stop)
        if is_kept:
            with signals.interruptible():
                train_step(state, batch)
        else:
            with pytest.raises(Abandoned), signals.interruptible():
                train_step(state, batch)
            assert all(torch.equal(weight, before[name]) for name, weight in state.trained.items())
        assert state.is_whole
        assert state.position.step == is_kept


def test_a_failure_within_a_fused_backward_pass_leaves_a_state_that_is_not_saved(
    make_config: Callable[..., RunConfig],
) -> None:
    for sections, is_whole in ((FUSED, False), (FUSED | HOST, False), (HOST, True)):
        state, batch = state_and_batch(make_config(**sections))

        def fail(_: Tensor) -> None:
            raise MemoryError

        next(iter(state.trained.values())).register_hook(fail)
        with pytest.raises(MemoryError):
            train_step(state, batch)
        assert state.is_whole == is_whole
        assert state.position.step == 0


def test_a_checkpoint_does_not_double_the_memory_of_a_host_optimizer(make_run: Callable[..., RunDir]) -> None:
    for name, sections, is_copied in (("lora", {"lora": LORA}, True), ("full", {}, False)):
        run_dir = make_run(name, **HOST, **sections)
        state, batch = state_and_batch(run_dir.read_config())
        saves = Saves(run_dir, state, Reporter(None, lambda _: None), {})
        train_step(state, batch)
        saves.save(in_background=True)
        assert bool(saves._buffers._buffers) == is_copied
        assert is_copied or run_dir.latest_checkpoint()
        saves.wait()


def test_the_estimate_counts_the_copies_states_and_gradients_on_the_host(
    make_config: Callable[..., RunConfig],
) -> None:
    config = make_config(**HOST, memory={"streamed_blocks": "all"})
    state, batch = state_and_batch(config)
    train_step(state, batch)
    networks, cuda, choice = Networks.from_config(config), torch.device("cuda"), Choice(streamed=99)
    on_host, on_device = (
        host_bytes(config, networks, cuda, choice),
        device_bytes(config, networks, cuda, choice),
    )
    copies = sum(weight.nbytes for weight in state.updated.values())
    moments = sum(
        kept[name].nbytes for kept in state.optimizer_states().values() for name in ("exp_avg", "exp_avg_sq")
    )
    assert (on_host["trained weights"], on_host["optimizer"], on_host["gradients"]) == (
        copies,
        moments,
        copies,
    )
    assert "optimizer" not in on_device
    assert on_device["gradients"] < copies
    fused = config.model_copy(update={"memory": config.memory.model_copy(update={"fused_backward": True})})
    assert "gradients" not in host_bytes(fused, networks, cuda, choice)


class SlowCopies(CpuCopies):
    """Gradients that take a while to arrive on the host; counts those that wait on the device."""

    def __init__(self) -> None:
        self.waiting: list[weakref.ref[Tensor]] = []
        self.most = 0

    def start_back(self, target: Tensor, source: Tensor) -> None:
        super().start_back(target, source)
        self.waiting.append(weakref.ref(source))
        self.most = max(self.most, sum(each() is not None for each in self.waiting))

    def arrive(self, copy: None) -> None:
        time.sleep(0.002)


def trained_chain(count: int) -> tuple[Chain, list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(1)
    chain = Chain(count).requires_grad_(True)
    return chain, list(chain.parameters()), torch.optim.AdamW(chain.parameters(), lr=0.1, fused=True)


def most_gradients(chain: nn.Module, backward: Callable[[], None]) -> int:
    """The largest number of weights that have a gradient while another is made."""
    most, weights = [0], list(chain.parameters())

    def count(_: Tensor) -> None:
        most.append(sum(weight.grad is not None for weight in weights))

    hooks = [weight.register_hook(count) for weight in weights]
    backward()
    for hook in hooks:
        hook.remove()
    assert len(most) == len(weights) + 1
    return max(most)


@pytest.mark.parametrize("is_fused", [False, True], ids=["host", "host, fused"])
def test_few_gradients_exist_at_a_time(is_fused: bool) -> None:
    x = torch.randn(2, 3)
    plain, weights, _ = trained_chain(5)
    assert most_gradients(plain, lambda: plain(x).sum().backward()) == len(weights) - 1
    fused, weights, optimizer = trained_chain(5)
    on_device = FusedGradients(weights, optimizer)
    assert most_gradients(fused, lambda: on_device.backward(fused(x).sum(), is_last=True)) == 0
    hosted, weights, _ = trained_chain(5)
    copies = {str(i): nn.Parameter(weight.detach().clone()) for i, weight in enumerate(weights)}
    slow = SlowCopies()
    setup = HostSetup(slow, Ranks(), None, is_fused)
    host = HostGradients(
        dict(zip(copies, weights, strict=True)), copies, torch.optim.AdamW(copies.values(), fused=True), setup
    )
    assert most_gradients(hosted, lambda: host.backward(hosted(x).sum(), is_last=True)) == 0
    host.finish(None)
    host.apply()
    host.close()
    assert 1 < slow.most <= RING_SIZE


class TracedCopies(LateCopies):
    """Records gradients that leave, in addition to blocks that arrive."""

    def start_back(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        self.trace.append("gradient")
        return target, source

    def arrive(self, copy: tuple[Tensor, Tensor]) -> None:
        self.wait(copy)


@pytest.mark.parametrize("is_fused", [False, True], ids=["host", "fused"])
def test_trained_blocks_are_streamed_and_their_gradients_leave_before_the_next_block_computes(
    is_fused: bool,
) -> None:
    resident, _, optimizer = trained_chain(4)
    streamed, _, _ = trained_chain(4)
    copies = TracedCopies()
    streamer = BlockStreamer(list(streamed.blocks), CPU, copies)
    streamer.streams_trained = True
    streamer.adopt()
    for i, block in enumerate(streamed.blocks):
        copies.names[next(block.parameters()).data_ptr()] = str(i)
        block.register_forward_pre_hook(lambda *_, i=i: copies.trace.append(f"run {i}"))
    kept = {name: nn.Parameter(weight.detach().clone()) for name, weight in streamed.named_parameters()}
    hosted = torch.optim.AdamW(kept.values(), lr=0.1, fused=True)
    setup = HostSetup(copies, Ranks(), streamer, is_fused)
    host = HostGradients(dict(streamed.named_parameters()), kept, hosted, setup)
    sizes = [
        sum(-(-weight.nbytes // 256) * 256 for weight in block.parameters()) for block in streamed.blocks
    ]
    for step in range(3):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        ours, theirs = streamed(x), resident(x)
        assert torch.equal(ours, theirs)
        copies.trace.clear()
        host.backward(ours.square().sum(), is_last=True)
        ours_norm = host.finish(None)
        host.apply()
        theirs.square().sum().backward()
        assert torch.equal(
            ours_norm, nn.utils.get_total_norm([w.grad for w in resident.parameters() if w.grad is not None])
        )
        optimizer.step()
        optimizer.zero_grad()
        for mine, other in zip(streamed.parameters(), resident.parameters(), strict=True):
            assert torch.equal(mine, other)
        runs = [i for i, event in enumerate(copies.trace) if event.startswith("run")]
        assert [copies.trace[i] for i in runs] == ["run 3", "run 2", "run 1", "run 0"]
        assert [event for event in copies.trace if event.startswith("copy ")][:2] == ["copy 1", "copy 0"]
        between = [copies.trace[a:b].count("gradient") for a, b in pairwise([*runs, len(copies.trace)])]
        assert between == [
            4,
            4,
            4,
            5,
        ]  # two linear layers each; the last one with the weight before all blocks
        assert copies.trace.index("copy 1") < copies.trace.index("run 2")
        assert streamer.device_bytes == 2 * max(sizes)
        assert streamer.host_bytes == sum(sizes)
    host.close()


@pytest.mark.parametrize("method", ["full", "rotation"])
def test_a_run_in_bf16_resumes_from_the_exact_copies_on_the_host(
    method: str, make_run: Callable[..., RunDir]
) -> None:
    """Device weights in bf16 keep too few digits: updates would be lost in them."""
    sections: dict[str, Any] = {
        "training": ROTATION if method == "rotation" else {},
        "parallel": {"device": "cpu", "num_threads": 1, "dtype": "bf16"},
        "ema": {"decay": 0.9},
        "limits": {"max_steps": 5},
        **HOST,
        **BOTH,
    }
    whole = make_run("whole", **sections)
    run_engine(whole)
    parts = make_run("parts", **sections)
    stop_after(parts, 1)
    stop_after(parts, 3)
    run_engine(parts)
    assert_equal(results(parts), results(whole))
    latest = whole.latest_checkpoint()
    assert latest is not None
    exact = load_file(latest / "state" / "weights.safetensors")
    rounded = load_file(latest / "model.safetensors")
    assert len(exact) > 10
    assert all(tensor.dtype is torch.float32 for tensor in exact.values())
    assert all(torch.equal(rounded[name], tensor.bfloat16()) for name, tensor in exact.items())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in exact.values())


@pytest.mark.parametrize("method", ["full", "rotation", "lora"])
def test_a_run_changes_to_the_host_and_back_at_each_resume(
    method: str, make_run: Callable[..., RunDir]
) -> None:
    sections: dict[str, Any] = {"ema": {"decay": 0.9}, "limits": {"max_steps": 6}}
    sections |= {"training": ROTATION} if method == "rotation" else {}
    sections |= {"lora": LORA} if method == "lora" else {}
    whole = make_run("whole", **sections, memory={"checkpointed_blocks": "all"})
    run_engine(whole)
    parts = make_run("parts", **sections, memory={"checkpointed_blocks": "all"})
    stop_after(parts, 1)
    to_host = {"optimizer.device": "cpu", "memory.streamed_blocks": "all", "memory.fused_backward": "true"}
    change_by_flags(parts, list(to_host.items()))
    stop_after(parts, 3)
    back = {"optimizer.device": "auto", "memory.streamed_blocks": "0", "memory.fused_backward": "false"}
    change_by_flags(parts, list(back.items()))
    run_engine(parts)
    assert losses(parts) == losses(whole)
    assert_equal(results(parts), results(whole))


@pytest.mark.slow
def test_two_ranks_make_the_same_updates_on_their_hosts(make_run: Callable[..., RunDir]) -> None:
    found = []
    for name, change in (("device", {}), ("host", HOST)):
        optimizer = {"max_grad_norm": 0.5} | change.get("optimizer", {})
        run_dir = make_run(
            name, optimizer=optimizer, training={"train_minibatch": 1}, limits={"max_steps": 2}
        )
        assert run_ranks(run_dir, 2) == 0
        found.append(results(run_dir))
    assert_equal(*found)
