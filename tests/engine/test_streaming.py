"""Streamed blocks: the same losses and weights, bit for bit, and copies that overlap with computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.estimate.advise import advise
from flowloom.engine.estimate.memory_plan import Machine, plan_memory
from flowloom.engine.estimate.networks import Networks
from flowloom.engine.memory import HEADROOM, streamed_blocks
from flowloom.engine.offload.copies import CpuCopies, copies_to
from flowloom.engine.offload.streaming import BlockStreamer, stream_blocks
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.preview import SamplingParams
from flowloom.engine.sample import SampleRequest, sample
from flowloom.errors import ConfigError
from flowloom.models.adapters.adapter import attach
from flowloom.models.families.flux1 import FAMILY as FLUX1
from flowloom.nn.recompute import Recompute
from flowloom.run.directory import RunDir
from tests.engine.test_resume import change_by_flags, losses, stop_after
from tests.engine.test_run import events
from tests.fakes.tiny_pipelines import make_flux1_transformer

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 2}
ROTATION = {
    "change_layer_every": 2,
    "trained_double_blocks": 1,
    "trained_single_blocks": 1,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA},
    "lora, 8 bits": {"lora": LORA | {"base_model_quant_level": "8bit"}},
    "lora, int8 products": {
        "lora": LORA | {"base_model_quant_level": "8bit"},
        "method": {"base_products": "int8"},
    },
    "lora, 4 bits": {"lora": LORA | {"base_model_quant_level": "4bit"}},
    "dora": {"lora": LORA, "method": {"kind": "dora"}},
    "lokr": {"lora": LORA, "method": {"kind": "lokr"}},
    "rotation": {"training": ROTATION, "method": {"rotation_states": "keep"}},
    "keywords": {"training": {"trained_layer_keywords": ["double_blocks.0.img_attn", "single_blocks.1"]}},
    "full": {},
}
HOST: dict[str, dict[str, Any]] = {"optimizer": {"device": "cpu"}}
FUSED: dict[str, dict[str, Any]] = {"memory": {"fused_backward": True}}
STREAMED: dict[str, dict[str, Any]] = {"memory": {"streamed_blocks": "all"}}
PARTLY: dict[str, dict[str, Any]] = {"memory": {"streamed_blocks": 2}}
BOTH: dict[str, dict[str, Any]] = {"memory": {"streamed_blocks": "all", "fused_backward": True}}
OFFLOADS: dict[str, list[dict[str, dict[str, Any]]]] = {
    "lora": [STREAMED, PARTLY, FUSED, BOTH | HOST],
    "rotation": [STREAMED, PARTLY, FUSED, STREAMED | HOST],
    "keywords": [STREAMED, BOTH | HOST],
    "full": [FUSED, HOST, FUSED | HOST, PARTLY | HOST, BOTH | HOST],
}
"""Ways to train with less memory, of which each gives the same run; other methods are only streamed."""


def with_everything(sections: dict[str, Any]) -> dict[str, Any]:
    """A run with an average, validation and previews of it, each after two steps."""
    preview = {
        "inference_every": 2,
        "steps": 2,
        "prompts": ["red"],
        "image_dim": [64, 48],
        "cfg": 2.0,
        "first_n_steps_wo_cfg": 1,
    }
    return sections | {
        "training": {"save_every": 2, **sections.get("training", {})},
        "ema": {"decay": 0.9},
        "validation": {"share": 0.2, "every": 2},
        "inference": preview,
        "limits": {"max_steps": 5},
        "checkpoint": {"keep_last": 9},
    }


def results(run_dir: RunDir) -> tuple[list[Any], dict[str, Tensor], list[bytes]]:
    """Losses of training and validation, the last checkpoint's tensors, and the generated images."""
    losses = [event["loss"] for kind in ("step", "validated") for event in events(run_dir, kind)]
    latest = run_dir.latest_checkpoint()
    assert latest is not None
    tensors = {
        f"{path.name} {name}": tensor
        for path in sorted(latest.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    images = [path.read_bytes() for path in sorted((run_dir.path / "samples").rglob("*.png"))]
    return losses, tensors, images


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    different = [name for name, tensor in ours[1].items() if not torch.equal(tensor, theirs[1][name])]
    assert not different
    assert ours[2] == theirs[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_less_memory_equals_a_resident_one_bit_for_bit(
    method: str, make_run: Callable[..., RunDir]
) -> None:
    sections = with_everything(METHODS[method])
    found = []
    for i, change in enumerate(
        [{"memory": {"checkpointed_blocks": "all"}}, *OFFLOADS.get(method, [STREAMED])]
    ):
        run_dir = make_run(str(i), **sections, **change)
        run_engine(run_dir)
        found.append(results(run_dir))
    assert len(found[0][0]) > 5
    assert len(found[0][2]) >= 2
    for other in found[1:]:
        assert_equal(other, found[0])


@pytest.mark.parametrize("method", ["lora", "rotation"])
def test_a_run_resumes_with_streamed_blocks(method: str, make_run: Callable[..., RunDir]) -> None:
    sections = with_everything(METHODS[method])
    whole = make_run("whole", **sections, memory={"checkpointed_blocks": "all"})
    run_engine(whole)
    parts = make_run("parts", **sections, memory={"checkpointed_blocks": "all"})
    stop_after(parts, 3)
    change_by_flags(parts, [("memory.streamed_blocks", "all")])
    run_engine(parts)
    assert losses(parts) == losses(whole)
    assert_equal(results(parts), results(whole))


def test_samples_of_a_streamed_run_equal_those_of_a_resident_one(
    make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    run_dir = make_run(lora=LORA, limits={"max_steps": 2})
    run_engine(run_dir)
    found = []
    for count in (0, 3):
        given = run_dir.read_config().model_dump() | {"memory": {"streamed_blocks": count}}
        config = RunConfig.model_validate(given)
        params = SamplingParams(64, 48, 2, 2.0, 0.0, 0, "euler")
        request = SampleRequest(run_dir.path, ["red", "blue"], tmp_path / str(count), params, config)
        found.append([path.read_bytes() for path in sample(request)])
    assert found[0] == found[1]


class LateCopies(CpuCopies):
    """Copies that arrive when they are waited for: computation that does not wait finds NaN."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.names: dict[int, str] = {}

    def start(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        target.fill_(0xFF)
        self.trace.append(f"copy {self.names.get(source.data_ptr())}")
        return target, source

    def wait(self, copy: tuple[Tensor, Tensor]) -> None:
        target, source = copy
        target.copy_(source)


class Chain(nn.Module):
    """Blocks that recompute, with a trained weight before them."""

    def __init__(self, count: int):
        super().__init__()
        self.first = nn.Parameter(torch.ones(3))
        sizes = (8, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(3, sizes[i % 2]), nn.Linear(sizes[i % 2], 3)) for i in range(count)
        )
        self.blocks.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.first
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)
        return x


def streamed_chain(count: int) -> tuple[Chain, Chain, BlockStreamer, LateCopies]:
    """A resident chain, its streamed copy, its streamer, and the copies with the trace of what happens."""
    torch.manual_seed(1)
    resident, streamed, copies = Chain(count), Chain(count), LateCopies()
    streamed.load_state_dict(resident.state_dict())
    streamer = BlockStreamer(list(streamed.blocks), CPU, copies)
    streamer.adopt()
    for i, block in enumerate(streamed.blocks):
        copies.names[next(block.parameters()).data_ptr()] = str(i)
        block.register_forward_pre_hook(lambda *_, i=i: copies.trace.append(f"run {i}"))
    return resident, streamed, streamer, copies


def test_the_next_block_is_copied_while_a_block_computes() -> None:
    resident, streamed, _, copies = streamed_chain(4)
    x = torch.randn(2, 3)
    traces = []
    for _ in range(2):
        ours, theirs = streamed(x), resident(x)
        assert torch.equal(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
        traces.append(", ".join(copies.trace))
        copies.trace.clear()
    assert streamed.first.grad is not None
    assert resident.first.grad is not None
    assert torch.equal(streamed.first.grad, resident.first.grad)
    forward = "copy 2, run 1, copy 3, run 2, run 3"
    backward = "run 3, copy 1, run 2, copy 0, run 1, run 0"
    assert traces == [f"copy 0, copy 1, run 0, {forward}, {backward}", f"run 0, {forward}, {backward}"]
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(streamed(x), resident(x))
    once = "run 0, copy 2, run 1, copy 3, run 2, copy 0, run 3"
    assert ", ".join(copies.trace) == f"{once}, copy 1, {once}"


def test_the_device_holds_two_blocks_and_the_host_every_block_once() -> None:
    resident, streamed, streamer, _ = streamed_chain(5)
    sizes = [
        sum(-(-weight.nbytes // 256) * 256 for weight in block.parameters()) for block in resident.blocks
    ]
    assert streamer.device_bytes == 2 * max(sizes)
    assert streamer.host_bytes == sum(sizes)
    streamed(torch.randn(1, 3))
    streamer.adopt()
    assert streamer.host_bytes == sum(sizes)
    for ours, theirs in zip(streamed.parameters(), resident.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_weight_that_is_trained_leaves_the_stream_and_returns_with_its_new_value() -> None:
    _, streamed, streamer, _ = streamed_chain(3)
    weight, before = streamed.blocks[1][0].weight, streamer.host_bytes  # pyright: ignore[reportIndexIssue]
    streamed(torch.randn(1, 3))
    weight.requires_grad_(True)
    streamer.adopt()
    assert streamer.host_bytes < before
    weight.data.fill_(2.0)
    streamer.release()
    weight.requires_grad_(False)
    streamer.adopt()
    assert streamer.host_bytes == before
    streamed(torch.randn(1, 3))
    assert (weight == 2.0).all()


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, [0]), (3, [0, 3, 6]), (9, list(range(9))), ("all", list(range(9))), (99, list(range(9)))],
)
def test_streamed_blocks_are_spread_evenly(count: Any, chosen: list[int]) -> None:
    assert streamed_blocks(count, list(range(9))) == chosen


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"memory": {"streamed_blocks": 1}},
            r"memory.streamed_blocks: streams trained weights with method full: set optimizer.device to cpu",
        ),
        (
            FUSED | {"optimizer": {"max_grad_norm": 1.0}},
            r"memory.fused_backward: cannot be combined with optimizer.max_grad_norm",
        ),
        (
            FUSED | {"training": {"train_minibatch": 3}},
            r"up to 4 samples: set training.train_minibatch to 4",
        ),
        (FUSED | {"batching": {"pack_aspect_ratios": True}}, "batching.pack_aspect_ratios"),
        (FUSED | {"batching": {"batch_tokens": 1000}}, "batching.batch_tokens"),
    ],
)
def test_settings_that_exclude_each_other_are_rejected_with_their_key(
    sections: dict[str, Any], message: str, make_config: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**sections)


def test_fused_backward_accepts_updates_that_are_one_micro_batch(
    make_config: Callable[..., RunConfig],
) -> None:
    training = {"train_minibatch": 2, "updates_per_large_batch": 2}
    assert make_config(**FUSED, training=training).memory.fused_backward


def test_devices_and_ranks_that_exclude_an_offload_are_rejected_before_anything_is_loaded(
    make_config: Callable[..., RunConfig],
) -> None:
    for key in ("memory.streamed_blocks", "optimizer.device"):
        with pytest.raises(ConfigError, match=f"{key}: saves nothing on MPS"):
            copies_to(torch.device("mps"), key)
    config = make_config(**FUSED, model={"chroma_path": "none.safetensors"})
    with pytest.raises(ConfigError, match=r"memory.fused_backward: cannot be used with 2 ranks"):
        build(config, Ranks(0, 2))


def test_flux1_is_streamed_with_equal_predictions_and_gradients() -> None:
    def network() -> nn.Module:
        model = make_flux1_transformer(is_dev=True).requires_grad_(False)
        attach(model, "lora", 2, 2, ["attn"])
        return model

    draw = torch.Generator().manual_seed(3)
    texts = [{"states": torch.randn(5, 128, generator=draw), "pooled": torch.randn(32, generator=draw)}]
    x, level = torch.randn(1, 6, 64, generator=draw), torch.tensor([0.4])
    found = []
    for is_streamed in (False, True):
        torch.manual_seed(2)
        model = network()
        FLUX1.recompute(model, Recompute(3))
        if is_streamed:
            stream_blocks(model, [block for _, block in FLUX1.blocks(model)], CPU).adopt()
        velocity = FLUX1.predict(model, x, level, texts, (4, 6))
        velocity.square().sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append([velocity.detach(), *gradients])
    assert len(found[0]) > 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_the_estimate_counts_streamed_weights_on_the_host_and_their_buffers_on_the_device(
    make_config: Callable[..., RunConfig],
) -> None:
    config = make_config(lora=LORA, memory={"streamed_blocks": "all"})
    networks, cuda = Networks.from_config(config), torch.device("cuda")
    machine = Machine(cuda, 10**12)
    parts = plan_memory(config, networks, machine).parts
    resident = plan_memory(make_config(lora=LORA), networks, machine).parts
    assert parts["streaming buffers"] == 2 * 2 * max(networks.block_sizes)
    assert resident["frozen weights"] - parts["frozen weights"] == 2 * sum(networks.block_sizes)
    assert "streaming buffers" not in resident


def test_streaming_is_suggested_before_fewer_bits_or_another_method(
    make_config: Callable[..., RunConfig],
) -> None:
    config = make_config(
        training=ROTATION,
        optimizer={"kind": "adamw8bit"},
        dataloader={"batch_size": 1},
        memory={"streamed_blocks": 0},
    )
    networks, cuda = Networks.from_config(config), torch.device("cuda")
    streamed = make_config(
        training=ROTATION | {"train_minibatch": 1},
        optimizer={"kind": "adamw8bit"},
        memory={"streamed_blocks": "all", "checkpointed_blocks": "all"},
        cache={"latents": "disk", "text": "disk"},
    )
    capacity = int(plan_memory(streamed, networks, Machine(cuda, 0)).total / HEADROOM) + 1
    changes, is_enough = advise(config, networks, Machine(cuda, capacity))
    assert is_enough
    assert changes[-1].path == "memory.streamed_blocks"
